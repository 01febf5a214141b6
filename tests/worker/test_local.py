"""Local steps: a process that starts a run and works itself begins the first step without a message."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from ckworkflow import RunStatus, canvas, start_sync, step, workflow
from ckworkflow.engine.installation import current
from ckworkflow.errors import FatalError, RunFailedError
from ckworkflow.hooks import use_step
from ckworkflow.testing import worker
from ckworkflow.worker import embedded
from waiting import until

PATIENCE_SECONDS = 20
go_on = threading.Event()
inside: list[str] = []


@step
async def wait_inside(name: str) -> str:
    inside.append(name)
    await asyncio.to_thread(go_on.wait, PATIENCE_SECONDS)
    return name


@workflow
async def waiting(name: str) -> str:
    return await wait_inside(name)


@step(max_retries=1, retry_delay=0)
async def fails_first() -> int:
    if use_step().attempt == 1:
        raise RuntimeError("once")
    return use_step().attempt


@workflow
async def retrying() -> int:
    return await fails_first()


@step
async def gives_up() -> None:
    raise FatalError("no")


@workflow
async def failing() -> None:
    await gives_up()


@step(queue="elsewhere")
async def far_away() -> None: ...


@workflow
async def elsewhere() -> None:
    await far_away()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the steps for which messages were sent."""
    names: list[str] = []
    send = canvas._send

    def counted(app: Any, producer: Any, run_id: Any, tasks: Any, tell_sent: Any) -> None:
        names.append(tasks[0].name.rpartition(".")[2])
        send(app, producer, run_id, tasks, tell_sent)

    monkeypatch.setattr(canvas, "_send", counted)
    return names


@pytest.fixture(autouse=True)
def app(make_app: Callable[..., Celery]) -> Iterator[Celery]:
    go_on.clear()
    inside.clear()
    yield make_app(is_own=True)
    go_on.set()


def test_the_first_step_of_a_run_needs_no_message(sent: list[str]) -> None:
    go_on.set()
    with worker():
        assert start_sync(waiting, "ada").return_value(PATIENCE_SECONDS) == "ada"

    assert sent == []


def test_what_there_is_no_slot_for_travels(sent: list[str], app: Celery) -> None:
    running = embedded.start(app, concurrency=2)
    try:
        runs = [start_sync(waiting, name) for name in "abc"]
        until(lambda: len(inside) == 2)
        assert sent == ["wait_inside"]
        assert sorted(inside) == ["a", "b"]

        go_on.set()
        assert [run.return_value(PATIENCE_SECONDS) for run in runs] == ["a", "b", "c"]
    finally:
        running.stop()


def test_a_step_of_a_queue_that_is_not_consumed_here_travels(sent: list[str], app: Celery) -> None:
    running = embedded.start(app, queues=[app.conf.task_default_queue])
    try:
        run = start_sync(elsewhere)
        assert sent == ["far_away"]
        assert run.status() is RunStatus.PENDING
    finally:
        running.stop()


def test_a_local_step_that_fails_is_tried_again_and_one_that_gives_up_fails_its_run(
    sent: list[str],
) -> None:
    with worker():
        assert start_sync(retrying).return_value(PATIENCE_SECONDS) == 2
        with pytest.raises(RunFailedError):
            start_sync(failing).return_value(PATIENCE_SECONDS)
        until(lambda: not current().engine.active)


def test_without_a_worker_in_the_process_the_first_step_travels(sent: list[str]) -> None:
    start_sync(waiting, "ada")

    assert sent == ["wait_inside"]
