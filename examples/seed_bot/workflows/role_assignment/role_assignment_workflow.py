"""Give a member a role, once."""

from ckworkflow import workflow

from .steps.assign_role import assign_role


@workflow
async def role_assignment_workflow(user_id: str, guild_id: str, role_id: str) -> dict[str, bool]:
    return await assign_role(user_id, guild_id, role_id)
