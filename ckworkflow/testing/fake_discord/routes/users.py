"""Routes about users, the application and the gateway's address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckworkflow.testing.fake_discord import payloads
from ckworkflow.testing.fake_discord.routing import Request, Router
from ckworkflow.testing.fake_discord.wire import ApiError, Payload

if TYPE_CHECKING:
    from ckworkflow.testing.fake_discord.state import World

route = Router()


@route("GET", "/users/@me")
def get_me(world: World, request: Request) -> Payload:
    return payloads.user(world.bot)


@route("GET", "/users/@me/guilds")
def get_my_guilds(world: World, request: Request) -> list[Payload]:
    most = request.limit(200, 200)
    after = int(request.query.get("after", "0"))
    before = int(request.query.get("before", "0")) or None
    mine = [
        guild
        for guild in sorted(world.guilds.values(), key=lambda each: each.id)
        if world.bot.id in guild.members and guild.id > after and (before is None or guild.id < before)
    ]
    return [
        payloads.guild(world, guild) | {"owner": guild.owner_id == world.bot.id, "permissions": "0"}
        for guild in mine[:most]
    ]


@route("DELETE", "/users/@me/guilds/{guild_id}")
def leave_guild(world: World, request: Request) -> None:
    guild = world.require_guild(request.id("guild_id"))
    del guild.members[world.bot.id]
    world.emit("GUILD_DELETE", {"id": str(guild.id)}, guild_id=guild.id)


@route("POST", "/users/@me/channels")
def open_dm(world: World, request: Request) -> Payload:
    recipient = str(request.body.get("recipient_id", ""))
    if not recipient.isdecimal() or int(recipient) not in world.users:
        raise ApiError(50033)
    if world.users[int(recipient)].bot:
        raise ApiError(50007)
    return payloads.channel(world, world.dm(int(recipient)))


@route("GET", "/users/{user_id}")
def get_user(world: World, request: Request) -> Payload:
    return payloads.user(world.require_user(request.id("user_id")))


@route("GET", "/oauth2/applications/@me")
@route("GET", "/applications/@me")
def get_application(world: World, request: Request) -> Payload:
    return payloads.application(world)


@route("GET", "/gateway")
def get_gateway(world: World, request: Request) -> Payload:
    return {"url": world.gateway_url}


@route("GET", "/gateway/bot")
def get_gateway_bot(world: World, request: Request) -> Payload:
    limits = {"total": 1000, "remaining": 999, "reset_after": 3_600_000, "max_concurrency": 16}
    return {"url": world.gateway_url, "shards": world.shards, "session_start_limit": limits}
