"""Routes about messages: sending with the nonce rule, reading, editing, deleting, reacting, pins."""

from __future__ import annotations

import json
import zlib
from urllib.parse import unquote

from ckworkflow.testing.fake_discord import payloads
from ckworkflow.testing.fake_discord.permissions import require
from ckworkflow.testing.fake_discord.routing import Request, Router
from ckworkflow.testing.fake_discord.state import Channel, Message, World, iso
from ckworkflow.testing.fake_discord.wire import (
    DM_CHANNEL,
    NONCE_SECONDS,
    THREAD_TYPES,
    ApiError,
    Payload,
    invalid_form,
)

route = Router()
_LONGEST_CONTENT = 2000
_LONGEST_NONCE = 25
_MOST_EMBEDS = 10
_LONGEST_INDEX = 2


# --- what sending shares with interactions ----------------------------------------------------------


def read_message_body(request: Request) -> tuple[Payload, list[Payload]]:
    """The JSON of a message and its attachments, from JSON or multipart.

    The content of a file is kept as text where it is text, so that a test can look at it.
    """
    body = dict(request.body)
    described = {str(each.get("id")): each for each in body.get("attachments") or []}
    # A new file is described under its index; a long id means an attachment that an edit keeps.
    attachments: list[Payload] = [each for key, each in described.items() if len(key) > _LONGEST_INDEX]
    for name, filename, content in request.files:
        index = name.removeprefix("files[").removesuffix("]")
        attachments.append(
            {
                "id": str(zlib.crc32(f"{name} {filename}".encode()) + 10**9),
                "filename": filename,
                "size": len(content),
                "url": f"https://cdn.discordapp.com/attachments/0/0/{filename}",
                "proxy_url": f"https://media.discordapp.net/attachments/0/0/{filename}",
                "description": described.get(index, {}).get("description"),
                "text": content.decode(errors="replace"),
            }
        )
    return body, attachments


def check_message_body(body: Payload, attachments: list[Payload], *, is_new: bool = True) -> None:
    """Refuse what Discord refuses: too long, too many, or empty."""
    content = body.get("content") or ""
    if len(content) > _LONGEST_CONTENT:
        raise invalid_form("content", "BASE_TYPE_MAX_LENGTH", "Must be 2000 or fewer in length.")
    embeds = body.get("embeds") or []
    if len(embeds) > _MOST_EMBEDS:
        raise invalid_form("embeds", "BASE_TYPE_MAX_LENGTH", "Must be 10 or fewer in length.")
    for index, embed in enumerate(embeds):
        if len(embed.get("description") or "") > 4096:
            raise invalid_form(
                f"embeds.{index}.description", "BASE_TYPE_MAX_LENGTH", "Must be 4096 or fewer in length."
            )
    if len(str(body.get("nonce") or "")) > _LONGEST_NONCE:
        raise invalid_form("nonce", "NONCE_TYPE_TOO_LONG", "Nonce must be 25 or fewer in length.")
    parts = (
        content,
        embeds,
        attachments,
        body.get("components"),
        body.get("sticker_ids"),
        body.get("poll"),
    )
    if is_new and not any(parts):
        raise ApiError(50006)


def fill(message: Message, body: Payload, attachments: list[Payload]) -> None:
    """Write what a body says into a message; keys it does not have stay as they are."""
    if "content" in body:
        message.content = body["content"] or ""
    if "embeds" in body:
        message.embeds = [{"type": "rich", **embed} for embed in body["embeds"] or []]
    if "components" in body:
        message.components = _numbered(body["components"] or [])
    if "flags" in body:
        message.flags = body["flags"] or 0
    if attachments or "attachments" in body:
        message.attachments = attachments
    message.allowed_mentions = body.get("allowed_mentions", message.allowed_mentions)
    message.tts = bool(body.get("tts", message.tts))


def _numbered(components: list[Payload]) -> list[Payload]:
    numbered: list[Payload] = json.loads(json.dumps(components))
    queue, number = list(numbered), 0
    while queue:
        component = queue.pop(0)
        number += 1
        component.setdefault("id", number)
        queue += component.get("components") or []
        if isinstance(component.get("accessory"), dict):
            queue.append(component["accessory"])
    return numbered


def post(world: World, message: Message) -> Payload:
    """Put a new message into its channel and tell the bots."""
    world.messages[message.channel_id][message.id] = message
    if message.ephemeral_for is None:
        channel = world.channels[message.channel_id]
        world.emit(
            "MESSAGE_CREATE",
            payloads.message_event(world, message),
            guild_id=channel.guild_id,
            private=channel.guild_id is None,
        )
    world.changed()
    return payloads.message(world, message)


