from __future__ import annotations

import logging
import socket
import sys
import time
from datetime import timedelta

import pytest
from celery import _state
from celery.worker import state
from kombu.asynchronous import get_event_loop

import worker_flows
from ckworkflow import RunStatus, start_sync, step, workflow
from ckworkflow.errors import DatabaseUnavailableError, UnsupportedBrokerError
from ckworkflow.testing import worker
from ckworkflow.worker.process import embedded, runtime
from worker_flows import joining, slowly

PATIENCE_SECONDS = 20


@pytest.fixture(params=["ckworkflow", "memory", "redis"])
def app(request, make_app):
    """An app on each kind of broker."""
    if request.param == "redis":
        return make_app(is_own=True, broker_url=request.getfixturevalue("redis_url"))
    return make_app(is_own=True, broker_url=None if request.param == "ckworkflow" else "memory://")


@pytest.fixture
def file_app(make_app):
    return make_app(is_own=True)


@pytest.fixture(autouse=True)
def again():
    worker_flows.begun.clear()


def what_celery_may_change():
    root = logging.getLogger()
    return {
        "socket": socket.getdefaulttimeout(),
        "root": (root.level, list(root.handlers)),
        "streams": (sys.stdout, sys.stderr),
        "default app": _state.default_app,
        "current app": _state._tls.current_app,
        "waiting for results": _state.task_join_will_block(),
        "hub": get_event_loop(),
        "stop": (state.should_stop, state.should_terminate),
        "requests": dict(state.requests),
    }


def test_it_runs_workflows_and_can_be_started_again(app):
    for number in range(2):
        with worker():
            assert start_sync(joining, number).return_value(timeout=PATIENCE_SECONDS) == 6 + 6 * number


def test_it_leaves_the_process_as_it_was(app):
    before = what_celery_may_change()
    mutex = app.clock.mutex

    with worker():
        start_sync(joining, 1).return_value(timeout=PATIENCE_SECONDS)
        assert app.clock.mutex is mutex
        assert not _state.task_join_will_block()

    assert what_celery_may_change() == before
    assert runtime.peek() is None


def test_it_stops_at_once_when_nothing_runs(app):
    with worker():
        started = time.monotonic()

    assert time.monotonic() - started < 3


def test_a_step_that_runs_may_end_before_it_stops(file_app):
    with worker():
        run = start_sync(slowly, 0.5)
        assert worker_flows.begun.wait(PATIENCE_SECONDS)

    assert run.return_value(timeout=0) == "done"


def test_a_step_that_outlasts_the_grace_time_is_released(file_app):
    handle = embedded.start(file_app)
    run = start_sync(slowly, 3600)
    assert worker_flows.begun.wait(PATIENCE_SECONDS)

    handle.stop(grace=timedelta(seconds=0.1))

    assert not handle.is_alive
    assert run.status() is RunStatus.RUNNING
    assert [str(step.status) for step in run.steps()] == ["planned"]


def test_a_second_one_in_the_process_is_refused(file_app):
    with worker(), pytest.raises(RuntimeError, match="A worker runs in this process already"):
        embedded.start(file_app)


def test_a_step_that_is_defined_later_is_run_also_from_a_queue_of_its_own(file_app):
    with worker():

        @step(name="defined later", queue="later")
        def late() -> str:
            return "late"

        @workflow(name="later")
        async def later() -> str:
            return await late()

        assert start_sync(later).return_value(timeout=PATIENCE_SECONDS) == "late"


def test_a_database_that_cannot_be_reached_is_said_before_anything_is_consumed(make_app):
    app = make_app(workflow_database_url="postgresql+psycopg://nobody@127.0.0.1:1/none")

    with pytest.raises(DatabaseUnavailableError):
        embedded.start(app)

    assert runtime.peek() is None


def test_a_refused_broker_is_said(make_app):
    with pytest.raises(UnsupportedBrokerError):
        embedded.start(make_app(broker_url="filesystem://"))


def test_a_broker_that_does_not_answer_is_given_up_and_the_process_is_free_for_the_next(
    make_app, file_app
):
    before = what_celery_may_change()
    deaf = make_app(broker_url="redis://127.0.0.1:1/0")

    with pytest.raises(RuntimeError, match="not ready in time"):
        embedded.start(deaf, timeout=timedelta(seconds=0.5))

    assert what_celery_may_change() == before
    embedded.start(file_app).stop()
