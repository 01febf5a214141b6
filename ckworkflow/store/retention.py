"""Retention: the rows of runs that ended long ago go, a few runs at a time.

A run goes whole or not at all, with its nodes, joins and attempts, so that nobody finds half of one. It
goes only while it is finished and no worker runs a step of it (one that its end left behind may still write
its outcome). On a server each transaction takes the runs that nobody else has locked; it waits for nobody.

Not here: which runs are old, and when to look (`ckworkflow.engine.retention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
from sqlalchemy import exc

from ckworkflow.model import RunStatus
from ckworkflow.store.tables import duties, metadata, nodes, runs

if TYPE_CHECKING:
    from ckworkflow.store.transaction import Transaction

__all__ = ["Batch", "Place", "count_old_runs", "delete_old_runs", "due_at", "postpone", "take_turn"]

_DUTY: Final = "retention"
_PLACE: Final = [runs.c.finished_at.type, runs.c.id.type]
_PARTS: Final = [
    key.parent
    for table in reversed(metadata.sorted_tables)
    for key in table.foreign_keys
    if key.column.table is runs
]
"""The columns that say to which run a row of another table belongs."""


Place = tuple[datetime, str]
"""A place in the order in which runs go: when one had ended, and its id."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction deleted.

    Attributes:
        runs: The runs, by the status in which they had ended.
        rows: All rows, those of the runs included.
        next: Where the next batch begins; `None` when this was the last one.
    """

    runs: dict[RunStatus, int]
    rows: int
    next: Place | None


def count_old_runs(
    tx: Transaction, *, before: datetime, statuses: Sequence[RunStatus]
) -> dict[RunStatus, int]:
    """Count the runs that could go, by status."""
    at_work = sa.select(nodes.c.run_id).where(nodes.c.owner.is_not(None))
    query = (
        sa.select(runs.c.status, sa.func.count())
        .where(*_is_old(before, statuses), runs.c.id.not_in(at_work))
        .group_by(runs.c.status)
    )
    return {RunStatus(status): number for status, number in tx.execute(query)}


def delete_old_runs(
    tx: Transaction,
    *,
    before: datetime,
    statuses: Sequence[RunStatus],
    after: Place | None = None,
    most_runs: int,
    most_rows: int,
) -> Batch:
    """Delete some of the oldest runs.

    Args:
        tx: A write transaction of its own.
        before: Only runs that ended before this.
        statuses: Only runs that ended like this; final ones.
        after: `next` of the batch before: what that passed over is not read again.
        most_runs: At most so many.
        most_rows: No further run once there are so many nodes. One that has more goes all the same, by itself.
    """
    query = (
        sa.select(runs.c.id, runs.c.status, runs.c.finished_at)
        .where(*_is_old(before, statuses))
        .order_by(runs.c.finished_at, runs.c.id)
        .limit(most_runs)
        .with_for_update(skip_locked=True)
    )
    if after is not None:
        place = sa.tuple_(runs.c.finished_at, runs.c.id)
        query = query.where(runs.c.finished_at >= after[0], place > sa.tuple_(*after, types=_PLACE))
    found = tx.execute(query).all()
    # One by one, and not as a condition of the query: for that a server may read all nodes of all runs.
    sizes = _sizes(tx, [row.id for row in found])
    by_status: dict[RunStatus, int] = {}
    ids: list[str] = []
    total, last, is_full = 0, None, len(found) == most_runs
    for row in found:
        size, at_work = sizes.get(row.id, (0, 0))
        if ids and total + size > most_rows:
            is_full = True
            break
        last = (row.finished_at, row.id)
        if at_work:
            continue
        ids.append(row.id)
        total += size
        status = RunStatus(row.status)
        by_status[status] = by_status.get(status, 0) + 1
    return Batch(by_status, _delete(tx, ids), last if is_full else None)


def _is_old(before: datetime, statuses: Sequence[RunStatus]) -> Sequence[sa.ColumnElement[bool]]:
    return (
        runs.c.finished_at < before,
        runs.c.wake_at.is_(None),  # else it has something to tell another run
        runs.c.status.in_([status for status in statuses if status.is_final]),
    )


def _sizes(tx: Transaction, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Count the nodes of each run, and those of them that some worker runs."""
    query = (
        sa.select(nodes.c.run_id, sa.func.count(), sa.func.count(nodes.c.owner))
        .where(nodes.c.run_id.in_(ids))
        .group_by(nodes.c.run_id)
    )
    return {run_id: (size, at_work) for run_id, size, at_work in tx.execute(query)} if ids else {}


def _delete(tx: Transaction, ids: Sequence[str]) -> int:
    if not ids:
        return 0
    # By hand and not by the cascade, which would look for the rows of each run by themselves.
    rows: int = sum(tx.execute(sa.delete(part.table).where(part.in_(ids))).rowcount for part in _PARTS)
    rows += tx.execute(sa.delete(runs).where(runs.c.id.in_(ids))).rowcount
    return rows


# -- whose turn it is ---------------------------------------------------------------------------------


def due_at(tx: Transaction) -> datetime | None:
    """When some clock is to look for old runs; `None`: none ever has."""
    query = sa.select(duties.c.due_at).where(duties.c.name == _DUTY)
    found: datetime | None = tx.execute(query).scalar_one_or_none()
    return found


def take_turn(tx: Transaction, *, now: datetime, until: datetime) -> bool:
    """Take the duty until a time; of several clocks that see it due, one is told `True`."""
    moved = tx.execute(
        sa.update(duties).where(duties.c.name == _DUTY, duties.c.due_at <= now).values(due_at=until)
    )
    if moved.rowcount:
        return True
    if due_at(tx) is not None:
        return False
    try:
        with tx.connection.begin_nested():
            tx.execute(sa.insert(duties).values(name=_DUTY, due_at=until))
    except exc.IntegrityError:  # another clock was first
        return False
    return True


def postpone(tx: Transaction, until: datetime) -> None:
    """Say when some clock is to look again."""
    tx.execute(sa.update(duties).where(duties.c.name == _DUTY).values(due_at=until))
