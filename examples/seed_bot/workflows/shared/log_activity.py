"""What happened, in the guild's #log channel, for workflows that want to tell the moderators."""

import discord

from ckworkflow import step
from ckworkflow.hooks import use_client


@step
async def log_activity(guild_id: str, text: str) -> bool:
    """Write to #log, as a step of its own. Returns whether the guild has such a channel."""
    return await write_log(guild_id, text)


async def write_log(guild_id: str, text: str) -> bool:
    """The same as a helper for other steps: what it does is recorded with the step that calls it."""
    guild = await use_client().fetch_guild(int(guild_id))
    channel = discord.utils.get(await guild.fetch_channels(), name="log")
    if not isinstance(channel, discord.TextChannel):
        return False
    await channel.send(text)
    return True
