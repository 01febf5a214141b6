import discord

from ckworkflow import FatalError, step
from ckworkflow.hooks import use_client


@step
async def send_welcome_message(user_id: str, guild_id: str) -> None:
    """Welcome a member in #welcome, or by DM in a guild that has no such channel.

    Every object is fetched. A worker has no gateway, so its caches are empty: `client.get_guild(...)` is
    `None` there and `guild.channels` is `[]`.
    """
    client = use_client()
    try:
        guild = await client.fetch_guild(int(guild_id))
        member = await guild.fetch_member(int(user_id))
        channels = await guild.fetch_channels()
        welcome_channel = discord.utils.get(channels, name="welcome")

        embed = discord.Embed(title="Welcome!", color=0x00FF00)
        if isinstance(welcome_channel, discord.TextChannel):
            embed.description = "Thanks for joining our server!"
            await welcome_channel.send(
                f"Welcome to {guild.name}, {member.mention}! 🎉",
                embed=embed,
                # Workers ping nobody unless told to.
                allowed_mentions=discord.AllowedMentions(users=[member]),
            )
        else:
            embed.description = f"Thanks for joining {guild.name}!"
            user = await client.fetch_user(int(user_id))
            await user.send(embed=embed)
    except discord.HTTPException as error:
        # The default policy would make both fatal too; a step that catches them words them itself.
        if error.code == 50007:
            raise FatalError("User has DMs disabled", code=error.code) from error
        if error.code == 10007:
            raise FatalError("Member not found in guild", code=error.code) from error
        raise
