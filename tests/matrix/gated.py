"""Runs that stand in the middle until the test opens a gate: a file, so that any process sees it.

No retries at all: an attempt that a fault has cost must not count, and a step that runs twice shows.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from ckworkflow import sleep, step, workflow
from ckworkflow.hooks import use_step
from journal import note

NAP = "1 second"

# The lines of messages that come, by which a test counts them.
logging.getLogger("ckworkflow.worker.steps.reports").setLevel(logging.DEBUG)


def ran(place: str) -> None:
    context = use_step()
    note("ran", step=context.step.rpartition(".")[2], place=place, key=context.idempotency_key)


@step(max_retries=0)
async def before(place: str) -> str:
    ran(place)
    return place


@step(max_retries=0)
async def held(place: str, number: int) -> int:
    ran(place)
    while not Path(f"{place}.open").exists():
        await asyncio.sleep(0.01)
    note("let go", place=place)
    return number


@step(max_retries=0)
def after(place: str, number: int) -> int:
    ran(place)
    return number + 1


@workflow
async def through(place: str, number: int) -> int:
    await before(place)
    one, _ = await asyncio.gather(held(place, number), before(place))
    if one == number:
        one = await after(place, one)
    await sleep(NAP)
    return await after(place, one)


STEPS_OF_A_RUN = 5


@workflow
async def long(place: str) -> int:
    return await after(place, await held(place, 1))
