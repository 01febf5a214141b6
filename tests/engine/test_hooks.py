"""Hooks against everything that happens at the same time: payloads, deadlines, closes, other runs, processes that die."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from ckworkflow import (
    HookConflictError,
    HookNotFoundError,
    codec,
    create_hook,
    sleep,
    step,
    timeout,
    workflow,
)
from ckworkflow.background import Beside
from ckworkflow.engine import attempts, cancellation, recovery
from ckworkflow.engine import resume as sending
from ckworkflow.engine.advance import advance
from ckworkflow.model import HookKey, Namespace, NodeKind, NodeStatus, RunStatus
from ckworkflow.store import hooks, tables
from desk import Desk

SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


@step
async def one(what: Any = 1) -> Any:
    return what


@workflow
async def get(token: str) -> Any:
    return await create_hook(token)


@workflow
async def get_in_time(token: str) -> list[Any]:
    hook = create_hook(token)
    try:
        return ["in time", await hook.next(timeout="1 hour")]
    except TimeoutError:
        return ["late", *hook.pending()]


@workflow
async def race(token: str) -> list[Any]:
    """Rounds of a payload against a deadline."""
    hook, won = create_hook(token), []
    for _ in range(4):
        try:
            won.append(await hook.next(timeout=1))
        except TimeoutError:
            won.append("late")
    await hook.close()
    return [won, hook.pending()]


@workflow
async def expire(token: str) -> list[Any]:
    return [each async for each in create_hook(token, expires="1 hour")]


@workflow
async def close(token: str) -> list[Any]:
    hook = create_hook(token)
    await one()
    await hook.close()
    return hook.pending()


@workflow
async def end_beside(token: str) -> Any:
    """The last record would end the run, but for its hook."""
    create_hook(token)
    return await one()


@workflow
async def make_later(token: str) -> Any:
    await one()
    try:
        async with create_hook(token) as hook:
            return await hook
    except HookConflictError as error:
        return await one(error.run_id)


@workflow
async def step_and_payload(token: str) -> Any:
    hook = create_hook(token)
    first = await one(await one(1))
    return [first, await hook]


@workflow
async def in_time_or_clean_up(token: str) -> Any:
    hook = create_hook(token)
    try:
        async with timeout(3_600):
            return await asyncio.gather(hook.next(), one())
    except TimeoutError:
        return await one("late")


@pytest.fixture
def desk(either_desk: Desk) -> Desk:
    return either_desk


def key(token: str = "t") -> HookKey:
    return HookKey.of(Namespace.CODE, token)


def send(desk: Desk, payload: Any, token: str = "t", *, dedup_key: str | None = None) -> Any:
    body = codec.dumps(codec.encode(payload, path="payload"))
    return sending.resume(desk.engine, key(token), body, dedup_key=dedup_key)


@pytest.fixture
def send_alone(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Commit a payload, and die before anything follows from it."""

    def send_(desk: Desk, payload: Any, token: str = "t", **options: Any) -> None:
        with monkeypatch.context() as patches:
            patches.setattr(sending, "go_on_here", lambda *_: None)
            send(desk, payload, token, **options)

    return send_


def result(desk: Desk, run_id: Any) -> Any:
    run = desk.run(run_id)
    assert run.status == RunStatus.COMPLETED, (run.status, run.error)
    return codec.decode(codec.loads(run.output or "null"))


def open_tokens(desk: Desk) -> int:
    query = (
        sa.select(sa.func.count()).select_from(tables.hooks).where(tables.hooks.c.closed_at.is_(None))
    )
    return int(desk.engine.database.read(lambda tx: tx.execute(query).scalar_one()))


def payloads(desk: Desk, run_id: Any) -> list[Any]:
    table = tables.hook_payloads
    query = sa.select(table.c.body, table.c.delivered, table.c.is_taken).where(table.c.run_id == run_id)
    rows = desk.engine.database.read(lambda tx: tx.execute(query.order_by(table.c.number)).all())
    return [(json.loads(body), delivered, bool(is_taken)) for body, delivered, is_taken in rows]


# -- nothing is lost ------------------------------------------------------------------------------------


def test_a_payload_is_told_by_a_clock_if_its_sender_dies(desk: Desk, send_alone: Callable[..., None]):
    run_id = desk.start(get, "t")
    send_alone(desk, "hello")
    assert desk.run(run_id).wake_at == desk.clock.now
    desk.another("elsewhere").tick()
    assert result(desk, run_id) == "hello"


def test_a_payload_between_the_reading_and_the_commit_is_told_next(
    desk: Desk, between: Callable[[Callable[[], object]], None], send_alone: Callable[..., None]
):
    run_id = desk.start(race, "t")
    send_alone(desk, "first")
    between(lambda: send_alone(desk, "second"))
    advance(desk.engine, run_id)
    assert payloads(desk, run_id) == [("first", 1, True), ("second", 2, True)]


