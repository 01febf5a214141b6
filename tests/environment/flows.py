"""Workflows that the tests of the environment run, and what their steps have done."""

from __future__ import annotations

import asyncio
from datetime import datetime

from ckworkflow import (
    FatalError,
    RetryableError,
    get_run_sync,
    now,
    sleep,
    start,
    start_sync,
    step,
    workflow,
)
from ckworkflow.hooks import use_client, use_commandkit, use_run, use_step

done: list[object] = []
"""What steps did, in that order; emptied before each test."""


@step
async def note(what: object) -> object:
    done.append(what)
    return what


@step
def note_plainly(what: object) -> object:
    done.append(what)
    return what


@step
def count(name: str) -> int:
    done.append(name)
    return done.count(name)


@step(max_retries=2, retry_delay="1 minute")
async def flaky(failures: int) -> str:
    attempt = use_step().attempt
    done.append(attempt)
    if attempt <= failures:
        raise RuntimeError(f"attempt {attempt} failed")
    return "at last"


@step
async def tomorrow() -> str:
    if use_step().attempt == 1:
        raise RetryableError("closed", retry_after="1 day")
    return "open"


@step
async def refused() -> None:
    raise FatalError("no entry")


@workflow
async def onboarding(name: str) -> list[object]:
    welcomed = await note(f"welcome {name}")
    await sleep("7 days")
    return [welcomed, await note_plainly(f"how is it, {name}?")]


@workflow
async def three_times() -> int:
    for number in range(3):
        await note(number)
        await sleep("1 day")
    return 3


@workflow
async def side_by_side(names: list[str]) -> list[object]:
    calls = [note_plainly(name) if name.isupper() else note(name) for name in names]
    return list(await asyncio.gather(*calls))


@workflow
async def who_is_first() -> list[object]:
    await asyncio.gather(after("2 hours", "late"), after("1 hour", "early"), after("1 hour", "third"))
    return await note("end"), len(done)


@workflow
async def after(span: str, what: str) -> None:
    await sleep(span)
    await note(what)


@workflow
async def retried(failures: int) -> str:
    return await flaky(failures)


@workflow
async def until_tomorrow() -> str:
    return await tomorrow()


@workflow
async def forbidden() -> str:
    try:
        await refused()
    except FatalError as error:
        return str(error)
    return "let in"


@workflow
async def fails() -> None:
    await refused()


@workflow
async def wide(width: int) -> int:
    return sum(await asyncio.gather(*[count(f"{number}") for number in range(width)]))


@step
async def start_another(name: str) -> object:
    run = await start(onboarding, name)
    return await run.return_value()


@step
def start_another_plainly(name: str) -> object:
    run = start_sync(onboarding, name)
    return get_run_sync(run.run_id).return_value()


@workflow
async def parent(name: str) -> object:
    return await start_another(name)


@workflow
async def plain_parent(name: str) -> object:
    return await start_another_plainly(name)


@step
async def nap(seconds: float) -> str:
    await asyncio.sleep(seconds)
    done.append("rested")
    return "rested"


@workflow
async def rests(seconds: float) -> str:
    return await nap(seconds)


@step
async def surroundings() -> dict[str, object]:
    kit, here = use_commandkit(), use_step()
    await kit.store.set("seen", here.attempt)
    return {
        "run": use_run().run_id == here.run_id,
        "stored": await kit.store.get("seen"),
        "setting": kit.config.task_acks_late,
    }


@workflow
async def looks_around() -> dict[str, object]:
    return await surroundings()


@step
def call_asyncio_run() -> str:
    async def inner() -> str:
        await asyncio.sleep(0)
        return "ran"

    return asyncio.run(inner())


@workflow
async def runs_a_loop() -> str:
    return await call_asyncio_run()


@workflow
async def tells_time() -> list[str]:
    first = now()
    await sleep("1 day")
    return [first.isoformat(timespec="seconds"), now().isoformat(timespec="seconds")]


lines = 0


@workflow
async def counts_lines() -> int:
    global lines
    lines += 1
    if await note(1) == 1:
        await sleep("1 hour")
    if await note(2) == 2:
        await sleep("1 hour")
    return 0


@workflow
async def not_repeatable() -> None:
    global lines
    lines += 1
    if lines == 1:
        found = await note("first")
    else:
        found = await note_plainly("later")
    if found == "first":
        await note("last")


attempts_told = 0


@step
async def remember() -> int:
    global attempts_told
    attempts_told += 1
    return attempts_told


@workflow
async def not_idempotent() -> int:
    return await remember()


@step
async def greet(user_id: int) -> None:
    user = await use_client().fetch_user(user_id)
    await user.send("Hello!")


@workflow
async def greeting(user_id: int) -> None:
    await greet(user_id)
    await sleep("1 day")
    await greet(user_id)


@step
def next_of(numbers: list[int]) -> int:
    return next(iter(numbers))


@workflow
async def takes_the_next(numbers: list[int]) -> object:
    try:
        return await next_of(numbers)
    except FatalError as error:
        return type(error.__cause__).__name__, await note_plainly("after")


@step
async def start_on_a_thread() -> object:
    def start_and_wait() -> object:
        return start_sync(side_by_side, ["A"]).return_value()

    return await asyncio.to_thread(start_and_wait)


@workflow
async def thread_parent() -> list[object]:
    return list(await asyncio.gather(start_on_a_thread(), note_plainly("B")))


@step
def start_plainly_and_wait(number: int) -> object:
    return start_sync(side_by_side, [f"{number}A"]).return_value()


@workflow
async def plain_parents(width: int) -> list[object]:
    return list(await asyncio.gather(*[start_plainly_and_wait(number) for number in range(width)]))


@workflow
async def reminder(at: datetime) -> bool:
    before = now() < at
    await sleep(at)
    await note("remind")
    return before


@step
async def greet_once() -> bool:
    store = use_commandkit().store
    if await store.get("greeted"):
        return False
    await store.set("greeted", True)
    return True


@workflow
async def greets_once() -> bool:
    return await greet_once()


@workflow
async def endless() -> None:
    while True:
        await sleep("1 hour")
        await note("tick")


@step
async def start_endless() -> None:
    await start(endless)


@workflow
async def begins_an_endless_one() -> str:
    await start_endless()
    return "begun"


@step(timeout="1 hour", max_retries=0)
async def ask_the_bank() -> str:
    return "yes"


@workflow
async def asks_the_bank() -> str:
    try:
        return await ask_the_bank()
    except FatalError as error:
        return type(error.__cause__).__name__
