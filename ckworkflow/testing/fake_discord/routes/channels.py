"""Routes about channels: themselves, their overwrites, their threads."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ckworkflow.testing.fake_discord import payloads
from ckworkflow.testing.fake_discord.permissions import require
from ckworkflow.testing.fake_discord.routing import Request, Router
from ckworkflow.testing.fake_discord.state import Channel, World
from ckworkflow.testing.fake_discord.wire import DM_CHANNEL, ApiError, Payload, invalid_form

if TYPE_CHECKING:
    from collections.abc import Iterable

route = Router()


def _channel(world: World, request: Request, permission: str | None = None) -> Channel:
    channel = world.require_channel(request.id("channel_id"))
    if channel.guild_id is not None:
        require(world, world.guilds[channel.guild_id], permission or "view_channel", channel)
    elif permission is not None:
        raise ApiError(50024)
    return channel


def read_overwrites(sent: Iterable[Payload] | None) -> dict[int, Payload]:
    """Overwrites by target, as Discord gives them back: with numbers as text."""
    return {
        int(each["id"]): {
            "id": str(each["id"]),
            "type": int(each["type"]),
            "allow": str(each.get("allow") or 0),
            "deny": str(each.get("deny") or 0),
        }
        for each in sent or ()
    }


@route("GET", "/channels/{channel_id}")
def get_channel(world: World, request: Request) -> Payload:
    return payloads.channel(world, _channel(world, request))


@route("PATCH", "/channels/{channel_id}")
def edit_channel(world: World, request: Request) -> Payload:
    channel = world.require_channel(request.id("channel_id"))
    body = dict(request.body)
    if channel.thread is not None:
        for key in ("archived", "locked", "auto_archive_duration", "invitable"):
            if body.get(key) is not None:
                channel.thread[key] = body.pop(key)
    else:
        _channel(world, request, "manage_channels")
    channel.name = body.pop("name", channel.name)
    channel.topic = body.pop("topic", channel.topic)
    channel.slowmode = body.pop("rate_limit_per_user", None) or channel.slowmode
    channel.position = body.pop("position", channel.position)
    if "parent_id" in body and channel.thread is None:
        parent = body.pop("parent_id")
        channel.parent_id = int(parent) if parent else None
    if "permission_overwrites" in body:
        channel.overwrites = read_overwrites(body.pop("permission_overwrites"))
    channel.extra |= body
    data = payloads.channel(world, channel)
    if channel.thread is None:
        world.emit("CHANNEL_UPDATE", data, guild_id=channel.guild_id)
    return data


@route("DELETE", "/channels/{channel_id}")
def delete_channel(world: World, request: Request) -> Payload:
    channel = world.require_channel(request.id("channel_id"))
    data = payloads.channel(world, channel)
    if channel.type == DM_CHANNEL:
        return data
    _channel(world, request, "manage_threads" if channel.thread is not None else "manage_channels")
    world.remove_channel(channel)
    if channel.thread is None:
        world.emit("CHANNEL_DELETE", data, guild_id=channel.guild_id)
    return data


@route("POST", "/channels/{channel_id}/typing")
def typing(world: World, request: Request) -> None:
    _channel(world, request)


@route("PUT", "/channels/{channel_id}/permissions/{target_id}")
def set_overwrite(world: World, request: Request) -> None:
    channel = _channel(world, request, "manage_roles")
    body = request.body
    if body.get("type") not in (0, 1):
        raise invalid_form("type", "BASE_TYPE_CHOICES", "Value must be one of (0, 1).")
    target = request.id("target_id")
    channel.overwrites |= read_overwrites([{**body, "id": target}])
    world.emit("CHANNEL_UPDATE", payloads.channel(world, channel), guild_id=channel.guild_id)


@route("DELETE", "/channels/{channel_id}/permissions/{target_id}")
def delete_overwrite(world: World, request: Request) -> None:
    channel = _channel(world, request, "manage_roles")
    channel.overwrites.pop(request.id("target_id"), None)
    world.emit("CHANNEL_UPDATE", payloads.channel(world, channel), guild_id=channel.guild_id)


@route("POST", "/channels/{channel_id}/threads")
def create_thread(world: World, request: Request) -> Payload:
    parent = _channel(world, request, "create_public_threads")
    return _new_thread(world, parent, request, kind=request.body.get("type", 12))


@route("POST", "/channels/{channel_id}/messages/{message_id}/threads")
def create_thread_from_message(world: World, request: Request) -> Payload:
    parent = _channel(world, request, "create_public_threads")
    message = world.require_message(parent.id, request.id("message_id"))
    if message.id in world.channels:
        raise ApiError(160004, "A thread has already been created for this message", status=400)
    return _new_thread(world, parent, request, kind=11, thread_id=message.id)


def _new_thread(
    world: World, parent: Channel, request: Request, *, kind: int, thread_id: int | None = None
) -> Payload:
    body = request.body
    name = str(body.get("name") or "")
    if not 1 <= len(name) <= 100:
        raise invalid_form("name", "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 100 in length.")
    now = datetime.fromtimestamp(world.now(), UTC).isoformat()
    thread = Channel(
        thread_id or world.new_id(),
        kind,
        name,
        parent.guild_id,
        parent_id=parent.id,
        owner_id=world.bot.id,
        thread={
            "archived": False,
            "locked": False,
            "auto_archive_duration": body.get("auto_archive_duration") or 1440,
            "archive_timestamp": now,
            "create_timestamp": now,
        },
    )
    world.channels[thread.id] = thread
    world.messages[thread.id] = {}
    data = payloads.channel(world, thread)
    world.emit("THREAD_CREATE", data | {"newly_created": True}, guild_id=parent.guild_id)
    return data


@route("PUT", "/channels/{channel_id}/thread-members/{user_id}")
@route("DELETE", "/channels/{channel_id}/thread-members/{user_id}")
def change_thread_member(world: World, request: Request) -> None:
    if _channel(world, request).thread is None:
        raise ApiError(50024)
