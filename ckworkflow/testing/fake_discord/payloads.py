"""What the world looks like on the wire: each thing as the JSON that Discord would send.

Not here: checks of what arrives (`routes`), checks of what leaves by the gateway (`wire`).
"""

from __future__ import annotations

from .permissions import guild_permissions, member_permissions
from .state import Channel, Guild, Interaction, Member, Message, Role, User, World, iso
from .wire import DM_CHANNEL, Payload


def user(value: User) -> Payload:
    """A user."""
    return {
        "id": str(value.id),
        "username": value.name,
        "global_name": value.global_name,
        "discriminator": "0",
        "avatar": None,
        "bot": value.bot,
        "public_flags": 0,
    }


def role(value: Role) -> Payload:
    """A role."""
    return {
        "id": str(value.id),
        "name": value.name,
        "permissions": str(value.permissions),
        "position": value.position,
        "color": value.color,
        "colors": {"primary_color": value.color, "secondary_color": None, "tertiary_color": None},
        "hoist": value.hoist,
        "mentionable": value.mentionable,
        "managed": value.managed,
        "flags": 0,
    }


def member(world: World, value: Member, *, with_user: bool = True) -> Payload:
    """A member."""
    data: Payload = {
        "roles": [str(each) for each in value.roles],
        "nick": value.nick,
        "avatar": None,
        "joined_at": value.joined_at,
        "premium_since": None,
        "deaf": False,
        "mute": False,
        "pending": value.pending,
        "flags": 0,
        "communication_disabled_until": value.timed_out_until,
    }
    if with_user:
        data["user"] = user(world.users[value.user_id])
    return data


def channel(world: World, value: Channel) -> Payload:
    """A channel, a thread or a DM."""
    data: Payload = {"id": str(value.id), "type": value.type, "last_message_id": None, "flags": 0}
    messages = world.messages.get(value.id)
    if messages:
        data["last_message_id"] = str(max(messages))
    if value.type == DM_CHANNEL:
        data["recipients"] = [user(world.users[value.recipient_id or 0])]
        return data
    data |= {
        "guild_id": str(value.guild_id),
        "name": value.name,
        "parent_id": str(value.parent_id) if value.parent_id else None,
        "rate_limit_per_user": value.slowmode,
    }
    if value.thread is not None:
        return data | {
            "owner_id": str(value.owner_id),
            "thread_metadata": value.thread,
            "message_count": len(messages or {}),
            "total_message_sent": len(messages or {}),
            "member_count": 1,
        }
    return (
        data
        | {
            "position": value.position,
            "topic": value.topic,
            "nsfw": False,
            "permission_overwrites": list(value.overwrites.values()),
        }
        | value.extra
    )


def guild(world: World, value: Guild, *, full: bool = False) -> Payload:
    """A guild; `full` is the form of GUILD_CREATE, with channels, threads and members."""
    data: Payload = {
        "id": str(value.id),
        "name": value.name,
        "icon": None,
        "owner_id": str(value.owner_id),
        "roles": [role(each) for each in value.roles.values()],
        "emojis": [],
        "stickers": [],
        "features": [],
        "verification_level": 0,
        "default_message_notifications": 0,
        "explicit_content_filter": 0,
        "mfa_level": 0,
        "nsfw_level": 0,
        "premium_tier": 0,
        "preferred_locale": "en-US",
        "afk_timeout": 300,
        "afk_channel_id": None,
        "system_channel_id": str(value.system_channel_id) if value.system_channel_id else None,
        "system_channel_flags": 0,
        "rules_channel_id": None,
        "public_updates_channel_id": None,
        "approximate_member_count": len(value.members),
    }
    if full:
        channels = [each for each in world.channels.values() if each.guild_id == value.id]
        data |= {
            "channels": [channel(world, each) for each in channels if each.thread is None],
            "threads": [channel(world, each) for each in channels if each.thread is not None],
            "members": [member(world, each) for each in value.members.values()],
            "member_count": len(value.members),
            "joined_at": value.members[world.bot.id].joined_at,
            "large": False,
            "unavailable": False,
            "voice_states": [],
            "presences": [],
            "stage_instances": [],
            "guild_scheduled_events": [],
            "soundboard_sounds": [],
        }
    return data


