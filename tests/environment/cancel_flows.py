"""Workflows that are cancelled: while they sleep, clean up, run steps, and run steps side by side."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from ckworkflow import Run, cancel_runs, get_run, get_run_sync, now, sleep, step, timeout, workflow
from ckworkflow.context import use_step

done: list[str] = []
begun: list[str] = []
"""The steps that run until something happens, as they begin."""


@step(max_retries=0)
async def note(text: str) -> str:
    done.append(text)
    return text


@step(max_retries=0)
async def long(text: str = "long") -> str:
    """Runs until it is told to stop, and says what it does then."""
    begun.append(text)
    done.append(f"{text} begins")
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        done.append(f"{text} stops")
    return text


async def cleans_up_slowly() -> None:
    try:
        await sleep("1 day")
    except asyncio.CancelledError:
        await sleep("1 hour")
    await note("went on")


@workflow
async def cleans_up_after_a_deadline() -> None:
    await note("begins")
    await asyncio.wait_for(cleans_up_slowly(), 60)


@step(max_retries=0)
async def stubborn(text: str = "stubborn") -> str:
    """Does not let itself be cancelled."""
    begun.append(text)
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        done.append(f"{text} was cancelled: {use_step().is_cancelled}")
    return text


@step(max_retries=0, on_cancel="tell")
async def told() -> None:
    begun.append("told")
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        done.append("told")


@step(max_retries=0, on_cancel="leave")
async def left(until: str = "after it") -> str:
    begun.append("left")
    done.append("left alone")
    while until not in done:
        await asyncio.sleep(0)
    done.append(f"left ends: {use_step().is_cancelled}")
    return "left"


@step(max_retries=5, retry_delay="1 hour")
async def flaky() -> None:
    raise ValueError("not yet")


@workflow
async def asleep() -> str:
    await sleep("7 days")
    await note("woke up")
    return "slept"


@workflow
async def cleaning() -> str:
    await note("begins")
    try:
        await sleep("7 days")
    except asyncio.CancelledError as error:
        await note(f"cancelled: {error}")
        raise
    finally:
        await note("cleaned up")
    return "slept"


@workflow
async def slow_to_clean() -> str:
    try:
        await sleep("7 days")
    finally:
        await sleep("1 hour")
        await note("cleaned up")
    return "slept"


@workflow
async def obstinate() -> str:
    try:
        await sleep("7 days")
    except asyncio.CancelledError:
        return "went on"
    return "slept"


@workflow
async def worse() -> str:
    try:
        await sleep("7 days")
    finally:
        raise ValueError("while cleaning up")


@workflow
async def with_step(kind: Literal["long", "stubborn", "told", "left"]) -> str:
    try:
        await {"long": long, "stubborn": stubborn, "told": told, "left": left}[kind]()
    finally:
        await note("after it")
    return kind


@workflow
async def in_time(kind: Literal["long", "stubborn", "told", "left"], span: str = "1 hour") -> Any:
    try:
        async with timeout(span):
            await {"long": long, "stubborn": stubborn, "told": told, "left": left}[kind]()
    except TimeoutError:
        await note("too late")
        return now().isoformat()
    return "in time"


@workflow
async def side_by_side() -> list[str]:
    return await asyncio.gather(long("a"), long("b"), asleep())


@workflow
async def group() -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(long("a"))
        tasks.create_task(failing())


@step(max_retries=0)
async def fails() -> None:
    raise ValueError("no")


@workflow
async def failing() -> None:
    await note("first")
    await fails()


@workflow
async def failed_gather() -> None:
    await asyncio.gather(long("a"), fails())


@workflow
async def again_and_again() -> None:
    await flaky()


@workflow
async def chained() -> str:
    await note("one")
    await note("two")
    return "done"


@workflow
async def cancels_itself() -> None:
    await note("begins")
    raise asyncio.CancelledError("I give up")


@step(max_retries=0)
async def stops_after_a(text: str) -> None:
    begun.append(text)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        while "a stops" not in done:
            await asyncio.sleep(0)
        done.append(f"{text} stops")


@workflow
async def gather_and_clean() -> None:
    try:
        await asyncio.gather(long("a"), stops_after_a("b"))
    finally:
        await note("cleaned up")


@workflow
async def group_and_clean() -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(long("a"))
            tasks.create_task(stops_after_a("b"))
    finally:
        await note("cleaned up")


@workflow
async def sibling_goes_on() -> None:
    try:
        await asyncio.gather(left("failed"), flaky(), fails())
    except Exception:
        await note("failed")
    try:
        async with timeout("1 second"):
            await sleep("1 hour")
    except TimeoutError:
        await note("timed out")
    await sleep("10 hours")


@workflow
async def told_why() -> None:
    try:
        async with timeout("1 hour"):
            await long()
    except asyncio.CancelledError as error:
        await note(f"cancelled: {error}")
        raise


@workflow
async def stuck_afterwards() -> None:
    try:
        await sleep("7 days")
    except asyncio.CancelledError:
        await sleep("30 days")
    await asyncio.Event().wait()


@step
def asks_another(run_id: str) -> str:
    run: Any = get_run_sync(run_id)
    return str(run.return_value())


@workflow
async def waits_for(run_id: str) -> str:
    return await asks_another(run_id)


@step
def plain(text: str) -> str:
    return text


@workflow
async def plainly() -> str:
    return await plain("done")


@step(on_cancel="leave")
async def cancel_own_run() -> None:
    await (await get_run(use_step().run_id)).cancel(reason="itself")


@workflow
async def ends_itself() -> None:
    try:
        await cancel_own_run()
        await sleep("1 hour")
    finally:
        await note("cleaned up")


@workflow
async def cancels_in_its_body(run_id: str) -> None:
    run: Any = Run(run_id)  # type: ignore[arg-type]
    await run.cancel()


@workflow
async def terminates_in_its_body(run_id: str) -> None:
    run: Any = Run(run_id)  # type: ignore[arg-type]
    await run.terminate()


@workflow
async def cancels_all_in_its_body(_: str) -> None:
    await cancel_runs(asleep)
