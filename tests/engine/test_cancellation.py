"""A request to cancel a run: nothing that was planned before it begins, it is told once, and a step that runs is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from ckworkflow import FatalError, sleep, step, timeout, workflow
from ckworkflow.definition import registry
from ckworkflow.engine import advance as advancing
from ckworkflow.engine import attempts, cancellation, claims, holding, liveness, verdicts
from ckworkflow.engine.advance import advance
from ckworkflow.engine.budget import BodyStoppedError
from ckworkflow.engine.claims import Claimed, Dropped
from ckworkflow.engine.identity import this_process
from ckworkflow.errors import ReplayDivergenceError, StepCancelledError
from ckworkflow.model import CANCEL, NodeStatus, RunStatus
from ckworkflow.store import runs, tables
from desk import Desk

SECOND = timedelta(seconds=1)


@step(max_retries=3, retry_delay="1 hour")
async def one(number: int = 1) -> int:
    return number


@step(max_retries=0)
def plain(number: int = 1) -> int:
    return number


@workflow
async def two() -> int:
    first = await one(1)
    return await one(first + 1)


@workflow
async def cleaning() -> int:
    try:
        return await one(1)
    finally:
        await plain(2)


@workflow
async def in_time() -> str:
    try:
        async with timeout(60):
            await one(1)
    except TimeoutError:
        await plain(2)
        return "late"
    return "in time"


@workflow
async def of_a_plain_one() -> None:
    try:
        async with timeout(60):
            await plain(1)
    except TimeoutError:
        await one(2)


@workflow
async def asleep() -> str:
    await sleep(3_600)
    await plain(1)
    return "slept"


@pytest.fixture
def desk(either_desk: Desk) -> Desk:
    return either_desk


def cancel(desk: Desk, run_id: Any, **options: Any) -> bool:
    return cancellation.cancel(desk.engine, run_id, **{"reason": "enough", "grace": None, **options})


def request_alone(desk: Desk, run_id: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit a request, and die before anything follows from it."""
    with monkeypatch.context() as patches:
        patches.setattr(cancellation, "go_on_here", lambda *_: None)
        cancel(desk, run_id)


# -- nothing that was planned before begins -----------------------------------------------------------


