"""Workflows that live on: their bodies return `continue_as_new(...)`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from ckworkflow import (
    FatalError,
    HookConflictError,
    continue_as_new,
    create_hook,
    now,
    random,
    resume_hook,
    sleep,
    start,
    step,
    timeout,
    uuid4,
    workflow,
)
from ckworkflow.hooks import use_step

KEYS: list[str] = []
"""The idempotency keys that steps have seen."""


@step
async def add(number: int) -> int:
    return number + 1


@step
async def note_key() -> str:
    key = use_step().idempotency_key
    KEYS.append(key)
    return key


@step
async def say(what: Any = None) -> Any:
    return what


@step
async def fail() -> None:
    raise FatalError("no")


@step
async def send(token: str, what: object) -> None:
    await resume_hook(token, what, dedup_key=use_step().idempotency_key)


@workflow
async def count(number: int, until: int) -> Any:
    number = await add(number)
    if number < until:
        return continue_as_new(number, until=until)
    return number


@workflow
async def collect(token: str, seen: list[Any]) -> Any:
    """One payload in each life."""
    hook = create_hook(token)
    seen.append(await hook)
    if seen[-1] == "end":
        return seen
    return continue_as_new(token, seen)


@workflow
async def collect_and_close(token: str, seen: list[Any]) -> Any:
    """The hook is closed before the end of the life, and made again at once."""
    async with create_hook(token) as hook:
        seen.append(await hook)
        if seen[-1] == "end":
            return seen
        return continue_as_new(token, seen)


@workflow
async def collect_later(token: str, seen: list[Any]) -> Any:
    """The hook is made again in a later segment of the next life."""
    await say()
    hook = create_hook(token)
    seen.append(await hook)
    if seen[-1] == "end":
        return seen
    return continue_as_new(token, seen)


@workflow
async def leaves_payloads(token: str, life: int) -> Any:
    """Takes one of three in its first life; the second has no hook at all; the third has it again."""
    if life == 1:
        await say()
        return continue_as_new(token, 2)
    hook = create_hook(token)
    first = await hook
    if life == 2:
        return [first, hook.pending()]
    await say()
    return continue_as_new(token, 1)


@workflow
async def derived(tokens: list[str]) -> Any:
    """Tokens, keys and random values of three lives: none comes twice."""
    hook = create_hook()
    tokens += [hook.token, str(uuid4()), str(random()), await note_key()]
    if len(tokens) < 12:
        return continue_as_new(tokens)
    return tokens


@workflow
async def times(seen: list[Any]) -> Any:
    seen.append(now())
    await sleep("1 hour")
    seen.append(now())
    return continue_as_new(seen) if len(seen) < 6 else seen


@workflow
async def lets_go(life: int) -> Any:
    """Steps, sleeps, timers, hooks and children are under way when a life ends."""
    if life:
        await sleep("1 minute")
        return await say(life)
    create_hook("left")
    asyncio.create_task(sleep("1 day"))  # noqa: RUF006  # it is let go of
    asyncio.create_task(say_later())  # noqa: RUF006
    await say()
    return continue_as_new(life + 1)


async def say_later() -> None:
    await sleep("30 seconds")
    await say("never")


@workflow
async def idle() -> Any:
    return continue_as_new()


@workflow
async def idle_later(life: int) -> Any:
    if not life:
        await say()
    return continue_as_new(life + 1)


@workflow
async def forgets_to_return() -> Any:
    await say()
    continue_as_new()
    return 1


@workflow
async def inner() -> Any:
    await say()
    return continue_as_new()


@workflow
async def in_a_workflow() -> Any:
    return await inner()


@workflow
async def in_a_task() -> Any:
    async def go_on() -> Any:
        return continue_as_new()

    return await asyncio.create_task(go_on())


@workflow
async def passes_it_to_a_step() -> Any:
    return await say(continue_as_new())


@workflow
async def stopped_on_its_way(life: int) -> Any:
    """It is cancelled after it was about to return."""
    try:
        try:
            return continue_as_new(life + 1)
        finally:
            await sleep("1 hour")
    except asyncio.CancelledError:
        return "stopped"


@workflow
async def listens_and_sleeps(life: int) -> Any:
    create_hook("beside")
    await say()
    await sleep("1 hour")
    return continue_as_new(life + 1)


@workflow
async def bad_arguments(what: str) -> Any:
    await say()
    try:
        if what == "signature":
            return continue_as_new(1, 2)
        return continue_as_new(object())
    except Exception as error:
        return [type(error).__name__, str(error)]


@workflow
async def dies_in_its_next_life(life: int) -> Any:
    await say()
    if life:
        await fail()
    return continue_as_new(life + 1)


@workflow
async def raises_at_once(life: int) -> Any:
    if life:
        raise ValueError("at once")
    await say()
    return continue_as_new(life + 1)


@workflow
async def ends_at_once(life: int) -> Any:
    if life:
        return life
    await say()
    return continue_as_new(life + 1)


@workflow
async def lazily(numbers: list[int]) -> Any:
    """Returns before what it awaited is recorded, and passes the result on."""
    number = await add(len(numbers))
    return continue_as_new([*numbers, number]) if len(numbers) < 3 else numbers


@workflow
async def lazily_last(life: int) -> Any:
    """The last await of a life is lazy: nothing looks at its result."""
    await say()
    await say()
    return continue_as_new(life + 1) if life < 2 else life


@workflow
async def gathers(life: int) -> Any:
    numbers = await asyncio.gather(add(life), add(life), add(life))
    return continue_as_new(numbers[0]) if numbers[0] < 3 else numbers


@workflow
async def child(what: Any) -> Any:
    try:
        await sleep("1 day")
    except asyncio.CancelledError:
        await say("cancelled")
        raise
    return what


@workflow
async def parent(life: int) -> Any:
    """A child of its first life goes on while it lives on."""
    if not life:
        await start(child, "a")
    await say()
    if life < 2:
        return continue_as_new(life + 1)
    await sleep("7 days")
    return life


@workflow
async def cancelled_and_lives_on(life: int) -> Any:
    """Goes on when it is told that it is to be cancelled."""
    if life:
        return await say(life)
    with contextlib.suppress(asyncio.CancelledError):
        await sleep("1 day")
    return continue_as_new(life + 1)


@workflow
async def sleeps_in_lives(life: int) -> Any:
    await sleep("1 hour")
    return continue_as_new(life + 1)


@workflow
async def conflicts(life: int) -> Any:
    """Another run has the token that the next life wants."""
    if not life:
        await say()
        return continue_as_new(1)
    try:
        return await create_hook("wanted").next(timeout="1 minute")
    except HookConflictError:
        await say()
        return "taken"
    except TimeoutError:
        return "free"


@workflow
async def talks_to_itself(life: int, found: list[Any]) -> Any:
    """Payloads that were told, that were not, timers and steps, over three lives."""
    async with create_hook("own") as hook:
        await asyncio.gather(*[send(hook.token, [life, number]) for number in range(2)])
        async with timeout("1 hour"):
            found.append(sorted([await hook]))
        if life < 2:
            return continue_as_new(life + 1, found)
        return len(found), len(hook.pending())


@workflow
async def many_events(number: int) -> int:
    for _ in range(number):
        if await say():
            break
    return number
