"""Steps and workflows that the tests of worker processes share with those processes."""

from __future__ import annotations

from ckworkflow import step, workflow
from ckworkflow.hooks import use_client


@step
def double(number: int) -> int:
    return 2 * number


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
