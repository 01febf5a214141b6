"""Warn, mute or kick a member, and tell the moderators."""

from ckworkflow import workflow
from workflows.shared.log_activity import log_activity
from workflows.shared.validate_input import validate_input

from .steps.send_moderation_action import Action, ModerationResult, send_moderation_action


@workflow
async def moderation_workflow(user_id: str, guild_id: str, action: Action) -> ModerationResult:
    await validate_input(user_id, guild_id)
    result = await send_moderation_action(user_id, guild_id, action)
    await log_activity(guild_id, f"<@{user_id}>: {action}")
    return result
