"""The client of the peer DBOS: the same workloads as DBOS workflows, in one process as DBOS runs them.

`BENCH_STYLE` is `async` (coroutines on one loop) or `threads` (sync workflows); sleeping is measured with
`async` only, since a sync workflow that sleeps holds a thread. Everything else has the defaults of DBOS.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from dbos import DBOS
from protocol import serve

IS_ASYNC = os.environ["BENCH_STYLE"] == "async"
DBOS(
    config={
        "name": "bench",
        "system_database_url": os.environ["BENCH_DATABASE"],
        "log_level": "ERROR",
        "max_executor_threads": 200,
    }
)


@DBOS.step()
def noop_sync(number: int) -> int:
    """Do nothing."""
    return number


@DBOS.step()
async def noop(number: int) -> int:
    """Do nothing."""
    return number


@DBOS.step()
async def total(values: list[int]) -> int:
    """Join a fan-out."""
    return len(values)


@DBOS.step()
async def rest(seconds: float) -> None:
    """Wait."""
    await asyncio.sleep(seconds)


@DBOS.step()
def rest_sync(seconds: float) -> None:
    """Wait in a thread."""
    time.sleep(seconds)


@DBOS.step()
async def clock() -> float:
    """Read the clock."""
    return time.time()


@DBOS.workflow()
async def steps(length: int) -> int:
    """Steps one after the other."""
    seen = 0
    for number in range(length):
        if await noop(number) == number:
            seen += 1
    return seen


@DBOS.workflow()
def steps_sync(length: int) -> int:
    """Steps one after the other."""
    seen = 0
    for number in range(length):
        if noop_sync(number) == number:
            seen += 1
    return seen


@DBOS.workflow()
async def fan(width: int) -> int:
    """Steps side by side and a join."""
    return await total(list(await asyncio.gather(*[noop(number) for number in range(width)])))


@DBOS.workflow()
async def timer(seconds: float) -> float:
    """Sleep; seconds after it was due."""
    due = time.time() + seconds
    await DBOS.sleep_async(seconds)
    return await clock() - due


@DBOS.workflow()
async def resting(seconds: float) -> None:
    """One step that waits."""
    await rest(seconds)


@DBOS.workflow()
def resting_sync(seconds: float) -> None:
    """One step that waits."""
    rest_sync(seconds)


@DBOS.workflow()
async def sleeper(seconds: float) -> None:
    """Sleep for days."""
    await DBOS.sleep_async(seconds)


async def run_many(workflow: Any, count: int, *args: Any) -> list[Any]:
    """Start workflows, then wait for all."""
    if asyncio.iscoroutinefunction(workflow):
        handles = [await DBOS.start_workflow_async(workflow, *args) for _ in range(count)]
        return [await handle.get_result() for handle in handles]

    def blocking() -> list[Any]:
        started = [DBOS.start_workflow(workflow, *args) for _ in range(count)]
        return [handle.get_result() for handle in started]

    return await asyncio.to_thread(blocking)


async def chains(runs: int) -> dict[str, float]:
    """Many runs of five steps."""
    began = time.perf_counter()
    await run_many(steps if IS_ASYNC else steps_sync, runs, 5)
    return {"seconds": time.perf_counter() - began}


async def lone(times: int, pause: float) -> dict[str, list[float]]:
    """One run of five steps at a time."""
    taken = []
    for _ in range(times):
        await asyncio.sleep(pause)
        began = time.perf_counter()
        await run_many(steps if IS_ASYNC else steps_sync, 1, 5)
        taken.append(time.perf_counter() - began)
    return {"seconds": taken}


async def long(kind: str, length: int) -> dict[str, float]:
    """One run of many steps; DBOS knows no difference between the kinds."""
    del kind
    began = time.perf_counter()
    await run_many(steps if IS_ASYNC else steps_sync, 1, length)
    return {"seconds": time.perf_counter() - began}


async def wide(width: int) -> dict[str, float]:
    """One fan-out and its join."""
    began = time.perf_counter()
    await run_many(fan, 1, width)
    return {"seconds": time.perf_counter() - began}


async def timers(count: int, seconds: float, pace: float) -> dict[str, list[float]]:
    """Lateness of durable sleeps."""
    began, handles = time.monotonic(), []
    for number in range(count):
        await asyncio.sleep(max(began + number * pace - time.monotonic(), 0))
        handles.append(await DBOS.start_workflow_async(timer, seconds))
    return {"late": [await handle.get_result() for handle in handles]}


async def awaits(count: int, seconds: float) -> dict[str, float]:
    """Many runs of one step that waits."""
    began = time.perf_counter()
    await run_many(resting if IS_ASYNC else resting_sync, count, seconds)
    return {"seconds": time.perf_counter() - began}


async def sleepers(count: int, seconds: float) -> dict[str, float]:
    """Start runs that sleep for long."""
    began = time.perf_counter()
    for _ in range(count):
        await DBOS.start_workflow_async(sleeper, seconds)
    return {"seconds": time.perf_counter() - began}


def main() -> None:
    """Serve the workloads."""
    DBOS.launch()
    with asyncio.Runner() as runner:
        bodies = {f.__name__: f for f in (chains, lone, long, wide, timers, awaits, sleepers)}
        serve({name: lambda f=f, **k: runner.run(f(**k)) for name, f in bodies.items()})
    os._exit(0)  # sleeping workflows would be waited for


if __name__ == "__main__":
    main()
