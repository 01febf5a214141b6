"""Steps that have lost several processes: the one that kills is found, and nobody else pays or waits for long."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from ckworkflow import step, workflow
from ckworkflow.engine import claims, liveness
from ckworkflow.engine.claims import Claimed, Dropped
from ckworkflow.engine.suspects import Suspects
from ckworkflow.model import NodeId, NodeStatus, RunId
from ckworkflow.plan import Chain, Task
from desk import Desk, ManualClock

SECOND = timedelta(seconds=1)


@step(max_retries=0)
def work() -> int:
    return 1


@workflow
async def working() -> int:
    return await work()


@pytest.fixture
def other(desk: Desk) -> Iterator[Desk]:
    other = desk.another("other")
    yield other
    other.close()


def lose_with(desk: Desk, other: Desk, runs: list[RunId], *, times: int) -> None:
    """Let a process die again and again while it runs steps of these runs, as in deploys by `kill -9`."""
    for _ in range(times):
        for run_id in runs:
            assert isinstance(other.claim(run_id), Claimed)
        desk.lose(other)
        desk.clock.advance(SECOND)


def runs_of(desk: Desk, count: int) -> list[RunId]:
    return [desk.start(working) for _ in range(count)]


def test_three_losses_hold_up_nobody(desk: Desk, other: Desk) -> None:
    runs = runs_of(desk, 50)
    lose_with(desk, other, runs, times=3)

    assert all(isinstance(desk.claim(run_id), Claimed) for run_id in runs)


@pytest.mark.parametrize(("losses", "together"), [(3, 40), (4, 16), (5, 4), (6, 1), (9, 1)])
def test_the_more_losses_the_fewer_run_at_a_time_in_a_process(losses: int, together: int) -> None:
    suspects, active = Suspects(ManualClock().monotonic), set()
    for number in range(40):
        key = RunId(f"run {number}"), NodeId("0:1")
        if suspects.admit(key, Task(key[1], "work", 0), losses, SECOND, active):
            active.add(key)
            suspects.confirm(key)

    assert len(active) == together


def test_suspects_of_other_processes_are_not_waited_for(desk: Desk, other: Desk) -> None:
    first, second = runs_of(desk, 2)
    for run_id in (first, second):
        lose_with(desk, other, [run_id], times=6)

    assert isinstance(desk.claim(first), Claimed)
    assert isinstance(other.claim(second), Claimed)


def test_a_suspect_that_waits_sends_no_messages_until_its_turn_comes(desk: Desk, other: Desk) -> None:
    first, second, third = runs_of(desk, 3)
    for run_id in (first, second, third):
        lose_with(desk, other, [run_id], times=6)
    running = desk.claim(first)
    assert isinstance(running, Claimed)
    for run_id in (second, third):
        assert isinstance(desk.claim(run_id), Dropped)
    desk.messages.clear()

    claims.offer_turns(desk.engine)
    assert desk.messages == []

    desk.succeed(running, 1)
    for _ in range(3):
        claims.offer_turns(desk.engine)
    row = desk.node(second)
    assert desk.messages == [(second, Chain((Task(row.node_id, row.name, row.generation),)))]
    assert isinstance(desk.claim(second), Claimed)


def test_a_step_that_outlives_its_deaths_twice_holds_up_nobody_and_is_cleared(
    desk: Desk, other: Desk
) -> None:
    innocent, waiting = runs_of(desk, 2)
    for run_id in (innocent, waiting):
        for _ in range(6):
            assert isinstance(other.claim(run_id), Claimed)
            desk.clock.advance(20 * SECOND)
            desk.lose(other)
    assert isinstance(other.claim(innocent), Claimed)
    assert isinstance(other.claim(waiting), Dropped)

    other.clock.advance(39 * SECOND)
    assert other.engine.suspects.take_turns(other.engine.active) == []
    other.clock.advance(2 * SECOND)
    assert [run_id for run_id, _ in other.engine.suspects.take_turns(other.engine.active)] == [waiting]

    desk.lose(other)
    assert desk.node(innocent).losses == 3
    assert desk.node(innocent).status is NodeStatus.PLANNED


@pytest.mark.parametrize("deploys", [0, 3])
@pytest.mark.parametrize("ends", [True, False], ids=["short neighbours", "long neighbours"])
def test_the_killer_is_found_in_minutes_and_its_neighbours_are_not_failed(
    desk: Desk, other: Desk, deploys: int, *, ends: bool
) -> None:
    neighbours = runs_of(desk, 8)
    lose_with(desk, other, neighbours, times=deploys)
    killer = desk.start(working)  # a new one: it has lost nothing so far
    began, deaths = desk.clock.now, 0
    finished: set[RunId] = set()

    while desk.node(killer).status is not NodeStatus.FAILED:
        running = {
            run_id: other.claim(run_id) for run_id in (*neighbours, killer) if run_id not in finished
        }
        desk.clock.advance(SECOND)
        if isinstance(running[killer], Claimed):
            desk.lose(other)
            deaths += 1
            continue
        for run_id, claimed in running.items():
            if ends and isinstance(claimed, Claimed):
                other.succeed(claimed, 1)
                finished.add(run_id)
        assert desk.clock.now - began < timedelta(minutes=5)

    assert deaths == desk.engine.settings.loss_limit
    for run_id in neighbours:
        assert desk.node(run_id).status is not NodeStatus.FAILED
        assert desk.node(run_id).losses < desk.engine.settings.loss_limit


def test_a_claim_that_got_lost_is_no_loss_of_a_worker(desk: Desk) -> None:
    (run_id,) = runs_of(desk, 1)
    assert isinstance(desk.claim(run_id), Claimed)
    desk.engine.active.clear()  # as after a commit whose answer was lost

    liveness.release_orphans(desk.engine, liveness.release_orphans(desk.engine, frozenset()))

    row = desk.node(run_id)
    assert (row.status, row.losses, row.free_attempts) == (NodeStatus.PLANNED, 0, 1)
