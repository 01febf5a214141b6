"""The workloads as workflows: what `workflow_packages` of a benchmark's home names."""

from __future__ import annotations

import asyncio
import time

from ckworkflow import sleep, step, workflow

try:
    from ckworkflow import create_hook
except ImportError:  # an older source, beside which ours is measured
    create_hook = None  # type: ignore[assignment]


@step
async def noop(number: int) -> int:
    """Do nothing."""
    return number


@step
async def total(values: list[int]) -> int:
    """Join a fan-out."""
    return len(values)


@step
async def rest(seconds: float) -> None:
    """Wait as a call to Discord does."""
    await asyncio.sleep(seconds)


@step
async def clock() -> float:
    """Read the clock of this machine, seconds since 1970."""
    return time.time()


@workflow
async def five() -> int:
    """Five steps one after the other, traced at once."""
    await noop(1)
    await noop(2)
    await noop(3)
    await noop(4)
    return await noop(5)


@workflow
async def chain(length: int) -> int:
    """Await `length` steps; nobody looks at what they return, so they are traced ahead."""
    for number in range(length):
        await noop(number)
    return length


@workflow
async def loop(length: int) -> int:
    """Await `length` steps and branch on each result: a continuation after every step."""
    seen = 0
    for number in range(length):
        if await noop(number) == number:
            seen += 1
    return seen


@workflow
async def timed(length: int) -> int:
    """Do what `loop` does, inside a deadline."""
    seen = 0
    async with asyncio.timeout(86_400):
        for number in range(length):
            if await noop(number) == number:
                seen += 1
    return seen


@workflow
async def naps(length: int) -> int:
    """Poll and sleep, as a body that never ends does, here `length` times."""
    done = 0
    while True:
        await noop(done)
        await sleep("1ms")
        done += 1
        if done == length:
            return length


@workflow
async def wide(width: int) -> int:
    """Run `width` steps side by side and join them."""
    values = await asyncio.gather(*[noop(number) for number in range(width)])
    return await total(values)


@workflow
async def timer(seconds: float) -> float:
    """Sleep, then read the clock."""
    await sleep(seconds)
    return await clock()


@workflow
async def resting(seconds: float) -> None:
    """Run one step that waits."""
    await rest(seconds)


@workflow
async def sleeper(seconds: float) -> int:
    """Sleep for days."""
    await sleep(seconds)
    return await noop(0)


@workflow
async def answered(token: str) -> float:
    """Wait for a payload, then read the clock."""
    await create_hook(token)
    return await clock()


@workflow
async def waiting(token: str) -> None:
    """Wait for a payload that never comes."""
    await create_hook(token)
