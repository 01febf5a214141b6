"""Retention: runs that ended long ago are deleted, by a command or by the clocks.

A run's age counts from its end: one that sleeps for a year is not old. Live runs are never touched.

Every batch is a short transaction of its own, and after each one the others have as much time to write as it
took: whoever works on the database notices little, and an interrupted clean-up has kept what it did.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from ckworkflow.engine.wording import counted
from ckworkflow.model import RunStatus
from ckworkflow.store import retention as rows
from ckworkflow.store.transaction import Transaction

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.store.retention import Batch

__all__ = ["FINAL", "Old", "count", "prune", "prune_when_due"]

logger = logging.getLogger(__name__)

FINAL: Final = tuple(status for status in RunStatus if status.is_final)
MOST_RUNS: Final = 200
MOST_ROWS: Final = 1_000
"""The size of a batch. A run with more nodes than this is one by itself."""

SQLITE_REST_SECONDS: Final = 0.1
"""Another process that waits to write into a file asks again after so long at most: it must have its turn."""

LOOK: Final = timedelta(minutes=1)
"""How often a clock asks whether somebody has looked."""
REST: Final = timedelta(minutes=10)
"""How long nobody looks when nothing old was left."""
AGAIN: Final = timedelta(seconds=0.5)
"""How soon the next batch follows when there is more."""


@dataclass(frozen=True, slots=True)
class Old:
    """Runs that are old.

    Attributes:
        before: They ended before this.
        runs: How many, by status.
        rows: How many rows they had in all tables; 0 when they were only counted.
    """

    before: datetime
    runs: dict[RunStatus, int]
    rows: int = 0

    @property
    def total(self) -> int:
        """How many runs."""
        return sum(self.runs.values())


def count(engine: Engine, *, older_than: timedelta, statuses: Collection[RunStatus] = FINAL) -> Old:
    """Count what `prune` would delete."""

    def read(tx: Transaction) -> Old:
        before = _before(engine, tx, older_than)
        return Old(before, rows.count_old_runs(tx, before=before, statuses=list(statuses)))

    return engine.database.read(read)


def prune(
    engine: Engine,
    *,
    older_than: timedelta,
    statuses: Collection[RunStatus] = FINAL,
    report: Callable[[int], None] = lambda _: None,
) -> Old:
    """Delete every run that ended longer ago than this, batch by batch.

    Args:
        engine: The engine.
        older_than: Counted from the end of a run, by the database's clock at the call.
        statuses: Only runs that ended like this.
        report: Called after each batch with the number of runs that have gone.

    Returns:
        What was deleted.

    Raises:
        DatabaseUnavailableError: It cannot be reached; batches that were committed stay deleted.
    """
    before = engine.database.read(lambda tx: _before(engine, tx, older_than))
    deleted: dict[RunStatus, int] = {}
    total, place = 0, None
    while True:
        began = time.monotonic()
        batch = _batch(engine, before, statuses, place)
        for status, number in batch.runs.items():
            deleted[status] = deleted.get(status, 0) + number
        total, place = total + batch.rows, batch.next
        report(sum(deleted.values()))
        if place is None:
            return Old(before, deleted, total)
        least = SQLITE_REST_SECONDS if engine.database.is_sqlite else 0.0
        time.sleep(max(least, time.monotonic() - began))


def prune_when_due(engine: Engine, *, older_than: timedelta) -> timedelta:
    """Delete one batch, if it is time and no other clock does it.

    Returns:
        When to ask again.
    """
    database = engine.database
    now, due_at = database.read(lambda tx: (database.now(tx), rows.due_at(tx)))
    if due_at is not None and due_at > now:
        return min(due_at - now, LOOK)
    # Taken before the work and not with it: the others must not wait for the batch.
    if not database.transact(lambda tx: rows.take_turn(tx, now=now, until=now + REST)):
        return LOOK
    batch = _batch(engine, now - older_than, FINAL, None)
    if batch.runs:
        numbers = ", ".join(f"{number} {status}" for status, number in sorted(batch.runs.items()))
        logger.info("old runs deleted: %s; %s", numbers, counted(batch.rows, "row"))
    if batch.next is None:
        return LOOK
    database.transact(lambda tx: rows.postpone(tx, database.now(tx) + AGAIN))
    return AGAIN


def _before(engine: Engine, tx: Transaction, older_than: timedelta) -> datetime:
    return engine.database.now(tx) - older_than


def _batch(
    engine: Engine, before: datetime, statuses: Collection[RunStatus], after: rows.Place | None
) -> Batch:
    return engine.database.transact(
        lambda tx: rows.delete_old_runs(
            tx, before=before, statuses=list(statuses), after=after, most_runs=MOST_RUNS,
            most_rows=MOST_ROWS,
        )
    )  # fmt: skip
