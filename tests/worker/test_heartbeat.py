"""The row by which a process says that it lives."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from ckworkflow.engine.core import Engine
from ckworkflow.engine.identity import this_process
from ckworkflow.engine.settings import Settings
from ckworkflow.store import processes
from ckworkflow.worker.heartbeat import Heartbeat

if TYPE_CHECKING:
    from pathlib import Path

    from ckworkflow.store.processes import ProcessRow


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    settings = Settings(
        database_url=f"sqlite:///{tmp_path / 'runs.sqlite3'}", heartbeat=timedelta(seconds=0.02)
    )
    engine = Engine(settings, lambda _run_id, _pieces: True)
    engine.ensure_schema()
    return engine


def rows(engine: Engine) -> list[ProcessRow]:
    return engine.database.read(processes.list_processes)


def test_it_is_renewed_until_it_stops_and_then_gone(engine: Engine) -> None:
    heartbeat = Heartbeat(engine)
    heartbeat.start()
    (first,) = rows(engine)
    end = time.monotonic() + 10

    while rows(engine)[0].alive_until <= first.alive_until:
        assert time.monotonic() < end, "the row is not renewed"
    heartbeat.stop()

    assert first.process_id == this_process().process_id
    assert rows(engine) == []


def test_one_that_never_began_touches_nothing(engine: Engine) -> None:
    other = Heartbeat(engine)
    other.start()

    Heartbeat(engine).stop()

    assert len(rows(engine)) == 1
    other.stop()
