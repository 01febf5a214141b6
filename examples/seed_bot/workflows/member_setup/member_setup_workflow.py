"""Set up a member: three things at the same time, then one that needs what they made."""

import asyncio

from ckworkflow import workflow

from .steps import (
    assign_roles,
    create_private_channel,
    log_member_join,
    send_welcome_message,
)


@workflow
async def member_setup_workflow(user_id: str, guild_id: str) -> dict[str, object]:
    roles, channel, logged = await asyncio.gather(
        assign_roles(user_id, guild_id),
        create_private_channel(user_id, guild_id),
        log_member_join(user_id, guild_id),
    )
    # `channel.id` only passes through here, so all of it is one Celery chord: three steps, then this one.
    await send_welcome_message(user_id, guild_id, channel.id)
    return {"user_id": user_id, "roles": roles, "channel_id": channel.id, "logged": logged}
