"""Children against everything that happens at the same time: each begins once, and each end and each request is told once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from ckworkflow import (
    FatalError,
    RunCancelledError,
    RunFailedError,
    codec,
    create_hook,
    sleep,
    start,
    step,
    workflow,
)
from ckworkflow.engine import cancellation, notes
from ckworkflow.engine.advance import advance
from ckworkflow.model import NodeId, NodeStatus, RunId, RunStatus, child_id
from ckworkflow.store import hooks, retention, tables
from desk import Desk

DAY = timedelta(days=1)


@step(max_retries=0)
async def one(what: Any = 1) -> Any:
    return what


@workflow
async def child(number: int) -> int:
    return await one(number) + 1


@workflow
async def parent(number: int) -> int:
    run = await start(child, number)
    return await run.return_value() * 10


@workflow
async def busy_parent() -> list[Any]:
    run = await start(child, 1)
    first = await one("first")
    return [first, await run.return_value()]


@workflow
async def asks(number: int) -> str:
    run = await start(asleep)
    await one(number)
    await run.cancel(reason="enough")
    try:
        await run.return_value()
    except RunCancelledError as error:
        return error.reason or ""
    return ""


@workflow
async def asleep() -> None:
    await sleep("2 days")


@workflow
async def handles() -> str:
    run = await start(child, 1)
    try:
        await run.return_value()
    except RunFailedError:
        return "failed"
    return "completed"


@pytest.fixture
def desk(either_desk: Desk) -> Desk:
    return either_desk


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Inside, this process dies right after each commit."""

    @contextmanager
    def die() -> Iterator[None]:
        with monkeypatch.context() as patches:
            patches.setattr(notes, "begin", lambda *_: None)
            patches.setattr(notes, "deliver", lambda *_: None)
            yield

    return die


def child_of(run_id: RunId, node_id: str = "0:1") -> RunId:
    return child_id(run_id, NodeId(node_id))


def result(desk: Desk, run_id: RunId) -> Any:
    run = desk.run(run_id)
    assert run.status == RunStatus.COMPLETED, (run.status, run.error)
    return codec.decode(codec.loads(run.output or "null"))


def left(desk: Desk) -> int:
    query = sa.select(sa.func.count()).select_from(tables.notes)
    return int(desk.engine.database.read(lambda tx: tx.execute(query).scalar_one()))


def end_child(desk: Desk, run_id: RunId, value: int = 1) -> None:
    recorded = desk.succeed(desk.claim(child_of(run_id)), value)
    carry_out_end(desk, child_of(run_id), recorded)


def carry_out_end(desk: Desk, run_id: RunId, recorded: Any) -> None:
    from ckworkflow.engine.advance import go_on

    go_on(desk.engine, run_id, recorded)


# -- the beginning --------------------------------------------------------------------------------------


def test_a_child_begins_by_a_clock_if_its_parent_dies(desk: Desk, dying: Callable[[], Any]):
    with dying():
        run_id = desk.start(parent, 1)
    assert desk.run(child_of(run_id)).status == RunStatus.PENDING
    assert desk.nodes(child_of(run_id)) == []
    desk.another("elsewhere").tick()
    assert [row.status for row in desk.nodes(child_of(run_id))] == [NodeStatus.PLANNED]
    end_child(desk, run_id)
    assert result(desk, run_id) == 20
    assert left(desk) == 0


def test_a_run_that_waits_for_its_child_is_looked_at_once_a_day(desk: Desk):
    run_id = desk.start(parent, 1)
    assert desk.run(run_id).wake_at == desk.clock.now + DAY
    desk.clock.advance(DAY)
    desk.tick()
    wake_at = desk.run(run_id).wake_at
    assert wake_at is not None
    assert wake_at >= desk.clock.now + DAY


# -- the end --------------------------------------------------------------------------------------------


def test_the_end_of_a_child_is_told_by_a_clock_if_its_worker_dies(desk: Desk, dying: Callable[[], Any]):
    run_id = desk.start(parent, 1)
    with dying():
        end_child(desk, run_id)
    assert desk.run(child_of(run_id)).status == RunStatus.COMPLETED
    assert desk.run(child_of(run_id)).wake_at is not None
    assert left(desk) == 1
    old = {
        "before": desk.clock.now + 100 * DAY,
        "statuses": list(RunStatus),
        "most_runs": 10,
        "most_rows": 1_000,
    }
    assert desk.engine.database.transact(lambda tx: retention.delete_old_runs(tx, **old)).runs == {}

    desk.clock.advance(timedelta(minutes=10))
    desk.another("elsewhere").tick()
    assert result(desk, run_id) == 20
    assert (left(desk), desk.run(child_of(run_id)).wake_at) == (0, None)


