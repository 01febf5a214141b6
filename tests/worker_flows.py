"""Steps and workflows for the tests of the worker's parts; they run in the process of the test."""

from __future__ import annotations

import asyncio
import threading

from ckworkflow import step, workflow
from ckworkflow.hooks import use_step

begun = threading.Event()


@step
async def double(number: int) -> int:
    return 2 * number


@step
def add(*numbers: int) -> int:
    return sum(numbers)


@workflow
async def joining(number: int) -> int:
    one, two, three = await asyncio.gather(double(number), double(number + 1), double(number + 2))
    return await add(one, two, three)


@step
async def slow(seconds: float) -> str:
    begun.set()
    await asyncio.sleep(seconds)
    return "done"


@workflow
async def slowly(seconds: float) -> str:
    return await slow(seconds)


@step(retry_delay="10ms")
async def third_time() -> int:
    if (attempt := use_step().attempt) < 3:
        raise ValueError(attempt)
    return attempt


@workflow
async def failing_twice() -> int:
    return await third_time()
