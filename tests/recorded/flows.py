"""Workflows whose histories are kept (`histories/`). Never edit one: replays would diverge. Add others, and record them in a new set.

Each holds something that asyncio does in its own way on each Python: the order in which tasks wake, how a deadline cancels, when a group ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ckworkflow import (
    FatalError,
    Run,
    continue_as_new,
    create_hook,
    define_hook,
    now,
    random,
    sleep,
    start,
    step,
    timeout,
    uuid4,
    workflow,
)


@dataclass
class Answer:
    choice: str
    votes: list[int]


@step(max_retries=0)
async def say(what: Any) -> Any:
    return what


@step(max_retries=0)
async def refuse(what: str) -> None:
    raise FatalError(what)


@workflow
async def steps_and_sleeps() -> Any:
    seen = [await say("a")]
    await sleep("2 hours")
    seen.append(await say("b"))
    await sleep("3 days")
    return [*seen, await say("c")]


@workflow
async def gathered() -> Any:
    async def nap(hours: int) -> Any:
        await sleep(hours * 3_600)
        return await say(hours)

    return await asyncio.gather(*[nap(hours) for hours in (3, 1, 2, 50)])


@workflow
async def grouped() -> Any:
    seen: list[Any] = []

    async def nap(hours: int) -> None:
        await sleep(hours * 3_600)
        seen.append(await say(hours))

    async with asyncio.TaskGroup() as group:
        for hours in (5, 1, 30):
            group.create_task(nap(hours))
    return seen


@workflow
async def grouped_and_failing() -> Any:
    seen: list[Any] = []

    async def nap(hours: int) -> None:
        try:
            await sleep(hours * 3_600)
            await refuse(f"after {hours}")
        finally:
            seen.append(await say(["left", hours]))

    try:
        async with asyncio.TaskGroup() as group:
            for hours in (1, 1, 40):
                group.create_task(nap(hours))
    except* FatalError as errors:
        seen.append(sorted(str(error) for error in errors.exceptions))
    return seen


@workflow
async def deadlines() -> Any:
    seen: list[Any] = []
    for hours in (1, 30):
        try:
            async with timeout(f"{hours} hours"):
                seen.append(await say(hours))
                await sleep("10 hours")
                seen.append("in time")
        except TimeoutError:
            seen.append("late")
    try:
        async with asyncio.timeout(3_600) as outer:
            async with asyncio.timeout(60):
                await sleep("1 day")
    except TimeoutError:
        seen.append(["inner", outer.expired()])
    return seen


@workflow
async def waited_for() -> Any:
    seen: list[Any] = []

    async def slow(hours: int) -> Any:
        try:
            await sleep(hours * 3_600)
        except asyncio.CancelledError:
            seen.append(await say(["cancelled", hours]))
            raise
        return hours

    for hours in (1, 30):
        try:
            seen.append(await asyncio.wait_for(slow(hours), 20 * 3_600))
        except TimeoutError:
            seen.append("late")
    return seen


@workflow
async def races() -> Any:
    async def nap(hours: int) -> Any:
        await sleep(hours * 3_600)
        return hours

    tasks = {asyncio.create_task(nap(hours), name=str(hours)) for hours in (3, 1, 2)}
    won: list[Any] = []
    while tasks:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        won.append(await say([task.result() for task in done]))
    for each in asyncio.as_completed([nap(5), nap(4)]):
        won.append(await each)
    left = asyncio.create_task(nap(300))
    done, waiting = await asyncio.wait([left], timeout=3_600)
    won.append([len(done), len(waiting)])
    left.cancel()
    won.append([type(each).__name__ for each in await asyncio.gather(left, return_exceptions=True)])
    return won


@workflow
async def shared() -> Any:
    """A queue, a lock, an event, a semaphore, a condition among tasks."""
    queue: asyncio.Queue[int] = asyncio.Queue(maxsize=1)
    lock, opened, two = asyncio.Lock(), asyncio.Event(), asyncio.Semaphore(2)
    seen: list[Any] = []

    async def produce() -> None:
        for number in range(4):
            await queue.put(number)
            await sleep("1 hour")
        opened.set()

    async def consume(name: str) -> None:
        for _ in range(2):
            number = await queue.get()
            async with lock:
                seen.append(await say([name, number]))

    async def late(number: int) -> None:
        await opened.wait()
        async with two:
            await sleep("1 hour")
            seen.append(await say(number))

    await asyncio.gather(produce(), consume("x"), consume("y"), *[late(number) for number in range(3)])
    return seen


@workflow
async def shielded() -> Any:
    async def inner() -> Any:
        await sleep("10 hours")
        return await say("inner")

    task = asyncio.create_task(inner())
    try:
        await asyncio.wait_for(asyncio.shield(task), 3_600)
    except TimeoutError:
        first = await say("late")
    return [first, await task]


@workflow
async def generated() -> Any:
    seen: list[Any] = []

    async def numbers(count: int) -> AsyncIterator[Any]:
        try:
            for number in range(count):
                await sleep("1 hour")
                yield await say(number)
        finally:
            seen.append(await say("closed"))

    async for number in numbers(3):
        seen.append(number)
    seen.append([number async for number in numbers(2)])
    async for number in numbers(5):
        if number == 1:
            break
    return seen


@workflow
async def asked(token: str) -> Any:
    got: list[Any] = []
    async with create_hook(token, expires="20 days") as hook:
        for _ in range(3):
            try:
                got.append(await hook.next(timeout="10 hours"))
            except TimeoutError:
                got.append(await say("nobody"))
    return got


answer = define_hook("answer", Answer)


@workflow
async def asked_for_more(token: str) -> Any:
    hook = answer.create(token)

    async def remind() -> None:
        for number in range(3):
            await sleep("6 hours")
            await say(number)

    reminding = asyncio.create_task(remind())
    got = await hook
    reminding.cancel()
    return [got.choice, sum(got.votes)]


@workflow
async def cleaned_up() -> Any:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(cleaned_up_beside())
            await sleep("100 days")
    finally:
        await say("first")
        await sleep("1 hour")
        await say("second")


async def cleaned_up_beside() -> None:
    try:
        await sleep("200 days")
    except asyncio.CancelledError:
        await say("beside")
        raise


@workflow
async def lasts(hours: int, what: Any = None) -> Any:
    await sleep(hours * 3_600)
    return await say([hours, what])


@workflow
async def parent() -> Any:
    runs = [await start(lasts, hours, "child") for hours in (1, 40, 3_000)]
    first = await runs[0].return_value()
    return [first, await runs[2].cancel(), await runs[1].return_value()]


@workflow
async def lives(life: int, seen: list[Any], run: Run[Any] | None = None) -> Any:
    if run is None:
        run = await start(lasts, 30, "of an earlier life")
    await sleep("10 hours")
    seen = [*seen, await say(life)]
    if life < 3:
        return continue_as_new(life + 1, seen, run)
    return [*seen, await run.return_value()]


@workflow
async def chances() -> Any:
    numbers = [round(random(), 6) for _ in range(3)]
    first, id_ = now(), str(uuid4())
    await sleep("5 hours")
    return [numbers, id_, str(uuid4()), (now() - first).total_seconds() >= 5 * 3_600]


@workflow
async def fails() -> Any:
    await sleep("3 hours")
    try:
        await refuse("inner")
    except FatalError as error:
        error.add_note("with a note")
        raise ExceptionGroup("both", [ValueError("own"), error]) from None


FLOWS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "steps_and_sleeps": (steps_and_sleeps, ()), "gathered": (gathered, ()), "grouped": (grouped, ()),
    "grouped_and_failing": (grouped_and_failing, ()), "deadlines": (deadlines, ()), "waited_for": (waited_for, ()),
    "races": (races, ()), "shared": (shared, ()), "shielded": (shielded, ()), "generated": (generated, ()),
    "asked": (asked, ("asked",)), "asked_for_more": (asked_for_more, ("more",)), "cleaned_up": (cleaned_up, ()),
    "parent": (parent, ()), "lives": (lives, (1, [])), "chances": (chances, ()), "fails": (fails, ()),
}  # fmt: skip
"""What is started, under which name its end is kept."""
