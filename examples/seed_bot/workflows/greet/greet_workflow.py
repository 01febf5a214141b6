"""Greet somebody, wait, greet again."""

from ckworkflow import sleep, workflow

from .steps.greet import greet_user


@workflow
async def greet_user_workflow(user_id: str) -> dict[str, bool]:
    await greet_user(user_id)
    await sleep("5 seconds")
    await greet_user(user_id, again=True)
    return {"success": True}
