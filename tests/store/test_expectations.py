"""Expectations: one round trip where they hold, and nothing done where one does not."""

from __future__ import annotations

import asyncio
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from ckworkflow import sleep, workflow
from ckworkflow.engine import attempts, claims
from ckworkflow.engine.claims import Claimed, Dropped, Early
from ckworkflow.model import NodeKind, NodeStatus, RunStatus
from ckworkflow.store import claims as store_claims
from ckworkflow.store import nodes, records, runs, windows
from ckworkflow.store.expectations import ExpectationError
from ckworkflow.store.pipeline import Pipeline
from commits import count_commits
from desk import Desk, ManualClock
from engine_flows import looks, one

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckworkflow.engine.answer import Answer
    from ckworkflow.model import RunId
    from ckworkflow.store.transaction import Prepared, Transaction


@workflow
async def chain() -> int:
    number = await one()
    number = await one(number)
    return await one(number)


@pytest.fixture
def desk(postgres_url: str) -> Iterator[Desk]:
    with closing(Desk(postgres_url, ManualClock(), "here")) as desk:
        yield desk


def go_on(desk: Desk, claimed: Claimed) -> Answer:
    return attempts.record_success(desk.engine, claimed, 1, carries=frozenset(), may_run=lambda _: True)


def count_waits(monkeypatch: pytest.MonkeyPatch) -> list[Pipeline]:
    """Return a list that grows with each wait for the server."""
    waits: list[Pipeline] = []
    receive = Pipeline._receive

    def counted(pipeline: Pipeline, **options: Any) -> None:
        waits.append(pipeline)
        receive(pipeline, **options)

    monkeypatch.setattr(Pipeline, "_receive", counted)
    return waits


@pytest.mark.parametrize("flow", [chain, looks], ids=["chain", "looks"])
def test_a_step_in_place_waits_for_the_server_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, flow: Any
) -> None:
    run_id = desk.start(flow)
    first = desk.claim(run_id)
    second = go_on(desk, first).here  # the first of a process prepares its statements
    assert second is not None
    waits = count_waits(monkeypatch)
    commits = count_commits(monkeypatch)

    assert go_on(desk, second).here is not None
    assert (len(commits), len(waits)) == (1, 1)


def test_a_claim_waits_for_the_server_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = desk.start(chain)
    row = desk.node(run_id)
    waits = count_waits(monkeypatch)
    claimed = claims.claim(desk.engine, run_id, row.node_id, row.generation, step=row.name)

    assert isinstance(claimed, Claimed)
    assert len(waits) == 1
    assert desk.run(run_id).status is RunStatus.RUNNING


def test_an_expectation_that_does_not_hold_does_nothing(desk: Desk) -> None:
    run_id = desk.start(chain)
    claimed = desk.claim(run_id)
    database = desk.engine.database

    def expect(tx: Transaction) -> None:
        run = runs.lock_run(tx, run_id, database).get()
        records.expect_end(tx, run_id, claimed.row, output="1", at=run.now)
        # Wrong: the plan has no such generation.
        store_claims.expect_take(
            tx, run_id, nodes.NodeId("0:2"), generation=77, owner=desk.engine.owner, at=run.now
        )

    with pytest.raises(ExpectationError):
        database.transact_run(run_id, expect)

    assert desk.node(run_id).status is NodeStatus.RUNNING
    assert desk.node(run_id, "0:2").status is NodeStatus.PLANNED
    following = go_on(desk, claimed).here
    assert following is not None
    assert following.row.node_id == "0:2"


@pytest.mark.parametrize("flow", [chain, looks], ids=["chain", "looks"])
def test_a_run_that_is_not_as_it_was_left_takes_the_normal_path(desk: Desk, flow: Any) -> None:
    """A clock has looked at it, say: nothing is lost but the round trip."""
    run_id = desk.start(flow)
    claimed = desk.claim(run_id)
    assert claimed.row.after is not None or flow is looks
    desk.engine.database.transact(
        lambda tx: tx.connection.execute(
            sa.text("UPDATE runs SET wake_at = wake_at + interval '1 second', dispatches = 3")
        )
    )
    desk.engine.database.transact(
        lambda tx: tx.connection.execute(
            sa.text("UPDATE nodes SET generation = 9 WHERE node_id = '0:2'")
        )
    )

    done = 0
    while claimed is not None:
        claimed = go_on(desk, claimed).here
        done += 1

    assert desk.run(run_id).status is RunStatus.COMPLETED
    assert done == 3