def test_an_end_that_was_told_and_not_crossed_out_is_told_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(busy_parent)
    with monkeypatch.context() as patches:
        patches.setattr(notes, "_cross_out", lambda *_args, **_options: None)
        end_child(desk, run_id)
    assert left(desk) == 1
    notes.deliver(desk.engine, child_of(run_id))
    assert left(desk) == 0
    desk.succeed(desk.claim(run_id, "0:2"), "first")
    advance(desk.engine, run_id)
    assert result(desk, run_id) == ["first", 2]
    assert sorted(row.delivered or 0 for row in desk.nodes(run_id)) == [1, 2]


def test_a_child_that_ends_while_its_parent_is_continued_is_told_next(
    desk: Desk, between: Callable[[Callable[[], object]], None]
):
    run_id = desk.start(busy_parent)
    desk.engine.bodies.clear()
    claimed = desk.claim(run_id, "0:2")
    between(lambda: end_child(desk.another("elsewhere"), run_id))
    desk.succeed(claimed, "first")
    advance(desk.engine, run_id)
    assert result(desk, run_id) == ["first", 2]


@pytest.mark.parametrize("how", ["ended", "deleted"])
def test_a_parent_that_is_not_there_is_told_nothing(desk: Desk, how: str, dying: Callable[[], Any]):
    run_id = desk.start(parent, 1)
    with dying():
        end_child(desk, run_id)
    if how == "ended":
        cancellation.terminate(desk.engine, run_id, reason=None)
    else:
        gone = sa.delete(tables.runs).where(tables.runs.c.id == run_id)
        desk.engine.database.transact(lambda tx: tx.execute(gone))
    desk.clock.advance(timedelta(minutes=10))
    desk.tick()
    assert (left(desk), desk.run(child_of(run_id)).wake_at) == (0, None)


def test_a_child_that_fails_in_a_worker_that_dies(desk: Desk, dying: Callable[[], Any]):
    run_id = desk.start(handles)
    with dying():
        recorded = desk.fail(desk.claim(child_of(run_id)), ValueError("broken"), one)
        carry_out_end(desk, child_of(run_id), recorded)
    assert desk.run(child_of(run_id)).status == RunStatus.FAILED
    desk.clock.advance(timedelta(minutes=10))
    desk.tick()
    assert result(desk, run_id) == "failed"
    assert desk.node(run_id).status is NodeStatus.FAILED


# -- a request ------------------------------------------------------------------------------------------


def test_a_request_to_a_child_is_told_by_a_clock_if_its_parent_dies(
    desk: Desk, dying: Callable[[], Any]
):
    run_id = desk.start(asks, 1)
    desk.tick()
    desk.engine.bodies.clear()
    with dying():
        desk.succeed(desk.claim(run_id, "0:2"), 1)
        advance(desk.engine, run_id)
    assert left(desk) == 1
    assert desk.run(child_of(run_id)).status == RunStatus.RUNNING
    desk.clock.advance(timedelta(minutes=10))
    desk.tick()
    assert desk.run(child_of(run_id)).cancel_reason == "enough"
    assert result(desk, run_id) == "enough"
    assert left(desk) == 0


@pytest.mark.parametrize("how", ["cancel", "terminate"])
def test_a_request_reaches_a_child_though_its_maker_dies(desk: Desk, how: str, dying: Callable[[], Any]):
    run_id = desk.start(asks, 1)
    desk.tick()
    with dying():
        if how == "cancel":
            cancellation.cancel(desk.engine, run_id, reason="gone", grace=None)
        else:
            cancellation.terminate(desk.engine, run_id, reason="gone")
    assert desk.run(run_id).status == RunStatus.CANCELLED
    assert desk.run(run_id).wake_at is not None
    desk.clock.advance(timedelta(minutes=10))
    desk.tick()
    desk.tick()
    found = desk.run(child_of(run_id))
    assert (found.status, found.cancel_reason) == (RunStatus.CANCELLED, "gone")
    assert (left(desk), desk.run(run_id).wake_at, found.wake_at) == (0, None, None)


