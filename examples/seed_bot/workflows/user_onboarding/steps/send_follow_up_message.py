from ckworkflow import step
from ckworkflow.hooks import use_client


@step
async def send_follow_up_message(user_id: str, guild_id: str) -> None:
    client = use_client()
    guild = await client.fetch_guild(int(guild_id))
    user = await client.fetch_user(int(user_id))
    await user.send(f"You have been in {guild.name} for a week. How do you like it?")
