"""A step that holds the event loop is named, once a minute."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from ckworkflow import start_sync, step, workflow
from ckworkflow.testing import worker
from ckworkflow.worker.process import loop_watch
from ckworkflow.worker.process.loop_watch import LoopWatch
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckworkflow.engine.installation import Installation

released, looks = threading.Event(), threading.Semaphore(0)


@step
async def block() -> int:
    released.wait(20)
    return 1


@step
async def wait() -> int:
    while not released.is_set():
        await asyncio.sleep(0.001)
    return 1


async def block_inside() -> int:
    released.wait(20)
    return 1


@step
async def block_in_a_task() -> int:
    (value,) = await asyncio.gather(block_inside())
    return value


@workflow
async def blocks() -> int:
    return await block()


@workflow
async def blocks_in_a_task() -> int:
    return await block_in_a_task()


@workflow
async def waits() -> int:
    return await wait()


@pytest.fixture
def watched(home: Installation, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker whose loop is looked at often."""
    look = LoopWatch._look

    def counted(watch: LoopWatch) -> None:
        look(watch)
        looks.release()

    monkeypatch.setattr(LoopWatch, "_look", counted)
    monkeypatch.setattr(loop_watch, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(loop_watch, "HELD_SECONDS", 0.1)
    released.clear()
    with worker():
        yield
        released.set()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in map(str, caplog.messages) if "has held the event loop" in text]


def look_often() -> None:
    for _ in range(20):
        assert looks.acquire(timeout=20)


def test_a_step_that_blocks_is_named_with_its_line_and_once_a_minute(
    watched: None, caplog: pytest.LogCaptureFixture
) -> None:
    run = start_sync(blocks)
    until(lambda: told(caplog))
    released.set()
    assert run.return_value(10) == 1

    released.clear()
    again = start_sync(blocks)
    look_often()
    released.set()
    assert again.return_value(10) == 1

    (text,) = told(caplog)
    line = block.function.__code__.co_firstlineno + 2
    assert text.startswith(f"step {block.name} has held the event loop for 0.")
    assert f"({__file__}, line {line}): no other async step" in text


def test_a_task_of_a_step_that_blocks_is_named(watched: None, caplog: pytest.LogCaptureFixture) -> None:
    run = start_sync(blocks_in_a_task)
    until(lambda: told(caplog))
    released.set()
    assert run.return_value(10) == 1

    (text,) = told(caplog)
    # Python tells since 3.12 which step has begun the task.
    names = f"step {block_in_a_task.name} ", "coroutine block_inside of a step "
    assert text.startswith(names[sys.version_info < (3, 12)])
    assert f"({__file__}, line {block_inside.__code__.co_firstlineno + 1})" in text


def test_a_step_that_waits_is_not_named(watched: None, caplog: pytest.LogCaptureFixture) -> None:
    run = start_sync(waits)
    look_often()
    released.set()

    assert run.return_value(10) == 1
    assert told(caplog) == []
