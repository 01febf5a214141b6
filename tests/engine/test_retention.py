"""Retention: runs that ended long ago go whole, and nothing else does, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from ckworkflow import sleep, step, workflow
from ckworkflow.engine import retention
from ckworkflow.engine.advance import advance
from ckworkflow.errors import RunNotFoundError
from ckworkflow.model import RunStatus
from ckworkflow.store import runs as run_store
from ckworkflow.store import tables
from ckworkflow.testing import worker
from desk import Desk, ManualClock
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from celery import Celery

    from ckworkflow.engine.installation import Installation
    from ckworkflow.model import RunId

MONTH = timedelta(days=30)
DAY = timedelta(days=1)


@step(max_retries=1, retry_delay=0)
def fetch(number: int, *more: int) -> int:
    return number


@workflow
async def pair(number: int) -> int:
    first, second = await asyncio.gather(fetch(number), fetch(number + 1))
    return await fetch(first, second)


@workflow
async def napping() -> int:
    await fetch(1)
    await sleep("60 days")
    return await fetch(2)


@workflow
async def wide(size: int) -> None:
    await asyncio.gather(*[fetch(number) for number in range(size)])


class TickingClock(ManualClock):
    """The time of the machine."""

    def __call__(self) -> datetime:
        return datetime.now(UTC)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path / 'runs.sqlite3'}"


@pytest.fixture
def desk(url: str) -> Iterator[Desk]:
    desk = Desk(url, ManualClock(), "here")
    yield desk
    desk.close()


def work(desk: Desk, run_id: RunId) -> None:
    """Run the steps of a run until it has ended, or only sleeps."""
    before = None
    while before != (before := [desk.run(run_id).status, *states(desk, run_id)]):
        desk.work(run_id, fails=lambda row: row.args.count("-1") > 0)


def states(desk: Desk, run_id: RunId) -> list[str]:
    query = sa.select(tables.nodes.c.status).where(tables.nodes.c.run_id == run_id)
    return sorted(desk.engine.database.read(lambda tx: tx.execute(query).scalars().all()))


def ended(desk: Desk, *, as_: str = "completed") -> RunId:
    """A run that has ended now, with nodes, a join, and where it failed with attempts."""
    run_id = desk.start(pair, -1 if as_ == "failed" else 1)
    work(desk, run_id)
    if as_ == "cancelled":  # nothing cancels yet, so the row is made to say so
        cancel = sa.update(tables.runs).where(tables.runs.c.id == run_id).values(status=as_)
        desk.engine.database.transact(lambda tx: tx.execute(cancel))
    assert desk.run(run_id).status == as_
    return run_id


def give_it_a_join(desk: Desk, run_id: RunId) -> None:
    """Make a row that the engine may or may not leave behind."""
    join = {"run_id": run_id, "join_id": "end", "kind": "end", "remaining": 0, "state": "fired"}
    row = sa.insert(tables.joins).values(next="[]", line=1, reason="", **join)
    desk.engine.database.transact(
        lambda tx: [
            tx.execute(sa.delete(tables.joins).where(tables.joins.c.run_id == run_id)),
            tx.execute(row),
        ]
    )


def remaining(desk: Desk) -> dict[str, set[str]]:
    """The runs that have rows, by table."""
    parts = {"nodes": tables.nodes, "joins": tables.joins, "attempts": tables.attempts}
    columns = {"runs": tables.runs.c.id, **{name: table.c.run_id for name, table in parts.items()}}
    return desk.engine.database.read(
        lambda tx: {
            name: set(tx.execute(sa.select(column).distinct()).scalars())
            for name, column in columns.items()
        }
    )


def test_an_old_run_goes_with_all_its_rows_and_a_younger_one_stays(desk: Desk) -> None:
    for status in ("completed", "failed"):
        give_it_a_join(desk, ended(desk, as_=status))
    assert all(remaining(desk).values()), "the runs have rows in every table"
    desk.clock.advance(MONTH - DAY)
    young = ended(desk)
    desk.clock.advance(2 * DAY)

    old = retention.prune(desk.engine, older_than=MONTH)

    assert old.runs == {RunStatus.COMPLETED: 1, RunStatus.FAILED: 1}
    assert old.rows > 2 * 4
    assert {name: ids - {young} for name, ids in remaining(desk).items()} == dict.fromkeys(
        ("runs", "nodes", "joins", "attempts"), set()
    )
    assert remaining(desk)["nodes"] == {young}


def test_age_counts_from_the_end_and_a_live_run_has_none(desk: Desk) -> None:
    slept = desk.start(napping)
    work(desk, slept)
    desk.clock.advance(timedelta(days=60))
    asleep, waiting = desk.start(napping), desk.start(pair, 1)
    work(desk, asleep)
    desk.tick()
    work(desk, slept)
    assert desk.run(slept).status is RunStatus.COMPLETED
    desk.clock.advance(MONTH - DAY)

    assert retention.prune(desk.engine, older_than=MONTH).total == 0
    desk.clock.advance(2 * DAY)

    assert retention.prune(desk.engine, older_than=timedelta()).total == 1
    assert remaining(desk)["runs"] == {asleep, waiting}
    assert states(desk, asleep) == ["completed", "planned", "running"]


def test_only_the_statuses_that_were_named_go(desk: Desk) -> None:
    kept = ended(desk, as_="failed")
    for status in ("completed", "cancelled"):
        ended(desk, as_=status)
    desk.clock.advance(MONTH)

    statuses = [RunStatus.COMPLETED, RunStatus.CANCELLED]
    old = retention.prune(desk.engine, older_than=DAY, statuses=statuses)

    assert old.runs == {RunStatus.COMPLETED: 1, RunStatus.CANCELLED: 1}
    assert remaining(desk)["runs"] == {kept}


def test_a_live_status_is_not_taken_even_when_it_is_named(desk: Desk) -> None:
    asleep = desk.start(napping)
    work(desk, asleep)
    desk.clock.advance(MONTH)

    assert retention.prune(desk.engine, older_than=DAY, statuses=list(RunStatus)).total == 0
    assert remaining(desk)["runs"] == {asleep}


def test_counting_says_what_would_go_and_leaves_it(desk: Desk) -> None:
    ids = {ended(desk), ended(desk, as_="failed")}
    desk.clock.advance(MONTH)

    old = retention.count(desk.engine, older_than=DAY)

    assert old.runs == {RunStatus.COMPLETED: 1, RunStatus.FAILED: 1}
    assert remaining(desk)["nodes"] == ids


def test_a_batch_is_bounded_and_a_large_run_goes_by_itself(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_RUNS", 3)
    monkeypatch.setattr(retention, "MOST_ROWS", 9)
    large = desk.start(wide, 12)
    for _ in range(3):
        ended(desk)
    desk.clock.advance(timedelta(seconds=1))
    work(desk, large)
    for _ in range(5):
        desk.clock.advance(timedelta(seconds=1))
        ended(desk)
    desk.clock.advance(MONTH)
    gone: list[int] = []

    old = retention.prune(desk.engine, older_than=DAY, report=gone.append)

    # Three runs have nine nodes; the large one, with twelve, shares a transaction with none.
    assert gone == [3, 4, 7, 9]
    assert old.total == 9
    assert not any(remaining(desk).values())


def test_a_finished_run_of_which_a_step_still_runs_stays_and_holds_up_no_other(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_RUNS", 1)
    run_id = desk.start(failing_beside)
    late, failing = desk.claim(run_id, "0.1:1"), desk.claim(run_id, "0.2:1")
    desk.fail(failing, ValueError("-1"), fetch)
    desk.work(run_id, fails=lambda row: True)
    advance(desk.engine, run_id)
    assert desk.run(run_id).status is RunStatus.FAILED
    desk.clock.advance(DAY)
    ended(desk)
    desk.clock.advance(MONTH)

    assert retention.prune(desk.engine, older_than=DAY).total == 1
    assert remaining(desk)["runs"] == {run_id}
    desk.succeed(late, 1)
    assert retention.prune(desk.engine, older_than=DAY).total == 1


@workflow
async def failing_beside() -> None:
    await asyncio.gather(fetch(1), fetch(-1))


def test_a_run_that_somebody_brings_back_to_life_is_passed_over(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(postgres_url, ManualClock(), "here")
    revived, gone = ended(desk), ended(desk)
    desk.clock.advance(MONTH)
    revive = (
        sa.update(tables.runs)
        .where(tables.runs.c.id == revived)
        .values(status="running", finished_at=None, wake_at=desk.clock.now)
    )

    with desk.engine.database.engine.execution_options(
        isolation_level="READ COMMITTED"
    ).begin() as other:
        other.execute(revive)  # not committed while the old runs go
        assert retention.prune(desk.engine, older_than=DAY).total == 1
    assert retention.prune(desk.engine, older_than=DAY).total == 0

    assert remaining(desk)["runs"] == remaining(desk)["nodes"] == {revived}
    with pytest.raises(RunNotFoundError):
        desk.run(gone)
    desk.close()


@pytest.mark.slow
def test_runs_that_begin_and_end_while_old_ones_go_lose_nothing_before_they_have_ended(url: str) -> None:
    desk = Desk(url, TickingClock(), "here")
    is_over = threading.Event()

    def prune_on() -> int:
        total = 0
        while not is_over.is_set():
            total += retention.prune(desk.engine, older_than=timedelta()).total
        return total

    def live(_: int) -> RunId:
        # Each step reads what the one before has written: rows that were gone would raise here.
        run_id = desk.start(pair, 1)
        for node_id in ("0.1:1", "0.2:1", "0:1"):
            assert len(states(desk, run_id)) == 3
            desk.succeed(desk.claim(run_id, node_id), 1)
        return run_id

    asleep = desk.start(napping)
    with ThreadPoolExecutor(6) as pool:
        pruning = [pool.submit(prune_on) for _ in range(2)]
        lived = list(pool.map(live, range(24)))
        is_over.set()
        pruned = sum(done.result() for done in pruning)
    last = retention.prune(desk.engine, older_than=timedelta()).total

    assert pruned > 0, "nothing went while runs were under way"
    assert pruned + last == len(lived) == 24
    assert remaining(desk)["runs"] == {asleep}
    desk.close()


def test_two_that_prune_at_once_share_the_work(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MOST_RUNS", 2)
    desk = Desk(url, ManualClock(), "here")
    for _ in range(8):
        ended(desk)
    desk.clock.advance(MONTH)

    with ThreadPoolExecutor(2) as pool:
        totals = list(pool.map(lambda _: retention.prune(desk.engine, older_than=DAY).total, range(2)))

    assert sum(totals) == 8
    assert not any(remaining(desk).values())
    desk.close()


# --- the clocks --------------------------------------------------------------------------------------


def test_of_many_clocks_one_deletes_one_batch_at_a_time(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_RUNS", 2)
    for _ in range(3):
        ended(desk)
    desk.clock.advance(MONTH)

    def look() -> list[int]:
        """Let eight clocks look at once; how many runs are left, and when they look again."""
        with ThreadPoolExecutor(8) as pool:
            waits = pool.map(lambda _: retention.prune_when_due(desk.engine, older_than=DAY), range(8))
            asked = sorted({wait.total_seconds() for wait in waits})
        return [len(remaining(desk)["runs"]), *asked]

    assert look()[:2] == [1, 0.5], "one batch was full, so it is looked again at once"
    assert look()[0] == 1
    desk.clock.advance(retention.AGAIN)
    assert look() == [0, 60]
    ended(desk)
    desk.clock.advance(MONTH)
    desk.clock.advance(-MONTH + retention.REST / 2)
    assert look()[0] == 1
    desk.clock.advance(MONTH)
    assert look()[0] == 0


def test_a_worker_deletes_what_the_setting_calls_old_and_says_so(
    app: Celery, home: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.workflow_retention = "30 days"
    past = Desk(app.conf.workflow_database_url, ManualClock(), "past")
    old = [ended(past), ended(past, as_="failed")]
    now = Desk(app.conf.workflow_database_url, TickingClock(), "now")
    young = ended(now)

    with caplog.at_level(logging.INFO, logger="ckworkflow"), worker():
        until(lambda: remaining(now)["runs"] == {young})

    said = next(text for text in caplog.messages if "old runs deleted" in text)
    found = re.fullmatch(r"old runs deleted: 1 completed, 1 failed; (\d+) rows", said)
    assert found
    assert int(found[1]) > len(old)
    past.close()
    now.close()


def test_a_worker_without_the_setting_deletes_nothing(app: Celery, home: Installation) -> None:
    past = Desk(app.conf.workflow_database_url, ManualClock(), "past")
    old = ended(past)

    with worker():
        asleep = home.engine.database.read(
            lambda tx: run_store.next_wake_at(tx, home.engine.database)[1]
        )
        assert asleep is None
        until(lambda: has_ticked(home))

    assert remaining(past)["runs"] == {old}
    past.close()


def has_ticked(home: Installation) -> bool:
    """Whether the worker's clock has looked several times."""
    from ckworkflow.worker.process import embedded

    running = embedded._running
    assert running is not None
    (clock,) = [step for step in running._controller.steps if step.name.endswith("Clock")]
    return clock.info(None)["clock"]["ticks"] >= 3


def test_the_oldest_runs_are_found_by_their_index(desk: Desk) -> None:
    seen: list[tuple[str, Any]] = []
    engine = desk.engine.database.engine

    def remember(_connection, _cursor, statement, parameters, *_: object) -> None:
        if "FROM runs" in statement and "ORDER BY" in statement:
            seen.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", remember)
    retention.prune(desk.engine, older_than=DAY)
    sa.event.remove(engine, "before_cursor_execute", remember)
    statement, parameters = seen[0]

    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")  # the table is empty
            connection.exec_driver_sql("SET enable_sort = off")
        how = "EXPLAIN " if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
        plan = str(connection.exec_driver_sql(how + statement, parameters).all())

    assert "ix_runs_finished_at" in plan
