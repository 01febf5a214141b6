"""A loop without end costs the same in its ten-thousandth round as in its first: no query reads what has passed."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from ckworkflow import sleep, step, workflow
from ckworkflow.engine.advance import advance
from ckworkflow.model import NodeKind, NodeStatus
from ckworkflow.store import events, nodes, plans, records, tables
from desk import Desk, ManualClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from sqlite3 import Connection

    from ckworkflow.model import RunId

HOUR = timedelta(hours=1)
PASSED = 4_000
ROUNDS = 5


@step
async def poll() -> bool:
    return True


@workflow
async def polls() -> None:
    while True:
        if await poll():
            await sleep(HOUR)


def pass_rounds(desk: Desk, run_id: RunId) -> None:
    """Write so many nodes into a run as if its body had been told of them."""
    now = desk.clock.now
    rows = [
        {
            "run_id": run_id, "node_id": f"0.9:{number}", "position": number, "kind": NodeKind.STEP,
            "name": poll.name, "line": 1, "generation": 1, "args": '{"args":[],"kwargs":{}}',
            "status": NodeStatus.COMPLETED, "unmet": 0, "next": "[]", "attempt": 1, "output": "true",
            "delivered": number, "delivered_at": now, "created_at": now, "finished_at": now,
        }
        for number in range(PASSED)
    ]  # fmt: skip
    desk.engine.database.transact(lambda tx: tx.execute(sa.insert(tables.nodes), rows))


def go_round(desk: Desk, run_id: RunId, number: int) -> None:
    """One step, and the sleep after it."""
    if desk.succeed(desk.claim(run_id, f"0:{2 * number + 1}"), True).must_advance:
        advance(desk.engine, run_id)
    desk.tick()
    desk.clock.advance(HOUR)
    desk.tick()


class Work:
    """Counts what SQLite does, in instructions of its machine: the same on each run and any computer."""

    STRIDE = 10

    def __init__(self) -> None:
        self.done = 0

    def watch(self, connection: Connection, _record: Any) -> None:
        connection.set_progress_handler(self._count, self.STRIDE)

    def _count(self) -> int:
        self.done += self.STRIDE
        return 0


@pytest.fixture
def work() -> Iterator[Work]:
    found = Work()
    sa.event.listen(sa.pool.Pool, "connect", found.watch)
    yield found
    sa.event.remove(sa.pool.Pool, "connect", found.watch)


def test_a_round_of_a_loop_costs_the_same_however_many_have_passed(work: Work, tmp_path: Path) -> None:
    desk = Desk(f"sqlite:///{tmp_path / 'desk.sqlite3'}", ManualClock(), "here")
    run_id = desk.start(polls)
    costs = []
    for first in (0, ROUNDS, 2 * ROUNDS):
        before = work.done
        for number in range(first, first + ROUNDS):
            go_round(desk, run_id, number)
        costs.append(work.done - before)
        if first == ROUNDS:
            pass_rounds(desk, run_id)
    desk.close()

    _, early, late = costs  # the first has read the schema
    assert late < 1.2 * early


def test_what_is_left_of_a_run_is_found_by_its_index(either_desk: Desk) -> None:
    desk = either_desk
    run_id = desk.start(polls)
    pass_rounds(desk, run_id)
    engine = desk.engine.database.engine
    how = "EXPLAIN " if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "

    seen: list[tuple[str, Any]] = []

    def remember(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    values = {"b_run": run_id, "b_now": desk.clock.now}
    asked = (
        records._ENDED_SLEEPS,
        nodes._all_nodes(nodes.LIVE),
        events._NEWS,
        events._BEGUN,
        plans._STORED,
    )
    sa.event.listen(engine, "before_cursor_execute", remember)
    with engine.connect() as connection:
        for each in asked:
            connection.execute(each.statement, values)
    sa.event.remove(engine, "before_cursor_execute", remember)

    with engine.connect() as connection:
        found = [str(connection.exec_driver_sql(how + text, given).all()) for text, given in seen]
    assert [("ix_nodes_undelivered" in plan, plan) for plan in found] == [(True, plan) for plan in found]
    assert len(found) == len(asked)
