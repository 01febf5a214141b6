"""The rules of Discord's protocol that the fake obeys, as data: codes, permissions, intents, keys.

Guarantee: a gateway payload that lacks a key which discord.py needs never leaves the fake
(`check_event`); a missing one would kill the bot's task without a word.

Not here: anything that changes (`state`), anything that answers (`routes`, `gateway`).

Source: https://docs.discord.com/developers/topics/opcodes-and-status-codes, and what discord.py 2.7
was seen to need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ckworkflow.errors import CkWorkflowError

if TYPE_CHECKING:
    from collections.abc import Mapping

Payload = dict[str, Any]

DISCORD_EPOCH_MS: Final = 1_420_070_400_000
NONCE_SECONDS: Final = 300.0
"""How long a nonce is remembered; Discord says "the past few minutes"."""
INTERACTION_TOKEN_SECONDS: Final = 900.0

TEXT_CHANNEL: Final = 0
DM_CHANNEL: Final = 1
CHANNEL_TYPES: Final[Mapping[str, int]] = {
    "text": 0,
    "voice": 2,
    "category": 4,
    "announcement": 5,
    "thread": 11,
    "private_thread": 12,
    "stage": 13,
    "forum": 15,
}
THREAD_TYPES: Final = frozenset({10, 11, 12})

EPHEMERAL: Final = 1 << 6
LOADING: Final = 1 << 7

ERRORS: Final[Mapping[int, tuple[int, str]]] = {
    0: (404, "404: Not Found"),
    10003: (404, "Unknown Channel"),
    10004: (404, "Unknown Guild"),
    10007: (404, "Unknown Member"),
    10008: (404, "Unknown Message"),
    10011: (404, "Unknown Role"),
    10013: (404, "Unknown User"),
    10014: (404, "Unknown Emoji"),
    10015: (404, "Unknown Webhook"),
    10026: (404, "Unknown Ban"),
    10062: (404, "Unknown interaction"),
    10063: (404, "Unknown application command"),
    20009: (400, "Explicit content cannot be sent to the desired recipient(s)"),
    20016: (429, "This action cannot be performed due to slowmode rate limit"),
    20022: (429, "This message cannot be edited due to announcement rate limits"),
    20028: (429, "The channel you are writing has hit the write rate limit"),
    20029: (429, "The write action you are performing on the server has hit the write rate limit"),
    30013: (400, "Maximum number of guild channels reached (500)"),
    30034: (400, "Maximum number of daily application command creates has been reached (200)"),
    30046: (429, "Maximum number of edits to messages older than 1 hour reached. Try again later"),
    40001: (401, "Unauthorized"),
    40003: (429, "You are opening direct messages too fast"),
    40004: (403, "Send messages has been temporarily disabled"),
    40005: (413, "Request entity too large. Try sending something smaller in size"),
    40007: (403, "The user is banned from this guild"),
    40060: (400, "Interaction has already been acknowledged"),
    40062: (429, "Service resource is being rate limited"),
    40094: (400, "This interaction has reached the follow-up message limit"),
    40333: (403, "internal network error"),
    50001: (403, "Missing Access"),
    50006: (400, "Cannot send an empty message"),
    50007: (403, "Cannot send messages to this user"),
    50008: (400, "Cannot send messages in a non-text channel"),
    50009: (403, "Channel verification level is too high for you to gain access"),
    50013: (403, "Missing Permissions"),
    50014: (401, "Invalid authentication token provided"),
    50024: (400, "Cannot execute action on this channel type"),
    50027: (401, "Invalid Webhook Token"),
    50028: (403, "Invalid role"),
    50033: (400, "Invalid Recipient(s)"),
    50035: (400, "Invalid Form Body"),
    50045: (400, "File uploaded exceeds the maximum size"),
    50083: (400, "Thread is archived"),
    50109: (400, "The request body contains invalid JSON"),
    50278: (403, "Cannot send messages to this user due to having no mutual guilds"),
    110000: (503, "Server failed to respond"),
    130000: (503, "API resource is currently overloaded. Try again a little later"),
    160002: (403, "Cannot reply without permission to read message history"),
    200000: (400, "Message was blocked by automatic moderation"),
    240000: (400, "Message blocked by harmful links filter"),
    500000: (400, "Failed to ban users"),
}

PERMISSIONS: Final[Mapping[str, int]] = {
    "kick_members": 1 << 1,
    "ban_members": 1 << 2,
    "administrator": 1 << 3,
    "manage_channels": 1 << 4,
    "manage_guild": 1 << 5,
    "add_reactions": 1 << 6,
    "view_channel": 1 << 10,
    "send_messages": 1 << 11,
    "manage_messages": 1 << 13,
    "embed_links": 1 << 14,
    "attach_files": 1 << 15,
    "read_message_history": 1 << 16,
    "manage_nicknames": 1 << 27,
    "manage_roles": 1 << 28,
    "manage_webhooks": 1 << 29,
    "manage_threads": 1 << 34,
    "create_public_threads": 1 << 35,
    "send_messages_in_threads": 1 << 38,
    "moderate_members": 1 << 40,
}
ALL_PERMISSIONS: Final = (1 << 50) - 1
EVERYONE_PERMISSIONS: Final = (
    PERMISSIONS["view_channel"]
    | PERMISSIONS["send_messages"]
    | PERMISSIONS["read_message_history"]
    | PERMISSIONS["add_reactions"]
    | PERMISSIONS["embed_links"]
    | PERMISSIONS["attach_files"]
    | PERMISSIONS["create_public_threads"]
    | PERMISSIONS["send_messages_in_threads"]
)

GUILDS, GUILD_MEMBERS, GUILD_MODERATION = 1 << 0, 1 << 1, 1 << 2
GUILD_MESSAGES, GUILD_MESSAGE_REACTIONS = 1 << 9, 1 << 10
DIRECT_MESSAGES, DIRECT_MESSAGE_REACTIONS, MESSAGE_CONTENT = 1 << 12, 1 << 13, 1 << 15

_MESSAGE = (GUILD_MESSAGES, DIRECT_MESSAGES)
_REACTION = (GUILD_MESSAGE_REACTIONS, DIRECT_MESSAGE_REACTIONS)
_USER = ("id", "username", "discriminator", "avatar")

INTENTS: Final[Mapping[str, tuple[int, int]]] = {
    "GUILD_CREATE": (GUILDS, 0),
    "GUILD_UPDATE": (GUILDS, 0),
    "GUILD_DELETE": (GUILDS, 0),
    "GUILD_ROLE_CREATE": (GUILDS, 0),
    "GUILD_ROLE_UPDATE": (GUILDS, 0),
    "GUILD_ROLE_DELETE": (GUILDS, 0),
    "CHANNEL_CREATE": (GUILDS, 0),
    "CHANNEL_UPDATE": (GUILDS, 0),
    "CHANNEL_DELETE": (GUILDS, 0),
    "THREAD_CREATE": (GUILDS, 0),
    "GUILD_MEMBER_ADD": (GUILD_MEMBERS, 0),
    "GUILD_MEMBER_UPDATE": (GUILD_MEMBERS, 0),
    "GUILD_MEMBER_REMOVE": (GUILD_MEMBERS, 0),
    "GUILD_BAN_ADD": (GUILD_MODERATION, 0),
    "GUILD_BAN_REMOVE": (GUILD_MODERATION, 0),
    "MESSAGE_CREATE": _MESSAGE,
    "MESSAGE_UPDATE": _MESSAGE,
    "MESSAGE_DELETE": _MESSAGE,
    "MESSAGE_DELETE_BULK": _MESSAGE,
    "MESSAGE_REACTION_ADD": _REACTION,
    "MESSAGE_REACTION_REMOVE": _REACTION,
}
"""The intent an event needs in a guild and in a DM; events not named here always arrive."""

_REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {
    "READY": ("user.id", "user.username", "guilds", "session_id", "resume_gateway_url"),
    "GUILD_CREATE": ("id", "name", "roles", "channels", "members", "member_count"),
    "GUILD_UPDATE": ("id", "name", "roles"),
    "GUILD_DELETE": ("id",),
    "GUILD_ROLE_CREATE": ("guild_id", "role.id", "role.name"),
    "GUILD_ROLE_UPDATE": ("guild_id", "role.id", "role.name"),
    "GUILD_ROLE_DELETE": ("guild_id", "role_id"),
    "CHANNEL_CREATE": ("id", "guild_id", "type", "name", "position"),
    "CHANNEL_UPDATE": ("id", "guild_id", "type", "name", "position"),
    "CHANNEL_DELETE": ("id", "guild_id", "type"),
    "THREAD_CREATE": ("id", "guild_id", "parent_id", "owner_id", "name", "thread_metadata.archived"),
    "GUILD_MEMBER_ADD": ("guild_id", "roles", "flags", *(f"user.{key}" for key in _USER)),
    "GUILD_MEMBER_UPDATE": ("guild_id", "roles", "flags", *(f"user.{key}" for key in _USER)),
    "GUILD_MEMBER_REMOVE": ("guild_id", *(f"user.{key}" for key in _USER)),
    "GUILD_MEMBERS_CHUNK": ("guild_id", "members", "chunk_index", "chunk_count"),
    "GUILD_BAN_ADD": ("guild_id", *(f"user.{key}" for key in _USER)),
    "GUILD_BAN_REMOVE": ("guild_id", *(f"user.{key}" for key in _USER)),
    "MESSAGE_CREATE": ("id", "channel_id", "content", "type", *(f"author.{key}" for key in _USER)),
    "MESSAGE_UPDATE": ("id", "channel_id", "content", "type", *(f"author.{key}" for key in _USER)),
    "MESSAGE_DELETE": ("id", "channel_id"),
    "MESSAGE_DELETE_BULK": ("ids", "channel_id"),
    "MESSAGE_REACTION_ADD": ("user_id", "channel_id", "message_id", "emoji.name", "type", "burst"),
    "MESSAGE_REACTION_REMOVE": ("user_id", "channel_id", "message_id", "emoji.name", "type", "burst"),
    "INTERACTION_CREATE": (
        "id",
        "application_id",
        "type",
        "token",
        "version",
        "attachment_size_limit",
        "data",
        "channel.id",
        "channel.type",
    ),
}


class FakeDiscordError(CkWorkflowError):
    """The fake was asked for something that cannot be, or would have sent what no Discord sends."""


class ApiError(Exception):
    """An answer of the REST API that is not a success."""

    def __init__(
        self,
        code: int,
        message: str | None = None,
        *,
        status: int | None = None,
        errors: Payload | None = None,
    ) -> None:
        known_status, known_message = ERRORS.get(code, (400, f"Error {code}"))
        self.code = code
        self.status = known_status if status is None else status
        self.message = known_message if message is None else message
        self.errors = errors
        super().__init__(f"{self.status} ({code}): {self.message}")

    def body(self) -> Payload:
        """The JSON body that Discord would send."""
        body: Payload = {"message": self.message, "code": self.code}
        if self.errors is not None:
            body["errors"] = self.errors
        return body


def invalid_form(field: str, code: str, message: str) -> ApiError:
    """Error 50035 about one field, in Discord's nested form."""
    errors: Payload = {"_errors": [{"code": code, "message": message}]}
    for key in reversed(field.split(".")):
        errors = {key: errors}
    return ApiError(50035, errors=errors)


