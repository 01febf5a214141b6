"""Queues: an embedded worker consumes what the router names, each worker tells what it consumes, and a step in a queue that
nobody consumes is told of."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from kombu import Queue

from ckworkflow import start_sync, step, workflow
from ckworkflow.definition import registry
from ckworkflow.engine.installation import current
from ckworkflow.store import Database, processes, schema
from ckworkflow.store.processes import ProcessRow
from ckworkflow.testing import worker
from waiting import TIMEOUT_SECONDS, until
from worker_flows import joining
from worker_home import TESTS, WorkerHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from celery import Celery

NOW = datetime(2026, 1, 2, tzinfo=UTC)
_names = itertools.count()


@pytest.fixture(autouse=True)
def _no_steps_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those have queues of their own, and there are thousands of them."""
    own = {name: each for name, each in registry.steps.items() if name.startswith("worker_flows.")}
    monkeypatch.setattr(registry, "steps", own)


def told() -> list[frozenset[str] | None]:
    """What each process says that it consumes."""
    found = current().engine.database.read(
        lambda tx: [row.queues for row in processes.list_processes(tx)]
    )
    return found


# --- what an embedded worker consumes ----------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"task_routes": {"worker_flows.double": "slow"}},
        {"task_routes": {"worker_flows.*": {"queue": "slow"}}},
        {"task_routes": (lambda name, *_args, **_kwargs: {"queue": f"of-{name}"},)},
        {"task_queues": [Queue("other")]},
        {"task_queues": [Queue("other")], "task_routes": {"worker_flows.add": "slow"}},
    ],
    ids=["route", "pattern", "function", "no-default", "both"],
)
def test_an_embedded_worker_consumes_the_queues_that_the_router_names(
    make_app: Callable[..., Celery], settings: dict[str, Any]
) -> None:
    make_app(is_own=True, **settings)

    with worker():
        assert start_sync(joining, 1).return_value(TIMEOUT_SECONDS) == 12


def test_an_embedded_worker_consumes_the_queue_of_a_step_that_is_defined_later(
    make_app: Callable[..., Celery],
) -> None:
    make_app(is_own=True, task_routes={"later-*": "slow"})

    with worker():

        @step(name=f"later-{next(_names)}")
        def later() -> str:
            return "run"

        @workflow(name="waits for its queue")
        async def waits() -> str:
            return await later()

        assert start_sync(waits).return_value(TIMEOUT_SECONDS) == "run"
        until(lambda: told() == [frozenset({"ckworkflow", "slow"})])


# --- what workers tell -------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'runs.sqlite3'}")
    schema.ensure(made)
    yield made
    made.dispose()


def test_what_live_workers_consume(database: Database) -> None:
    def add(
        name: str, queues: frozenset[str] | None, *, alive_for: int = 9, role: str = "worker"
    ) -> None:
        row = ProcessRow(name, role, "host", "boot", 1, "1", NOW + timedelta(seconds=alive_for), queues)
        database.transact(lambda tx: processes.renew_process(tx, row, now=NOW))

    def consumed() -> frozenset[str] | None:
        return database.read(lambda tx: processes.consumed_queues(tx, now=NOW))

    assert consumed() == frozenset()
    add("one", frozenset({"a", "b"}))
    add("child", frozenset())
    add("dead", frozenset({"dead"}), alive_for=-1)
    add("bot", None, role="client")
    assert consumed() == {"a", "b"}
    add("two", frozenset({"c"}))
    assert consumed() == {"a", "b", "c"}
    add("two", frozenset())
    assert consumed() == {"a", "b"}
    add("of an older release", None)
    assert consumed() is None


def test_a_row_that_was_taken_away_tells_the_queues_again(database: Database) -> None:
    row = ProcessRow("one", "worker", "host", "boot", 1, "1", NOW, frozenset({"a"}))
    for _ in range(2):
        database.transact(lambda tx: processes.renew_process(tx, row, now=NOW))
        assert database.read(processes.list_processes) == [row]
        database.transact(lambda tx: processes.remove_process(tx, "one"))

    # What is only told, and not renewed, makes no row.
    database.transact(lambda tx: processes.tell_queues(tx, "one", frozenset({"b"})))
    assert database.read(processes.list_processes) == []
    database.transact(lambda tx: processes.renew_process(tx, row, now=NOW))
    database.transact(lambda tx: processes.tell_queues(tx, "one", frozenset({"b"})))
    assert database.read(processes.list_processes) == [replace(row, queues=frozenset({"b"}))]


# --- queues that nobody consumes ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_step_in_a_queue_that_nobody_consumes_is_told_of_until_somebody_does(tmp_path: Path) -> None:
    settings = {"workflow_packages": ["greeting"], "task_routes": {"greeting.stumble": "slow"}}
    home = WorkerHome(tmp_path, TESTS / "broker", settings)
    try:
        home.start_worker(
            "--pool=prefork",
            "--concurrency=2",  # its children consume nothing, and say so
        )
        program = home.start_program()
        run_id = program.start("greeting:with_a_retry", "w")

        sentence = (
            "No live worker consumes the queue slow, to which greeting.stumble goes: start one with"
        )
        home.wait_for(lambda: f"{sentence} " in home.logs(), "the log line")
        assert f"(run {run_id} waits)" in home.logs()
        assert f"\n{sentence} `celery -A ckworkflow worker -Q slow`" in home.command(
            "ckworkflow", "runs", "show", run_id
        )

        home.start_worker("--pool=solo", "--concurrency=1", "-Q", "slow", "--hostname=slow@%h")
        assert program.result(run_id) == "result-w"
        assert home.logs().count(sentence) == 1
    finally:
        home.stop()
