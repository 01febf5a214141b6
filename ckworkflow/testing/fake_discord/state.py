"""The world that the fake keeps: users, guilds, members, roles, channels, messages, interactions.

A world lives in one thread and changes only through its methods and the routes; whatever bots should
hear of goes out through `emit`, and each change raises `version`, on which `wait_for` waits.

Not here: JSON (`payloads`), who may do what (`permissions`), HTTP (`api`), sockets (`gateway`).
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol, TypeVar

from .wire import (
    ALL_PERMISSIONS,
    DISCORD_EPOCH_MS,
    DM_CHANNEL,
    EVERYONE_PERMISSIONS,
    TEXT_CHANNEL,
    ApiError,
    FakeDiscordError,
    Payload,
)

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(slots=True)
class User:
    """A person or a bot."""

    id: int
    name: str
    bot: bool = False
    global_name: str | None = None
    accepts_dms: bool = True


@dataclass(slots=True)
class Role:
    """A role; that of everyone has the id of its guild."""

    id: int
    name: str
    permissions: int = 0
    position: int = 0
    color: int = 0
    hoist: bool = False
    mentionable: bool = False
    managed: bool = False


@dataclass(slots=True)
class Member:
    """A user in a guild. `roles` leaves everyone's role out, as Discord does."""

    user_id: int
    joined_at: str
    roles: list[int] = field(default_factory=list)
    nick: str | None = None
    timed_out_until: str | None = None
    pending: bool = False


@dataclass(slots=True)
class Channel:
    """A channel, a thread (with `thread`), or a DM (with `recipient_id`)."""

    id: int
    type: int
    name: str | None = None
    guild_id: int | None = None
    recipient_id: int | None = None
    parent_id: int | None = None
    owner_id: int | None = None
    position: int = 0
    topic: str | None = None
    slowmode: int = 0
    overwrites: dict[int, Payload] = field(default_factory=dict)
    thread: Payload | None = None
    extra: Payload = field(default_factory=dict)


@dataclass(slots=True)
class Message:
    """A message. `raw` holds what a sender decides (embeds, components, flags, …) as it was sent."""

    id: int
    channel_id: int
    author_id: int
    content: str
    at: float
    type: int = 0
    edited_at: float | None = None
    nonce: str | None = None
    pinned: bool = False
    embeds: list[Payload] = field(default_factory=list)
    components: list[Payload] = field(default_factory=list)
    attachments: list[Payload] = field(default_factory=list)
    flags: int = 0
    tts: bool = False
    reference: Payload | None = None
    allowed_mentions: Payload | None = None
    interaction_id: int | None = None
    reactions: dict[str, list[int]] = field(default_factory=dict)
    ephemeral_for: int | None = None


@dataclass(slots=True)
class Interaction:
    """A command, click or modal on its way to the bot, and what the bot has answered."""

    id: int
    token: str
    type: int
    user_id: int
    channel_id: int
    guild_id: int | None
    data: Payload
    at: float
    message_id: int | None = None
    answered_with: int | None = None
    answered_at: float | None = None
    original_id: int | None = None
    message_ids: list[int] = field(default_factory=list)
    modal: Payload | None = None
    choices: list[Payload] | None = None


@dataclass(slots=True)
class Guild:
    """A guild with all that belongs to it but its channels."""

    id: int
    name: str
    owner_id: int
    roles: dict[int, Role] = field(default_factory=dict)
    members: dict[int, Member] = field(default_factory=dict)
    bans: dict[int, str | None] = field(default_factory=dict)
    system_channel_id: int | None = None


class Emit(Protocol):
    """What carries an event to the bots that should hear of it."""

    def __call__(
        self, event: str, data: Payload, *, guild_id: int | None = None, private: bool = False
    ) -> int: ...


def _nobody(
    event: str,
    data: Payload,
    *,
    guild_id: int | None = None,
    private: bool = False,
) -> int:
    return 0


def iso(at: float) -> str:
    """A time as Discord writes it."""
    return datetime.fromtimestamp(at, UTC).isoformat()


