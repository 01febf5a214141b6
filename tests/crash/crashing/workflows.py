"""Runs to be killed. Each step notes where it begins and ends; `place` says what the run is killed at."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

from ckworkflow import sleep, step, workflow
from ckworkflow.hooks import use_step
from journal import note


def begin(place: str) -> None:
    context = use_step()
    note(
        "begin", step=context.step.rpartition(".")[2], place=place, attempt=context.attempt,
        key=context.idempotency_key,
    )  # fmt: skip


def is_held() -> bool:
    return "HOLD" in os.environ


# No retries at all: an attempt that was lost with its process must not count.
@step(max_retries=0)
def first(place: str) -> str:
    begin(place)
    return place


@step(max_retries=0)
async def second(place: str) -> str:
    begin(place)
    return place


@step(max_retries=0)
async def published(place: str) -> str:
    """As `second`; its publishing is where `continued` is held."""
    begin(place)
    return place


@step(max_retries=0)
async def held_async(place: str) -> str:
    begin(place)
    if is_held():
        await asyncio.Event().wait()
    return place


@step(max_retries=0)
def held_sync(place: str) -> str:
    begin(place)
    if is_held():
        threading.Event().wait()
    return place


@workflow
async def inside_async_step(place: str):
    await first(place)
    await held_async(place)
    return await second(place)


@workflow
async def inside_sync_step(place: str):
    await first(place)
    await held_sync(place)
    return await second(place)


@workflow
async def two_steps(place: str):
    await first(place)
    return await second(place)


@workflow
async def boundary(place: str):
    if await first(place) == place:
        return await second(place)
    return None


@workflow
async def continued(place: str):
    if await first(place) == place:
        return await published(place)
    return None


@workflow
async def members(place: str):
    await asyncio.gather(first(place), held_sync(place))
    return await second(place)


@workflow
async def nap(place: str, seconds: float):
    await first(place)
    await sleep(seconds)
    return await second(place)


# -- steps that a test lets end by making a file ----------------------------------------------------


@step(max_retries=0)
def until_told(place: str) -> str:
    begin(place)
    while not Path(f"{place}.go").exists():
        time.sleep(0.01)
    note("end", step="until_told", place=place)
    return place


@step(max_retries=0)
async def until_told_async(place: str) -> str:
    begin(place)
    while not Path(f"{place}.go").exists():
        await asyncio.sleep(0.01)
    note("end", step="until_told_async", place=place)
    return place


@workflow
async def waits(place: str) -> Any:
    await until_told(place)
    return await second(place)


@workflow
async def waits_async(place: str) -> Any:
    await until_told_async(place)
    return await second(place)
