"""What a body is told, and in which order, when several things are recorded before it is told of any."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from ckworkflow import FatalError, sleep, step, workflow
from ckworkflow.engine.advance import advance
from ckworkflow.model import NodeId, RunStatus
from ckworkflow.store import claims
from ckworkflow.store.nodes import NodeRow
from ckworkflow.store.transaction import Transaction
from desk import Desk

LOG: list[str] = []


@step(max_retries=0)
async def breaks() -> None: ...


@step
async def works(name: str) -> str:
    return name


@workflow
async def chain() -> None:
    await works("first")
    await works("second")
    await works("third")


@workflow
async def fails_beside_a_chain() -> str:
    try:
        await asyncio.gather(breaks(), chain())
    except FatalError:
        return "failed"
    return "fine"


def test_a_chain_that_went_on_beside_a_failure_is_where_the_body_finds_it(desk: Desk) -> None:
    """The plan had let the second step begin before any body heard of the failure."""
    run_id = desk.start(fails_beside_a_chain)
    desk.fail(desk.claim(run_id, "0.1:1"), FatalError("broken"), breaks)
    desk.succeed(desk.claim(run_id, "0.2:1"), "first")
    desk.succeed(desk.claim(run_id, "0.2:2"), "second")

    advance(desk.engine, run_id)

    assert desk.run(run_id).status is RunStatus.COMPLETED
    assert desk.run(run_id).output == '"failed"'


def test_a_guess_from_an_old_plan_takes_no_step_that_waits_for_nothing(desk: Desk) -> None:
    """Who records the step before expects what follows it; a newer plan may have another step of that name."""
    run_id = desk.start(fails_beside_a_chain)
    first = NodeId("0.2:1")  # planned anew: it may begin, and waits for nothing

    def expect(tx: Transaction) -> NodeRow | None:
        return claims.take(tx, run_id, first, owner="other", at=desk.clock.now).get()

    assert desk.engine.database.transact(expect) is None
    assert desk.node(run_id, first).unmet == 0
    desk.claim(run_id, first)


@workflow
async def sleeps_side_by_side() -> Any:
    order: list[str] = []
    await asyncio.gather(naps(order, "long", 40), naps(order, "short", 20))
    return order


@workflow
async def naps(order: list[str], name: str, seconds: int) -> None:
    await sleep(seconds)
    order.append(name)


def test_of_sleeps_that_are_found_over_together_the_one_that_ended_first_is_told_first(
    desk: Desk,
) -> None:
    run_id = desk.start(sleeps_side_by_side)

    desk.clock.advance(timedelta(hours=1))
    desk.tick()

    assert desk.run(run_id).output == '["short","long"]'


@workflow
async def notes_its_end() -> None:
    try:
        await works("x")
    finally:
        LOG.append("end")


def test_a_start_that_cannot_be_committed_leaves_no_body_behind(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    LOG.clear()

    def fails(run_id: object, work: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(desk.engine.database, "transact_run", fails)
    with pytest.raises(OSError, match="disk full"):
        desk.start(notes_its_end)

    assert LOG == []
