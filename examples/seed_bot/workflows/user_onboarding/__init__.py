"""Welcome a new member, and ask how it goes a week later."""

from ckworkflow import sleep, workflow

from .steps.assign_role import assign_role
from .steps.send_follow_up_message import send_follow_up_message
from .steps.send_welcome_message import send_welcome_message


@workflow
async def user_onboarding_workflow(user_id: str, guild_id: str) -> dict[str, str]:
    await send_welcome_message(user_id, guild_id)
    await assign_role(user_id, guild_id)
    # Seven days as a row in the database: no process, thread or message waits meanwhile.
    await sleep("7 days")
    await send_follow_up_message(user_id, guild_id)
    return {"user_id": user_id, "status": "completed"}
