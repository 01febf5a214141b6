"""Parent and child: a run for each user, with a history of its own; the parent waits for all of them."""

from ckworkflow import RunCancelledError, RunFailedError, sleep, start, step, workflow


@step
async def send_invitation(user_id: str) -> None: ...


@step
async def has_joined(user_id: str) -> bool:
    return bool(user_id)


@workflow
async def invite(user_id: str) -> bool:
    await send_invitation(user_id)
    await sleep("7 days")
    return await has_joined(user_id)


@workflow
async def campaign(user_ids: list[str]) -> int:
    runs = [await start(invite, user_id) for user_id in user_ids]
    joined = 0
    for run in runs:
        try:
            joined += await run.return_value()
        except (RunFailedError, RunCancelledError):
            continue
    return joined
