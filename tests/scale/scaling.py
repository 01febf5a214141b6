"""Workflows of many runs and many steps, whose steps say when they ran and what the worker had used by then.

Discovery loads this module in every worker process, as any workflow module. There it also notes when the worker
consumes, and each message that it receives: a message that was delivered twice shows.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from celery.signals import task_received
from celery.worker.consumer import Consumer

from ckworkflow import sleep, step, workflow
from ckworkflow.hooks import use_step
from journal import note
from scale.usage import memory_of_this_process, time_of_known_work

# No retries at all, here as below: a step that runs twice shows.


@step(max_retries=0)
async def fired(number: int) -> None:
    note("fired", number=number, attempt=use_step().attempt)


@workflow
async def timer(number: int, until: datetime) -> None:
    await sleep(until)
    await fired(number)


@workflow
async def sleeper(days: int) -> None:
    await sleep(86_400 * days)
    await fired(-1)


# -- long runs ----------------------------------------------------------------------------------------

_done: Counter[str] = Counter()
_lock = threading.Lock()
_unit_seconds = 0.0


@step(max_retries=0)
async def tick(label: str, every: int) -> int:
    """Count, and measure this process now and then: at the same places of each run, whatever the clock says."""
    with _lock:
        _done[label] += 1
        done = _done[label]
    if done % every == 0:
        measure(label, done)
    return done


@step(max_retries=0)
async def last(label: str) -> int:
    """The step after all others: what the body or a join has cost after them is in this sample."""
    measure(label, _done[label] + 1)
    return _done[label]


def measure(label: str, done: int) -> None:
    """Note what the process has used, and what known work takes it now; that work itself is not counted."""
    global _unit_seconds
    processor, unit = time.process_time() - _unit_seconds, time_of_known_work()
    with _lock:
        _unit_seconds += unit
    note(
        "sample",
        label=label,
        done=done,
        memory=memory_of_this_process(),
        processor=processor,
        unit=unit,
    )


@workflow
async def chain(label: str, length: int, every: int) -> int:
    """Nobody looks at what the steps return: traced ahead."""
    for _ in range(length):
        await tick(label, every)
    return await last(label)


@workflow
async def loop(label: str, length: int, every: int) -> int:
    """The body decides after each step."""
    seen = 0
    for _ in range(length):
        if await tick(label, every) > 0:
            seen += 1
    await last(label)
    return seen


@workflow
async def fan_out(label: str, length: int, every: int) -> int:
    """Steps side by side and their join."""
    await asyncio.gather(*[tick(label, every) for _ in range(length)])
    return await last(label)


# -- steps that last until they are let go ------------------------------------------------------------


@step(max_retries=0)
def held(place: str) -> str:
    note("held", place=place, task=task_id())
    while not Path(f"{place}.open").exists():
        time.sleep(0.01)
    return place


@step(max_retries=0)
async def held_async(place: str) -> str:
    note("held", place=place, task=task_id())
    while not Path(f"{place}.open").exists():
        await asyncio.sleep(0.01)
    return place


@step(max_retries=0)
async def after(place: str) -> str:
    note("after", place=place)
    return place


@workflow
async def holding(place: str) -> str:
    return await after(await held(place))


@workflow
async def holding_async(place: str) -> str:
    return await after(await held_async(place))


def task_id() -> str:
    return use_step().run_id


# -- what the worker does -----------------------------------------------------------------------------


@task_received.connect(weak=False)
def _note_received(request: Any, **_: Any) -> None:
    if ".held" in request.name:  # of ten thousand others nobody asks
        note("received", task=request.id)


def _note_ready() -> None:
    on_ready = Consumer.on_ready

    def noted(self: Any) -> None:
        note("ready")
        on_ready(self)

    Consumer.on_ready = noted


_note_ready()
