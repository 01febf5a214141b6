"""A body that is continued again and again and told of nothing is held, whatever the cause and whoever continues it."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from ckworkflow import codec, sleep, step, workflow
from ckworkflow.client import start_sync
from ckworkflow.definition import Workflow, registry
from ckworkflow.engine import advance as advancing
from ckworkflow.engine import claims, holding
from ckworkflow.engine.advance import advance
from ckworkflow.engine.claims import Claimed, Dropped
from ckworkflow.engine.holding import SPIN_HOLD, SPIN_LIMIT, Hold
from ckworkflow.engine.resolve import has_references
from ckworkflow.engine.resolve import resolve_value as really_resolve
from ckworkflow.model import NodeStatus, RunStatus
from ckworkflow.store import runs as run_store
from ckworkflow.store import tables
from ckworkflow.store.transaction import Transaction
from ckworkflow.testing import worker
from ckworkflow.tracing import UnresolvableError
from desk import Desk
from engine_flows import looks, one, twice
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckworkflow.engine.core import Engine
    from ckworkflow.engine.installation import Installation
    from ckworkflow.model import RunId

NAME = "tests.holding.body"


@step
def echo(value: Any) -> Any:
    return value


@workflow
async def counts(times: int) -> int:
    total = 0
    for _ in range(times):
        if await one():
            total += 1
    return total


@workflow
async def looks_beside_a_sleep() -> None:
    await asyncio.gather(looks(), sleep("1 hour"))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A bug as D1 was: no claim can work out an argument that stands for a result, and no body helps."""

    def resolve(tx: Any, run_id: Any, tree: Any, known: Any = None) -> Any:
        if has_references(tree):
            raise UnresolvableError
        return really_resolve(tx, run_id, tree, known)

    monkeypatch.setattr(claims, "resolve_value", resolve)
    return monkeypatch


@pytest.fixture
def second(either_desk: Desk) -> Iterator[Desk]:
    """Another process."""
    other = either_desk.another("there")
    yield other
    other.close()


def signal(engine: Engine, run_id: RunId) -> None:
    """Wake the body without an event, which only a bug of ours can do."""
    row = tables.runs.c
    more = sa.update(tables.runs).where(row.id == run_id).values(signals=row.signals + 1)
    engine.database.transact(lambda tx: tx.execute(more))


def spin(desk: Desk, run_id: RunId, times: int = 1) -> None:
    for _ in range(times):
        signal(desk.engine, run_id)
        advance(desk.engine, run_id)


def held(engine: Engine, run_id: RunId) -> Hold | None:
    return holding.read(engine.database.read(lambda tx: run_store.read_run(tx, run_id)).held)


def begin(desk: Desk, run_id: RunId) -> object:
    """Begin a continuation, and come no further."""
    return desk.engine.database.transact_run(
        run_id, lambda tx: advancing._begin(desk.engine, tx, run_id)
    )


def drop(desk: Desk, run_id: RunId, node_id: str = "0:2") -> None:
    dropped = desk.claim(run_id, node_id)
    assert isinstance(dropped, Dropped)
    assert dropped.wakes_body


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


# --- what is held -------------------------------------------------------------------------------------


