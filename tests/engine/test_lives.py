"""Lives against everything that happens at the same time: payloads, requests, steps that run on, processes that die."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from ckworkflow import (
    HookConflictError,
    HookNotFoundError,
    codec,
    continue_as_new,
    create_hook,
    now,
    sleep,
    step,
    workflow,
)
from ckworkflow.engine import advance as advancing
from ckworkflow.engine import cancellation, lives
from ckworkflow.engine import resume as sending
from ckworkflow.engine.advance import advance
from ckworkflow.engine.claims import Dropped
from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.model import HookKey, Namespace, NodeStatus, RunStatus
from ckworkflow.store import lives as rows
from ckworkflow.store import tables
from desk import Desk

SECOND, DAY = timedelta(seconds=1), timedelta(days=1)


@pytest.fixture
def desk(either_desk: Desk) -> Desk:
    return either_desk


@step
async def one(what: Any = 1) -> Any:
    return what


@workflow
async def takes_one(token: str, life: int) -> Any:
    """The first life takes one payload; the second has no hook; the third takes one, and shows what is left."""
    if life == 1:
        await one()
        return continue_as_new(token, 2)
    hook = create_hook(token)
    first = await hook
    if life == 2:
        return [first, await hook]
    await one()
    return continue_as_new(token, 1)


@workflow
async def two_hooks(life: int) -> Any:
    """What was sent to the second hook, which is closed, nobody can take in the next life."""
    first = create_hook("first")
    if life:
        return [await first, first.pending()]
    second = create_hook("second")
    await one()
    await second.close()
    await one()
    return continue_as_new(1)


@workflow
async def ends_after_a_step(life: int) -> Any:
    if life:
        try:
            await sleep("1 day")
        except asyncio.CancelledError as error:
            return await one(["cancelled", *error.args])
    await one()
    return continue_as_new(life + 1)


@workflow
async def leaves_a_step_running(life: int) -> Any:
    if life == 2:
        return life
    if not life:
        asyncio.create_task(late())  # noqa: RUF006  # it is let go of
    await one()
    return continue_as_new(life + 1)


@step(on_cancel="leave")
async def slow() -> str:
    return "late"


async def late() -> None:
    await slow()


@workflow
async def listens(token: str, life: int) -> Any:
    number = await create_hook(token)
    return life if number < 0 else continue_as_new(token, life + 1)


@workflow
async def many(life: int, count: int) -> Any:
    for _ in range(count):
        await one()
    return life if life == 2 else continue_as_new(life + 1, count)


@workflow
async def two_steps(life: int) -> Any:
    await one()
    await one()
    return life or continue_as_new(life + 1)


@workflow
async def holder(token: str) -> Any:
    return await create_hook(token)


@workflow
async def wants_by_the_time(life: int) -> Any:
    """Which hook its second life wants depends on when that has begun."""
    hook = create_hook("mine")
    if not life:
        await one()
        return continue_as_new(1)
    try:
        await create_hook(f"wanted {now().second % 2}")
    except HookConflictError:
        return ["taken", await hook]


@workflow
async def begins_with_a_step(life: int) -> Any:
    await one(life)
    if life:
        return life
    return continue_as_new(1)


@workflow
async def takes_and_sleeps(life: int, taken: list[str]) -> Any:
    hook = create_hook("t")
    taken.append(await hook)
    await sleep("2 days")
    return taken if life == 2 else continue_as_new(life + 1, taken)


@workflow
async def new_tokens(life: int) -> Any:
    create_hook()
    create_hook(f"of life {life}")
    await one()
    return continue_as_new(life + 1)


# -- what the tests do --------------------------------------------------------------------------------


def send(desk: Desk, payload: Any, token: str = "t", dedup_key: str | None = None) -> None:
    body = codec.dumps(codec.encode(payload, path="payload"))
    sending.resume(desk.engine, HookKey.of(Namespace.CODE, token), body, dedup_key=dedup_key)


@pytest.fixture
def dies_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Commit something, and die before anything follows from it."""

    def do(work: Any) -> None:
        with monkeypatch.context() as patches:
            patches.setattr(sending, "go_on_here", lambda *_: None)
            patches.setattr(cancellation, "go_on_here", lambda *_: None)
            work()

    return do


