"""Run-ahead: what a record claims besides, what it foresees, and when it must not."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from ckworkflow import workflow
from ckworkflow.engine import attempts, claims
from ckworkflow.engine.advance import advance
from ckworkflow.engine.answer import Answer
from ckworkflow.engine.claims import Claimed, Dropped
from ckworkflow.model import NodeId, NodeStatus, RunStatus
from ckworkflow.plan import WINDOW
from commits import count_commits
from desk import Desk
from engine_flows import looks, one


@workflow
async def chain() -> int:
    number = await one()
    return await one(number)


@workflow
async def wide(members: int) -> int:
    await asyncio.gather(*[one(number) for number in range(members)])
    return await one()


@pytest.fixture
def desk(either_desk: Desk) -> Desk:
    return either_desk


def go_on(desk: Desk, claimed: Claimed, value: Any = 1) -> Answer:
    """Record a result, in a process that runs ahead with anything."""
    return attempts.record_success(
        desk.engine, claimed, value, carries=frozenset(), may_run=lambda _: True
    )


def test_the_record_of_a_step_claims_the_next_one_and_nothing_is_published(desk: Desk) -> None:
    run_id = desk.start(chain)
    desk.messages.clear()

    recorded = go_on(desk, desk.claim(run_id), 7)

    assert recorded.here is not None
    assert recorded.here.args == (7,)
    assert desk.node(run_id, "0:2").owner == desk.engine.owner
    assert [*recorded.pieces, *desk.published] == []
    assert desk.claim(run_id, "0:2") == Dropped("the node is running")


def test_a_body_that_has_ended_is_not_run_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, looking = desk.start(chain), desk.start(looks)
    ran: list[str] = []
    run = desk.engine.budget.run
    monkeypatch.setattr(
        desk.engine.budget,
        "run",
        lambda tracer, *args: (ran.append(tracer.run_id), run(tracer, *args))[1],
    )

    for run_id in (ahead, looking):
        claimed: Claimed | None = desk.claim(run_id)
        while claimed is not None:
            claimed = go_on(desk, claimed).here

    assert ran == [looking] * 3
    assert desk.run(ahead).status is RunStatus.COMPLETED


def test_the_last_record_of_a_chain_ends_the_run(desk: Desk) -> None:
    run_id = desk.start(chain)
    following = go_on(desk, desk.claim(run_id), 7).here
    assert following is not None

    assert go_on(desk, following, 8).has_ended
    assert desk.run(run_id).output == "8"


def test_a_body_that_looks_at_each_result_goes_on_with_the_record(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.start(looks)
    commits = count_commits(monkeypatch)

    claimed: Claimed | None = desk.claim(run_id)
    while claimed is not None:
        claimed = go_on(desk, claimed).here

    assert desk.run(run_id).status is RunStatus.COMPLETED
    assert desk.run(run_id).output == "3"
    assert len(commits) == 1 + 3  # the claim, and one for each step


def test_without_the_body_the_run_goes_the_usual_way(desk: Desk) -> None:
    run_id = desk.start(looks)
    desk.engine.bodies.clear()

    recorded = go_on(desk, desk.claim(run_id))

    assert recorded.must_advance
    assert recorded.here is None


def test_what_was_foreseen_is_thrown_away_when_the_run_has_moved_on(desk: Desk) -> None:
    """Another process has taken the run over: what this one would have written with its record is stale."""
    run_id = desk.start(looks)
    claimed = desk.claim(run_id)
    other = desk.another("other")
    other.take_lease(run_id)

    recorded = go_on(desk, claimed)

    assert recorded.must_advance
    assert recorded.here is None
    assert desk.node(run_id).status is NodeStatus.COMPLETED
    assert desk.node(run_id).delivered is None
    other.close()


def test_a_worker_that_lost_its_step_claims_nothing_with_its_late_record(desk: Desk) -> None:
    run_id = desk.start(chain)
    other = desk.another("other")
    late = other.claim(run_id)
    desk.lose(other)
    mine = desk.claim(run_id)

    assert go_on(other, late) == Answer(is_refused=True)
    assert desk.node(run_id, "0:2").status is NodeStatus.PLANNED
    assert go_on(desk, mine).here is not None
    other.close()


def test_a_step_that_may_not_run_here_is_published(desk: Desk) -> None:
    run_id = desk.start(chain)

    recorded = attempts.record_success(
        desk.engine, desk.claim(run_id), 7, carries=frozenset(), may_run=lambda _: False
    )

    assert recorded.here is None
    assert len(recorded.pieces) == 1


def test_a_wide_group_is_published_in_windows_and_each_claim_makes_room(desk: Desk) -> None:
    run_id = desk.start(wide, WINDOW + 3)
    [group] = desk.published
    assert len(group.members) == WINDOW

    opened = []
    for member in group.members[:5]:
        [task] = member.items
        assert task.opens
        claimed = claims.claim(
            desk.engine, run_id, task.node_id, task.generation, step=task.name, opens=True
        )
        opened += [piece.items[0].node_id for piece in claimed.pieces]

    assert opened == [f"0.{number}:1" for number in range(WINDOW + 1, WINDOW + 4)]


def test_who_has_finished_one_of_a_wide_group_claims_one_of_those_held_back(desk: Desk) -> None:
    run_id = desk.start(wide, WINDOW + 1)
    task = desk.published[0].members[0].items[0]
    claimed = claims.claim(desk.engine, run_id, task.node_id, task.generation, step=task.name)
    held = f"0.{WINDOW + 1}:1"

    assert go_on(desk, claimed).here is None  # not told that any are held back
    second = desk.published[0].members[1].items[0]
    opener = claims.claim(
        desk.engine, run_id, second.node_id, second.generation, step=second.name, opens=True
    )
    assert [piece.items[0].node_id for piece in opener.pieces] == [held]


def test_a_claim_that_makes_room_takes_a_step_along_where_the_process_has_a_slot(desk: Desk) -> None:
    run_id = desk.start(wide, WINDOW + 1)
    task = desk.published[0].members[0].items[0]

    claimed = claims.claim(
        desk.engine, run_id, task.node_id, task.generation, step=task.name, opens=True, may_begin=lambda _: True,
    )  # fmt: skip

    assert isinstance(claimed, Claimed)
    assert claimed.pieces == ()
    assert claimed.beside is not None
    assert (claimed.beside.row.node_id, claimed.beside.args) == (f"0.{WINDOW + 1}:1", (WINDOW,))
    held = desk.node(run_id, claimed.beside.row.node_id)
    assert (held.owner, held.is_held) == (desk.engine.owner, False)


def test_what_was_asked_for_ahead_is_undone_when_the_record_does_not_stand(desk: Desk) -> None:
    run_id = desk.start(wide, 2)
    other = desk.another("other")
    late = other.claim(run_id, "0.1:1")
    desk.lose(other)
    mine = desk.claim(run_id, "0.1:1")

    assert go_on(other, late) == Answer(is_refused=True)
    assert go_on(desk, mine).here is None  # one of two: the join is not complete
    assert go_on(desk, desk.claim(run_id, "0.2:1")).here is not None
    other.close()


def test_what_a_dead_process_was_to_publish_is_published_at_once_though_others_run(desk: Desk) -> None:
    """It has died between its commit and the broker; steps of the run that others run say nothing of its messages."""
    dead, living = desk.another("dead"), desk.another("living")
    run_id = dead.start(wide, 2)
    assert isinstance(living.claim(run_id, "0.1:1"), Claimed)

    desk.lose(dead)
    desk.tick()

    assert [piece.items[0].node_id for piece in desk.published] == ["0.2:1"]
    dead.close()
    living.close()


def test_what_a_dead_process_has_held_is_published_beside_what_was_claimed_again(desk: Desk) -> None:
    dead = desk.another("dead")
    run_id = dead.start(wide, 2)
    assert isinstance(dead.claim(run_id, "0.1:1"), Claimed)

    desk.lose(dead)
    assert isinstance(
        desk.claim(run_id, "0.1:1"), Claimed
    )  # its message has come back, before the clock looks
    desk.tick()

    assert [piece.items[0].node_id for piece in desk.published] == ["0.2:1"]
    dead.close()


def test_a_wide_group_in_one_process_runs_each_member_once(desk: Desk) -> None:
    run_id = desk.start(wide, 2 * WINDOW + 7)
    queue = [member.items[0] for member in desk.published[0].members]
    ran: list[str] = []
    while queue:
        task = queue.pop(0)
        found = claims.claim(
            desk.engine, run_id, task.node_id, task.generation, step=task.name, opens=task.opens
        )
        claimed = found if isinstance(found, Claimed) else None
        while claimed is not None:
            queue += [piece.items[0] for piece in claimed.pieces]
            ran.append(claimed.row.node_id)
            claimed = go_on(desk, claimed).here

    assert len(ran) == len(set(ran)) == 2 * WINDOW + 8
    assert desk.run(run_id).status is RunStatus.COMPLETED


def test_what_is_held_back_and_published_by_a_clock_is_taken_once(desk: Desk) -> None:
    """Messages of a release that opens no window have left it to the clock, which publishes what was held back."""
    run_id = desk.start(wide, WINDOW + 2)
    [group] = desk.published
    for [task] in (member.items for member in group.members):
        claimed = claims.claim(desk.engine, run_id, task.node_id, task.generation, step=task.name)
        attempts.record_success(desk.engine, claimed, 1, carries=frozenset())
    desk.messages.clear()

    for _ in range(3):  # the first looks leave what is in the queue, as far as they know
        desk.clock.advance(timedelta(minutes=1))
        desk.tick()
    taken: list[str] = []
    held = [f"0.{WINDOW + 1}:1", f"0.{WINDOW + 2}:1"]
    assert [desk.node(run_id, node_id).is_held for node_id in held] == [False, False]
    for [task] in (member.items for member in desk.published[0].members):
        claimed = claims.claim(
            desk.engine, run_id, task.node_id, task.generation, step=task.name, opens=True,
            may_begin=lambda _: True,
        )  # fmt: skip
        taken += [each.row.node_id for each in (claimed, claimed.beside) if each is not None]
    assert taken == held


def test_a_claim_that_makes_room_does_not_take_its_own_step_along(desk: Desk) -> None:
    """It was held back when its message was published, by a process that leaves it marked so."""
    run_id = desk.start(wide, WINDOW + 2)
    task = desk.published[0].members[0].items[0]
    first, second = f"0.{WINDOW + 1}:1", f"0.{WINDOW + 2}:1"

    claimed = claims.claim(
        desk.engine,
        run_id,
        NodeId(first),
        task.generation,
        step=task.name,
        opens=True,
        may_begin=lambda _: True,
    )

    assert isinstance(claimed, Claimed)
    assert claimed.beside is not None
    assert (claimed.row.node_id, claimed.beside.row.node_id) == (first, second)
    last = claims.claim(
        desk.engine,
        run_id,
        "0.1:1",
        task.generation,
        step=task.name,
        opens=True,
        may_begin=lambda _: True,
    )
    assert isinstance(last, Claimed)
    assert last.beside is None


@workflow
async def looks_under_deadlines() -> int:
    total = 0
    async with asyncio.timeout(3600):
        for _ in range(3):
            try:
                async with asyncio.timeout(60):
                    total += await one()
            except TimeoutError:
                total -= 10
    return total


def test_a_loop_under_deadlines_is_foreseen_as_one_without(desk: Desk) -> None:
    run_id = desk.start(looks_under_deadlines)
    claimed = desk.claim(run_id, "0:3")
    while claimed is not None:
        claimed = go_on(desk, claimed).here

    assert desk.run(run_id).output == "3"
    assert desk.epoch(run_id) == 1
    assert [row.name for row in desk.nodes(run_id)] == [one.name] * 3


def test_nothing_is_foreseen_beyond_a_deadline_that_has_passed(desk: Desk) -> None:
    run_id = desk.start(looks_under_deadlines)
    first = go_on(desk, desk.claim(run_id, "0:3")).here
    assert first is not None
    desk.clock.advance(timedelta(minutes=2))

    recorded = go_on(desk, first)
    assert recorded.must_advance
    advance(desk.engine, run_id)
    last = desk.claim(run_id, "0:7")
    while last is not None:
        last = go_on(desk, last).here

    assert desk.run(run_id).output == str(1 - 10 + 1)
    assert desk.epoch(run_id) > 1


@workflow
async def twins() -> list[int]:
    first, second = await asyncio.gather(one(1), one(2))
    return [first, second]


def test_a_body_does_not_hear_of_a_result_that_was_not_recorded(desk: Desk) -> None:
    run_id = desk.start(twins)
    first, second = [row.node_id for row in desk.nodes(run_id)]
    late = desk.claim(run_id, first)
    other = desk.another("other")
    other.lose(desk)  # which goes on all the same, as one that was only stopped
    again = other.claim(run_id, first)
    assert isinstance(again, Claimed)

    assert go_on(desk, late, 3).is_refused
    recorded = go_on(desk, desk.claim(run_id, second), 2)

    assert not recorded.has_ended
    assert desk.run(run_id).status is RunStatus.RUNNING
    assert desk.node(run_id, first).delivered is None
    assert other.succeed(again, 1).has_ended
    assert desk.run(run_id).output == "[1,2]"
