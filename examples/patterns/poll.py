"""A loop over a hook: votes come for a day, each voter's last one counts, and the result is posted."""

from typing import TypedDict

from ckworkflow import define_hook, step, workflow


class Vote(TypedDict):
    user_id: str
    option: str


vote = define_hook("vote", Vote)


@step
async def post_result(poll_id: str, result: dict[str, int]) -> None: ...


@workflow
async def poll(poll_id: str) -> dict[str, int]:
    by_user: dict[str, str] = {}
    async for each in vote.create(f"poll:{poll_id}", expires="1 day"):
        by_user[each["user_id"]] = each["option"]
    result: dict[str, int] = {}
    for option in by_user.values():
        result[option] = result.get(option, 0) + 1
    await post_result(poll_id, result)
    return result
