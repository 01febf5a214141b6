"""What a body is told: in the order in which it happened, at one time, and with nothing beginning behind its back."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from ckworkflow import FatalError, UnreadableValueError, codec, now, sleep, step, workflow
from ckworkflow.engine import advance as advancing
from ckworkflow.engine import attempts, claims, events, holding, verdicts
from ckworkflow.engine.advance import advance
from ckworkflow.engine.claims import Claimed, Dropped, Early
from ckworkflow.model import NodeId, NodeKind, NodeStatus, RunStatus
from ckworkflow.store import runs
from ckworkflow.store.nodes import NodeRow
from ckworkflow.store.runs import ONLY_STEPS_HELD
from desk import Desk

if TYPE_CHECKING:
    from ckworkflow.model import RunId
    from ckworkflow.store.transaction import Transaction
    from ckworkflow.tracing import Trace

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


@step
def one(number: int = 1) -> int:
    return number


@pytest.fixture
def desk(either_desk: Desk) -> Desk:
    return either_desk


def late(desk: Desk, claimed: Claimed, error: BaseException | None = None) -> None:
    """Record, as a process that dies before it lets the body go on."""
    desk.clock.advance(SECOND)
    if error is None:
        desk.succeed(claimed, 1)
    else:
        desk.fail(claimed, error, one)


# -- order ------------------------------------------------------------------------------------------


@workflow
async def first_of_two() -> str:
    tasks = [asyncio.create_task(ping(1)), asyncio.create_task(ping(2))]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return ",".join(str(tasks.index(task)) for task in done)


@workflow
async def ping(number: int) -> int:
    return await one(number)


def test_a_failure_that_came_first_is_told_before_a_later_success(desk: Desk) -> None:
    run_id = desk.start(first_of_two)
    first, second = desk.claim(run_id, "0.1:1"), desk.claim(run_id, "0.2:1")
    late(desk, second, FatalError("boom"))
    late(desk, first)

    advance(desk.engine, run_id)

    assert desk.run(run_id).output == '"1"'


@workflow
async def step_or_sleep(minutes: int) -> str:
    tasks = {asyncio.create_task(ping(1)), asyncio.create_task(asleep(minutes))}
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    (winner,) = done
    return str(await winner)


@workflow
async def asleep(minutes: int) -> str:
    await sleep(60 * minutes)
    return "slept"


@pytest.mark.parametrize(("minutes", "winner"), [(5, "slept"), (15, "1")])
def test_a_sleep_that_is_due_before_a_step_ends_wins_however_late_both_are_noticed(
    desk: Desk, minutes: int, winner: str
) -> None:
    run_id = desk.start(step_or_sleep, minutes)
    claimed = desk.claim(run_id, "0.1:1")
    desk.clock.advance(10 * MINUTE)
    desk.succeed(claimed, 1)
    desk.clock.advance(60 * MINUTE)

    desk.tick()

    assert desk.run(run_id).output == f'"{winner}"'


def test_a_message_ends_no_sleep_while_the_body_is_to_be_told_of_something_else(desk: Desk) -> None:
    run_id = desk.start(gathered)
    claimed = desk.claim(run_id, "0.1:1")
    desk.clock.advance(MINUTE)
    desk.fail(claimed, FatalError("boom"), one)
    desk.clock.advance(10 * MINUTE)

    message = desk.claim(run_id, "0.2:2")

    assert message == Dropped("the body is to be told of something first", wakes_body=True)
    assert desk.node(run_id, "0.2:1").status is NodeStatus.RUNNING
    advance(desk.engine, run_id)
    assert desk.node(run_id, "0.1:1").delivered == 1
    assert isinstance(desk.claim(run_id, "0.2:2"), Claimed)


def test_a_message_that_comes_too_early_comes_again_though_there_is_something_to_tell(
    desk: Desk,
) -> None:
    run_id = desk.start(gathered)
    desk.fail(desk.claim(run_id, "0.1:1"), FatalError("boom"), one)

    assert desk.claim(run_id, "0.2:2") == Early(5 * MINUTE)


def test_a_sleep_that_comes_due_while_a_body_is_told_is_ended_right_after_it(
    desk: Desk, between: Any
) -> None:
    run_id = desk.start(gathered)
    desk.fail(desk.claim(run_id, "0.1:1"), FatalError("boom"), one)

    def too_late_for_this_continuation() -> None:
        desk.clock.advance(6 * MINUTE)
        assert isinstance(desk.claim(run_id, "0.2:2"), Dropped)

    between(too_late_for_this_continuation)
    advance(desk.engine, run_id)
    desk.messages.clear()
    desk.tick()

    assert desk.node(run_id, "0.2:1").status is NodeStatus.COMPLETED
    assert "0.2:2" in str(desk.published)


def test_a_step_that_was_held_once_lets_no_sleep_end_before_a_failure_is_told(desk: Desk) -> None:
    run_id = desk.start(gathered)
    claimed, waiting = desk.claim(run_id, "0.1:1"), desk.node(run_id, "0.1:1")
    hold_a_step(desk, run_id)
    assert desk.run(run_id).held == ONLY_STEPS_HELD
    desk.fail(claimed, FatalError("boom"), one)
    desk.clock.advance(10 * MINUTE)

    assert isinstance(desk.claim(run_id, "0.2:2"), Dropped)
    advance(desk.engine, run_id)
    assert desk.node(run_id, waiting.node_id).delivered == 1


def hold_a_step(desk: Desk, run_id: RunId) -> None:
    """Mark a run as one of which a step was held, as `holding.mark_steps` does."""

    def mark(tx: Transaction) -> None:
        run = runs.lock_run(tx, run_id, desk.engine.database).get()
        runs.update_run(tx, run_id, **holding.mark_steps(run))

    desk.engine.database.transact(mark)


@workflow
async def slept_then_one() -> None:
    await sleep("5 minutes")
    await one(3)


@workflow
async def gathered() -> str:
    try:
        await asyncio.gather(one(1), slept_then_one())
    except FatalError:
        await one(4)
    return "over"


def test_what_has_let_a_step_begin_is_told_before_an_earlier_failure(desk: Desk) -> None:
    run_id = desk.start(pair_beside_one)
    failing, first = desk.claim(run_id, "0.1:1"), desk.claim(run_id, "0.2:1")
    late(desk, failing, FatalError("boom"))
    late(desk, first)
    assert isinstance(desk.claim(run_id, "0.2:2"), Claimed)

    advance(desk.engine, run_id)

    assert desk.node(run_id, "0.2:1").delivered == 1
    assert desk.node(run_id, "0.1:1").delivered == 2


@workflow
async def two() -> None:
    await one(1)
    await one(2)


@workflow
async def pair_beside_one() -> str:
    try:
        await asyncio.gather(one(1), two())
    except FatalError:
        await one(3)
    return "over"


def test_what_has_let_something_begin_is_told_before_it_whatever_their_times_say() -> None:
    """Two processes have estimated them."""
    start = datetime(2030, 1, 1, tzinfo=UTC)

    def row(node_id: str, seconds: float, *after: str) -> NodeRow:
        values = dict.fromkeys(NodeRow._fields)
        return NodeRow(**values)._replace(  # type: ignore[arg-type]
            node_id=NodeId(node_id), kind=NodeKind.STEP, status=NodeStatus.COMPLETED, position=0,
            next=codec.dumps(list(after)), finished_at=start + timedelta(seconds=seconds),
        )  # fmt: skip

    rows = [row("0:3", 1, "0:4"), row("0:2", 2, "j:0:3"), row("0:1", 3, "0:2"), row("0.1:1", 0)]

    found = events.in_order(rows, {"0:1", "0:2", "0:3", "0:4"}, {"j:0:3": ("0:3",)})

    assert [each.node_id for each in found] == ["0:1", "0:2", "0:3", "0.1:1"]


# -- body time --------------------------------------------------------------------------------------


@workflow
async def tells_the_time() -> list[str]:
    times = []
    for _ in range(3):
        if await one():
            times.append(now().isoformat())
    return times


def test_the_time_that_a_body_is_told_never_goes_back(desk: Desk) -> None:
    run_id = desk.start(tells_the_time)
    for jump in (10, -60, 5):
        desk.clock.jump(timedelta(seconds=jump))
        row = next(row for row in desk.nodes(run_id) if row.status is NodeStatus.PLANNED)
        desk.engine.bodies.clear()
        if desk.succeed(desk.claim(run_id, row.node_id), 1).must_advance:
            advance(desk.engine, run_id)

    told = json.loads(desk.run(run_id).output or "null")
    assert len(told) == 3
    assert len(set(told)) == 1  # the clock has not come further than it was at first


@workflow
async def sleeps_after_a_look() -> None:
    if await one():
        await sleep("1 hour")
        await one(2)


def test_a_sleep_counts_from_the_time_that_its_body_was_told(desk: Desk, between: Any) -> None:
    run_id = desk.start(sleeps_after_a_look)
    desk.engine.bodies.clear()
    claimed = desk.claim(run_id)
    desk.clock.advance(MINUTE)
    told_at = desk.clock.now
    desk.succeed(claimed, 1)
    between(lambda: desk.clock.advance(MINUTE))  # the body takes long

    advance(desk.engine, run_id)

    assert desk.node(run_id, "0:2").due_at == told_at + timedelta(hours=1)


# -- out of reach ---------------------------------------------------------------------------------------


def test_nothing_that_was_planned_begins_while_a_body_is_told_of_a_failure(
    desk: Desk, between: Any
) -> None:
    run_id = desk.start(pair_beside_one)
    failing, first = desk.claim(run_id, "0.1:1"), desk.claim(run_id, "0.2:1")
    before = desk.node(run_id, "0.2:2")
    desk.fail(failing, FatalError("boom"), one)
    found: list[Any] = []

    def try_to_begin() -> None:
        desk.succeed(first, 1)  # lets the next step begin, as the plan had it
        found.append(desk.claim(run_id, "0.2:2"))

    between(try_to_begin)
    advance(desk.engine, run_id)

    assert [type(each) for each in found] == [Dropped]
    assert desk.node(run_id, "0.2:2").generation == before.generation
    assert isinstance(desk.claim(run_id, "0.2:2"), Claimed)  # a message of before the failure finds it


def test_a_retry_stays_out_of_reach_with_its_attempts_and_its_time(desk: Desk, between: Any) -> None:
    run_id = desk.start(pair_beside_one)
    failing, flaky = desk.claim(run_id, "0.1:1"), desk.claim(run_id, "0.2:1")
    desk.fail(flaky, RuntimeError("once"), one)
    due_at = desk.node(run_id, "0.2:1").due_at
    desk.fail(failing, FatalError("boom"), one)
    found: list[Any] = []

    def try_to_begin() -> None:
        desk.clock.advance(MINUTE)
        found.append(desk.claim(run_id, "0.2:1"))
        desk.tick()

    between(try_to_begin)
    advance(desk.engine, run_id)

    assert [type(each) for each in found] == [Dropped]
    row = desk.node(run_id, "0.2:1")
    assert (row.status, row.attempt, row.due_at, row.unmet) == (NodeStatus.PLANNED, 1, due_at, 0)
    assert desk.claim(run_id, "0.2:1").row.attempt == 2


def test_what_is_planned_beside_a_failure_goes_on_while_the_body_is_held(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.start(pair_beside_one)
    desk.fail(desk.claim(run_id, "0.1:1"), FatalError("boom"), one)

    def unreadable(*_: Any) -> Trace:
        raise UnreadableValueError("args", "this deploy lacks its class")

    monkeypatch.setattr(advancing, "_replay", unreadable)
    advance(desk.engine, run_id)
    desk.tick()

    assert desk.run(run_id).held is not None
    assert isinstance(desk.claim(run_id, "0.2:1"), Claimed)


def test_a_body_that_is_held_for_spinning_keeps_nothing_else_waiting(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.start(pair_beside_one)
    desk.fail(desk.claim(run_id, "0.1:1"), FatalError("boom"), one)

    def die(*_: Any) -> Any:
        raise SystemError("as a process that ends here")

    monkeypatch.setattr(advancing, "_trace", die)
    while desk.run(run_id).held is None:
        with contextlib.suppress(SystemError):
            advance(desk.engine, run_id)
        desk.clock.advance(5 * MINUTE)  # its lease ends
    desk.messages.clear()
    desk.tick()

    assert "0.2:1" in str(desk.published)
    assert isinstance(desk.claim(run_id, "0.2:1"), Claimed)


def test_a_step_that_is_revoked_while_it_is_out_of_reach_has_failed(desk: Desk, between: Any) -> None:
    run_id = desk.start(pair_beside_one)
    desk.fail(desk.claim(run_id, "0.1:1"), FatalError("boom"), one)
    generation = desk.node(run_id, "0.2:1").generation

    between(lambda: verdicts.revoke(desk.engine, run_id, NodeId("0.2:1"), generation, pids=[]))
    advance(desk.engine, run_id)

    assert desk.node(run_id, "0.2:1").status is NodeStatus.FAILED


@workflow
async def wide(members: int) -> str:
    try:
        await asyncio.gather(*[one(number) for number in range(members)])
    except FatalError:
        await one(-1)
    return "over"


def test_a_result_is_recorded_while_much_is_out_of_reach(desk: Desk, between: Any) -> None:
    run_id = desk.start(wide, 1_200)

    def claim(node_id: str) -> Claimed:
        row = desk.node(run_id, node_id)
        found = claims.claim(desk.engine, run_id, row.node_id, row.generation, step=row.name, opens=True)
        assert isinstance(found, Claimed)
        return found

    failing, other = claim("0.1:1"), claim("0.2:1")
    desk.fail(failing, FatalError("boom"), one)
    between(
        lambda: attempts.record_success(
            desk.engine, other, 2, carries=frozenset(), may_run=lambda _: True
        )
    )
    advance(desk.engine, run_id)

    assert desk.node(run_id, "0.2:1").output == "2"
    assert desk.node(run_id, "0.1200:1").is_held


@workflow
async def maybe() -> str:
    try:
        await one(1)
        found = await asyncio.gather(one(2), one(3), return_exceptions=True)
    except FatalError:
        found = await asyncio.gather(one(2), one(3))
    return str(found)


def test_a_member_whose_failure_is_a_value_no_longer_is_one_like_any_other(desk: Desk) -> None:
    run_id = desk.start(maybe)
    assert desk.node(run_id, "0.1:1").fails_as_value
    desk.fail(desk.claim(run_id, "0:1"), FatalError("boom"), one)

    advance(desk.engine, run_id)

    assert not desk.node(run_id, "0.1:1").fails_as_value


@workflow
async def polls(times: int) -> None:
    await asyncio.gather(poll(times), rest())


@workflow
async def poll(times: int) -> int:
    bad = 0
    for number in range(times):
        try:
            if await one(number):
                bad -= 1
        except FatalError:
            bad += 1
    return bad


@workflow
async def rest() -> None:
    await sleep("1 day")
    await sleep("1 day")
    await one(-1)


def test_many_failures_beside_what_runs_ahead_cost_few_replays(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays: list[int] = []
    really = advancing._replay

    def replay(*args: Any) -> Any:
        replays.append(1)
        return really(*args)

    monkeypatch.setattr(advancing, "_replay", replay)
    run_id = desk.start(polls, 40)
    for number in range(1, 41):
        if desk.fail(desk.claim(run_id, f"0.1:{number}"), FatalError("no"), one).must_advance:
            advance(desk.engine, run_id)

    assert len(replays) <= 2


def test_a_step_that_began_meanwhile_is_met_before_the_end_that_would_have_dropped_it(
    desk: Desk, between: Any
) -> None:
    """The success of `one(3)` ends the body, which ends the task beside it: a surprise that nobody foresaw."""
    run_id = desk.start(pair_beside_one)
    desk.fail(desk.claim(run_id, "0.1:1"), FatalError("boom"), one)
    advance(desk.engine, run_id)
    first, last = desk.claim(run_id, "0.2:1"), desk.claim(run_id, "0:1")
    desk.succeed(last, 1)
    begun: list[Any] = []

    def begin() -> None:
        desk.succeed(first, 1)
        begun.append(desk.claim(run_id, "0.2:2"))

    between(begin)
    advance(desk.engine, run_id)

    assert [type(each) for each in begun] == [Claimed]
    numbers = {row.node_id: row.delivered for row in desk.nodes(run_id)}
    assert numbers["0.2:1"] == 2
    assert numbers["0:1"] == 3
    assert desk.run(run_id).status is RunStatus.COMPLETED


# -- fences ---------------------------------------------------------------------------------------------


def test_a_record_of_another_generation_is_refused(desk: Desk) -> None:
    run_id = desk.start(two)
    claimed = desk.claim(run_id)
    stale = replace(claimed, row=claimed.row._replace(generation=claimed.row.generation + 1))

    assert desk.succeed(stale, 1).is_refused
    assert desk.fail(stale, FatalError("boom"), one).is_refused
    assert desk.fail(stale, RuntimeError("boom"), one).is_refused
    assert desk.node(run_id).status is NodeStatus.RUNNING
    assert not desk.succeed(claimed, 1).is_refused