def edited(world: World, message: Message) -> Payload:
    """Stamp an edit and tell the bots."""
    message.edited_at = world.now()
    if message.ephemeral_for is None:
        channel = world.channels[message.channel_id]
        world.emit(
            "MESSAGE_UPDATE",
            payloads.message_event(world, message),
            guild_id=channel.guild_id,
            private=channel.guild_id is None,
        )
    world.changed()
    return payloads.message(world, message)


def remove(world: World, message: Message) -> None:
    """A message goes, and the bots hear of it."""
    channel = world.channels[message.channel_id]
    world.messages[channel.id].pop(message.id, None)
    data = {"id": str(message.id), "channel_id": str(channel.id)}
    if channel.guild_id is not None:
        data["guild_id"] = str(channel.guild_id)
    if message.ephemeral_for is None:
        world.emit("MESSAGE_DELETE", data, guild_id=channel.guild_id, private=channel.guild_id is None)
    world.changed()


# --- routes -----------------------------------------------------------------------------------------


def _channel(world: World, request: Request, *permissions: str) -> Channel:
    channel = world.require_channel(request.id("channel_id"))
    if channel.guild_id is not None:
        for permission in permissions or ("view_channel",):
            require(world, world.guilds[channel.guild_id], permission, channel)
    return channel


@route("POST", "/channels/{channel_id}/messages")
def send(world: World, request: Request) -> Payload:
    channel = world.require_channel(request.id("channel_id"))
    is_thread = channel.type in THREAD_TYPES
    _channel(world, request, "send_messages_in_threads" if is_thread else "send_messages")
    if channel.type in (4, 15):
        raise ApiError(50008)
    if channel.thread is not None and channel.thread.get("locked"):
        raise ApiError(50083)
    body, attachments = read_message_body(request)
    check_message_body(body, attachments)
    if channel.type == DM_CHANNEL and not world.users[channel.recipient_id or 0].accepts_dms:
        raise ApiError(50007)
    nonce = None if body.get("nonce") is None else str(body["nonce"])
    if nonce is not None and body.get("enforce_nonce"):
        known = world.nonces.get((world.bot.id, nonce))
        if known is not None and world.now() - known[0] < NONCE_SECONDS:
            return payloads.message(world, world.require_message(known[1], known[2]))
    message = Message(world.new_id(), channel.id, world.bot.id, "", world.now(), nonce=nonce)
    reference = body.get("message_reference")
    if reference:
        _refer(world, message, channel, reference)
    fill(message, body, attachments)
    if channel.thread is not None:
        channel.thread["archived"] = False
    if nonce is not None:
        world.nonces[world.bot.id, nonce] = (world.now(), channel.id, message.id)
    return post(world, message)


def _refer(world: World, message: Message, channel: Channel, reference: Payload) -> None:
    target = int(reference["message_id"])
    if target not in world.messages[channel.id]:
        if reference.get("fail_if_not_exists", True):
            raise invalid_form(
                "message_reference", "MESSAGE_REFERENCE_UNKNOWN_MESSAGE", "Unknown message"
            )
        return
    message.type = 19
    message.reference = {"message_id": str(target), "channel_id": str(channel.id), "type": 0}
    if channel.guild_id is not None:
        message.reference["guild_id"] = str(channel.guild_id)


@route("GET", "/channels/{channel_id}/messages")
def history(world: World, request: Request) -> list[Payload]:
    channel = _channel(world, request, "view_channel", "read_message_history")
    most = request.limit(50, 100)
    visible = [each for each in world.messages[channel.id].values() if each.ephemeral_for is None]
    ids = sorted(each.id for each in visible)
    if "before" in request.query:
        ids = [each for each in ids if each < int(request.query["before"])][-most:]
    elif "after" in request.query:
        ids = [each for each in ids if each > int(request.query["after"])][:most]
    elif "around" in request.query:
        middle = int(request.query["around"])
        ids = sorted(sorted(ids, key=lambda each: abs(each - middle))[:most])
    else:
        ids = ids[-most:]
    return [payloads.message(world, world.messages[channel.id][each]) for each in reversed(ids)]


@route("GET", "/channels/{channel_id}/messages/pins")
def list_pins(world: World, request: Request) -> Payload:
    channel = _channel(world, request)
    pinned = [each for each in world.messages[channel.id].values() if each.pinned]
    items = [{"pinned_at": iso(each.at), "message": payloads.message(world, each)} for each in pinned]
    return {"items": items, "has_more": False}


@route("PUT", "/channels/{channel_id}/messages/pins/{message_id}")
@route("PUT", "/channels/{channel_id}/pins/{message_id}")
def pin(world: World, request: Request) -> None:
    channel = _channel(world, request, "manage_messages")
    world.require_message(channel.id, request.id("message_id")).pinned = True


@route("DELETE", "/channels/{channel_id}/messages/pins/{message_id}")
@route("DELETE", "/channels/{channel_id}/pins/{message_id}")
def unpin(world: World, request: Request) -> None:
    channel = _channel(world, request, "manage_messages")
    world.require_message(channel.id, request.id("message_id")).pinned = False


