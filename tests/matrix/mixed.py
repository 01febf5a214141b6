"""One workflow for each kind of thing that a run can do; every worker of the matrix runs them all at once.

A step notes that it ran, so that a test can count. `BEHAVIOURS` says what each workflow returns, `STEPS` of how many
steps it is; those of `big_fan_out` depend on its width.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ckworkflow import FatalError, RetryableError, sleep, step, workflow
from ckworkflow.hooks import use_step
from journal import note

SHORT_NAP, LONG_NAP = 0.5, 1.6
RATE = 5
LIMITED = 4
RETRIES = 2

OTHER_QUEUE = "special"


def ran(**fields: Any) -> None:
    context = use_step()
    note(
        "ran",
        step=context.step.rpartition(".")[2],
        key=context.idempotency_key,
        attempt=context.attempt,
        **fields,
    )


@step
def double(number: int) -> int:
    ran()
    return 2 * number


@step
async def double_async(number: int) -> int:
    ran()
    return 2 * number


@step
async def add(*numbers: int) -> int:
    ran()
    return sum(numbers)


@step
def add_all(numbers: list[int]) -> int:
    ran()
    return sum(numbers)


@workflow
async def chain() -> int:
    one = await double(1)
    two = await double_async(one)
    return await add(one, two)


@workflow
async def chord_with_body() -> int:
    one, two, three = await asyncio.gather(double(1), double_async(2), double(3))
    return await add(one, two, three)


@workflow
async def twice(number: int) -> int:
    return await double_async(await double(number))


@workflow
async def chord_of_chains() -> int:
    one, two, three = await asyncio.gather(twice(1), twice(2), double(3))
    return await add(one, two, three)


@workflow
async def pair(number: int) -> Any:
    return await asyncio.gather(double(number), twice(number))


@workflow
async def nested_gather() -> Any:
    return await asyncio.gather(pair(1), double_async(5), pair(2))


@step(retry_delay="1 second")
def flaky() -> int:
    ran()
    attempt = use_step().attempt
    if attempt == 1:
        raise ValueError("the first time always fails")
    if attempt == 2:
        raise RetryableError("not now", retry_after="1 second")
    return attempt


@workflow
async def retry() -> int:
    return await add(await flaky(), 10)


@workflow
async def nap(seconds: float) -> int:
    number = await double(3)
    await sleep(seconds)
    return await double_async(number)


@workflow
async def short_sleep() -> int:
    return await nap(SHORT_NAP)


@workflow
async def long_sleep() -> int:
    return await nap(LONG_NAP)


@workflow
async def continuation() -> list[int]:
    found = []
    for number in range(3):
        if await double(number) > 1:
            found.append(await double_async(number))
    return found


@step(max_retries=0)
async def fails() -> None:
    ran()
    raise FatalError("no such thing", code=404)


@workflow
async def failing_member() -> Any:
    try:
        await asyncio.gather(double(1), fails(), double_async(2))
    except FatalError as error:
        return await add(error.code, 1)
    return None


@workflow
async def inlined() -> int:
    first = await twice(2)
    second = await twice(3)
    return await add(first, second)


@workflow
async def big_fan_out(width: int) -> int:
    numbers = await asyncio.gather(*[double_async(number) for number in range(width)])
    return await add_all(numbers)


@step(queue=OTHER_QUEUE)
def elsewhere(number: int) -> int:
    ran()
    return number + 1


@workflow
async def own_queue() -> int:
    number = await elsewhere(await double(1))
    return await double_async(number)


@step(priority=7)
async def first_please(number: int) -> int:
    ran()
    return number + 1


@workflow
async def priority() -> int:
    number = await first_please(await double(1))
    return await double_async(number)


@step(rate_limit=f"{RATE}/s")
async def limited(number: int) -> int:
    ran()
    return number


@workflow
async def rate_limit() -> int:
    numbers = await asyncio.gather(*[limited(number) for number in range(LIMITED)])
    return await add_all(numbers)


BEHAVIOURS: dict[str, Any] = {
    "chain": 6,
    "chord_with_body": 12,
    "chord_of_chains": 18,
    "nested_gather": [[2, 4], 10, [4, 8]],
    "retry": 13,
    "short_sleep": 12,
    "long_sleep": 12,
    "continuation": [2, 4],
    "failing_member": 405,
    "inlined": 20,
    "own_queue": 6,
    "priority": 6,
    "rate_limit": sum(range(LIMITED)),
}
BESIDE_A_FAILURE = range(2, 5)
"""Steps of `failing_member`: whether its siblings still begin when one has failed is luck."""
STEPS = {
    "chain": 3,
    "chord_with_body": 4,
    "chord_of_chains": 6,
    "nested_gather": 7,
    "retry": 2,
    "short_sleep": 2,
    "long_sleep": 2,
    "continuation": 5,
    "inlined": 5,
    "own_queue": 3,
    "priority": 3,
    "rate_limit": LIMITED + 1,
}