def test_a_sender_that_hears_nothing_of_its_commit_sends_again_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(race, "t")

    def lost(*_: Any) -> None:
        raise ConnectionError

    with monkeypatch.context() as patches:
        patches.setattr(desk.engine.beside, "do", lost)
        with pytest.raises(ConnectionError):
            send(desk, "once", dedup_key="click")
    for _ in range(3):
        send(desk, "once", dedup_key="click")
    assert payloads(desk, run_id) == [("once", None, False)]
    desk.tick()
    assert payloads(desk, run_id) == [("once", 1, True)]


stuck = threading.Event()


@workflow
async def think_long(token: str) -> Any:
    got = await create_hook(token)
    stuck.wait(20)
    return got


def test_a_sender_does_not_wait_for_the_body(desk: Desk):
    """Nor do others, however many bodies are slow."""
    engine, runs = desk.engine, [desk.start(think_long, f"t{number}") for number in range(20)]
    stuck.clear()
    engine.beside = beside = Beside(engine.spare_threads)
    for number in range(20):
        send(desk, number, f"t{number}")
    assert {desk.run(run_id).status for run_id in runs} == {RunStatus.RUNNING}
    stuck.set()
    beside.finish()
    assert [result(desk, run_id) for run_id in runs] == list(range(20))


def test_a_body_that_cannot_be_told_is_told_by_a_clock(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    run_id = desk.start(get, "t")

    def fail(*_: Any, **__: Any) -> None:
        msg = "no disk"
        raise OSError(msg)

    with monkeypatch.context() as patches:
        patches.setattr(sending, "go_on_here", fail)
        send(desk, "hello")
    assert f"run {run_id}: its body cannot be told now" in caplog.text
    desk.tick()
    assert result(desk, run_id) == "hello"


def test_many_senders_at_once_are_all_heard(desk: Desk):
    run_id = desk.start(expire, "t")
    other = desk.another("elsewhere")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: send((desk, other)[number % 2], number), range(40)))
    desk.tick()
    assert sorted(body for body, _, _ in payloads(desk, run_id)) == list(range(40))
    assert sorted(told for _, told, _ in payloads(desk, run_id)) == list(range(1, 41))
    desk.clock.advance(HOUR)
    desk.tick()
    assert result(desk, run_id) == [body for body, _, _ in payloads(desk, run_id)]


def test_a_record_that_was_foreseen_gives_way_to_a_payload(desk: Desk, send_alone: Callable[..., None]):
    run_id = desk.start(step_and_payload, "t")
    desk.succeed(desk.claim(run_id, "0:2"), 1)
    claimed = desk.claim(run_id, "0:3")
    send_alone(desk, "meanwhile")
    desk.succeed(claimed, 1)
    desk.tick()
    assert result(desk, run_id) == [1, "meanwhile"]
    told = [row.delivered for row in desk.nodes(run_id) if row.delivered]
    assert sorted([*told, *(told for _, told, _ in payloads(desk, run_id))]) == [1, 2, 3]


# -- a race is decided by what happened first -----------------------------------------------------------


def test_a_payload_before_the_deadline_wins_however_late_both_are_read(
    desk: Desk, send_alone: Callable[..., None]
):
    run_id = desk.start(get_in_time, "t")
    desk.clock.advance(HOUR - SECOND)
    send_alone(desk, "click")
    desk.clock.advance(2 * HOUR)
    desk.tick()
    assert result(desk, run_id) == ["in time", "click"]


def test_a_payload_after_the_deadline_loses_and_stays_in_the_queue(
    desk: Desk, send_alone: Callable[..., None]
):
    run_id = desk.start(get_in_time, "t")
    desk.clock.advance(HOUR + SECOND)
    send_alone(desk, "click")
    desk.tick()
    assert result(desk, run_id) == ["late"]  # when the body was told so, the click had not been told
    assert [taken for _, _, taken in payloads(desk, run_id)] == [False]


def test_at_the_deadline_itself_the_deadline_wins(desk: Desk, send_alone: Callable[..., None]):
    run_id = desk.start(get_in_time, "t")
    desk.clock.advance(HOUR)
    send_alone(desk, "click")
    desk.tick()
    assert result(desk, run_id)[0] == "late"


def test_replays_decide_as_it_was_decided_first(desk: Desk, send_alone: Callable[..., None]):
    run_id = desk.start(race, "t")
    for pause in (0.5, 0.75, 2):
        desk.clock.advance(timedelta(seconds=pause))
        send_alone(desk, pause)
        desk.another(f"process {pause}").tick()
    desk.clock.advance(10 * SECOND)
    desk.tick()
    won, left = result(desk, run_id)
    taken = [body for body, _, is_taken in payloads(desk, run_id) if is_taken]
    assert [each for each in won if each != "late"] == taken
    assert ([*taken, *left], left) == ([0.5, 0.75, 2], [])
    assert won == [0.5, 0.75, "late", 2]


