"""Local steps: a process that makes steps ready, and works itself, begins them without a message."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery

from ckworkflow import RunStatus, canvas, sleep, start_sync, step, workflow
from ckworkflow.engine import claims
from ckworkflow.engine.claims import Claimed
from ckworkflow.engine.installation import current
from ckworkflow.errors import FatalError, RunFailedError
from ckworkflow.hooks import use_step
from ckworkflow.model import NodeId, NodeStatus
from ckworkflow.plan import WINDOW
from ckworkflow.store import nodes
from ckworkflow.testing import worker
from ckworkflow.worker.process import embedded
from ckworkflow.worker.process import runtime as runtimes
from ckworkflow.worker.steps import ahead
from ckworkflow.worker.steps.local import LocalSteps
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


@step
async def number_of(number: int) -> int:
    return number


@workflow
async def resting() -> int:
    await sleep("1s")
    return await number_of(7)


@workflow
async def wide(members: int) -> int:
    return sum(await asyncio.gather(*[number_of(number) for number in range(members)]))


@workflow
async def counting(turns: int) -> int:
    total = 0
    for _ in range(turns):
        if await number_of(1):
            total += 1
    return total


@workflow
async def turning() -> int:
    turns = 0
    while await goes_on():
        turns += 1
    return turns


@step
async def goes_on() -> bool:
    inside.append("turn")
    return not go_on.is_set()


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

    def counted(app: Any, producer: Any, run_id: Any, tasks: Any, *rest: Any) -> None:
        names.append(tasks[0].name.rpartition(".")[2])
        send(app, producer, run_id, tasks, *rest)

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


def test_a_step_that_a_sleep_in_the_database_has_waited_for_needs_no_message(
    sent: list[str], app: Celery
) -> None:
    app.conf.workflow_horizon = 0
    with worker():
        assert start_sync(resting).return_value(PATIENCE_SECONDS) == 7

    assert sent == []


def test_of_a_wide_group_only_the_window_is_published(sent: list[str]) -> None:
    with worker():
        assert start_sync(wide, 3 * WINDOW).return_value(PATIENCE_SECONDS) == sum(range(3 * WINDOW))

    assert len(sent) == WINDOW


def test_a_run_keeps_a_slot_that_nobody_waits_for(
    sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "BOX_SECONDS", 0.0)
    monkeypatch.setattr(ahead, "BOX_SECONDS_PER_NODE", 0.0)
    with worker():
        assert start_sync(counting, 20).return_value(PATIENCE_SECONDS) == 20

    assert sent == []


def test_a_run_that_goes_on_and_on_gives_up_a_slot_that_another_waits_for(
    sent: list[str], app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "BOX_SECONDS", 0.0)
    monkeypatch.setattr(ahead, "BOX_SECONDS_PER_NODE", 0.0)
    running = embedded.start(app, concurrency=1)
    try:
        endless = start_sync(turning)
        until(lambda: len(inside) > 3)
        assert sent == []

        assert start_sync(counting, 1).return_value(PATIENCE_SECONDS) == 1
        assert endless.status() is RunStatus.RUNNING
        assert "goes_on" in sent

        go_on.set()
        assert endless.return_value(PATIENCE_SECONDS) >= 3
    finally:
        running.stop()


@pytest.fixture
def beside(app: Celery) -> Iterator[tuple[LocalSteps, Claimed, ThreadPoolExecutor]]:
    """Local steps on a pool of one thread, and a step that was claimed for it."""
    running = embedded.start(app, queues=[app.conf.task_default_queue])
    try:
        engine = runtimes.running().engine
        run = start_sync(elsewhere)  # of a queue that this worker does not consume
        claimed = claims.claim(engine, run.run_id, NodeId("0:1"), 1, step=far_away.name)
        assert isinstance(claimed, Claimed)
        with ThreadPoolExecutor(1) as pool:
            local = LocalSteps(app, runtimes.running(), pool, slots=1, hostname=None)
            yield local, claimed, pool
    finally:
        running.stop()


def is_given_back(local: LocalSteps, claimed: Claimed) -> bool:
    engine, row = current().engine, claimed.row
    now = engine.database.read(lambda tx: nodes.load_node(tx, claimed.run_id, row.node_id).get())
    assert now is not None
    return (
        (now.status, now.owner, now.losses) == (NodeStatus.PLANNED, None, 0)
        and (local.running, local.waiting) == (0, 0)
        and (claimed.run_id, row.node_id) not in engine.active
    )


def test_a_step_that_was_claimed_for_a_pool_that_has_ended_is_given_back(
    beside: tuple[LocalSteps, Claimed, ThreadPoolExecutor],
) -> None:
    local, claimed, pool = beside
    pool.shutdown()

    local.run(claimed)

    assert is_given_back(local, claimed)


def test_a_step_that_still_waits_for_a_slot_when_the_worker_stops_is_given_back(
    beside: tuple[LocalSteps, Claimed, ThreadPoolExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    local, claimed, pool = beside
    pool.submit(go_on.wait, PATIENCE_SECONDS)

    local.run(claimed)
    assert local.waiting == 1
    monkeypatch.setattr(runtimes.running(), "is_stopping", True)
    go_on.set()

    until(lambda: is_given_back(local, claimed))