def test_a_step_that_was_planned_is_not_begun_by_its_message(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(two)
    desk.succeed(desk.claim(run_id), 1)
    advance(desk.engine, run_id)
    request_alone(desk, run_id, monkeypatch)
    assert isinstance(desk.claim(run_id, "0:2"), Dropped)
    desk.tick()
    assert desk.run(run_id).status == RunStatus.CANCELLED
    assert [row.node_id for row in desk.nodes(run_id)] == ["0:1"]


def test_a_step_after_a_record_is_not_taken_in_place(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    run_id = desk.start(two)
    first = desk.claim(run_id)
    request_alone(desk, run_id, monkeypatch)
    recorded = attempts.record_success(
        desk.engine, first, 1, carries=frozenset(), may_run=lambda _: True
    )
    assert recorded.here is None
    desk.tick()
    assert desk.run(run_id).status == RunStatus.CANCELLED
    assert desk.node(run_id).status is NodeStatus.COMPLETED
    assert desk.node(run_id).cancelled_at is None


def test_a_retry_of_what_ran_at_the_request_does_not_begin(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    run_id = desk.start(cleaning)
    claimed = desk.claim(run_id)
    request_alone(desk, run_id, monkeypatch)
    desk.fail(claimed, ValueError("flaky"), one)
    desk.clock.advance(2 * timedelta(hours=1))
    assert isinstance(desk.claim(run_id), Dropped)
    desk.tick()
    assert desk.node(run_id).attempt == 1
    assert desk.node(run_id).status is NodeStatus.ABANDONED
    assert desk.node(run_id, "0:2").status is NodeStatus.PLANNED


def test_the_last_record_does_not_end_a_run_whose_request_is_untold(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(two)
    desk.succeed(desk.claim(run_id), 1)
    advance(desk.engine, run_id)
    last = desk.claim(run_id, "0:2")
    request_alone(desk, run_id, monkeypatch)
    desk.clock.advance(SECOND)
    desk.succeed(last, 2)
    desk.tick()
    assert desk.run(run_id).status == RunStatus.CANCELLED


def test_what_was_recorded_before_the_request_is_told_before_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(two)
    desk.succeed(desk.claim(run_id), 1)
    advance(desk.engine, run_id)
    with monkeypatch.context() as patches:
        patches.setattr(advancing, "_begin", lambda *_: None)
        desk.succeed(desk.claim(run_id, "0:2"), 2)
    if desk.run(run_id).status is RunStatus.RUNNING:
        cancel(desk, run_id)
    assert desk.run(run_id).status == RunStatus.COMPLETED


def test_a_continuation_that_has_not_read_the_request_is_undone(
    desk: Desk, between: Callable[[Callable[[], object]], None], monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(two)
    claimed = desk.claim(run_id)
    desk.engine.bodies.clear()  # or the continuation would be one with the record
    assert desk.succeed(claimed, 1).must_advance
    between(lambda: request_alone(desk, run_id, monkeypatch))
    advance(desk.engine, run_id)
    assert desk.run(run_id).status == RunStatus.CANCELLED
    assert [row.node_id for row in desk.nodes(run_id)] == ["0:1"]


def test_a_process_that_does_not_know_the_workflow_leaves_it_to_a_worker(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(asleep)
    with monkeypatch.context() as patches:
        patches.delitem(registry.workflows, asleep.name)
        assert cancel(desk, run_id)
    assert desk.run(run_id).status == RunStatus.RUNNING
    assert desk.run(run_id).held is None
    desk.tick()
    assert desk.run(run_id).status == RunStatus.CANCELLED


def test_a_request_is_told_by_a_clock_if_who_made_it_dies(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    run_id = desk.start(asleep)
    request_alone(desk, run_id, monkeypatch)
    assert desk.run(run_id).status == RunStatus.RUNNING
    desk.tick()
    assert desk.run(run_id).status == RunStatus.CANCELLED


def test_a_sleep_that_is_due_before_the_request_is_told_first(desk: Desk):
    run_id = desk.start(asleep)
    desk.clock.advance(timedelta(hours=2))
    cancel(desk, run_id)
    desk.tick()
    assert desk.run(run_id).status == RunStatus.CANCELLED
    assert desk.node(run_id).delivered == 1
    assert told_as(desk, run_id) == 2


def told_as(desk: Desk, run_id: Any) -> int | None:
    query = sa.select(tables.runs.c.cancel_delivered).where(tables.runs.c.id == run_id)
    return desk.engine.database.read(lambda tx: tx.execute(query).all())[0][0]


# -- a step that runs is waited for -------------------------------------------------------------------


def test_the_clean_up_begins_when_the_step_has_ended(desk: Desk):
    run_id = desk.start(cleaning)
    claimed = desk.claim(run_id)
    cancel(desk, run_id)
    assert desk.node(run_id).cancelled_at is not None
    assert desk.node(run_id).status is NodeStatus.RUNNING
    assert [row.node_id for row in desk.nodes(run_id)] == ["0:1"]
    assert cancellation.told_to_stop(desk.engine) == [(run_id, "0:1")]
    follow(desk, claimed, desk.fail(claimed, StepCancelledError("one"), one))
    assert desk.node(run_id, "0:2").status is NodeStatus.PLANNED
    again = desk.claim(run_id, "0:2")
    follow(desk, again, desk.succeed(again, 2))
    assert desk.run(run_id).status == RunStatus.CANCELLED
    assert cancellation.told_to_stop(desk.engine) == []


@pytest.mark.parametrize("how", ["result", "retry", "release", "fatal", "loss", "revoke", "leave"])
def test_whatever_ends_the_attempt_ends_the_await(desk: Desk, how: str):
    run_id = desk.start(cleaning)
    other = desk.another("other")
    claimed = other.claim(run_id)
    cancel(desk, run_id)
    desk.clock.advance(SECOND)
    if how == "result":
        follow(other, claimed, other.succeed(claimed, 1))
    elif how == "retry":
        follow(other, claimed, other.fail(claimed, ValueError("flaky"), one))
    elif how == "release":
        follow(other, claimed, attempts.release(other.engine, claimed))
    elif how == "fatal":
        follow(other, claimed, other.fail(claimed, FatalError("no"), one))
    elif how == "leave":
        liveness.leave(other.engine)
    elif how == "revoke":
        desk.register(other)
        verdicts.revoke(
            desk.engine, run_id, claimed.row.node_id, claimed.row.generation, pids=[this_process().pid]
        )
    else:
        desk.lose(other)
    desk.tick()
    assert desk.node(run_id).attempt == 1
    assert desk.node(run_id).status is (NodeStatus.COMPLETED if how == "result" else NodeStatus.FAILED)
    clean_up = desk.claim(run_id, "0:2")
    assert isinstance(clean_up, Claimed)
    follow(desk, clean_up, desk.succeed(clean_up, 2))
    assert desk.run(run_id).status == RunStatus.CANCELLED


def test_a_second_cancellation_only_counts(desk: Desk):
    run_id = desk.start(in_time)
    claimed = desk.claim(run_id, "0:2")
    desk.clock.advance(61 * SECOND)
    desk.tick()  # the deadline: the step is to stop
    assert desk.node(run_id, "0:2").cancelled_at is not None
    cancel(desk, run_id)  # and now the run
    assert desk.run(run_id).status == RunStatus.RUNNING
    follow(desk, claimed, desk.fail(claimed, StepCancelledError("one"), one))
    assert desk.run(run_id).status == RunStatus.CANCELLED


def test_a_plain_step_is_told_and_not_waited_for(desk: Desk):
    run_id = desk.start(of_a_plain_one)
    claimed = desk.claim(run_id, "0:2")
    desk.clock.advance(61 * SECOND)
    desk.tick()
    assert desk.node(run_id, "0:2").status is NodeStatus.ABANDONED
    assert cancellation.told_to_stop(desk.engine) == [(run_id, "0:2")]
    assert desk.node(run_id, "0:3").status is NodeStatus.PLANNED
    assert desk.succeed(claimed, 1).is_refused


def test_a_step_that_begins_while_its_await_is_cancelled_is_waited_for(
    desk: Desk, between: Callable[[Callable[[], object]], None]
):
    """What is read of a run holds its planned steps back; one whose claim came first is found at the commit."""
    run_id = desk.start(racing)
    first, second = desk.claim(run_id, "0.1:1"), desk.node(run_id, "0.2:1")
    begun: list[Any] = []

    def begin() -> None:
        begun.append(
            claims.claim(desk.engine, run_id, second.node_id, second.generation, step=second.name)
        )

    between(begin)
    follow(desk, first, desk.succeed(first, 1))
    assert isinstance(begun[0], Claimed)
    assert desk.node(run_id, "0.2:1").cancelled_at is not None
    assert desk.node(run_id, "0.2:1").status is NodeStatus.RUNNING
    assert desk.run(run_id).status == RunStatus.RUNNING
    follow(desk, begun[0], desk.fail(begun[0], StepCancelledError("one"), one))
    assert desk.run(run_id).status == RunStatus.COMPLETED


@workflow
async def racing() -> int:
    async def alone(number: int) -> int:
        return await one(number)

    tasks = [asyncio.create_task(alone(number)) for number in (1, 2)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return len(done)


# -- the end ------------------------------------------------------------------------------------------


def test_grace_passes_though_the_body_is_held(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    run_id = desk.start(cleaning)
    desk.claim(run_id)
    with monkeypatch.context() as patches:
        patches.setattr(advancing, "_trace", raising(ImportError("no such module")))
        cancel(desk, run_id, grace=timedelta(minutes=1))
    assert desk.run(run_id).held is not None
    desk.clock.advance(61 * SECOND)
    desk.tick()
    assert desk.run(run_id).status == RunStatus.CANCELLED
    assert desk.run(run_id).cancel_reason == "enough"


def test_a_body_that_takes_another_path_ends_cancelled_with_what_stood_in_its_way(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(cleaning)
    desk.claim(run_id)
    with monkeypatch.context() as patches:
        error = ReplayDivergenceError(run_id, "0:1", recorded="one", traced="two", why="It was edited.")
        patches.setattr(advancing, "_trace", raising(error))
        cancel(desk, run_id)
    run = desk.run(run_id)
    assert run.status == RunStatus.CANCELLED
    assert run.error is not None
    assert "It was edited" in run.error


def test_what_is_held_back_stays_so_while_nobody_can_tell_the_body(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(two)
    desk.succeed(desk.claim(run_id), 1)
    advance(desk.engine, run_id)
    with monkeypatch.context() as patches:
        patches.setattr(advancing, "_trace", raising(ImportError("no such module")))
        cancel(desk, run_id)
    desk.clock.advance(SECOND)
    assert isinstance(desk.claim(run_id, "0:2"), Dropped)
    desk.clock.advance(timedelta(minutes=10))
    desk.tick()
    assert desk.run(run_id).status == RunStatus.CANCELLED


def test_a_run_that_is_held_since_it_turned_in_circles_is_cancelled(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(two)
    claimed = desk.claim(run_id)
    desk.engine.bodies.clear()
    desk.succeed(claimed, 1)
    with monkeypatch.context() as patches:
        patches.setattr(advancing, "_trace", raising(BodyStoppedError()))
        for _ in range(holding.SPIN_LIMIT + 2):
            advance(desk.engine, run_id)
            desk.engine.database.transact(lambda tx: count_one(tx, run_id))
    advance(desk.engine, run_id)
    assert desk.run(run_id).held is not None
    cancel(desk, run_id)
    assert desk.run(run_id).status == RunStatus.CANCELLED


def count_one(tx: Any, run_id: Any) -> None:
    """A worker that is stopped gives back that it was counted; one that dies does not."""
    runs.update_run(tx, run_id, spins=holding.SPIN_LIMIT + 1)


def test_nothing_of_an_ended_run_is_told_to_run_on(desk: Desk):
    run_id = desk.start(cleaning)
    claimed = desk.claim(run_id)
    assert cancellation.terminate(desk.engine, run_id, reason="now")
    assert desk.run(run_id).status == RunStatus.CANCELLED
    assert desk.run(run_id).cancel_reason == "now"
    assert cancellation.told_to_stop(desk.engine) == [(run_id, "0:1")]
    assert desk.succeed(claimed, 1).is_refused
    assert not cancel(desk, run_id)
    assert not cancellation.terminate(desk.engine, run_id, reason=None)


def test_events_have_numbers_without_a_gap(desk: Desk):
    run_id = desk.start(cleaning)
    claimed = desk.claim(run_id)
    cancel(desk, run_id)
    desk.clock.advance(SECOND)
    follow(desk, claimed, desk.succeed(claimed, 1))
    clean_up = desk.claim(run_id, "0:2")
    follow(desk, clean_up, desk.succeed(clean_up, 2))
    numbers = {row.node_id: row.delivered for row in desk.nodes(run_id)}
    assert {CANCEL: told_as(desk, run_id), **numbers} == {CANCEL: 1, "0:1": 2, "0:2": None}


def raising(error: BaseException) -> Callable[..., Any]:
    def trace(*_: object) -> Any:
        raise error

    return trace


def follow(desk: Desk, claimed: Claimed, answer: Any) -> None:
    advancing.go_on(desk.engine, claimed.run_id, answer)
