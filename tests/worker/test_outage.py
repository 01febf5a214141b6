"""What a worker does with a step that has run while the database is down."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.worker import runtime, task
from ckworkflow.worker.ahead import Told
from ckworkflow.worker.lane import Handed

STOPPING: Any = SimpleNamespace(is_stopping=True)


def test_a_worker_that_stops_records_what_has_run_when_the_database_is_back() -> None:
    outages = iter([True, False])

    def record() -> str:
        if next(outages):
            raise DatabaseUnavailableError("postgresql://host/runs", "it is restarted")
        return "recorded"

    assert task._until_reachable(STOPPING, record) == "recorded"


def test_a_worker_that_stops_waits_no_longer_for_a_database_than_for_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "GRACE_SECONDS", 0.1)
    tries: list[int] = []

    def record() -> None:
        tries.append(1)
        raise DatabaseUnavailableError("postgresql://host/runs", "it is gone")

    with pytest.raises(DatabaseUnavailableError):
        task._until_reachable(STOPPING, record)
    assert len(tries) == 2


def test_a_result_that_could_not_be_recorded_is_no_failure_of_its_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed: list[int] = []

    def record(*_: object, **__: object) -> None:
        raise DatabaseUnavailableError("postgresql://host/runs", "it is gone")

    monkeypatch.setattr(runtime, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(task.attempts, "record_success", record)
    monkeypatch.setattr(task.attempts, "record_failure", lambda *_, **__: failed.append(1))
    ahead: Any = SimpleNamespace(may_run=None)
    stopping: Any = SimpleNamespace(is_stopping=True, engine=SimpleNamespace(active={("run", "0:0")}))
    claimed: Any = SimpleNamespace(run_id="run", row=SimpleNamespace(node_id="0:0"))
    nothing: Any = None
    handed = Handed(claimed, Told(), ExitStack(), outcome=lambda: 1)

    with pytest.raises(DatabaseUnavailableError):
        task.StepTask._attempt(nothing, stopping, handed, frozenset(), ahead, [])
    assert failed == []
    assert not stopping.engine.active  # so that the heartbeat frees it