def follow(desk: Desk, run_id: Any, node_id: str, value: Any = 1) -> None:
    if desk.succeed(desk.claim(run_id, node_id), value).must_advance:
        advance(desk.engine, run_id)


def result(desk: Desk, run_id: Any) -> Any:
    run = desk.run(run_id)
    assert run.status == RunStatus.COMPLETED, (run.status, run.error)
    return codec.decode(codec.loads(run.output or "null"))


def count(desk: Desk, table: sa.Table, run_id: Any) -> int:
    query = sa.select(sa.func.count()).select_from(table).where(table.c.run_id == run_id)
    return int(desk.engine.database.read(lambda tx: tx.execute(query).scalar_one()))


# -- what goes over -----------------------------------------------------------------------------------


def test_payloads_that_were_told_or_not_go_over(desk: Desk, dies_after: Any):
    run_id = desk.start(takes_one, "t", 0)
    send(desk, "a")
    send(desk, "told")
    assert desk.succeed(desk.claim(run_id, "0:2")).must_advance
    dies_after(lambda: send(desk, "untold"))
    advance(desk.engine, run_id)
    with pytest.raises(HookNotFoundError):
        send(desk, "nobody is there")
    follow(desk, run_id, "1:1")
    desk.tick()
    assert result(desk, run_id) == ["told", "untold"]
    assert desk.run(run_id).life == 2


def test_what_was_accepted_is_not_accepted_again_in_the_next_life(desk: Desk):
    run_id = desk.start(takes_one, "t", 0)
    send(desk, "a", dedup_key="click")
    follow(desk, run_id, "0:2")
    send(desk, "a", dedup_key="click")
    follow(desk, run_id, "1:1")
    send(desk, "a", dedup_key="click")
    assert desk.run(run_id).status == RunStatus.RUNNING
    send(desk, "b", dedup_key="other")
    send(desk, "c")
    assert result(desk, run_id) == ["b", "c"]


def test_what_was_sent_to_a_hook_that_is_closed_is_left_over(
    desk: Desk, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "ckworkflow")
    run_id = desk.start(two_hooks, 0)
    send(desk, 1, "first")
    send(desk, 2, "second")
    follow(desk, run_id, "0:3")
    follow(desk, run_id, "0:5")
    desk.tick()
    assert result(desk, run_id) == [1, []]
    assert "1 payload that it has not taken can be taken no more" in caplog.text


def test_a_request_that_comes_after_the_end_of_a_life_is_told_in_the_next(desk: Desk, dies_after: Any):
    run_id = desk.start(ends_after_a_step, 0)
    desk.succeed(desk.claim(run_id, "0:1"))
    desk.clock.advance(SECOND)
    dies_after(lambda: cancellation.cancel(desk.engine, run_id, reason="enough", grace=None))
    desk.tick()
    assert desk.run(run_id).life == 1
    follow(desk, run_id, "1:2", ["cancelled", "enough"])
    assert result(desk, run_id) == ["cancelled", "enough"]


def test_a_payload_between_the_reading_and_the_commit_goes_over(
    desk: Desk, between: Any, dies_after: Any
):
    run_id = desk.start(takes_one, "t", 0)
    send(desk, "a")
    assert desk.succeed(desk.claim(run_id, "0:2")).must_advance
    between(lambda: dies_after(lambda: send(desk, "just now")))
    advance(desk.engine, run_id)
    follow(desk, run_id, "1:1")
    desk.tick()
    send(desk, "later")
    assert result(desk, run_id) == ["just now", "later"]


def test_nothing_is_deleted_of_a_life_that_goes_on(desk: Desk, between: Any):
    """Another process has taken the lease meanwhile: the next life was not begun."""
    run_id = desk.start(two_steps, 0)
    follow(desk, run_id, "0:1")
    assert desk.succeed(desk.claim(run_id, "0:2")).must_advance

    def lose_the_lease() -> None:
        desk.clock.advance(timedelta(minutes=10))
        desk.another("elsewhere").take_lease(run_id)

    between(lose_the_lease)
    advance(desk.engine, run_id)
    assert desk.run(run_id).life == 0
    assert [row.status for row in desk.nodes(run_id)] == [NodeStatus.COMPLETED] * 2
    desk.clock.advance(timedelta(minutes=10))
    desk.tick()
    assert desk.run(run_id).life == 1


