"""The steps of one workflow in one file."""

from dataclasses import dataclass

import discord

from ckworkflow import FatalError, step
from ckworkflow.hooks import use_client
from workflows.shared.log_activity import write_log

ROLE_NAMES = ("Member", "Newcomer")


@dataclass(frozen=True)
class PrivateChannel:
    """What is stored of a channel: its id, never the discord.py object."""

    id: str
    name: str


@step
async def assign_roles(user_id: str, guild_id: str) -> list[str]:
    """Give the roles of a new member, and return their ids."""
    guild = await use_client().fetch_guild(int(guild_id))
    member = await guild.fetch_member(int(user_id))
    roles = [role for role in guild.roles if role.name in ROLE_NAMES]
    await member.add_roles(*roles, reason="Member setup")
    return [str(role.id) for role in roles]


@step
async def create_private_channel(user_id: str, guild_id: str) -> PrivateChannel:
    """Make a channel that the member and the bot alone can see, or find the one made before.

    Discord would make a second channel of the same name, and this step may run twice: a worker can die
    after the channel was made and before that was recorded. So it looks for its own mark, the topic.
    """
    client = use_client()
    guild = await client.fetch_guild(int(guild_id))
    mark = f"private channel of member {user_id}"
    for channel in await guild.fetch_channels():
        if isinstance(channel, discord.TextChannel) and channel.topic == mark:
            return PrivateChannel(str(channel.id), channel.name)
    member = await guild.fetch_member(int(user_id))
    if client.user is None:
        raise FatalError("The client of this worker is not logged in")
    me = await guild.fetch_member(client.user.id)
    made = await guild.create_text_channel(
        f"private-{member.name}",
        topic=mark,
        overwrites={
            guild.default_role: discord.PermissionOverwrite(view_channel=False),
            member: discord.PermissionOverwrite(view_channel=True),
            me: discord.PermissionOverwrite(view_channel=True),
        },
        reason="Member setup",
    )
    return PrivateChannel(str(made.id), made.name)


@step
async def log_member_join(user_id: str, guild_id: str) -> bool:
    return await write_log(guild_id, f"<@{user_id}> joined.")


@step
async def send_welcome_message(user_id: str, guild_id: str, channel_id: str) -> None:
    client = use_client()
    guild = await client.fetch_guild(int(guild_id))
    channel = client.get_partial_messageable(int(channel_id))  # a send needs the id only: one call
    await channel.send(f"Welcome to {guild.name}, <@{user_id}>! This channel is yours.")
