"""Routes about guilds, their members, roles and bans."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ckworkflow.testing.fake_discord import payloads
from ckworkflow.testing.fake_discord.permissions import (
    require,
    require_above,
    require_role_below,
)
from ckworkflow.testing.fake_discord.routes.channels import read_overwrites
from ckworkflow.testing.fake_discord.routing import Request, Router
from ckworkflow.testing.fake_discord.wire import (
    CHANNEL_TYPES,
    ApiError,
    Payload,
    invalid_form,
    permission_bits,
)

if TYPE_CHECKING:
    from ckworkflow.testing.fake_discord.state import Guild, Member, Role, World

route = Router()
_LONGEST_TIMEOUT = timedelta(days=28)


def _guild(world: World, request: Request) -> Guild:
    return world.require_guild(request.id("guild_id"))


@route("GET", "/guilds/{guild_id}")
def get_guild(world: World, request: Request) -> Payload:
    return payloads.guild(world, _guild(world, request))


@route("PATCH", "/guilds/{guild_id}")
def edit_guild(world: World, request: Request) -> Payload:
    guild = _guild(world, request)
    require(world, guild, "manage_guild")
    guild.name = request.body.get("name", guild.name)
    data = payloads.guild(world, guild)
    world.emit("GUILD_UPDATE", data, guild_id=guild.id)
    return data


# --- channels ------------------------------------------------------------------------------------


@route("GET", "/guilds/{guild_id}/channels")
def list_channels(world: World, request: Request) -> list[Payload]:
    guild = _guild(world, request)
    mine = [each for each in world.channels.values() if each.guild_id == guild.id]
    return [payloads.channel(world, each) for each in mine if each.thread is None]


@route("POST", "/guilds/{guild_id}/channels")
def create_channel(world: World, request: Request) -> Payload:
    guild = _guild(world, request)
    require(world, guild, "manage_channels")
    body = request.body
    name = str(body.get("name") or "")
    if not 1 <= len(name) <= 100:
        raise invalid_form("name", "BASE_TYPE_BAD_LENGTH", "Must be between 1 and 100 in length.")
    kind = body.get("type") or 0
    if kind not in CHANNEL_TYPES.values():
        raise invalid_form(
            "type", "BASE_TYPE_CHOICES", f"Value must be one of {tuple(CHANNEL_TYPES.values())}."
        )
    parent = int(body["parent_id"]) if body.get("parent_id") else None
    if kind == 0:
        name = name.lower().replace(" ", "-")
    channel = world.add_channel(name, guild=guild, type=kind, parent_id=parent, topic=body.get("topic"))
    channel.slowmode = body.get("rate_limit_per_user") or 0
    channel.overwrites = read_overwrites(body.get("permission_overwrites"))
    data = payloads.channel(world, channel)
    world.emit("CHANNEL_CREATE", data, guild_id=guild.id)
    return data


@route("GET", "/guilds/{guild_id}/threads/active")
def list_threads(world: World, request: Request) -> Payload:
    guild = _guild(world, request)
    mine = [each for each in world.channels.values() if each.guild_id == guild.id]
    threads = [payloads.channel(world, each) for each in mine if each.thread is not None]
    return {"threads": threads, "members": []}


# --- members -------------------------------------------------------------------------------------


@route("GET", "/guilds/{guild_id}/members")
def list_members(world: World, request: Request) -> list[Payload]:
    guild = _guild(world, request)
    most, after = request.limit(1, 1000), int(request.query.get("after", "0"))
    ids = [each for each in sorted(guild.members) if each > after]
    return [payloads.member(world, guild.members[each]) for each in ids[:most]]


@route("GET", "/guilds/{guild_id}/members/{user_id}")
def get_member(world: World, request: Request) -> Payload:
    guild = _guild(world, request)
    return payloads.member(world, world.require_member(guild, request.id("user_id")))


@route("PATCH", "/guilds/{guild_id}/members/@me")
def edit_me(world: World, request: Request) -> Payload:
    guild = _guild(world, request)
    guild.members[world.bot.id].nick = request.body.get("nick")
    return _updated(world, guild, guild.members[world.bot.id])


@route("PATCH", "/guilds/{guild_id}/members/{user_id}")
def edit_member(world: World, request: Request) -> Payload:
    guild = _guild(world, request)
    member = world.require_member(guild, request.id("user_id"))
    body = request.body
    if "communication_disabled_until" in body:
        require(world, guild, "moderate_members")
        require_above(world, guild, member)
        member.timed_out_until = _timeout(world, body["communication_disabled_until"])
    if "nick" in body:
        require(world, guild, "manage_nicknames")
        require_above(world, guild, member)
        member.nick = body["nick"] or None
    if "roles" in body:
        require(world, guild, "manage_roles")
        wanted = [int(each) for each in body["roles"]]
        for role_id in set(wanted) ^ set(member.roles):
            require_role_below(world, guild, role_id)
        member.roles = wanted
    return _updated(world, guild, member)


def _timeout(world: World, until: str | None) -> str | None:
    if until is None:
        return None
    end = datetime.fromisoformat(until)
    if end.timestamp() > world.now() + _LONGEST_TIMEOUT.total_seconds():
        raise invalid_form(
            "communication_disabled_until", "MAX_TIMEOUT", "Time out cannot be longer than 28 days."
        )
    return end.isoformat()


def _updated(world: World, guild: Guild, member: Member) -> Payload:
    data = payloads.member(world, member)
    world.emit("GUILD_MEMBER_UPDATE", data | {"guild_id": str(guild.id)}, guild_id=guild.id)
    return data


@route("DELETE", "/guilds/{guild_id}/members/{user_id}")
def kick(world: World, request: Request) -> None:
    guild = _guild(world, request)
    member = world.require_member(guild, request.id("user_id"))
    require(world, guild, "kick_members")
    require_above(world, guild, member)
    remove_member(world, guild, member.user_id)


def remove_member(world: World, guild: Guild, user_id: int) -> None:
    """A member goes, by will or not."""
    del guild.members[user_id]
    data = {"guild_id": str(guild.id), "user": payloads.user(world.users[user_id])}
    world.emit("GUILD_MEMBER_REMOVE", data, guild_id=guild.id)
    world.changed()


@route("PUT", "/guilds/{guild_id}/members/{user_id}/roles/{role_id}")
def add_member_role(world: World, request: Request) -> None:
    _change_role(world, request, has_it=True)


@route("DELETE", "/guilds/{guild_id}/members/{user_id}/roles/{role_id}")
def remove_member_role(world: World, request: Request) -> None:
    _change_role(world, request, has_it=False)


def _change_role(world: World, request: Request, *, has_it: bool) -> None:
    guild = _guild(world, request)
    member = world.require_member(guild, request.id("user_id"))
    role_id = request.id("role_id")
    require(world, guild, "manage_roles")
    require_role_below(world, guild, role_id)
    if (role_id in member.roles) == has_it:
        return
    if has_it:
        member.roles.append(role_id)
    else:
        member.roles.remove(role_id)
    _updated(world, guild, member)


# --- roles ---------------------------------------------------------------------------------------


@route("GET", "/guilds/{guild_id}/roles")
def list_roles(world: World, request: Request) -> list[Payload]:
    return [payloads.role(each) for each in _guild(world, request).roles.values()]


@route("GET", "/guilds/{guild_id}/roles/{role_id}")
def get_role(world: World, request: Request) -> Payload:
    return payloads.role(world.require_role(_guild(world, request), request.id("role_id")))


@route("POST", "/guilds/{guild_id}/roles")
def create_role(world: World, request: Request) -> Payload:
    guild = _guild(world, request)
    require(world, guild, "manage_roles")
    role = world.add_role(guild, request.body.get("name") or "new role")
    return _changed_role(world, guild, role, request.body, "GUILD_ROLE_CREATE")


@route("PATCH", "/guilds/{guild_id}/roles/{role_id}")
def edit_role(world: World, request: Request) -> Payload:
    guild = _guild(world, request)
    require(world, guild, "manage_roles")
    role = world.require_role(guild, request.id("role_id"))
    if role.id != guild.id:
        require_role_below(world, guild, role.id)
    return _changed_role(world, guild, role, request.body, "GUILD_ROLE_UPDATE")


def _changed_role(world: World, guild: Guild, role: Role, body: Payload, event: str) -> Payload:
    role.name = body.get("name") or role.name
    if body.get("permissions") is not None:
        role.permissions = permission_bits(int(body["permissions"]))
    colors = body.get("colors") or {}
    role.color = colors.get("primary_color") or body.get("color") or role.color
    role.hoist = body.get("hoist", role.hoist)
    role.mentionable = body.get("mentionable", role.mentionable)
    data = payloads.role(role)
    world.emit(event, {"guild_id": str(guild.id), "role": data}, guild_id=guild.id)
    return data


@route("DELETE", "/guilds/{guild_id}/roles/{role_id}")
def delete_role(world: World, request: Request) -> None:
    guild = _guild(world, request)
    require(world, guild, "manage_roles")
    role_id = request.id("role_id")
    require_role_below(world, guild, role_id)
    del guild.roles[role_id]
    for member in guild.members.values():
        member.roles = [each for each in member.roles if each != role_id]
    data = {"guild_id": str(guild.id), "role_id": str(role_id)}
    world.emit("GUILD_ROLE_DELETE", data, guild_id=guild.id)


# --- bans ----------------------------------------------------------------------------------------


@route("GET", "/guilds/{guild_id}/bans")
def list_bans(world: World, request: Request) -> list[Payload]:
    guild = _guild(world, request)
    require(world, guild, "ban_members")
    after = int(request.query.get("after", "0"))
    ids = [each for each in sorted(guild.bans) if each > after][: request.limit(1000, 1000)]
    return [{"reason": guild.bans[each], "user": payloads.user(world.users[each])} for each in ids]


@route("GET", "/guilds/{guild_id}/bans/{user_id}")
def get_ban(world: World, request: Request) -> Payload:
    guild = _guild(world, request)
    require(world, guild, "ban_members")
    user_id = request.id("user_id")
    if user_id not in guild.bans:
        raise ApiError(10026)
    return {"reason": guild.bans[user_id], "user": payloads.user(world.users[user_id])}


@route("PUT", "/guilds/{guild_id}/bans/{user_id}")
def ban(world: World, request: Request) -> None:
    guild = _guild(world, request)
    require(world, guild, "ban_members")
    user = world.require_user(request.id("user_id"))
    member = guild.members.get(user.id)
    if member is not None:
        require_above(world, guild, member)
        remove_member(world, guild, user.id)
    guild.bans[user.id] = request.reason
    data = {"guild_id": str(guild.id), "user": payloads.user(user)}
    world.emit("GUILD_BAN_ADD", data, guild_id=guild.id)


@route("DELETE", "/guilds/{guild_id}/bans/{user_id}")
def unban(world: World, request: Request) -> None:
    guild = _guild(world, request)
    require(world, guild, "ban_members")
    user_id = request.id("user_id")
    if user_id not in guild.bans:
        raise ApiError(10026)
    del guild.bans[user_id]
    data = {"guild_id": str(guild.id), "user": payloads.user(world.users[user_id])}
    world.emit("GUILD_BAN_REMOVE", data, guild_id=guild.id)
