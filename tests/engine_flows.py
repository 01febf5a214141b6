"""Steps and workflows that the tests of worker processes share with those processes."""

from __future__ import annotations

from ckworkflow import step, workflow
from ckworkflow.hooks import use_client


@step
def double(number: int) -> int:
    return 2 * number


@step
def one(number: int = 1) -> int:
    return number


@workflow
async def looks() -> int:
    total = 0
    for _ in range(3):
        if await one():
            total += 1
    return total


@workflow
async def twice() -> int:
    return await one(await one())


@workflow
async def doubling(number: int) -> int:
    return await double(await double(number))


@step
async def bot_name() -> str:
    client = use_client()
    assert client.user is not None
    return client.user.name


@workflow
async def asking_for_the_bot() -> str:
    return await bot_name()
