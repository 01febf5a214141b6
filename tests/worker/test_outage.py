"""What a worker does with a step that has run while the database is down."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from ckworkflow import start_sync, step, workflow
from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.store import Database, schema
from ckworkflow.testing import worker
from ckworkflow.worker.process import runtime
from ckworkflow.worker.steps import task
from ckworkflow.worker.steps.ahead import TaskReport
from ckworkflow.worker.steps.lane import Handed

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

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
    handed = Handed(claimed, TaskReport(), outcome=lambda: 1)

    with pytest.raises(DatabaseUnavailableError):
        task.StepTask._attempt(nothing, stopping, handed, frozenset(), ahead, [])
    assert failed == []
    assert not stopping.engine.active  # so that the heartbeat frees it


ran: list[str] = []


@step
def fails_over(url: str) -> int:
    """Run while the server becomes one that only reads, as in a failover."""
    ran.append(url)
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET default_transaction_read_only = on")
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    return len(ran)


@workflow
async def failing_over(url: str) -> int:
    return await fails_over(url)


class Repairer(logging.Handler):
    """Makes the server write again once a worker has said that it cannot record."""

    def __init__(self, url: str) -> None:
        super().__init__(logging.WARNING)
        self._url = url

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == task.__name__ and "database unreachable" in record.getMessage():
            with psycopg.connect(self._url, autocommit=True) as admin:
                admin.execute("SET default_transaction_read_only = off")
                admin.execute(f"ALTER DATABASE {admin.info.dbname} RESET default_transaction_read_only")


def test_a_step_that_ran_while_the_server_failed_over_runs_once(
    make_app: Callable[..., Celery], postgres_url: str
) -> None:
    database = Database(postgres_url)
    schema.upgrade(database)
    database.dispose()
    make_app(workflow_database_url=postgres_url, is_own=True)
    url = postgres_url.replace("+psycopg", "")
    ran.clear()
    task._database.ends()  # what other tests have left
    repairer = Repairer(url)
    logging.getLogger(task.__name__).addHandler(repairer)
    try:
        with worker():
            assert start_sync(failing_over, url).return_value(timeout=20) == 1
    finally:
        logging.getLogger(task.__name__).removeHandler(repairer)
    assert len(ran) == 1