def explained(tx: Transaction, statement: Prepared) -> str:
    """How the server would do it, whatever the values."""
    connection, form = tx.connection, statement.form(tx.connection.dialect)
    connection.exec_driver_sql("SET plan_cache_mode = force_generic_plan")
    connection.exec_driver_sql("DEALLOCATE ALL")
    connection.exec_driver_sql(f"PREPARE asked AS {form.sql}")
    nothing = ", ".join(["NULL"] * len(form.binds))
    rows = connection.exec_driver_sql(f"EXPLAIN EXECUTE asked({nothing})")
    return "\n".join(row[0] for row in rows)


def test_no_statement_of_a_step_reads_more_rows_than_it_needs(desk: Desk) -> None:
    """Of a table that the server knows nothing of yet: what it estimates then decides how 10,000 members go."""
    desk.start(chain)
    database = desk.engine.database

    held = database.read(lambda tx: explained(tx, windows._FIRST_HELD))
    assert "Index Scan using ix_nodes_held" in held
    assert "Sort" not in held
    for statement in (records._END, records._EXPECTED_END):
        ended = database.read(lambda tx, statement=statement: explained(tx, statement))  # type: ignore[misc]
        assert "nodes_pkey" in ended
        assert "ix_nodes_owner" not in ended


@workflow
async def nap() -> int:
    await sleep("10 seconds")
    return await one()


@workflow
async def two_naps() -> int:
    """The step waits for one sleep while another, which has ended before, waits for its clock."""
    short = asyncio.create_task(sleep("9 seconds"))
    await sleep("10 seconds")
    number = await one()
    await short
    return number


@workflow
async def nap_beside_a_step() -> int:
    await asyncio.gather(sleep("10 seconds"), one())
    return await one()


def wake(desk: Desk, run_id: RunId, generation: int | None = None) -> Claimed | Early | Dropped:
    """Receive the message of the last step, which had a time."""
    row = [row for row in desk.nodes(run_id) if row.kind is NodeKind.STEP][-1]
    generation = row.generation if generation is None else generation
    return claims.claim(desk.engine, run_id, row.node_id, generation, step=row.name, wakes=True)


def test_a_step_is_claimed_with_the_end_of_its_sleep_in_one_round_trip(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.start(nap)
    desk.clock.advance(timedelta(seconds=11))
    (step,) = [row for row in desk.nodes(run_id) if row.kind is NodeKind.STEP]
    waits, commits = count_waits(monkeypatch), count_commits(monkeypatch)

    claimed = claims.claim(
        desk.engine, run_id, step.node_id, step.generation, step=step.name, wakes=True
    )

    assert isinstance(claimed, Claimed)
    assert (len(waits), len(commits)) == (1, 1)
    slept = desk.node(run_id)
    assert (slept.status, slept.output, slept.finished_at) == (
        NodeStatus.COMPLETED,
        "null",
        desk.clock.now,
    )
    assert slept.due_at is not None
    assert (claimed.row.status, claimed.row.owner, claimed.row.unmet) == (
        NodeStatus.RUNNING,
        desk.engine.owner,
        0,
    )
    assert desk.succeed(claimed, 5).has_ended
    assert desk.run(run_id).status is RunStatus.COMPLETED


def test_a_sleep_that_goes_on_is_left_alone(desk: Desk) -> None:
    run_id = desk.start(nap)

    assert wake(desk, run_id) == Early(timedelta(seconds=10))
    assert desk.node(run_id).status is NodeStatus.RUNNING


def test_sleeps_that_have_ended_together_are_ended_in_their_order(desk: Desk) -> None:
    run_id = desk.start(two_naps)
    desk.clock.advance(timedelta(seconds=11))

    assert isinstance(wake(desk, run_id), Claimed)

    rows = desk.nodes(run_id)
    assert [row.status for row in rows if row.kind is NodeKind.SLEEP] == [NodeStatus.COMPLETED] * 2


def test_a_step_that_waits_for_more_than_the_sleep_is_not_claimed(desk: Desk) -> None:
    run_id = desk.start(nap_beside_a_step)
    desk.clock.advance(timedelta(seconds=11))
    assert wake(desk, run_id) == Dropped("the node waits for others")


def test_a_message_of_an_old_plan_wakes_nothing(desk: Desk) -> None:
    run_id = desk.start(nap)
    desk.clock.advance(timedelta(seconds=11))

    assert wake(desk, run_id, 77) == Dropped("the plan has changed")
    assert desk.node(run_id).status is NodeStatus.COMPLETED  # the time had come all the same