@route("POST", "/channels/{channel_id}/messages/bulk-delete")
def bulk_delete(world: World, request: Request) -> None:
    channel = _channel(world, request, "manage_messages")
    ids = [int(each) for each in request.body.get("messages", [])]
    for message_id in ids:
        world.messages[channel.id].pop(message_id, None)
    data: Payload = {"ids": [str(each) for each in ids], "channel_id": str(channel.id)}
    if channel.guild_id is not None:
        data["guild_id"] = str(channel.guild_id)
    world.emit("MESSAGE_DELETE_BULK", data, guild_id=channel.guild_id)


@route("GET", "/channels/{channel_id}/messages/{message_id}")
def get_message(world: World, request: Request) -> Payload:
    channel = _channel(world, request, "view_channel", "read_message_history")
    return payloads.message(world, world.require_message(channel.id, request.id("message_id")))


@route("PATCH", "/channels/{channel_id}/messages/{message_id}")
def edit_message(world: World, request: Request) -> Payload:
    channel = _channel(world, request)
    message = world.require_message(channel.id, request.id("message_id"))
    if message.author_id != world.bot.id:
        raise ApiError(50005, "Cannot edit a message authored by another user", status=403)
    body, attachments = read_message_body(request)
    check_message_body(body, attachments, is_new=False)
    fill(message, body, attachments)
    return edited(world, message)


@route("DELETE", "/channels/{channel_id}/messages/{message_id}")
def delete_message(world: World, request: Request) -> None:
    channel = _channel(world, request)
    message = world.require_message(channel.id, request.id("message_id"))
    if message.author_id != world.bot.id:
        if channel.guild_id is None:
            raise ApiError(50003, "Cannot execute action on a DM channel", status=403)
        require(world, world.guilds[channel.guild_id], "manage_messages", channel)
    remove(world, message)


# --- reactions --------------------------------------------------------------------------------------


def react(world: World, message: Message, user_id: int, emoji: str, *, has_it: bool) -> None:
    """A user puts a reaction on a message or takes it off; the bots hear of it."""
    users = message.reactions.setdefault(emoji, [])
    changed = (user_id in users) != has_it
    if changed and has_it:
        users.append(user_id)
    elif changed:
        users.remove(user_id)
    if not users:
        del message.reactions[emoji]
    if not changed:
        return
    channel = world.channels[message.channel_id]
    data: Payload = {
        "user_id": str(user_id),
        "channel_id": str(channel.id),
        "message_id": str(message.id),
        "message_author_id": str(message.author_id),
        "emoji": payloads.emoji_object(emoji),
        "burst": False,
        "type": 0,
    }
    if channel.guild_id is not None:
        data["guild_id"] = str(channel.guild_id)
        member = world.guilds[channel.guild_id].members.get(user_id)
        if has_it and member is not None:
            data["member"] = payloads.member(world, member)
    event = "MESSAGE_REACTION_ADD" if has_it else "MESSAGE_REACTION_REMOVE"
    world.emit(event, data, guild_id=channel.guild_id, private=channel.guild_id is None)
    world.changed()


_REACTIONS = "/channels/{channel_id}/messages/{message_id}/reactions"


@route("PUT", _REACTIONS + "/{emoji}/@me")
def add_reaction(world: World, request: Request) -> None:
    channel = _channel(world, request, "add_reactions", "read_message_history")
    message = world.require_message(channel.id, request.id("message_id"))
    react(world, message, world.bot.id, unquote(request.params["emoji"]), has_it=True)


@route("DELETE", _REACTIONS + "/{emoji}/@me")
def remove_reaction(world: World, request: Request) -> None:
    channel = _channel(world, request)
    message = world.require_message(channel.id, request.id("message_id"))
    react(world, message, world.bot.id, unquote(request.params["emoji"]), has_it=False)


@route("DELETE", _REACTIONS + "/{emoji}/{user_id}")
def remove_reaction_of(world: World, request: Request) -> None:
    channel = _channel(world, request, "manage_messages")
    message = world.require_message(channel.id, request.id("message_id"))
    react(world, message, request.id("user_id"), unquote(request.params["emoji"]), has_it=False)


@route("GET", _REACTIONS + "/{emoji}")
def list_reactions(world: World, request: Request) -> list[Payload]:
    channel = _channel(world, request)
    message = world.require_message(channel.id, request.id("message_id"))
    users = message.reactions.get(unquote(request.params["emoji"]), [])
    return [payloads.user(world.users[each]) for each in users[: request.limit(25, 100)]]


@route("DELETE", _REACTIONS)
def clear_reactions(world: World, request: Request) -> None:
    channel = _channel(world, request, "manage_messages")
    world.require_message(channel.id, request.id("message_id")).reactions.clear()