def test_a_body_that_is_told_of_nothing_is_held_and_one_line_says_so(
    either_desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk = either_desk
    run_id = desk.start(looks)

    spin(desk, run_id, SPIN_LIMIT)
    assert held(desk.engine, run_id) is None
    spin(desk, run_id, 3 * SPIN_LIMIT)

    hold = held(desk.engine, run_id)
    assert hold is not None
    assert hold.until == desk.run(run_id).wake_at
    assert hold.until - desk.clock.now <= SPIN_HOLD
    assert errors(caplog) == [f"run {run_id} is held: {hold.reason}"]
    assert f"continued {SPIN_LIMIT} times in a row" in hold.reason


def test_a_held_run_costs_its_clock_nothing(either_desk: Desk) -> None:
    desk = either_desk
    run_id = desk.start(looks)
    spin(desk, run_id, SPIN_LIMIT + 1)
    desk.messages.clear()

    signal(desk.engine, run_id)
    for _ in range(10):
        desk.clock.advance(timedelta(hours=2))
        desk.tick()

    assert held(desk.engine, run_id) is not None
    assert desk.messages == []


def test_a_run_whose_claims_are_dropped_again_and_again_is_held(
    either_desk: Desk, broken: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    desk = either_desk
    run_id = desk.start(twice)
    desk.succeed(desk.claim(run_id), 1)

    drops = 0
    while held(desk.engine, run_id) is None and drops < 3 * SPIN_LIMIT:
        drop(desk, run_id)
        advance(desk.engine, run_id)
        drops += 1

    assert drops == SPIN_LIMIT + 2  # the first has told the body of 0:1
    assert len(errors(caplog)) == 1
    drop(desk, run_id)  # a late message, or the clock's look
    advance(desk.engine, run_id)
    hold = held(desk.engine, run_id)
    assert hold is not None
    assert desk.run(run_id).wake_at == hold.until
    assert len(errors(caplog)) == 1


def test_a_worker_whose_claims_are_dropped_again_and_again_comes_to_rest(
    running: Installation, broken: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = start_sync(twice)
    until(lambda: held(running.engine, run.run_id) is not None)

    query = sa.select(tables.runs.c.epoch).where(tables.runs.c.id == run.run_id)
    epoch = running.engine.database.read(lambda tx: tx.execute(query).scalar_one())
    assert epoch < 4 * SPIN_LIMIT
    until(lambda: errors(caplog))
    assert len(errors(caplog)) == 1


def test_a_continuation_that_finds_itself_not_done_is_held_inside_one_call(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose result can never be worked out, as `end_run` says: it goes on at once, and no message is needed."""
    run_id = desk.start(counts, 1)
    monkeypatch.setattr(desk.engine, "end_run", lambda *_, **__: False)
    desk.succeed(desk.claim(run_id), 1)

    advance(desk.engine, run_id)

    assert held(desk.engine, run_id) is not None
    assert desk.run(run_id).status is RunStatus.RUNNING


def test_two_processes_that_take_turns_count_together(either_desk: Desk, second: Desk) -> None:
    run_id = either_desk.start(looks)

    for _ in range(SPIN_LIMIT // 2):
        spin(either_desk, run_id)
        spin(second, run_id)
    assert held(second.engine, run_id) is None
    spin(second, run_id)

    assert held(either_desk.engine, run_id) is not None


def test_a_restart_does_not_begin_the_count_anew_and_keeps_the_hold(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = desk.start(looks)
    spin(desk, run_id, SPIN_LIMIT)

    desk.close()
    second = desk.another("here again")
    spin(second, run_id)
    assert held(second.engine, run_id) is not None
    second.close()
    third = desk.another("and again")
    holding.retry_held(third.engine)
    spin(third, run_id, SPIN_LIMIT)

    assert held(third.engine, run_id) is not None
    assert len(errors(caplog)) == 1
    third.close()


def test_a_body_that_ends_its_process_each_time_is_held(desk: Desk) -> None:
    run_id = desk.start(looks)
    desk.engine.bodies.clear()
    desk.succeed(desk.claim(run_id), 1)

    continued = 0
    while continued < 2 * SPIN_LIMIT:
        victim = desk.another(f"victim {continued}")
        found = begin(victim, run_id)
        victim.close()
        if not isinstance(found, advancing._Snapshot):
            break
        assert found.news  # it is never told of it
        continued += 1
        desk.lose(victim)

    assert continued == SPIN_LIMIT
    assert held(desk.engine, run_id) is not None


def test_a_continuation_that_raises_each_time_is_held(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.start(looks)
    signal(desk.engine, run_id)

    def fail(*_: Any) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(advancing, "_trace", fail)
    for _ in range(SPIN_LIMIT):
        with pytest.raises(AssertionError, match="a bug"):
            advance(desk.engine, run_id)
        desk.clock.advance(2 * desk.engine.settings.lease)
    advance(desk.engine, run_id)

    assert held(desk.engine, run_id) is not None


# --- what is not --------------------------------------------------------------------------------------


def test_a_run_that_is_told_of_something_now_and_then_is_never_held(
    either_desk: Desk, second: Desk
) -> None:
    run_id = either_desk.start(counts, 2 * SPIN_LIMIT)

    for number in range(1, 2 * SPIN_LIMIT + 1):
        spin(either_desk, run_id)  # more wakes than events
        spin(second, run_id)
        claimed = either_desk.claim(run_id, f"0:{number}")
        if either_desk.succeed(claimed, 1).must_advance:
            advance((either_desk, second)[number % 2].engine, run_id)

    run = either_desk.run(run_id)
    assert (run.status, codec.loads(run.output or "")) == (RunStatus.COMPLETED, 2 * SPIN_LIMIT)
    assert run.held is None


def test_claims_that_are_dropped_side_by_side_for_one_reason_count_once(
    either_desk: Desk, broken: pytest.MonkeyPatch
) -> None:
    """The members of a wide group, each in a slot of its own: each fences the replay that the one before has begun."""
    desk = either_desk
    run_id = desk.start(twice)
    desk.succeed(desk.claim(run_id), 1)
    drop(desk, run_id)
    advance(desk.engine, run_id)

    for _ in range(3 * SPIN_LIMIT):
        drop(desk, run_id)
        assert isinstance(begin(desk, run_id), advancing._Snapshot)

    assert held(desk.engine, run_id) is None


def test_a_lease_that_lapses_again_and_again_counts_although_claims_are_dropped(
    desk: Desk, broken: pytest.MonkeyPatch
) -> None:
    run_id = desk.start(twice)
    desk.succeed(desk.claim(run_id), 1)

    for _ in range(SPIN_LIMIT + 1):
        drop(desk, run_id)
        begin(desk, run_id)
        desk.clock.advance(2 * desk.engine.settings.lease)

    assert held(desk.engine, run_id) is not None


def test_a_run_that_waits_for_a_worker_which_knows_its_workflow_is_not_taken_to_spin(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = desk.start(deploy(decides))
    desk.engine.bodies.clear()
    registry.workflows.pop(NAME)

    for _ in range(2 * SPIN_LIMIT):
        spin(desk, run_id)
        desk.clock.advance(holding.LONGEST_TRY)

    hold = held(desk.engine, run_id)
    assert hold is not None
    assert hold.kind == "deploy"
    (said,) = errors(caplog)
    assert said.startswith(
        f"run {run_id} is held: This process knows no workflow named '{NAME}'. If it was renamed or moved, keep its old "
        f"name: @workflow(name='{NAME}'). Else check "
    )


# --- the ways out -------------------------------------------------------------------------------------


def test_an_event_ends_a_hold(either_desk: Desk) -> None:
    desk = either_desk
    run_id = desk.start(looks)
    claimed = desk.claim(run_id)
    spin(desk, run_id, SPIN_LIMIT + 1)
    assert held(desk.engine, run_id) is not None

    assert desk.succeed(claimed, 1).must_advance
    advance(desk.engine, run_id)

    assert held(desk.engine, run_id) is None
    assert desk.node(run_id, "0:2").status is NodeStatus.PLANNED


def test_a_sleep_ends_in_time_in_a_held_run(desk: Desk) -> None:
    run_id = desk.start(looks_beside_a_sleep)
    spin(desk, run_id, SPIN_LIMIT + 1)
    assert desk.run(run_id).wake_at == desk.clock.now + timedelta(hours=1)

    desk.clock.advance(timedelta(hours=1))
    desk.tick()

    assert held(desk.engine, run_id) is None


def test_after_a_day_the_body_goes_on(either_desk: Desk, broken: pytest.MonkeyPatch) -> None:
    desk = either_desk
    run_id = desk.start(twice)
    desk.succeed(desk.claim(run_id), 1)
    while held(desk.engine, run_id) is None:
        drop(desk, run_id)
        advance(desk.engine, run_id)
    broken.undo()

    desk.clock.advance(SPIN_HOLD)
    wait_for_server(desk, run_id)
    desk.tick()

    assert held(desk.engine, run_id) is None
    claimed = desk.claim(run_id, "0:2")
    assert isinstance(claimed, Claimed)
    assert desk.succeed(claimed, 1).has_ended


def test_a_body_that_spins_on_is_held_again_after_a_day_with_another_line(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = desk.start(looks)
    spin(desk, run_id, SPIN_LIMIT + 1)
    first = held(desk.engine, run_id)

    desk.clock.advance(SPIN_HOLD)
    spin(desk, run_id, SPIN_LIMIT)
    assert held(desk.engine, run_id) is None
    spin(desk, run_id)

    again = held(desk.engine, run_id)
    assert first is not None
    assert again is not None
    assert again.until == first.until + SPIN_HOLD
    assert len(errors(caplog)) == 2


async def decides() -> Any:
    if await echo("yes"):
        return await echo("first")
    return None


async def decides_otherwise() -> Any:
    if await echo("yes"):
        return await echo("second")
    return None


def deploy(function: Callable[..., Any]) -> Workflow[..., Any]:
    """Register a body under the one name, as a worker that starts with the new code does."""
    registry.workflows[NAME] = definition = Workflow(function, name=NAME)
    return definition


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    yield
    registry.workflows.pop(NAME, None)


def test_a_worker_that_starts_with_a_changed_body_tries_again_and_another_one_does_not(
    home: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # no message is there that could end the hold by an event
        patch.setattr(home.engine, "_publish", lambda *_: True)
        run = start_sync(deploy(decides))
        engine, run_id = home.engine, run.run_id
        for _ in range(SPIN_LIMIT + 1):
            signal(engine, run_id)
            advance(engine, run_id)
    assert held(engine, run_id) is not None

    holding.retry_held(engine)
    assert held(engine, run_id) is not None
    registry.workflows.pop(NAME)
    holding.retry_held(engine)  # it does not know the workflow
    assert held(engine, run_id) is not None
    deploy(decides_otherwise)
    with worker():
        assert run.return_value(timeout=20) == "second"


# --- what it costs ------------------------------------------------------------------------------------


def test_to_count_costs_a_continuation_no_statement(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = desk.start(looks)
    desk.engine.bodies.clear()
    desk.succeed(desk.claim(run_id), 1)
    statements: list[object] = []
    execute = Transaction.execute

    def counted(tx: Transaction, statement: Any, *args: Any) -> Any:
        statements.append(statement)
        return execute(tx, statement, *args)

    monkeypatch.setattr(Transaction, "execute", counted)
    begin(desk, run_id)

    assert len(statements) == 4  # the lock, the lease, the sleeps that are due, what is new


def wait_for_server(desk: Desk, run_id: RunId) -> None:
    """A server has a clock of its own, which a test cannot set: let the hold be over by that."""
    database = desk.engine.database
    if database.has_server_clock:
        hold = held(desk.engine, run_id)
        assert hold is not None
        over = {
            "reason": hold.reason, "until": hold.until - SPIN_HOLD, "events": hold.events, "code": hold.code,
        }  # fmt: skip
        text = codec.dumps(codec.encode(over, path="held"))
        database.transact(
            lambda tx: run_store.update_run(tx, run_id, held=text, wake_at=hold.until - SPIN_HOLD)
        )
