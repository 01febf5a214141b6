import discord

from ckworkflow import FatalError, step
from ckworkflow.hooks import use_client


@step
async def assign_role(user_id: str, guild_id: str, role_id: str) -> dict[str, bool]:
    """Give a role, and say whether the member had it.

    A step may run again: after an error, or when its worker died before the result was recorded. So it
    looks first, and acts only where something is left to do.
    """
    guild = await use_client().fetch_guild(int(guild_id))
    try:
        member = await guild.fetch_member(int(user_id))
    except discord.NotFound as error:
        raise FatalError("Member not found", code=error.code) from error
    if member.get_role(int(role_id)) is not None:
        return {"already_assigned": True}
    await member.add_roles(discord.Object(int(role_id)), reason="Role assignment")
    return {"assigned": True}
