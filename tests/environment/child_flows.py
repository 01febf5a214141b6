"""Workflows that start runs."""

from __future__ import annotations

import asyncio
from typing import Any

from ckworkflow import (
    FatalError,
    ReturnValueTimeoutError,
    RunCancelledError,
    RunFailedError,
    get_run,
    sleep,
    start,
    start_sync,
    step,
    timeout,
    workflow,
)
from ckworkflow.hooks import use_step

done: list[object] = []
"""What the steps were called with."""


@step
async def note(what: Any) -> Any:
    done.append(what)
    return what


@step(max_retries=0)
async def refuse() -> None:
    raise FatalError("no", code=50007)


@workflow
async def double(number: int) -> int:
    return await note(number) * 2


@workflow
async def slow(number: int) -> int:
    try:
        await sleep("1 day")
    finally:
        await note(f"slow {number} ends")
    return number


@workflow
async def failing() -> None:
    await refuse()


@workflow
async def parent(number: int) -> int:
    child = await start(double, number)
    await note("beside")
    return await child.return_value() + 1


@workflow
async def many(count: int) -> list[int]:
    children = [await start(double, number) for number in range(count)]
    return await asyncio.gather(*[child.return_value() for child in children])


@workflow
async def two_levels() -> int:
    child = await start(parent, 5)
    return await child.return_value() * 10


@workflow
async def of_a_failing_child() -> list[Any]:
    child = await start(failing)
    try:
        await child.return_value()
    except RunFailedError as error:
        cause = error.__cause__
        assert isinstance(cause, FatalError)
        return [error.run_id == child.run_id, type(cause).__name__, cause.code]
    return []


@workflow
async def impatient() -> list[Any]:
    """The deadline is of the wait, and not of the child."""
    child = await start(slow, 1)
    found: list[Any] = []
    try:
        await child.return_value(timeout=60)
    except ReturnValueTimeoutError:
        found.append("late")
    try:
        async with timeout("1 hour"):
            await child.return_value()
    except TimeoutError:
        found.append("later")
    found += [await child.return_value(), await child.return_value()]
    return found


@workflow
async def cancelling() -> list[Any]:
    child = await start(slow, 2)
    await sleep("1 hour")
    was_live = await child.cancel(reason="enough")
    try:
        await child.return_value()
    except RunCancelledError as error:
        return [was_live, error.reason, error.run_id == child.run_id, await child.cancel()]
    return []


@workflow
async def leaving(number: int) -> str:
    """The child goes on when its parent has ended."""
    child = await start(slow, number)
    return child.run_id


@workflow
async def cancelled_with_its_child() -> None:
    await start(slow, 4)
    try:
        await sleep("2 days")
    finally:
        late = await start(double, 7)  # of the clean-up: it is not cancelled
        await late.return_value()


@workflow
async def looks_at_its_child(what: str) -> str:
    child = await start(double, 1)
    try:
        match what:
            case "status":
                await child.status()
            case "steps":
                await child.steps()
            case "exists":
                await child.exists()
            case "terminate":
                await child.terminate()
            case "get_run":
                await get_run(child.run_id)
            case "start_sync":
                start_sync(double, 1)
            case "argument":
                await start(double, "one", "too many")  # type: ignore[call-arg, arg-type]
            case "no workflow":
                await start(note, 1)  # type: ignore[arg-type]
            case "unstorable":
                await start(double, object())  # type: ignore[arg-type]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@workflow
async def forgets_its_child() -> None:
    child = await start(double, 1)
    child.return_value()
    await note("went on")


@workflow
async def forgets_to_start() -> None:
    await note("began")
    start(double, 1)
    await note("went on")


tries: list[str] = []


@step(max_retries=2, retry_delay="1 second")
async def start_two(fails: int) -> list[str]:
    found = [(await start(double, number)).run_id for number in range(2)]
    tries.extend(found)
    if len(tries) <= 2 * fails:
        raise ValueError("not yet")
    return found


@workflow
async def starts_in_a_step(fails: int) -> list[str]:
    return await start_two(fails)


@step(max_retries=2, retry_delay=0.01)
async def start_another(number: int) -> int:
    """Its second attempt starts something else in the same place."""
    if use_step().attempt == 1:
        await start(double, number)
        raise RuntimeError("flaky")
    return await (await start(slow, number)).return_value()


@workflow
async def starts_another() -> int:
    return await start_another(1)


@step(max_retries=2, retry_delay=0.01)
async def start_with_equals(_: int) -> str:
    """To Python, the arguments of the second attempt equal those of the first."""
    run: Any = await start(double, 1 if use_step().attempt == 1 else True)
    if use_step().attempt == 1:
        raise RuntimeError("flaky")
    return str(run.run_id)


@workflow
async def starts_with_equals() -> str:
    return await start_with_equals(1)


@workflow
async def cancels_among_steps() -> None:
    """Its requests stand between what its tasks do."""
    first, second = await start(slow, 5), await start(slow, 6)
    await first.cancel()
    other = asyncio.create_task(second.cancel())
    await note("went on")
    await other
    await note("ended")


@workflow
async def cleans_up_badly() -> None:
    await start(slow, 5)
    try:
        await sleep("1 day")
    finally:
        await asyncio.to_thread(print)


@workflow
async def slow_to_end() -> None:
    try:
        await sleep("10 days")
    finally:
        await sleep("5 days")


@workflow
async def cancels_twice() -> str:
    child = await start(slow_to_end)
    await sleep("1 hour")
    await child.cancel(reason="first")
    await child.cancel(reason="second", grace="1 minute")
    try:
        await child.return_value()
    except RunCancelledError as error:
        return f"{error.reason}, terminated: {error.is_terminated}"
    return ""


@workflow
async def broken() -> None:
    raise SystemExit(3)


@workflow
async def of_a_broken_child() -> str:
    child = await start(broken)
    try:
        await child.return_value(timeout=100)
    except RunFailedError as error:
        return type(error.__cause__).__name__
    return ""