class World:
    """Everything that the fake knows, seen from one bot application.

    Args:
        now: Where to read the time, in seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.emit: Emit = _nobody
        self.on_change: Callable[[], None] = lambda: None
        self.version = 0
        self.interaction_seconds = 3.0
        self.gateway_url = ""
        self.shards = 1
        self._last_id = 0
        self.users: dict[int, User] = {}
        self.guilds: dict[int, Guild] = {}
        self.channels: dict[int, Channel] = {}
        self.messages: dict[int, dict[int, Message]] = {}
        self.interactions: dict[str, Interaction] = {}
        self.nonces: dict[tuple[int, str], tuple[float, int, int]] = {}
        self.commands: dict[int | None, dict[int, Payload]] = {}
        self.tokens: set[str] = set()
        self.bot = self.add_user("fake-bot", bot=True)
        self.token = self.add_token()

    def changed(self) -> None:
        """Tell whoever waits that something is new."""
        self.version += 1
        self.on_change()

    def new_id(self) -> int:
        """A snowflake of now, greater than every one before."""
        snowflake = (int(self.now() * 1000) - DISCORD_EPOCH_MS) << 22
        self._last_id = max(snowflake, self._last_id + 1)
        return self._last_id

    def add_token(self, token: str | None = None) -> str:
        """Accept a token from now on; one in the form of the real ones is made up."""
        if token is None:
            token = f"{secrets.token_hex(12)}.{secrets.token_hex(3)}.{secrets.token_hex(19)}"
        self.tokens.add(token)
        return token

    # --- users, guilds -------------------------------------------------------------------------

    def add_user(
        self, name: str, *, bot: bool = False, accepts_dms: bool = True, user_id: int | None = None
    ) -> User:
        """A new user, in no guild."""
        user = User(user_id or self.new_id(), name, bot=bot, accepts_dms=accepts_dms)
        self.users[user.id] = user
        self.changed()
        return user

    def add_guild(
        self, name: str, *, owner_id: int | None = None, bot_permissions: int = ALL_PERMISSIONS
    ) -> Guild:
        """A new guild with the bot in it, a role for the bot, and a channel `general`."""
        owner = owner_id or self.add_user(f"{name}-owner").id
        guild = Guild(self.new_id(), name, owner)
        self.guilds[guild.id] = guild
        guild.roles[guild.id] = Role(guild.id, "@everyone", EVERYONE_PERMISSIONS)
        role = self.add_role(guild, self.bot.name, permissions=bot_permissions, managed=True)
        now = iso(self.now())
        guild.members[owner] = Member(owner, now)
        guild.members[self.bot.id] = Member(self.bot.id, now, [role.id])
        guild.system_channel_id = self.add_channel("general", guild=guild).id
        self.changed()
        return guild

    def add_role(
        self,
        guild: Guild,
        name: str,
        *,
        permissions: int = 0,
        position: int | None = None,
        managed: bool = False,
    ) -> Role:
        """A new role just above everyone's, as Discord puts it; a `position` puts it elsewhere."""
        role = Role(self.new_id(), name, permissions, managed=managed)
        taken = 1 if position is None else position
        for other in guild.roles.values():
            if other.position >= taken and other.id != guild.id:
                other.position += 1
        role.position = taken
        guild.roles[role.id] = role
        self.changed()
        return role

    def add_channel(
        self,
        name: str,
        *,
        guild: Guild,
        type: int = TEXT_CHANNEL,
        parent_id: int | None = None,
        topic: str | None = None,
    ) -> Channel:
        """A new channel at the end of the guild's list."""
        position = len([channel for channel in self.channels.values() if channel.guild_id == guild.id])
        channel = Channel(
            self.new_id(), type, name, guild.id, parent_id=parent_id, topic=topic, position=position
        )
        self.channels[channel.id] = channel
        self.messages[channel.id] = {}
        self.changed()
        return channel

    def dm(self, user_id: int) -> Channel:
        """The DM of the bot with a user, opened if need be."""
        for channel in self.channels.values():
            if channel.recipient_id == user_id:
                return channel
        channel = Channel(self.new_id(), DM_CHANNEL, recipient_id=self.require_user(user_id).id)
        self.channels[channel.id] = channel
        self.messages[channel.id] = {}
        self.changed()
        return channel

    # --- look-ups that answer as Discord would --------------------------------------------------

    def require_user(self, user_id: int) -> User:
        """The user, or 10013."""
        return _require(self.users, user_id, 10013)

    def require_guild(self, guild_id: int) -> Guild:
        """The guild if the bot is in it, or 10004."""
        guild = _require(self.guilds, guild_id, 10004)
        if self.bot.id not in guild.members:
            raise ApiError(50001)
        return guild

    def require_member(self, guild: Guild, user_id: int) -> Member:
        """The member, or 10007 (10013 for a user that does not exist)."""
        if user_id not in self.users:
            raise ApiError(10013)
        return _require(guild.members, user_id, 10007)

    def require_role(self, guild: Guild, role_id: int) -> Role:
        """The role, or 10011."""
        return _require(guild.roles, role_id, 10011)

    def require_channel(self, channel_id: int) -> Channel:
        """The channel, or 10003; 50001 if the bot has left its guild."""
        channel = _require(self.channels, channel_id, 10003)
        if channel.guild_id is not None:
            self.require_guild(channel.guild_id)
        return channel

    def require_message(self, channel_id: int, message_id: int) -> Message:
        """The message, or 10008; an ephemeral one is not reached by its channel."""
        message = _require(self.messages.get(channel_id, {}), message_id, 10008)
        if message.ephemeral_for is not None:
            raise ApiError(10008)
        return message

    def find_message(self, message_id: int) -> Message:
        """A message wherever it stands.

        Raises:
            FakeDiscordError: There is none.
        """
        for messages in self.messages.values():
            if message_id in messages:
                return messages[message_id]
        raise FakeDiscordError(f"There is no message {message_id}.")

    def interaction_by_id(self, interaction_id: int) -> Interaction:
        """An interaction.

        Raises:
            FakeDiscordError: There is none.
        """
        for interaction in self.interactions.values():
            if interaction.id == interaction_id:
                return interaction
        raise FakeDiscordError(f"There is no interaction {interaction_id}.")

    def remove_channel(self, channel: Channel) -> None:
        """A channel goes, and its messages and threads with it."""
        for thread in [each for each in self.channels.values() if each.parent_id == channel.id]:
            if thread.thread is not None:
                self.remove_channel(thread)
        self.channels.pop(channel.id, None)
        self.messages.pop(channel.id, None)
        self.changed()


def _require(table: dict[int, T], key: int, code: int) -> T:
    if key not in table:
        raise ApiError(code)
    return table[key]
