"""Nodes: reading them, whole or as the plan that is left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ckworkflow import codec
from ckworkflow.model import NodeId, NodeKind, NodeStatus, RunId
from ckworkflow.plan import Join, JoinKind, Plan, PlanNode, sleep_delay, sleep_until
from ckworkflow.store.tables import attempts, joins, nodes

if TYPE_CHECKING:
    from ckworkflow.store.database import Transaction
    from ckworkflow.store.runs import RunRow

LIVE = (NodeStatus.PLANNED, NodeStatus.RUNNING)
_RECORDED = (NodeStatus.COMPLETED, NodeStatus.FAILED)


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node of a run."""

    node_id: NodeId
    position: int
    kind: NodeKind
    name: str
    line: int
    generation: int
    args: str
    status: NodeStatus
    unmet: int
    next: str
    attempt: int
    free_attempts: int
    losses: int
    owner: str | None
    is_carried: bool
    due_at: datetime | None
    output: str | None
    error: str | None
    delivered: int | None
    delivered_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None


_COLUMNS: tuple[Any, ...] = tuple(nodes.c[name] for name in NodeRow.__slots__)


def _row(values: Any) -> NodeRow:
    row = NodeRow(*values)
    object.__setattr__(row, "kind", NodeKind(row.kind))
    object.__setattr__(row, "status", NodeStatus(row.status))
    return row


def load_targets(text: str) -> list[str]:
    """Read a `next` column: ids of nodes and joins."""
    targets = codec.loads(text)
    return [str(target) for target in targets] if isinstance(targets, list) else []


def load_nodes(
    tx: Transaction, run_id: RunId, *, statuses: Iterable[NodeStatus] | None = None
) -> list[NodeRow]:
    """Read the nodes of a run in the order of the trace."""
    query = sa.select(*_COLUMNS).where(nodes.c.run_id == run_id).order_by(nodes.c.position)
    if statuses is not None:
        query = query.where(nodes.c.status.in_(list(statuses)))
    return [_row(row) for row in tx.execute(query)]


def load_news(tx: Transaction, run_id: RunId) -> list[NodeRow]:
    """Read what is recorded and not delivered, in the order in which the body is to be told.

    Successes first: a step behind one of them may have begun already, because the plan said so, and the body
    must have come that far before a failure beside it changes its way. Then in the order of recording.
    """
    query = (
        sa.select(*_COLUMNS)
        .where(nodes.c.run_id == run_id, nodes.c.delivered.is_(None), nodes.c.status.in_(_RECORDED))
        .order_by(
            nodes.c.status == NodeStatus.FAILED,
            nodes.c.finished_at,
            nodes.c.due_at.asc().nulls_last(),  # sleeps that were settled together
            nodes.c.position,
            nodes.c.node_id,
        )
    )
    return [_row(row) for row in tx.execute(query)]


def load_node(tx: Transaction, run_id: RunId, node_id: NodeId) -> NodeRow | None:
    """Read one node."""
    row = tx.execute(
        sa.select(*_COLUMNS).where(nodes.c.run_id == run_id, nodes.c.node_id == node_id)
    ).one_or_none()
    return None if row is None else _row(row)


def load_outputs(tx: Transaction, run_id: RunId, node_ids: Iterable[NodeId]) -> dict[NodeId, str]:
    """Read the results of completed nodes."""
    query = sa.select(nodes.c.node_id, nodes.c.output).where(
        nodes.c.run_id == run_id,
        nodes.c.node_id.in_(list(node_ids)),
        nodes.c.status == NodeStatus.COMPLETED,
    )
    return {NodeId(row[0]): row[1] for row in tx.execute(query)}


def load_plan(tx: Transaction, run_id: RunId) -> tuple[Plan, dict[NodeId, NodeRow]]:
    """Read the plan that is left of a run, and its rows."""
    rows = {row.node_id: row for row in load_nodes(tx, run_id, statuses=LIVE)}
    plan_joins = {
        row[0]: Join(
            row[0],
            JoinKind(row[1]),
            frozenset(),
            row[2],
            tuple(NodeId(target) for target in load_targets(row[3])),
            row[4],
            row[5],
        )
        for row in tx.execute(
            sa.select(
                joins.c.join_id,
                joins.c.kind,
                joins.c.remaining,
                joins.c.next,
                joins.c.line,
                joins.c.reason,
            ).where(joins.c.run_id == run_id)
        )
    }
    plan_nodes = {}
    for row in rows.values():
        args = codec.loads(row.args) if row.kind is NodeKind.SLEEP else None
        plan_nodes[row.node_id] = PlanNode(
            row.node_id, row.kind, row.name, tuple(load_targets(row.next)), row.unmet, row.generation,
            sleep_delay(args), sleep_until(args),
        )  # fmt: skip
    return Plan(plan_nodes, plan_joins), rows


def carried_runs(tx: Transaction) -> list[RunId]:
    """The runs that sleep until a message with a countdown ends it: those within the horizon."""
    query = sa.select(nodes.c.run_id).where(nodes.c.is_carried, nodes.c.status == NodeStatus.RUNNING)
    return [RunId(row[0]) for row in tx.execute(query.distinct())]


def update_node(tx: Transaction, run_id: RunId, node_id: NodeId, **values: Any) -> None:
    """Write some columns of a node of a locked run."""
    tx.execute(
        sa.update(nodes).where(nodes.c.run_id == run_id, nodes.c.node_id == node_id).values(**values)
    )


def add_attempt(
    tx: Transaction, run_id: RunId, row: NodeRow, *, outcome: str, error: str | None, now: datetime
) -> None:
    """Write how an attempt ended."""
    tx.execute(
        sa.insert(attempts).values(
            run_id=run_id, node_id=row.node_id, attempt=row.attempt, owner=row.owner, outcome=outcome,
            error=error, started_at=row.started_at, finished_at=now,
        )
    )  # fmt: skip


def deliver(tx: Transaction, run: RunRow, rows: list[NodeRow], *, at: datetime) -> int:
    """Number what the body was newly told of at a time, in that order; return the last number."""
    number = run.delivered
    updates = []
    for row in rows:
        number += 1
        updates.append({"b_node": row.node_id, "number": number})
    if updates:
        tx.execute(
            sa.update(nodes)
            .where(nodes.c.run_id == run.run_id, nodes.c.node_id == sa.bindparam("b_node"))
            .values(delivered=sa.bindparam("number"), delivered_at=at),
            updates,
        )
    return number
