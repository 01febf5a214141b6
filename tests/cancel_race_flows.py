"""Runs that race a request to cancel against their last step, in a module that workers import.

A step has its effect, waits until its gate is open (a file in the folder of the worker), and ends.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from ckworkflow import step, workflow
from effects import effect

LOOK_SECONDS = 0.0005


async def opened(gate: str) -> None:
    while gate and not Path(gate).exists():
        await asyncio.sleep(LOOK_SECONDS)


@step(max_retries=0)
async def before(gate: str) -> None:
    effect("before")
    await opened(gate)


@step(max_retries=0, on_cancel="wait")
async def waited_for(gate: str) -> str:
    effect("last")
    await opened(gate)
    return gate


@step(max_retries=0, on_cancel="tell")
def told(gate: str) -> str:
    effect("last")
    while gate and not Path(gate).exists():
        time.sleep(LOOK_SECONDS)
    return gate


@step(max_retries=0, on_cancel="leave")
async def left_alone(gate: str) -> str:
    effect("last")
    await opened(gate)
    return gate


@step(max_retries=0)
async def give_back() -> None:
    effect("given back")


@workflow
async def waits(first: str, last: str) -> str:
    await before(first)
    return await waited_for(last)


@workflow
async def tells(first: str, last: str) -> str:
    await before(first)
    return await told(last)


@workflow
async def leaves(first: str, last: str) -> str:
    await before(first)
    return await left_alone(last)


@workflow
async def waits_and_cleans_up(first: str, last: str) -> str:
    try:
        await before(first)
        return await waited_for(last)
    except asyncio.CancelledError:
        await give_back()
        raise


@workflow
async def tells_and_cleans_up(first: str, last: str) -> str:
    try:
        await before(first)
        return await told(last)
    except asyncio.CancelledError:
        await give_back()
        raise


@workflow
async def leaves_and_cleans_up(first: str, last: str) -> str:
    try:
        await before(first)
        return await left_alone(last)
    except asyncio.CancelledError:
        await give_back()
        raise