def test_a_payload_before_a_request_is_told_before_it(
    desk: Desk, send_alone: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(get, "t")
    send_alone(desk, "first")
    cancellation.cancel(desk.engine, run_id, reason=None, grace=None)
    assert result(desk, run_id) == "first"


def test_a_payload_after_a_request_is_left_over(
    desk: Desk, send_alone: Callable[..., None], monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(get, "t")
    with monkeypatch.context() as patches:
        patches.setattr(cancellation, "go_on_here", lambda *_: None)
        cancellation.cancel(desk.engine, run_id, reason=None, grace=None)
    send_alone(desk, "late")
    desk.tick()
    assert desk.run(run_id).status == RunStatus.CANCELLED
    assert [taken for _, _, taken in payloads(desk, run_id)] == [False]


def test_what_a_deadline_cancels_beside_a_hook_is_cleaned_up(desk: Desk):
    run_id = desk.start(in_time_or_clean_up, "t")
    desk.succeed(desk.claim(run_id, "0.2:1"), 1)
    desk.clock.advance(HOUR)
    desk.tick()
    node = next(row for row in desk.nodes(run_id) if row.status is NodeStatus.PLANNED)
    desk.succeed(desk.claim(run_id, node.node_id), "late")
    advance(desk.engine, run_id)
    assert result(desk, run_id) == "late"


# -- closing --------------------------------------------------------------------------------------------


def test_what_is_accepted_until_the_close_is_committed_is_pending_after_it(
    desk: Desk, between: Callable[[Callable[[], object]], None], send_alone: Callable[..., None]
):
    run_id = desk.start(close, "t")
    send_alone(desk, "early")
    desk.engine.bodies.clear()
    claimed = desk.claim(run_id, "0:2")
    between(lambda: send_alone(desk, "in the last moment"))
    desk.succeed(claimed, 1)
    advance(desk.engine, run_id)
    assert result(desk, run_id) == ["early", "in the last moment"]
    with pytest.raises(HookNotFoundError):
        send(desk, "too late")


def test_the_last_record_ends_a_run_only_when_its_hooks_are_closed(desk: Desk):
    run_id = desk.start(end_beside, "t")
    assert open_tokens(desk) == 1
    recorded = desk.succeed(desk.claim(run_id, "0:2"), 7)
    if recorded.must_advance:
        advance(desk.engine, run_id)
    assert result(desk, run_id) == 7
    assert open_tokens(desk) == 0


def test_a_hook_that_is_closed_while_a_payload_is_on_its_way_refuses_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(get, "t")
    really = sending._look

    def look(*args: Any) -> Any:
        found = really(*args)
        monkeypatch.setattr(sending, "_look", really)
        cancellation.terminate(desk.engine, run_id, reason=None)
        return found

    monkeypatch.setattr(sending, "_look", look)
    with pytest.raises(HookNotFoundError):
        send(desk, "x")
    assert payloads(desk, run_id) == []


def test_a_payload_goes_to_the_run_that_has_the_token_by_now(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    first = desk.start(get, "t")
    really = sending._look
    second: list[Any] = []

    def look(*args: Any) -> Any:
        found = really(*args)
        monkeypatch.setattr(sending, "_look", really)
        cancellation.terminate(desk.engine, first, reason=None)
        second.append(desk.start(get, "t"))
        return found

    monkeypatch.setattr(sending, "_look", look)
    assert send(desk, "x").run_id == second[0]
    assert payloads(desk, first) == []
    assert result(desk, second[0]) == "x"


# -- tokens ---------------------------------------------------------------------------------------------


def test_of_many_starts_at_once_one_has_the_token(desk: Desk):
    desks = [desk, *(desk.another(f"process {number}") for number in range(3))]
    together = threading.Barrier(8)

    def begin(number: int) -> Any:
        together.wait()
        return desks[number % 4].start(make_now, "t")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(begin, range(8)))
    for _ in range(3):
        desk.tick()
    assert open_tokens(desk) == 1
    live = [run_id for run_id in found if desk.run(run_id).status is RunStatus.RUNNING]
    (holder,) = live
    assert {result(desk, run_id) for run_id in found if run_id != holder} == {holder}
    send(desk, "mine")
    assert result(desk, holder) == "mine"


@workflow
async def make_now(token: str) -> Any:
    try:
        async with create_hook(token) as hook:
            return await hook
    except HookConflictError as error:
        return error.run_id


def test_a_token_that_is_taken_is_told_also_where_a_record_makes_the_hook(desk: Desk):
    first = desk.start(get, "t")
    second = desk.start(make_later, "t")
    recorded = attempts.record_success(
        desk.engine, desk.claim(second), 1, carries=frozenset(), may_run=lambda _: True
    )
    if recorded.must_advance:
        advance(desk.engine, second)
    assert desk.node(second, "0:2").status is NodeStatus.FAILED
    assert json.loads(desk.node(second, "0:3").args)["args"] == [first]
    desk.engine.bodies.clear()
    desk.succeed(desk.claim(second, "0:3"), first)
    advance(desk.engine, second)
    assert result(desk, second) == first


def test_whoever_takes_the_token_of_an_expired_hook_changes_its_row_only(desk: Desk):
    first = desk.start(expire, "t")
    send(desk, 1)
    desk.clock.advance(HOUR)
    before = desk.run(first)
    second = desk.start(get, "t")
    assert desk.run(first) == before
    assert open_tokens(desk) == 1
    send(desk, "for the second")
    assert result(desk, second) == "for the second"
    desk.tick()
    assert result(desk, first) == [1]


def test_a_hook_takes_nothing_from_its_expiry_on_whoever_looks(desk: Desk):
    run_id = desk.start(expire, "t")
    desk.clock.advance(HOUR - timedelta(microseconds=1))
    send(desk, "in time")
    desk.clock.advance(timedelta(microseconds=1))
    with pytest.raises(HookNotFoundError):
        send(desk, "late")
    desk.tick()
    assert result(desk, run_id) == ["in time"]


# -- a run that waits costs nothing ---------------------------------------------------------------------


def test_a_run_that_waits_for_a_payload_is_looked_at_once_a_day(desk: Desk):
    run_id = desk.start(get, "t")
    assert desk.run(run_id).wake_at == desk.clock.now + timedelta(days=1)
    desk.clock.advance(timedelta(days=1))
    desk.tick()
    assert desk.run(run_id).wake_at == desk.clock.now + timedelta(days=1)
    send(desk, 1)
    assert result(desk, run_id) == 1


def test_a_run_that_waits_for_a_payload_or_a_deadline_is_looked_at_then(desk: Desk):
    run_id = desk.start(get_in_time, "t")
    assert desk.run(run_id).wake_at == desk.clock.now + HOUR
    desk.tick()
    assert recovery.tick(desk.engine) == HOUR


def test_a_run_that_goes_on_waiting_after_a_payload_is_looked_at_once_a_day(desk: Desk):
    run_id = desk.start(collect_forever, "t")
    send(desk, 1)
    for _ in range(2):
        desk.clock.advance(timedelta(minutes=10))
        desk.tick()
    wake_at = desk.run(run_id).wake_at
    assert wake_at is not None
    assert wake_at > desk.clock.now + timedelta(hours=23)


@workflow
async def collect_forever(token: str) -> None:
    async for _ in create_hook(token):
        pass


@workflow
async def many_hooks() -> None:
    for number in range(8):
        create_hook(f"number {number}")
    await sleep(5)


def test_hooks_that_are_made_together_are_listed_in_the_order_of_the_body(desk: Desk):
    run_id = desk.start(many_hooks)
    assert [row.node_id for row in desk.nodes(run_id)] == [f"0:{number}" for number in range(1, 10)]


@workflow
async def says_later(token: str) -> Any:
    async def hear() -> None:
        await create_hook(token)

    hearing = asyncio.create_task(hear())
    await sleep(5)
    await one("told")
    return hearing.done()


def test_a_sleep_is_in_time_whose_message_names_what_a_payload_has_changed(
    desk: Desk, send_alone: Callable[..., None]
):
    run_id = desk.start(says_later, "t")
    asleep = next(row for row in desk.nodes(run_id) if row.kind is NodeKind.SLEEP)
    assert asleep.is_carried
    assert asleep.due_at is not None
    assert (desk.run(run_id).wake_at or asleep.due_at) > asleep.due_at
    send_alone(desk, "hello")
    advance(desk.engine, run_id)
    desk.tick()
    assert desk.run(run_id).wake_at == asleep.due_at
    desk.clock.advance(5 * SECOND)
    desk.tick()
    if desk.succeed(desk.claim(run_id, "0:2")).must_advance:
        advance(desk.engine, run_id)
    assert result(desk, run_id) is True


def test_untaken_payloads_are_counted_by_run(desk: Desk, send_alone: Callable[..., None]):
    run_id = desk.start(close, "t")
    for number in range(3):
        send_alone(desk, number)
    assert desk.engine.database.read(lambda tx: hooks.untaken(tx, run_id).get()) == (3, 3)
