"""Polling: ask again and again, ever later, until there is an answer or the time is up."""

from ckworkflow import sleep, step, timeout, workflow


@step
async def look(job_id: str) -> str | None:
    """The state of a job, or `None` while it is under way."""
    return f"{job_id} is done"


@workflow
async def wait_for_job(job_id: str) -> str:
    pause = 10
    try:
        async with timeout("1 day"):
            while (state := await look(job_id)) is None:
                await sleep(pause)
                pause = min(2 * pause, 3_600)
    except TimeoutError:
        return f"{job_id} took too long"
    return state