def test_a_child_that_was_started_with_what_was_told_before_the_request_is_cancelled(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    """It is started, and its parent told that it is to be cancelled, in one continuation."""
    run_id = desk.start(starts_late)
    desk.engine.bodies.clear()
    with monkeypatch.context() as patches:
        patches.setattr(cancellation, "go_on_here", lambda *_: None)
        desk.succeed(desk.claim(run_id), 1)
        desk.clock.advance(timedelta(seconds=1))
        cancellation.cancel(desk.engine, run_id, reason="gone", grace=None)
    advance(desk.engine, run_id)
    desk.tick()
    assert desk.run(run_id).status == RunStatus.CANCELLED
    found = desk.run(child_of(run_id, "0:2"))
    assert (found.status, found.cancel_reason) == (RunStatus.CANCELLED, "gone")


@workflow
async def starts_late() -> None:
    if await one() == 1:
        await start(asleep)
        await sleep("1 day")


# -- what was found by trying to break it ---------------------------------------------------------------


@workflow
async def asks_with_grace() -> str:
    run = await start(asleep)
    await one()
    await run.cancel(grace="1 minute")
    try:
        await run.return_value()
    except RunCancelledError:
        return "cancelled"
    return ""


def test_a_request_with_a_grace_arrives(desk: Desk):
    run_id = desk.start(asks_with_grace)
    desk.tick()
    desk.engine.bodies.clear()
    desk.succeed(desk.claim(run_id, "0:2"), 1)
    advance(desk.engine, run_id)
    assert result(desk, run_id) == "cancelled"
    assert left(desk) == 0


def test_what_a_clock_that_dies_was_about_to_tell_is_told_soon(desk: Desk, dying: Callable[[], Any]):
    """Whoever buries its process looks at all that is due within a moment: a minute is none."""
    run_id = desk.start(asks, 1)
    with dying():
        desk.succeed(desk.claim(run_id, "0:2"), 1)
        advance(desk.engine, run_id)
    assert desk.run(child_of(run_id)).cancel_requested_at is None
    soon = desk.engine.settings.redispatch_after
    desk.clock.advance(soon)
    with dying():
        desk.tick()
    wake_at = desk.run(run_id).wake_at
    assert wake_at is not None
    assert wake_at - desk.clock.now <= soon


def test_a_note_that_cannot_be_delivered_holds_up_nobody(
    desk: Desk,
    dying: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    first, second = desk.start(parent, 1), desk.start(parent, 2)
    with dying():
        end_child(desk, first)
        end_child(desk, second)
    really = notes._deliver

    def deliver(engine: Any, sender: RunId, note: Any) -> None:
        if sender == child_of(first):
            raise TypeError("odd")
        really(engine, sender, note)

    monkeypatch.setattr(notes, "_deliver", deliver)
    desk.clock.advance(timedelta(minutes=10))
    desk.tick()
    assert result(desk, second) == 20
    assert desk.run(first).status == RunStatus.RUNNING
    assert f"run {child_of(first)}: what it has to tell cannot be told" in caplog.text


@workflow
async def waits_with_a_hook(token: str) -> None:
    async with create_hook(token) as hook:
        try:
            await hook
        finally:
            await sleep("1 day")


def test_runs_with_hooks_whose_grace_is_over_are_terminated_each_alone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    found = [desk.start(waits_with_a_hook, str(number)) for number in range(3)]
    for run_id in found:
        cancellation.cancel(desk.engine, run_id, reason=None, grace=timedelta(minutes=1))
    desk.clock.advance(timedelta(minutes=1))
    closed: list[Any] = []
    really = hooks.close_all
    monkeypatch.setattr(hooks, "close_all", lambda tx, run: (closed.append(tx), really(tx, run))[1])
    desk.tick()
    assert [desk.run(run_id).status for run_id in found] == [RunStatus.CANCELLED] * 3
    assert len({id(tx) for tx in closed}) == len(closed) == 3


@workflow
async def start_after_a_failure(waits: bool) -> Any:
    try:
        await one()
        await one("planned, and never begun")
    except FatalError:
        run = await start(child, 1)  # in the place of that
        return await run.return_value() if waits else run.run_id
    return None


@pytest.mark.parametrize("waits", [True, False])
def test_a_child_may_take_the_place_of_a_step_that_was_only_planned(desk: Desk, waits: bool):
    run_id = desk.start(start_after_a_failure, waits)
    desk.fail(desk.claim(run_id), FatalError("no"), one)
    advance(desk.engine, run_id)
    desk.tick()
    found = child_of(run_id, "0:2")
    recorded = desk.succeed(desk.claim(found), 1)
    carry_out_end(desk, found, recorded)
    assert result(desk, run_id) == (2 if waits else found)
