"""Runs whose steps outlast Celery's time limits, or are told to end."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from ckworkflow import step, workflow
from ckworkflow.hooks import use_step
from journal import note


def begin(place: str) -> None:
    note("begin", place=place, attempt=use_step().attempt)


@step(max_retries=1, retry_delay=0)
async def hangs_async(place: str) -> str:
    """Hang on the first attempt."""
    begin(place)
    try:
        await asyncio.sleep(60 if use_step().attempt == 1 else 0)
    except asyncio.CancelledError:
        note("cancelled", place=place)
        raise
    note("acted", place=place)
    return place


@step(max_retries=1, retry_delay=0)
def hangs_sync(place: str) -> str:
    begin(place)
    if use_step().attempt == 1:
        time.sleep(60)
    note("acted", place=place)
    return place


@step(max_retries=1, retry_delay=0, timeout=120)
def hangs_sync_with_timeout(place: str) -> str:
    return hangs_sync.function(place)


@step(max_retries=0)
async def hangs_always(place: str) -> str:
    begin(place)
    await asyncio.sleep(60)
    return place


@step
async def quick(place: str) -> str:
    note("quick", place=place)
    return place


@step
async def takes_a_while(place: str) -> str:
    note("while", place=place)
    await asyncio.sleep(0.7)
    return place


@step
async def until_told(place: str) -> str:
    """End when told to, in each attempt."""
    begin(place)
    while not Path(f"{place}.go").exists():
        await asyncio.sleep(0.01)
    return place


@step
def until_told_sync(place: str) -> str:
    begin(place)
    while not Path(f"{place}.go").exists():
        time.sleep(0.01)
    return place


@workflow
async def carried_by_its_message(place: str) -> str:
    return await hangs_async(place)


@workflow
async def carried_on_a_lane(place: str) -> str:
    """The step that hangs has one before it, and one after it that is known before it ends."""
    await quick(place)
    await hangs_async(place)
    return await quick(place)


@workflow
async def carried_by_a_thread(place: str) -> str:
    return await hangs_sync(place)


@workflow
async def carried_by_another_thread(place: str) -> str:
    return await hangs_sync_with_timeout(place)


@workflow
async def hopeless(place: str) -> str:
    return await hangs_always(place)


@workflow
async def four_in_a_row(place: str) -> str:
    for _ in range(3):
        await takes_a_while(place)
    return await takes_a_while(place)


@workflow
async def told(place: str) -> str:
    await quick(place)
    await until_told(place)
    return await quick(place)


@workflow
async def told_sync(place: str) -> str:
    return await until_told_sync(place)


@step(retry_delay="1 second")
async def fails_when_told(place: str) -> None:
    await until_told.function(place)
    raise ValueError(place)


@workflow
async def again(place: str) -> None:
    await fails_when_told(place)


@workflow
async def five_quick(place: str) -> None:
    for _ in range(5):
        await quick(place)