def message(world: World, value: Message, *, resolve: bool = True) -> Payload:
    """A message, with the one it answers if `resolve`."""
    data: Payload = {
        "id": str(value.id),
        "channel_id": str(value.channel_id),
        "author": user(world.users[value.author_id]),
        "content": value.content,
        "timestamp": iso(value.at),
        "edited_timestamp": iso(value.edited_at) if value.edited_at is not None else None,
        "type": value.type,
        "tts": value.tts,
        "pinned": value.pinned,
        "flags": value.flags,
        "mention_everyone": False,
        "mentions": [],
        "mention_roles": [],
        "embeds": value.embeds,
        "attachments": value.attachments,
        "components": value.components,
        "reactions": [
            {
                "emoji": emoji_object(emoji),
                "count": len(users),
                "me": world.bot.id in users,
                "me_burst": False,
                "burst_colors": [],
                "count_details": {"burst": 0, "normal": len(users)},
            }
            for emoji, users in value.reactions.items()
        ],
    }
    if value.nonce is not None:
        data["nonce"] = value.nonce
    if value.reference is not None:
        data["message_reference"] = value.reference
        if resolve:
            target = world.messages.get(int(value.reference["channel_id"]), {}).get(
                int(value.reference["message_id"])
            )
            data["referenced_message"] = message(world, target, resolve=False) if target else None
    return data


def message_event(world: World, value: Message) -> Payload:
    """A message as the gateway sends it: with the guild and the author's membership."""
    data = message(world, value)
    where = world.channels[value.channel_id]
    if where.guild_id is not None:
        data["guild_id"] = str(where.guild_id)
        author = world.guilds[where.guild_id].members.get(value.author_id)
        if author is not None:
            data["member"] = member(world, author, with_user=False)
    return data


def interaction(world: World, value: Interaction) -> Payload:
    """An interaction as INTERACTION_CREATE carries it."""
    where = world.channels[value.channel_id]
    who = world.users[value.user_id]
    data: Payload = {
        "id": str(value.id),
        "application_id": str(world.bot.id),
        "type": value.type,
        "token": value.token,
        "version": 1,
        "attachment_size_limit": 10_485_760,
        "data": value.data,
        "channel_id": str(where.id),
        "channel": channel(world, where),
        "locale": "en-US",
        "entitlements": [],
        "authorizing_integration_owners": {"0": str(value.guild_id or 0)},
        "context": 0 if value.guild_id else 1,
        "app_permissions": "0",
    }
    if value.message_id is not None:
        data["message"] = message(world, world.find_message(value.message_id))
    if value.guild_id is None:
        return data | {"user": user(who)}
    home = world.guilds[value.guild_id]
    clicked_by = home.members[who.id]
    permissions = member_permissions(world, home, clicked_by, where)
    mine = member_permissions(world, home, home.members[world.bot.id], where)
    return data | {
        "guild_id": str(home.id),
        "guild": {"id": str(home.id), "locale": "en-US", "features": []},
        "guild_locale": "en-US",
        "member": member(world, clicked_by) | {"permissions": str(permissions)},
        "app_permissions": str(mine),
    }


def resolved_member(world: World, home: Guild, value: Member) -> Payload:
    """A member among an interaction's resolved options."""
    return member(world, value, with_user=False) | {"permissions": str(guild_permissions(home, value))}


def application(world: World) -> Payload:
    """The bot's application."""
    return {
        "id": str(world.bot.id),
        "name": world.bot.name,
        "icon": None,
        "description": "",
        "bot_public": True,
        "bot_require_code_grant": False,
        "verify_key": "0" * 64,
        "flags": 0,
        "owner": user(world.bot),
        "team": None,
    }


def emoji_object(text: str) -> Payload:
    """An emoji from `👍` or `name:id`."""
    name, _, emoji_id = text.partition(":")
    return {"id": emoji_id or None, "name": name}


def command(world: World, guild_id: int | None, command_id: int, body: Payload) -> Payload:
    """An application command as registered."""
    data: Payload = {
        "description": "",
        "type": 1,
        **body,
        "id": str(command_id),
        "application_id": str(world.bot.id),
        "version": str(command_id),
    }
    if guild_id is not None:
        data["guild_id"] = str(guild_id)
    return data