def check_event(event: str, data: Payload) -> None:
    """Refuse a gateway payload that would kill the bot which reads it.

    Raises:
        FakeDiscordError: A key is missing, or an interaction has neither `user` nor `member`.
    """
    missing = [path for path in _REQUIRED.get(event, ()) if not _has(data, path)]
    if event == "INTERACTION_CREATE":
        if not _has(data, "user.id") and not (_has(data, "guild_id") and _has(data, "member.user.id")):
            missing.append("user, or guild_id and member")
        if data.get("type") == 3 and not _has(data, "message.components"):
            missing.append("message.components")
    if missing:
        raise FakeDiscordError(
            f"A {event} without {', '.join(missing)} would kill the bot that reads it. This is a bug of "
            f"FakeDiscord."
        )


def _has(data: object, path: str) -> bool:
    for key in path.split("."):
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True


def permission_bits(names: object) -> int:
    """Bits of permissions given as an integer or as discord.py's names of them.

    Raises:
        FakeDiscordError: A name that the fake does not know.
    """
    if isinstance(names, int):
        return names
    if isinstance(names, str):
        names = [names]
    bits = 0
    for name in names if isinstance(names, (list, tuple, set, frozenset)) else ():
        if name not in PERMISSIONS:
            raise FakeDiscordError(f"No permission is named {name!r}. Known: {', '.join(PERMISSIONS)}.")
        bits |= PERMISSIONS[name]
    return bits
