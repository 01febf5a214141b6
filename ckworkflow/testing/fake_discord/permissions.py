"""Who may do what: Discord's permission sums and its role hierarchy.

Source: https://docs.discord.com/developers/topics/permissions
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .wire import ALL_PERMISSIONS, PERMISSIONS, ApiError

if TYPE_CHECKING:
    from .state import Channel, Guild, Member, World


def guild_permissions(guild: Guild, member: Member) -> int:
    """What a member may do in a guild as a whole."""
    if member.user_id == guild.owner_id:
        return ALL_PERMISSIONS
    bits = guild.roles[guild.id].permissions
    for role_id in member.roles:
        bits |= guild.roles[role_id].permissions if role_id in guild.roles else 0
    return ALL_PERMISSIONS if bits & PERMISSIONS["administrator"] else bits


def channel_permissions(guild: Guild, member: Member, channel: Channel, parent: Channel | None) -> int:
    """What a member may do in one channel; a thread has the overwrites of its parent."""
    bits = guild_permissions(guild, member)
    if bits == ALL_PERMISSIONS:
        return bits
    overwrites = (parent or channel).overwrites
    groups = [[guild.id], member.roles, [member.user_id]]
    for ids in groups:
        allow = deny = 0
        for target in ids:
            overwrite = overwrites.get(target)
            if overwrite:
                allow |= int(overwrite["allow"])
                deny |= int(overwrite["deny"])
        bits = (bits & ~deny) | allow
    return bits


def member_permissions(world: World, guild: Guild, member: Member, channel: Channel) -> int:
    """What a member may do in a channel of the world."""
    parent = world.channels.get(channel.parent_id or 0) if channel.thread is not None else None
    return channel_permissions(guild, member, channel, parent)


def require(world: World, guild: Guild, permission: str, channel: Channel | None = None) -> None:
    """Let the bot through, or answer 50001 (cannot see the channel) or 50013."""
    me = guild.members[world.bot.id]
    bits = guild_permissions(guild, me)
    if channel is not None:
        bits = member_permissions(world, guild, me, channel)
        if not bits & PERMISSIONS["view_channel"]:
            raise ApiError(50001)
    if not bits & PERMISSIONS[permission]:
        raise ApiError(50013)


def top_position(guild: Guild, member: Member) -> int:
    """The highest role of a member."""
    return max((guild.roles[each].position for each in member.roles if each in guild.roles), default=0)


def require_above(world: World, guild: Guild, target: Member) -> None:
    """Answer 50013 unless the bot stands above the member; nobody stands above the owner."""
    me = guild.members[world.bot.id]
    if me.user_id in (target.user_id, guild.owner_id):
        return
    if target.user_id == guild.owner_id or top_position(guild, target) >= top_position(guild, me):
        raise ApiError(50013)


def require_role_below(world: World, guild: Guild, role_id: int) -> None:
    """Answer 50013 (50028 for everyone's role) unless the bot may hand a role out."""
    role = world.require_role(guild, role_id)
    if role.id == guild.id:
        raise ApiError(50028)
    me = guild.members[world.bot.id]
    if role.managed or (guild.owner_id != me.user_id and role.position >= top_position(guild, me)):
        raise ApiError(50013)
