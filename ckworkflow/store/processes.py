"""Processes: who may own a node or a lease, and who has died."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ckworkflow.model import RunId
from ckworkflow.store.tables import nodes, processes, runs

if TYPE_CHECKING:
    from ckworkflow.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """A process of any host, as it registered itself."""

    process_id: str
    role: str
    host: str
    boot_id: str
    pid: int
    pid_started: str
    alive_until: datetime


def renew_process(tx: Transaction, row: ProcessRow, *, now: datetime) -> None:
    """Write or renew the row of this process."""
    renewed = tx.execute(
        sa.update(processes).where(processes.c.id == row.process_id).values(alive_until=row.alive_until)
    )
    if renewed.rowcount == 0:
        tx.execute(
            sa.insert(processes).values(
                id=row.process_id, role=row.role, host=row.host, boot_id=row.boot_id, pid=row.pid,
                pid_started=row.pid_started, started_at=now, alive_until=row.alive_until,
            )
        )  # fmt: skip


def list_processes(tx: Transaction) -> list[ProcessRow]:
    """Read every registered process."""
    return [
        ProcessRow(*row)
        for row in tx.execute(
            sa.select(
                processes.c.id, processes.c.role, processes.c.host, processes.c.boot_id, processes.c.pid,
                processes.c.pid_started, processes.c.alive_until,
            )
        )
    ]  # fmt: skip


def list_strangers(tx: Transaction) -> list[str]:
    """Who owns nodes and has no row."""
    query = sa.select(nodes.c.owner).where(
        nodes.c.owner.is_not(None), nodes.c.owner.not_in(sa.select(processes.c.id))
    )
    return [row[0] for row in tx.execute(query.distinct())]


def has_live_worker(tx: Transaction, *, now: datetime) -> bool:
    """Whether a worker has renewed its row lately."""
    query = sa.select(processes.c.id).where(processes.c.role == "worker", processes.c.alive_until > now)
    return tx.execute(query.limit(1)).first() is not None


def owned_runs(tx: Transaction, process_id: str) -> list[RunId]:
    """The runs in which a process owns a node or the lease."""
    owned = sa.select(nodes.c.run_id).where(nodes.c.owner == process_id)
    leased = sa.select(runs.c.id).where(runs.c.lease_owner == process_id)
    return [RunId(row[0]) for row in tx.execute(sa.union(owned, leased))]


def remove_process(tx: Transaction, process_id: str, *, until: datetime | None = None) -> None:
    """Forget a process that has ended; with `until`, only if it has not spoken since."""
    has_lapsed = sa.true() if until is None else processes.c.alive_until < until
    tx.execute(sa.delete(processes).where(processes.c.id == process_id, has_lapsed))
