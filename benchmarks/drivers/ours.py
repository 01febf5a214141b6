"""The client of our side: what a bot does, `await start(...)` and `await run.return_value()` on one loop.

With `--embedded` the worker runs in this process, as in a bot without a broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from typing import Any

import bench_flows as flows
from protocol import serve

from ckworkflow import Run, start

try:
    from ckworkflow import resume_hook
except ImportError:  # an older source, beside which ours is measured
    resume_hook = None  # type: ignore[assignment]
from ckworkflow.testing import worker

TIMEOUT_SECONDS = 600.0
STARTS_AT_ONCE = 64  # so many commands of a busy bot are under way at the same time


async def start_many(workflow: Any, count: int, *args: Any, pace: float = 0.0) -> list[Run[Any]]:
    """Start runs as concurrent commands would, one every `pace` seconds or as fast as it goes."""
    gate = asyncio.Semaphore(STARTS_AT_ONCE)

    async def one(number: int) -> Run[Any]:
        await asyncio.sleep(number * pace)
        async with gate:
            return await start(workflow, *args)

    return list(await asyncio.gather(*[one(number) for number in range(count)]))


async def finish(runs: list[Run[Any]]) -> list[Any]:
    """Wait for runs, one after the other: the time of the last is what counts."""
    return [await run.return_value(TIMEOUT_SECONDS) for run in runs]


async def chains(runs: int) -> dict[str, float]:
    """Many runs of five steps: seconds from the first start to the last result."""
    began = time.perf_counter()
    await finish(await start_many(flows.five, runs))
    return {"seconds": time.perf_counter() - began}


async def lone(times: int, pause: float) -> dict[str, list[float]]:
    """One run of five steps at a time, on a system that was idle for `pause` seconds."""
    taken = []
    for _ in range(times):
        await asyncio.sleep(pause)
        began = time.perf_counter()
        await (await start(flows.five)).return_value(TIMEOUT_SECONDS)
        taken.append(time.perf_counter() - began)
    return {"seconds": taken}


async def long(kind: str, length: int) -> dict[str, float]:
    """One run of many steps."""
    workflow = getattr(flows, kind)
    began = time.perf_counter()
    answer = await (await start(workflow, length)).return_value(TIMEOUT_SECONDS)
    assert answer == length, answer
    return {"seconds": time.perf_counter() - began}


async def wide(width: int) -> dict[str, float]:
    """One fan-out and its join."""
    began = time.perf_counter()
    answer = await (await start(flows.wide, width)).return_value(TIMEOUT_SECONDS)
    assert answer == width, answer
    return {"seconds": time.perf_counter() - began}


async def timers(count: int, seconds: float, pace: float) -> dict[str, list[float]]:
    """Lateness of sleeps: from the due time on record to the clock of the step that follows."""
    runs = await start_many(flows.timer, count, seconds, pace=pace)
    read = await finish(runs)
    late = []
    for run, at in zip(runs, read, strict=True):
        due = next(step.due_at for step in await run.steps() if step.kind == "sleep")
        assert due is not None
        late.append(at - due.timestamp())
    return {"late": late}


async def awaits(count: int, seconds: float) -> dict[str, float]:
    """Many runs of one step that waits."""
    began = time.perf_counter()
    await finish(await start_many(flows.resting, count, seconds))
    return {"seconds": time.perf_counter() - began}


async def sleepers(count: int, seconds: float) -> dict[str, float]:
    """Start runs that sleep for long; keeps nothing of them, as in a bot its commands would not."""
    left = iter(range(count))

    async def command() -> None:
        for _ in left:
            await start(flows.sleeper, seconds)

    began = time.perf_counter()
    await asyncio.gather(*[command() for _ in range(STARTS_AT_ONCE)])
    return {"seconds": time.perf_counter() - began}


async def resume(times: int, pause: float) -> dict[str, list[float]]:
    """From a payload to the clock of the body's next step, one run at a time."""
    taken = []
    for number in range(times):
        token = f"resume {number} {time.time()}"
        run = await start(flows.answered, token)
        await asyncio.sleep(pause)
        began = time.time()
        await resume_hook(token, number)
        taken.append(await run.return_value(TIMEOUT_SECONDS) - began)
    return {"seconds": taken}


async def resumes(runs: int) -> dict[str, float]:
    """Payloads for many runs that wait, as fast as it goes: seconds until the last one is accepted, and until the last run has ended."""
    names = [f"resumes {number} {time.time()}" for number in range(runs)]
    gate = asyncio.Semaphore(STARTS_AT_ONCE)

    async def begin(token: str) -> Run[Any]:
        async with gate:
            return await start(flows.answered, token)

    async def send(token: str) -> None:
        async with gate:
            await resume_hook(token, 1)

    waiting = await asyncio.gather(*map(begin, names))
    began = time.perf_counter()
    await asyncio.gather(*map(send, names))
    accepted = time.perf_counter() - began
    await finish(waiting)
    return {"seconds": accepted, "until_the_end": time.perf_counter() - began}


async def waiters(count: int) -> dict[str, float]:
    """Start runs that wait for a payload; keeps nothing of them."""
    left = iter(range(count))
    base = time.time()

    async def command() -> None:
        for number in left:
            await start(flows.waiting, f"waiter {base} {number}")

    began = time.perf_counter()
    await asyncio.gather(*[command() for _ in range(STARTS_AT_ONCE)])
    return {"seconds": time.perf_counter() - began}


async def _end(run: Run[Any]) -> float:
    """Cancel a run; seconds until its status says so."""
    began = time.perf_counter()
    await run.cancel()
    while await run.status() != "cancelled":  # noqa: ASYNC110  # what is measured is what a caller sees
        await asyncio.sleep(0.001)
    return time.perf_counter() - began


async def cancel(times: int, pause: float) -> dict[str, list[float]]:
    """From the request to cancel a run that sleeps until its status says so."""
    taken = []
    for _ in range(times):
        run = await start(flows.sleeper, 86_400.0)
        await asyncio.sleep(pause)
        taken.append(await _end(run))
    return {"seconds": taken}


async def stop(times: int, pause: float) -> dict[str, list[float]]:
    """From the request to cancel a run whose step waits in the worker until that has ended, and the run's status says so."""
    taken = []
    for _ in range(times):
        run = await start(flows.resting, TIMEOUT_SECONDS)
        while not any(step.status == "running" for step in await run.steps()):  # noqa: ASYNC110  # as a caller sees it
            await asyncio.sleep(0.01)
        await asyncio.sleep(pause)
        taken.append(await _end(run))
    return {"seconds": taken}


def main() -> None:
    """Serve the workloads."""
    logging.basicConfig(level=logging.WARNING)
    with contextlib.ExitStack() as stack:
        if "--embedded" in sys.argv:
            stack.enter_context(worker())
        runner = stack.enter_context(asyncio.Runner())
        bodies = {f.__name__: f for f in (
            chains, lone, long, wide, timers, awaits, sleepers, resume, resumes, waiters, cancel, stop,
        )}  # fmt: skip
        serve({name: lambda f=f, **k: runner.run(f(**k)) for name, f in bodies.items()})


if __name__ == "__main__":
    main()
