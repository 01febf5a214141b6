"""A background thread that ends unasked is heard of, and ends the worker."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from celery import Celery

from ckworkflow.background import BackgroundThread, stop_worker_with
from ckworkflow.engine import liveness, recovery
from ckworkflow.engine.core import Engine
from ckworkflow.engine.settings import Settings
from ckworkflow.model import RunId
from ckworkflow.store.writer import GroupWriter
from ckworkflow.worker.process.clock import ClockThread
from ckworkflow.worker.process.heartbeat import Heartbeat
from ckworkflow.worker.steps.events import Events
from dying import die
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def stops() -> Iterator[list[str]]:
    """The threads on which the worker was told to stop."""
    stops: list[str] = []
    stop_worker_with(lambda: stops.append(threading.current_thread().name))
    yield stops
    stop_worker_with(None)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    settings = Settings(
        database_url=f"sqlite:///{tmp_path / 'runs.sqlite3'}", heartbeat=timedelta(seconds=0.02)
    )
    engine = Engine(settings, lambda _run_id, _pieces: True)
    engine.ensure_schema()
    yield engine
    engine.database.dispose()


def test_one_that_was_asked_to_end_stops_nothing(stops: list[str]) -> None:
    thread = BackgroundThread(lambda: None, name="asked", loss="nothing changes")
    thread.start()
    thread.join()

    assert stops == []


def end_clock(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    ClockThread(engine).start()
    patch.setattr(recovery, "tick", die)


def end_heartbeat(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    Heartbeat(engine).start()
    patch.setattr(liveness, "heartbeat", die)


def end_watch(engine: Engine, patch: pytest.MonkeyPatch) -> ExitStack:
    patch.setattr(engine.watch, "_tell", die)
    waiting = ExitStack()
    for number in range(4):  # fewer look for themselves
        waiting.enter_context(engine.watch.waiting(RunId(str(number))))
    return waiting


def end_writer(_engine: Engine, _patch: pytest.MonkeyPatch) -> None:
    a_writer().submit(lambda _tx: None, die, key="")


def end_events(_engine: Engine, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Events, "flush", die)
    Events(Celery(broker="memory://"), None).add("task-started", uuid="1")


def a_writer(may_write: threading.Event | None = None) -> GroupWriter:
    def transact(function: Callable[[None], object], *_: object) -> object:
        if may_write is not None:
            may_write.wait()
        return function(cast("None", SimpleNamespace(is_piped=False)))

    return GroupWriter(transact, longest_seconds=30)


THREADS = {
    "ckworkflow-clock": end_clock,
    "ckworkflow-heartbeat": end_heartbeat,
    "ckworkflow-watch": end_watch,
    "ckworkflow-writer": end_writer,
    "ckworkflow-events": end_events,
}


@pytest.mark.parametrize("name", THREADS)
def test_one_that_dies_stops_the_worker_and_says_what_is_lost(
    engine: Engine, stops: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:  # fmt: skip
    kept = THREADS[name](engine, monkeypatch)

    until(lambda: stops)
    del kept

    assert stops == [name]
    (record,) = [record for record in caplog.records if record.name == "ckworkflow.background"]
    assert f"thread {name} has ended with Died: . Without it " in record.getMessage()
    assert "so the worker stops; start it again" in record.getMessage()
    assert record.exc_info is not None


def test_a_listener_that_raises_leaves_nobody_waiting_for_the_writer(stops: list[str]) -> None:
    may_write, ended = threading.Event(), threading.Event()
    writer = a_writer(may_write)

    writer.submit(lambda _tx: None, lambda _outcome: None, key="")
    writer.submit(lambda _tx: None, die, key="")
    writer.submit(lambda _tx: None, lambda _outcome: ended.set(), key="")
    may_write.set()
    until(ended.is_set)

    until(lambda: stops)
    again = threading.Event()
    writer.submit(lambda _tx: None, lambda _outcome: again.set(), key="")
    until(again.is_set)
