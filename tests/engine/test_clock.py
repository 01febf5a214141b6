"""The clock goes on, whichever of its looks fails."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from ckworkflow import sleep, start_sync, workflow
from ckworkflow.engine import recovery
from ckworkflow.store import processes
from ckworkflow.testing import worker
from ckworkflow.worker.process.clock import ClockThread
from dying import die
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckworkflow.engine.installation import Installation


@workflow
async def short_sleep() -> str:
    await sleep("20ms")
    return "slept"


@contextmanager
def missing(home: Installation, table: str) -> Iterator[None]:
    """Take a table away, so that every look of the clock fails that needs it."""

    def rename(name: str, new: str) -> None:
        home.engine.database.transact(
            lambda tx: tx.execute(sa.text(f"ALTER TABLE {name} RENAME TO {new}"))
        )

    rename(table, "away")
    yield
    rename("away", table)


@pytest.fixture
def clock(home: Installation) -> Iterator[ClockThread]:
    home.engine.ensure_schema()
    clock = ClockThread(home.engine)
    yield clock
    clock.stop()


def failures(caplog: pytest.LogCaptureFixture) -> int:
    return sum("no such table" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("table", ["runs", "processes"])
@pytest.mark.parametrize("ticks", [0, 1, 3], ids=["first", "second", "later"])
def test_a_clock_whose_tick_fails_ends_the_next_sleep(
    home: Installation, clock: ClockThread, caplog: pytest.LogCaptureFixture, table: str, ticks: int
) -> None:
    caplog.set_level(logging.WARNING)
    run = start_sync(short_sleep)
    if ticks:
        clock.start()
        until(lambda: clock.info()["ticks"] >= ticks)

    with missing(home, table):
        if not ticks:
            clock.start()
        until(lambda: failures(caplog))

    assert (run if not ticks else start_sync(short_sleep)).return_value(10) == "slept"
    assert clock.is_alive


def test_an_embedded_worker_that_loses_its_clock_ends_and_says_so(
    home: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with worker() as embedded, monkeypatch.context() as patched:
        patched.setattr(recovery, "tick", die)
        until(lambda: not embedded.is_alive)

        assert home.engine.database.read(processes.list_processes) == []
        assert "thread ckworkflow-clock has ended with Died" in caplog.text
        assert "No step runs in this process any more" in caplog.text

    with worker():
        assert start_sync(short_sleep).return_value(10) == "slept"
