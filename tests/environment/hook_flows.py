"""Workflows that wait for what somebody sends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, TypedDict

import attrs
import pydantic

from ckworkflow import (
    HookClosedError,
    HookConflictError,
    HookExpiredError,
    HookPayloadError,
    create_hook,
    define_hook,
    resume_hook,
    sleep,
    step,
    timeout,
    workflow,
)
from ckworkflow.hooks import use_step

said: list[object] = []
"""What the steps were called with."""


@step
async def say(what: object) -> object:
    said.append(what)
    return what


@step
async def send(token: str, what: object) -> None:
    """Send to a hook, once however often the attempt is repeated."""
    await resume_hook(token, what, dedup_key=use_step().idempotency_key)


@dataclass
class Decision:
    choice: str
    by: int = 0
    tags: list[str] = field(default_factory=list)


class Vote(TypedDict, total=False):
    option: str


class Order(pydantic.BaseModel):
    amount: int


@attrs.define
class Seat:
    row: int


decision = define_hook("decision", Decision)
vote = define_hook("vote", Vote)
order = define_hook("order", Order)
seat = define_hook("seat", Seat)
TYPED = {"decision": decision, "vote": vote, "order": order, "seat": seat}


@workflow
async def approve(order_id: str) -> str:
    async with decision.create(f"order:{order_id}", metadata={"order": order_id}) as answers:
        await say(f"posted {order_id}")
        try:
            answer = await answers.next(timeout="2 days")
        except TimeoutError:
            return "nobody answered"
    await say(answer.choice)
    return answer.choice


@workflow
async def wait_for_any(token: str | None = None) -> Any:
    return await create_hook(token)


@workflow
async def wait_for_typed(name: str) -> Any:
    hook = TYPED[name].create(name)
    try:
        return await hook
    except HookPayloadError as error:
        return [error.reason, await hook.next()]


@workflow
async def collect(token: str, count: int) -> list[Any]:
    found: list[Any] = []
    async for each in create_hook(token):
        found.append(each)
        await say(each)
        if len(found) == count:
            break
    return found


@workflow
async def collect_until(token: str) -> list[Any]:
    hook = create_hook(token, expires="1 hour")
    found = [each async for each in hook]
    try:
        await hook
    except HookExpiredError as error:
        found.append(error.name)
    return found


@workflow
async def tell_tokens() -> list[str]:
    first, second = create_hook(), create_hook()
    await say(first.token)
    await sleep("1 day")
    async with create_hook() as third:
        return [first.token, second.token, third.token]


@workflow
async def close_and_count(token: str) -> list[Any]:
    hook = create_hook(token)
    await sleep("1 hour")
    await hook.close()
    found: list[Any] = [hook.pending()]
    try:
        while True:
            found.append(await hook.next(timeout="1 day"))
    except HookClosedError:
        found.append("closed")
    return found


@workflow
async def make_again(token: str) -> list[Any]:
    async with create_hook(token):
        await sleep("1 hour")
    async with create_hook(token) as second:
        return [await second, await second]


@workflow
async def give_and_take(token: str) -> list[Any]:
    """The hook is closed and made again in one continuation."""
    found = []
    for _ in range(3):
        async with create_hook(token) as hook:
            found.append(await hook)
    return found


@workflow
async def try_token(token: str) -> str:
    try:
        async with create_hook(token) as hook:
            return f"got {await hook}"
    except HookConflictError as error:
        return f"taken by {error.run_id}"


@workflow
async def try_own_token(token: str) -> list[Any]:
    async with create_hook(token) as first:
        second = create_hook(token)
        try:
            await second
        except HookConflictError as error:
            return ["taken", error.run_id, await first]
    return []


@workflow
async def first_free(count: int) -> int:
    for number in range(count):
        try:
            async with create_hook(f"slot:{number}"):
                await say(number)
                await sleep("1 day")
                return number
        except HookConflictError:
            continue
    return -1


@workflow
async def two_takers(token: str) -> list[Any]:
    hook = create_hook(token)
    return await asyncio.gather(hook.next(), hook.next())


@workflow
async def impatient(token: str) -> list[Any]:
    hook, found = create_hook(token), []
    for _ in range(2):
        try:
            found.append(await hook.next(timeout="1 hour"))
        except TimeoutError:
            found.append("late")
    found.append(await hook)
    return found


@workflow
async def left_by_a_task(token: str) -> list[Any]:
    """A task that waits, and is neither awaited nor cancelled, takes the next one."""
    hook = create_hook(token)
    task = asyncio.create_task(hook.next())
    await sleep("1 hour")
    second = await hook
    return [await task, second]


@workflow
async def closed_meanwhile(token: str) -> list[Any]:
    hook = create_hook(token)
    task = asyncio.create_task(hook.next())
    await sleep("1 hour")
    await hook.close()
    return [type(each).__name__ for each in await asyncio.gather(task, return_exceptions=True)]


@workflow
async def cleans_up(token: str) -> None:
    async with create_hook(token) as hook:
        try:
            await hook
        finally:
            await say("cleaned up")


@workflow
async def beside_a_step(token: str) -> Any:
    hook = create_hook(token)
    found = await asyncio.gather(hook.next(), say("beside"))
    await say("after")
    return found


@workflow
async def forgets_to_wait(token: str) -> None:
    hook = create_hook(token)
    hook.next()
    await say("went on")


@workflow
async def passes_its_hook() -> None:
    await say(create_hook())


@workflow
async def sends_in_its_body() -> None:
    await resume_hook("x", 1)


@workflow
async def makes_bad(what: str) -> str:
    bad: dict[str, Any] = {
        "expires": {"expires": "0 seconds"},
        "duration": {"expires": "tomorrow"},
        "metadata": {"metadata": object()},
        "token": {"token": 5},
        "empty": {"token": ""},
    }
    try:
        create_hook(**bad[what])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "made"


@workflow
async def talks_to_itself(count: int) -> list[Any]:
    """All that a hook can do, without anybody outside."""
    found: list[Any] = []
    async with create_hook(metadata="own") as hook:
        for number in range(count):
            await send(hook.token, number)
            found.append(await hook)
        await asyncio.gather(send(hook.token, "last"), send(hook.token, "last"))
        await hook.close()
        found += hook.pending()
    async with timeout("1 day"), create_hook(expires="1 hour") as late:
        try:
            await late
        except HookExpiredError:
            found.append("expired")
    return found


@workflow
async def closes_beside_a_sleep(token: str) -> bool:
    hook = create_hook(token)
    closing = asyncio.create_task(hook.close())
    await sleep("1 minute")
    return closing.done()


@workflow
async def conflicts_at_first() -> list[Any]:
    found: list[Any] = []
    async with create_hook("own"):
        for _ in range(2):
            try:
                await create_hook("own")
            except HookConflictError:
                found.append(await say("taken"))
    return found


@dataclass
class Special(Decision):
    more: int = 1


class Unfinished(pydantic.BaseModel):
    what: NotThere  # type: ignore[name-defined]  # noqa: F821


@workflow
async def with_metadata(token: str) -> Any:
    return await create_hook(token, metadata=Decision("meta"))
