"""Steps that are carried in each way there is, and fail in each way there is."""

from __future__ import annotations

import asyncio

from ckworkflow import FatalError, step, workflow
from ckworkflow.hooks import use_client, use_step


@step
async def on_the_loop(number: int) -> int:
    return number


@step
def on_a_thread(number: int) -> int:
    return number


@step(retry_delay="10ms")
async def stumbles(secret: str) -> None:
    if use_step().attempt < 3:
        raise ValueError(secret)


@step
def falls(secret: str) -> None:
    raise FatalError(secret)


@workflow
async def walk(secret: str) -> None:
    await on_the_loop(1)
    await on_the_loop(2)
    await on_a_thread(3)
    await asyncio.gather(on_the_loop(4), on_a_thread(5))
    await stumbles(secret)
    await falls(secret)


@step
async def asks_discord(user_id: int) -> str:
    return (await use_client().fetch_user(user_id)).name


@workflow
async def asking(user_id: int) -> str:
    return await asks_discord(user_id)
