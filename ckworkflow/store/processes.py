"""Processes: which may own a node or a lease, and which have died."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ckworkflow.model import NodeId, ProcessRole, RunId
from ckworkflow.store.nodes import owned_nodes
from ckworkflow.store.tables import nodes, processes, runs

if TYPE_CHECKING:
    from ckworkflow.store.transaction import Transaction

Claim = tuple[NodeId, int]
"""A node, and the attempt that its owner has begun."""


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """A process of any host, as it registered itself."""

    process_id: str
    role: str
    """A `ProcessRole`, or one that a later release has."""
    host: str
    boot_id: str
    pid: int
    pid_started: str
    alive_until: datetime
    queues: frozenset[str] | None = None
    """The queues that it consumes; `None`: it does not say."""


def renew_process(tx: Transaction, row: ProcessRow, *, now: datetime) -> None:
    """Write or renew the row of this process."""
    renewed = tx.execute(
        sa.update(processes)
        .where(processes.c.id == row.process_id)
        .values(alive_until=row.alive_until, queues=_write_queues(row.queues))
    )
    if renewed.rowcount == 0:
        tx.execute(
            sa.insert(processes).values(
                id=row.process_id, role=row.role, host=row.host, boot_id=row.boot_id, pid=row.pid,
                pid_started=row.pid_started, started_at=now, alive_until=row.alive_until,
                queues=_write_queues(row.queues),
            )
        )  # fmt: skip


def list_processes(tx: Transaction) -> list[ProcessRow]:
    """Read every registered process."""
    return [
        ProcessRow(
            process_id=row.id, role=row.role, host=row.host, boot_id=row.boot_id, pid=row.pid,
            pid_started=row.pid_started, alive_until=row.alive_until, queues=_read_queues(row.queues),
        )
        for row in tx.execute(
            sa.select(
                processes.c.id, processes.c.role, processes.c.host, processes.c.boot_id, processes.c.pid,
                processes.c.pid_started, processes.c.alive_until, processes.c.queues,
            )
        )
    ]  # fmt: skip


def list_unknown_owners(tx: Transaction) -> list[str]:
    """Return the processes that own nodes and have no row."""
    query = sa.select(nodes.c.owner).where(
        nodes.c.owner.is_not(None), nodes.c.owner.not_in(sa.select(processes.c.id))
    )
    return [row[0] for row in tx.execute(query.distinct())]


def has_live_worker(tx: Transaction, *, now: datetime) -> bool:
    """Whether a worker has renewed its row lately."""
    query = sa.select(processes.c.id).where(
        processes.c.role == ProcessRole.WORKER, processes.c.alive_until > now
    )
    return tx.execute(query.limit(1)).first() is not None


def tell_queues(tx: Transaction, process_id: str, queues: frozenset[str]) -> None:
    """Write which queues a process consumes now, if it is registered."""
    query = sa.update(processes).where(processes.c.id == process_id)
    tx.execute(query.values(queues=_write_queues(queues)))


def consumed_queues(tx: Transaction, *, now: datetime) -> frozenset[str] | None:
    """Return the queues that live workers consume; `None` while a live worker does not say which it consumes."""
    query = sa.select(processes.c.queues).where(
        processes.c.role == ProcessRole.WORKER, processes.c.alive_until > now
    )
    texts = [row[0] for row in tx.execute(query)]
    if None in texts:
        return None
    return frozenset(queue for text in texts for queue in _read_queues(text) or ())


def _write_queues(queues: frozenset[str] | None) -> str | None:
    return None if queues is None else json.dumps(sorted(queues))


def _read_queues(text: str | None) -> frozenset[str] | None:
    return None if text is None else frozenset(json.loads(text))


def owned_runs(tx: Transaction, process_id: str) -> dict[RunId, frozenset[Claim]]:
    """Return what a process owns in each run of which it has a node or the lease."""
    owned: dict[RunId, set[Claim]] = {}
    for run_id, node_id, attempt in owned_nodes(tx, process_id):
        owned.setdefault(run_id, set()).add((node_id, attempt))
    leased = sa.select(runs.c.id).where(runs.c.lease_owner == process_id)
    for row in tx.execute(leased):
        owned.setdefault(RunId(row[0]), set())
    return {run_id: frozenset(claims) for run_id, claims in owned.items()}


def read_mark(tx: Transaction, process_id: str) -> datetime | None:
    """What a process wrote when it last renewed its row, only to be compared for being the same; `None`: no row."""
    query = sa.select(processes.c.alive_until).where(processes.c.id == process_id)
    row = tx.execute(query).one_or_none()
    return None if row is None else row[0]


def remove_process(tx: Transaction, process_id: str) -> None:
    """Forget a process that has ended."""
    tx.execute(sa.delete(processes).where(processes.c.id == process_id))
