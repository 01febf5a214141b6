"""The row by which a process says that it lives."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from ckworkflow.engine import claims
from ckworkflow.engine.core import Engine
from ckworkflow.engine.identity import this_process
from ckworkflow.engine.settings import Settings
from ckworkflow.engine.start import start_run
from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.model import NodeId, NodeStatus
from ckworkflow.store import nodes, processes
from ckworkflow.worker.process import runtime as runtimes
from ckworkflow.worker.process.heartbeat import Heartbeat
from ckworkflow.worker.process.host import WorkerHost
from engine_flows import one, twice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ckworkflow.store.processes import ProcessRow


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    settings = Settings(
        database_url=f"sqlite:///{tmp_path / 'runs.sqlite3'}", heartbeat=timedelta(seconds=0.02)
    )
    engine = Engine(settings, lambda _run_id, _pieces: True)
    engine.ensure_schema()
    yield engine
    engine.database.dispose()


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


def test_it_goes_on_where_nobody_can_say_which_steps_are_to_stop(engine: Engine) -> None:
    looks: list[float] = []

    def fail() -> None:
        looks.append(time.monotonic())
        raise DatabaseUnavailableError("sqlite:///nowhere", "it is away")

    heartbeat = Heartbeat(engine, fail)
    heartbeat.start()
    (first,) = rows(engine)
    end = time.monotonic() + 10
    while rows(engine)[0].alive_until <= first.alive_until or len(looks) < 2:
        assert time.monotonic() < end, "the row is not renewed"
    heartbeat.stop()


def test_what_follows_a_commit_does_not_fail_for_a_database_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    class Away:
        def tell_to_stop(self) -> None:
            asked.append(self)
            raise DatabaseUnavailableError("sqlite:///nowhere", "it is away")

    monkeypatch.setattr(runtimes, "peek", Away)
    host = WorkerHost.__new__(WorkerHost)
    host.tell_to_stop()
    assert len(asked) == 1


def test_one_that_never_began_touches_nothing(engine: Engine) -> None:
    other = Heartbeat(engine)
    other.start()

    Heartbeat(engine).stop()

    assert len(rows(engine)) == 1
    other.stop()


def test_what_a_process_still_owns_it_gives_back_before_it_is_gone(engine: Engine) -> None:
    heartbeat = Heartbeat(engine)
    heartbeat.start()
    run_id = start_run(engine, twice, (), {})
    claimed = claims.claim(engine, run_id, NodeId("0:1"), 1, step=one.name)
    assert isinstance(claimed, claims.Claimed)

    heartbeat.stop()

    node = engine.database.read(lambda tx: nodes.load_node(tx, run_id, NodeId("0:1")).get())
    assert node is not None
    assert (node.status, node.owner, node.losses) == (NodeStatus.PLANNED, None, 0)
    assert node.attempt == node.free_attempts == 1