def test_nothing_is_deleted_of_a_run_that_was_terminated_meanwhile(desk: Desk, between: Any):
    run_id = desk.start(two_steps, 0)
    follow(desk, run_id, "0:1")
    assert desk.succeed(desk.claim(run_id, "0:2")).must_advance
    between(lambda: cancellation.terminate(desk.engine, run_id, reason="enough"))
    advance(desk.engine, run_id)
    assert desk.run(run_id).status == RunStatus.CANCELLED
    assert [row.node_id for row in desk.nodes(run_id)] == ["0:1", "0:2"]


def test_a_life_that_is_begun_again_begins_at_the_same_time(
    desk: Desk, dies_after: Any, monkeypatch: pytest.MonkeyPatch
):
    for number in range(2):
        desk.start(holder, f"wanted {number}")
    run_id = desk.start(wants_by_the_time, 0)
    assert desk.succeed(desk.claim(run_id, "0:2")).must_advance
    refuse = advancing._refuse

    def refuse_and_wait(*args: Any) -> Any:
        answer = refuse(*args)
        desk.clock.advance(SECOND)
        dies_after(lambda: send(desk, "meanwhile", "mine"))
        return answer

    with monkeypatch.context() as patches:
        patches.setattr(advancing, "_refuse", refuse_and_wait)
        advance(desk.engine, run_id)
    desk.tick()
    assert result(desk, run_id) == ["taken", "meanwhile"]


