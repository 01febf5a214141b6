import discord

from ckworkflow import FatalError, step
from ckworkflow.hooks import use_client

ROLE_NAME = "Member"


@step
async def assign_role(user_id: str, guild_id: str) -> str:
    """Give a new member the role "Member", and return the id of that role."""
    guild = await use_client().fetch_guild(int(guild_id))
    role = discord.utils.get(guild.roles, name=ROLE_NAME)
    if role is None:
        raise FatalError(f"{guild.name} has no role named {ROLE_NAME!r}: make one and start again")
    member = await guild.fetch_member(int(user_id))
    await member.add_roles(role, reason="Onboarding")  # adding a role twice is the same as once
    return str(role.id)
