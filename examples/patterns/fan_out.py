"""Fan-out and fan-in: many steps side by side, each of which may fail, and one that gets what came of them."""

import asyncio

from ckworkflow import FatalError, step, workflow


@step
async def measure(channel_id: str) -> int:
    return len(channel_id)


@step
async def publish(total: int, failed: int) -> str:
    return f"{total} messages, {failed} channels failed"


@workflow
async def report(channel_ids: list[str]) -> str:
    found = await asyncio.gather(*[measure(each) for each in channel_ids], return_exceptions=True)
    counts = [each for each in found if not isinstance(each, BaseException)]
    failed = [each for each in found if isinstance(each, FatalError)]
    return await publish(sum(counts), len(failed))