def test_no_step_begins_before_a_request_that_goes_over_is_told(
    desk: Desk, dies_after: Any, monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(begins_with_a_step, 0)
    desk.succeed(desk.claim(run_id, "0:1"))
    desk.clock.advance(SECOND)
    dies_after(lambda: cancellation.cancel(desk.engine, run_id, reason="enough", grace=None))
    carry_out, seen = advancing.carry_out, list[Any]()

    def carry_out_and_claim(engine: Any, run: Any, answer: Any) -> None:
        carry_out(engine, run, answer)
        if desk.run(run_id).life == 1 and not seen:
            seen.append((answer.pieces, desk.another("elsewhere").claim(run_id, "1:1")))

    monkeypatch.setattr(advancing, "carry_out", carry_out_and_claim)
    advance(desk.engine, run_id, may_run=lambda _: True)
    ((pieces, claimed),) = seen
    assert not pieces
    assert isinstance(claimed, Dropped)
    assert desk.run(run_id).status == RunStatus.CANCELLED


def test_a_run_that_has_outlived_a_request_can_be_cancelled_anew(desk: Desk):
    run_id = desk.start(outlives, 0)
    for life in range(2):
        assert desk.run(run_id).life == life
        assert cancellation.cancel(desk.engine, run_id, reason=f"number {life}", grace=None)
        follow(desk, run_id, f"{life}:2")
    assert desk.run(run_id).life == 2
    assert desk.run(run_id).cancel_requested_at is None


@workflow
async def outlives(life: int) -> Any:
    with contextlib.suppress(asyncio.CancelledError):
        await sleep("1 day")
    await one()
    return continue_as_new(life + 1)


def test_the_last_event_of_a_run_that_fails_is_counted(desk: Desk):
    run_id = desk.start(ends_for_an_idle_life, 0)
    desk.succeed(desk.claim(run_id), 1)
    advance(desk.engine, run_id)
    assert desk.run(run_id).status == RunStatus.FAILED
    query = sa.select(tables.runs.c.delivered).where(tables.runs.c.id == run_id)
    assert [row.delivered for row in desk.nodes(run_id)] == [1]
    assert desk.engine.database.read(lambda tx: tx.execute(query).scalar_one()) == 1


@workflow
async def ends_for_an_idle_life(life: int) -> Any:
    if not life:
        await one()
    return continue_as_new(life + 1)


def test_a_payload_is_known_in_the_next_life_however_long_its_own_was(desk: Desk):
    run_id = desk.start(takes_and_sleeps, 0, [])
    send(desk, "x", dedup_key="click")
    desk.clock.advance(2 * DAY + SECOND)
    desk.tick()
    assert desk.run(run_id).life == 1
    send(desk, "x", dedup_key="click")
    send(desk, "y", dedup_key="other")
    desk.clock.advance(2 * DAY + SECOND)
    desk.tick()
    send(desk, "z")
    desk.clock.advance(2 * DAY + SECOND)
    desk.tick()
    assert result(desk, run_id) == ["x", "y", "z"]


# -- what is left behind ------------------------------------------------------------------------------


def test_a_step_that_runs_on_is_told_to_stop_and_its_record_does_nothing(desk: Desk):
    other = desk.another("elsewhere")
    desk.register(other)
    run_id = desk.start(leaves_a_step_running, 0)
    late_step = other.claim(run_id, "0.1:1")
    follow(desk, run_id, "0:1")
    assert desk.run(run_id).life == 1
    row = desk.node(run_id, "0.1:1")
    assert (row.status, row.cancelled_at is not None) == (NodeStatus.ABANDONED, True)
    assert not other.succeed(late_step, "late").must_advance
    follow(desk, run_id, "1:1")
    assert result(desk, run_id) == 2
    assert [row.node_id for row in desk.nodes(run_id)] == []


def test_old_rows_are_deleted_a_little_at_a_time(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "MOST_ROWS", 3)
    delete, deleted = rows.delete_old, list[int]()

    def delete_and_count(*args: Any) -> int:
        deleted.append(delete(*args))
        return deleted[-1]

    monkeypatch.setattr(rows, "delete_old", delete_and_count)
    run_id = desk.start(many, 0, 10)
    for number in range(1, 11):
        follow(desk, run_id, f"0:{number}")
    assert desk.run(run_id).life == 1
    assert deleted == [3, 3, 3, 1]
    assert [row.node_id for row in desk.nodes(run_id)] == [f"1:{number}" for number in range(1, 11)]


@pytest.mark.parametrize(
    "error", [None, DatabaseUnavailableError("x", "it is away"), RuntimeError("ours")]
)
def test_a_step_that_was_claimed_with_the_next_life_runs_whatever_becomes_of_old_rows(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception | None
):
    """It counts as running while they are deleted, or a heartbeat would give it to another process."""
    run_id = desk.start(many, 0, 1)
    seen: list[bool] = []

    def delete(tx: Any, run: Any) -> int:
        seen.append((run_id, "1:1") in desk.engine.active)
        if error is not None:
            raise error
        return 0

    monkeypatch.setattr(rows, "delete_old", delete)
    assert desk.succeed(desk.claim(run_id, "0:1")).must_advance
    here = advance(desk.engine, run_id, may_run=lambda _: True)
    assert here is not None
    assert here.row.node_id == "1:1"
    assert set(seen) == {True}


def test_what_a_process_that_dies_has_not_deleted_goes_with_the_next_life(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(many, 0, 2)
    follow(desk, run_id, "0:1")
    with monkeypatch.context() as patches:
        patches.setattr(lives, "delete_old", lambda *_: None)
        follow(desk, run_id, "0:2")
    assert len(desk.nodes(run_id)) == 4
    follow(desk, run_id, "1:1")
    follow(desk, run_id, "1:2")
    assert [row.node_id for row in desk.nodes(run_id)] == ["2:1", "2:2"]


def test_hooks_whose_tokens_do_not_come_again_are_deleted(desk: Desk):
    run_id = desk.start(new_tokens, 0)
    for life in range(5):
        follow(desk, run_id, f"{life}:3")
    assert count(desk, tables.hooks, run_id) == 2
    assert [row.node_id for row in desk.nodes(run_id)] == ["5:1", "5:2", "5:3"]


def test_a_step_that_has_lost_its_worker_goes_with_its_life(desk: Desk):
    run_id = desk.start(leaves_a_step_running, 0)
    other = desk.another("elsewhere")
    other.claim(run_id, "0.1:1")
    follow(desk, run_id, "0:1")
    desk.lose(other)
    follow(desk, run_id, "1:1")
    assert desk.nodes(run_id) == []


def test_a_run_that_lives_on_grows_no_rows(desk: Desk):
    run_id = desk.start(listens, "t", 0)
    for number in range(1, 31):
        send(desk, number, dedup_key=None if number % 2 else str(number))
    assert desk.run(run_id).life == 30
    assert count(desk, tables.nodes, run_id) == 1
    assert count(desk, tables.hooks, run_id) == 1
    assert count(desk, tables.hook_payloads, run_id) == 15  # each of which may be sent again
    desk.clock.advance(DAY + SECOND)
    send(desk, 0)
    assert count(desk, tables.hook_payloads, run_id) == 0
    send(desk, -1)
    assert result(desk, run_id) == 31
