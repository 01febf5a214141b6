"""What type checkers say of steps and workflows. Read by them, never run: see `test_typing`.

A line with `type: ignore` must be an error: both checkers refuse an ignore that nothing needs.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, assert_type

from ckworkflow.body import now, random, sleep, uuid4
from ckworkflow.definition import Step, SyncStep, Workflow, step, workflow


@step
async def greet(user_id: str, again: bool = False, *, loud: bool = False) -> int:
    return len(user_id) + again + loud


@step(max_retries=5, retry_delay="1 minute", timeout=timedelta(minutes=1), queue="bot")
async def configured(user_id: str) -> list[str]:
    return [user_id]


@step
def add(one: int, other: int = 1) -> int:
    return one + other


@step(name="a-step", on_cancel="tell")
def nothing() -> None: ...


@workflow
async def greeting(user_id: str, times: int = 1) -> dict[str, bool]:
    assert_type(await greet(user_id), int)
    assert_type(await greet(user_id, True, loud=True), int)
    assert_type(await configured(user_id), list[str])
    assert_type(await add(1, other=2), int)
    await nothing()
    assert_type(await greet.with_options(max_retries=0, timeout="1 minute")(user_id), int)
    assert_type(await add.with_options(on_cancel="leave")(1), int)
    number, names = await asyncio.gather(greet(user_id), configured(user_id))
    assert_type(number, int)
    assert_type(names, list[str])
    done, failure = await asyncio.gather(add(1), greet(user_id), return_exceptions=True)
    assert_type(done, int | BaseException)
    assert_type(failure, int | BaseException)
    assert_type(await asyncio.gather(*[add(n) for n in range(times)]), list[int])
    return {"success": True}


@workflow(name="outer")
async def outer(user_id: str) -> bool:
    assert_type(await greeting(user_id), dict[str, bool])
    assert_type(await greeting(user_id, times=2), dict[str, bool])
    await sleep("5 seconds")
    await sleep(timedelta(days=7))
    await sleep(now() + timedelta(seconds=random()))
    return uuid4().version == 4


# The decorators keep parameters and results.
greet_call: Coroutine[Any, Any, int] = greet("1")
greeting_call: Coroutine[Any, Any, dict[str, bool]] = greeting("1")
add_call: Awaitable[int] = add(1)
assert_type(nothing, SyncStep[[], None])
outer_is_a_workflow: Workflow[[str], bool] = outer
configured_is_a_step: Step[[str], list[str]] = configured
add_is_a_step: Step[..., int] = add


async def wrong(user_id: str) -> None:
    await greet()  # type: ignore[call-arg]
    await greet(1)  # type: ignore[arg-type]
    await greet(user_id, "yes")  # type: ignore[arg-type]
    await greet(user_id, laud=True)  # type: ignore[call-arg]
    await greet(user_id, False, True)  # type: ignore[call-arg]
    await configured(user_id, 2)  # type: ignore[call-arg]
    await add("1")  # type: ignore[arg-type]
    await nothing(1)  # type: ignore[call-arg]
    await greeting()  # type: ignore[call-arg]
    await greeting(user_id, times="2")  # type: ignore[arg-type]
    await outer(1)  # type: ignore[arg-type]
    await sleep(None)  # type: ignore[arg-type]
    await sleep([1])  # type: ignore[arg-type]
    text: str = await greet(user_id)  # type: ignore[assignment]
    print(text)
    asyncio.create_task(add(1))  # type: ignore[arg-type]


step(max_retry=3)  # type: ignore[call-overload]
step(max_retries="3")  # type: ignore[call-overload]
step(on_cancel="stop")  # type: ignore[call-overload]
greet.with_options(queue="bot")  # type: ignore[call-arg]
greet.with_options(max_retries="3")  # type: ignore[arg-type]
workflow(retries=1)  # type: ignore[call-overload]


def not_async(user_id: str) -> str:
    return user_id


workflow(not_async)  # type: ignore[arg-type]
a_function: Callable[[str], str] = not_async
