"""What steps do to the threads of their worker: it works on, or it ends with an error and a sentence."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ckworkflow import start_sync
from ckworkflow.model import NodeStatus
from thread_flows import ends, ends_thread, stops_loop
from worker_home import WorkerHome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckworkflow.engine.installation import Installation

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]


@pytest.fixture
def workers(home: Installation, tmp_path: Path) -> Iterator[WorkerHome]:
    """The home of worker processes over the SQLite files of `home`."""
    settings = {
        "workflow_database_url": f"sqlite:///{tmp_path / 'runs.sqlite3'}",
        "workflow_packages": ["thread_flows"],
    }
    found = WorkerHome(tmp_path, TESTS, settings, {"DISCORD_TOKEN": ""})
    yield found
    found.stop()


@pytest.mark.parametrize("name", ["ckworkflow-clock", "ckworkflow-loop"])
def test_a_worker_whose_thread_dies_ends_with_an_error(workers: WorkerHome, name: str) -> None:
    start_sync(ends_thread, name)

    process = workers.start_worker()
    workers.wait_for(lambda: process.poll() is not None, "the end of the worker")

    assert process.returncode == 1
    assert f"thread {name} has ended with Died" in workers.logs()


def test_a_step_that_stops_its_loop_leaves_a_worker_that_works(workers: WorkerHome) -> None:
    run = start_sync(stops_loop)

    workers.start_worker()

    assert run.return_value(20) == 42
    assert "a step called stop() of its worker's event loop" in workers.logs()


@pytest.mark.parametrize(
    ("pool", "how"),
    [
        ("threads", "by swallowing it"),
        ("threads", "by blocking the loop"),
        ("prefork", "by swallowing it"),
    ],
)
def test_a_step_that_does_not_end_when_cancelled_is_given_up(
    workers: WorkerHome, pool: str, how: str
) -> None:
    run = start_sync(ends, how)
    process = workers.start_worker("-P", pool, "-c", "2", STOP_SECONDS="0.2")
    workers.wait_for_note("begun")

    process.send_signal(signal.SIGTERM)
    workers.wait_for_note("cancelled")

    workers.wait_for(lambda: process.poll() is not None, "the end of the worker")
    assert process.returncode == 0
    assert "thread_flows.end: cancelled and not ended" in workers.logs()
    assert [(each.status, each.attempt) for each in run.steps()] == [(NodeStatus.PLANNED, 1)]


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_cold_shutdown_cancels_and_releases_steps(workers: WorkerHome, pool: str) -> None:
    run = start_sync(ends, "when it is cancelled")
    process = workers.start_worker("-P", pool)
    workers.wait_for_note("begun")

    process.send_signal(signal.SIGQUIT)
    workers.wait_for(lambda: process.poll() is not None, "the end of the worker")

    assert process.returncode == 0
    assert workers.journal("cancelled")
    assert "does not implement" not in workers.logs()
    assert "Traceback" not in workers.logs()
    assert [(each.status, each.attempt) for each in run.steps()] == [(NodeStatus.PLANNED, 1)]
