"""Note what is known of a member where the bot and every worker find it."""

from ckworkflow import workflow

from .steps.update_member_stats import MemberStats, update_member_stats


@workflow
async def member_stats_workflow(user_id: str, guild_id: str) -> MemberStats:
    return await update_member_stats(user_id, guild_id)
