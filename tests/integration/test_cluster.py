"""A cluster of a broker and two workers, as pytest-celery sets it up, runs workflows and gets over deaths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ckworkflow import start_sync
from integration.greetings import greet_at_the_gate, greet_user_workflow

if TYPE_CHECKING:
    from pytest_celery import CeleryTestSetup

    from worker_home import WorkerHome

# Where an engine answers, the first of them builds an image.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RESULT_SECONDS = 90.0
only_redis = pytest.mark.parametrize("celery_broker", ["redis"], indirect=True)


def test_a_greeting_runs_on_the_workers(celery_setup: CeleryTestSetup, home: WorkerHome) -> None:
    assert celery_setup.ready()

    run = start_sync(greet_user_workflow, "42")

    assert run.return_value(RESULT_SECONDS) == {
        "success": True,
        "said": ["Hello, 42!", "Hello again, 42!"],
    }
    first, second = home.journal("ran")
    assert second["at"] - first["at"] >= 1
    for note in (first, second):
        node = {worker.worker_name: worker for worker in celery_setup.worker_cluster}[note["worker"]]
        node.assert_log_exists("step integration.greetings.greet_user (")
    for worker in celery_setup.worker_cluster:
        assert "Traceback" not in worker.logs()


def test_a_worker_that_was_killed_is_done_without_and_works_again_when_it_is_restarted(
    celery_setup: CeleryTestSetup, home: WorkerHome
) -> None:
    assert celery_setup.ready()
    workers = {worker.worker_name: worker for worker in celery_setup.worker_cluster}
    run = start_sync(greet_at_the_gate, "42", "one")
    killed = workers[home.wait_for_note("ran", gate="one")["worker"]]

    killed.kill()
    again = home.wait_for_note("ran", gate="one", attempt=2)
    opened(home, "one")

    assert run.return_value(RESULT_SECONDS) == ["Hello, 42!", "Hello again, 42!"]
    assert again["worker"] != killed.worker_name
    assert len(home.journal("ran")) == 4

    killed.restart()
    assert killed.ready()
    runs = [start_sync(greet_at_the_gate, str(number), "two") for number in range(4)]
    home.wait_for(lambda: workers_at(home, "two") == set(workers), "both workers at the gate")
    opened(home, "two")
    assert [run.return_value(RESULT_SECONDS)[0] for run in runs] == [f"Hello, {n}!" for n in range(4)]


@only_redis
def test_both_workers_take_from_one_queue(celery_setup: CeleryTestSetup, home: WorkerHome) -> None:
    assert celery_setup.ready(control=True)

    runs = [start_sync(greet_at_the_gate, str(number), "gate") for number in range(4)]
    home.wait_for(lambda: len(home.journal("ran", gate="gate")) == 4, "four steps at the gate")
    opened(home, "gate")

    for run in runs:
        run.return_value(RESULT_SECONDS)
    # Two at a time each.
    held = [note["worker"] for note in home.journal("ran", gate="gate")]
    assert sorted(held) == ["first", "first", "second", "second"]
    assert len(home.journal("ran")) == 12


@only_redis
def test_a_broker_that_is_restarted_is_connected_again_and_nothing_is_lost(
    celery_setup: CeleryTestSetup, home: WorkerHome
) -> None:
    assert celery_setup.ready()
    run = start_sync(greet_at_the_gate, "42", "gate")
    home.wait_for_note("ran", gate="gate")

    celery_setup.broker.kill()
    opened(home, "gate")
    for worker in celery_setup.worker_cluster:
        worker.assert_log_exists("Connection to broker lost")
    celery_setup.broker.restart()
    assert celery_setup.broker.ready()

    assert run.return_value(RESULT_SECONDS) == ["Hello, 42!", "Hello again, 42!"]
    assert len(home.journal("ran")) == 3
    for worker in celery_setup.worker_cluster:
        assert worker.logs().count("Traceback") <= 1


def opened(home: WorkerHome, gate: str) -> None:
    (home.folder / f"{gate}.open").touch()


def workers_at(home: WorkerHome, gate: str) -> set[Any]:
    return {note["worker"] for note in home.journal("ran", gate=gate)}
