"""Claim and record: how a node goes from planned to recorded, and what that makes ready.

All functions work inside one transaction that has locked the run (`runs.lock_run`). A record is fenced
by owner and attempt: a worker that lost its node writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ckworkflow import codec
from ckworkflow.model import NodeId, NodeKind, NodeStatus, RunId
from ckworkflow.plan import JoinKind, sleep_delay, sleep_until
from ckworkflow.store.nodes import NodeRow, add_attempt, load_node, load_targets, update_node
from ckworkflow.store.tables import joins, nodes

if TYPE_CHECKING:
    from ckworkflow.store.database import Transaction
    from ckworkflow.store.runs import RunRow


@dataclass(slots=True)
class Followup:
    """What a record made possible.

    Attributes:
        ready: Steps that may begin now.
        asleep: Sleeps that have begun, with their ends.
        joined: Joins whose last member this was.
        wakes_body: A boundary was reached: the body can go on.
        ends_run: The body had ended and this was the last of what it awaited.
    """

    ready: list[NodeId] = field(default_factory=list)
    asleep: dict[NodeId, datetime] = field(default_factory=dict)
    joined: list[str] = field(default_factory=list)
    wakes_body: bool = False
    ends_run: bool = False


def begin_attempt(tx: Transaction, run: RunRow, row: NodeRow, *, owner: str) -> NodeRow:
    """Give a ready node to its owner."""
    attempt = row.attempt + 1
    update_node(
        tx, run.run_id, row.node_id, status=NodeStatus.RUNNING, attempt=attempt, owner=owner,
        started_at=run.now, due_at=None,
    )  # fmt: skip
    return replace(
        row, status=NodeStatus.RUNNING, attempt=attempt, owner=owner, started_at=run.now, due_at=None
    )


def end_attempt(
    tx: Transaction, run: RunRow, claimed: NodeRow, *, output: str | None, error: str | None
) -> NodeStatus | None:
    """Write the outcome of an attempt.

    Returns:
        The status that the node had (running, or abandoned: then it feeds nothing), or `None` when the
        node is no longer this owner's: nothing was written.
    """
    status = _owned_status(tx, run.run_id, claimed)
    if status is None:
        return None
    outcome = NodeStatus.FAILED if output is None else NodeStatus.COMPLETED
    update_node(
        tx, run.run_id, claimed.node_id, owner=None, output=output, error=error, finished_at=run.now,
        status=NodeStatus.ABANDONED if status is NodeStatus.ABANDONED else outcome,
    )  # fmt: skip
    add_attempt(tx, run.run_id, claimed, outcome=outcome, error=error, now=run.now)
    return status


def suspend_attempt(
    tx: Transaction, run: RunRow, claimed: NodeRow, *, outcome: str, due_at: datetime, error: str | None,
    is_free: bool, is_loss: bool = False, is_carried: bool = False,
) -> bool:  # fmt: skip
    """End an attempt without an outcome: the node may be claimed again at `due_at`.

    `is_carried` says that a message with a countdown brings the next attempt, so that the clock comes second.

    Returns:
        Whether the node was still this owner's; otherwise nothing was written.
    """
    status = _owned_status(tx, run.run_id, claimed)
    if status is None:
        return False
    update_node(
        tx, run.run_id, claimed.node_id, owner=None, error=error, due_at=due_at, is_carried=is_carried,
        status=NodeStatus.PLANNED if status is NodeStatus.RUNNING else status,
        free_attempts=claimed.free_attempts + (1 if is_free else 0),
        losses=claimed.losses + (1 if is_loss else 0),
    )  # fmt: skip
    add_attempt(tx, run.run_id, claimed, outcome=outcome, error=error, now=run.now)
    return True


def _owned_status(tx: Transaction, run_id: RunId, claimed: NodeRow) -> NodeStatus | None:
    row = load_node(tx, run_id, claimed.node_id)
    if row is None or (row.owner, row.attempt) != (claimed.owner, claimed.attempt):
        return None
    return row.status if row.status in (NodeStatus.RUNNING, NodeStatus.ABANDONED) else None


def feed(
    tx: Transaction, run: RunRow, targets: Iterable[str], *, base: datetime, followup: Followup
) -> None:
    """Count a record in what comes after it.

    `targets` is the `next` of the recorded node; `base` is when it was recorded, from which a sleep after
    it counts.
    """
    node_targets = [
        target for target in targets if ":" in target and not target.startswith(("j:", "w:"))
    ]
    join_targets = [target for target in targets if target not in node_targets]
    for join_id in join_targets:
        row = tx.execute(
            sa.update(joins)
            .where(joins.c.run_id == run.run_id, joins.c.join_id == join_id)
            .values(remaining=joins.c.remaining - 1)
            .returning(joins.c.remaining, joins.c.kind, joins.c.next)
        ).one_or_none()
        if row is None or row[0] != 0:
            continue
        kind = JoinKind(row[1])
        followup.wakes_body |= kind is JoinKind.WAIT
        followup.ends_run |= kind is JoinKind.END
        if kind is JoinKind.CHORD:
            followup.joined.append(join_id)
            node_targets.extend(load_targets(row[2]))
    if node_targets:
        make_ready(tx, run, node_targets, base=base, followup=followup)


def make_ready(
    tx: Transaction, run: RunRow, node_ids: Iterable[str], *, base: datetime, followup: Followup
) -> None:
    """Let nodes begin: steps become ready, sleeps begin (and end, when their time has passed)."""
    rows = tx.execute(
        sa.update(nodes)
        .where(
            nodes.c.run_id == run.run_id,
            nodes.c.node_id.in_(list(node_ids)),
            nodes.c.status == NodeStatus.PLANNED,
        )
        .values(unmet=0)
        .returning(nodes.c.node_id, nodes.c.kind, nodes.c.args, nodes.c.next)
    ).all()
    for node_id, kind, args, following in rows:
        if kind != NodeKind.SLEEP:
            followup.ready.append(node_id)
            continue
        due_at = sleep_end(codec.loads(args), base)
        if due_at <= run.now:
            finish_sleep(
                tx, run, node_id, load_targets(following), due_at=due_at, began=base, followup=followup
            )
        else:
            update_node(
                tx, run.run_id, node_id, status=NodeStatus.RUNNING, due_at=due_at, started_at=base,
                is_carried=False,
            )  # fmt: skip
            followup.asleep[node_id] = due_at


def sleep_end(args: object, base: datetime) -> datetime:
    """When a sleep that begins at `base` ends."""
    return sleep_until(args) or base + (sleep_delay(args) or timedelta())


def finish_sleep(
    tx: Transaction, run: RunRow, node_id: NodeId, following: list[str], *, due_at: datetime,
    began: datetime | None, followup: Followup,
) -> None:  # fmt: skip
    """Record a sleep whose end has come; what follows counts from that end, not from now."""
    update_node(
        tx, run.run_id, node_id, status=NodeStatus.COMPLETED, output="null", started_at=began, due_at=due_at,
        finished_at=run.now,
    )  # fmt: skip
    feed(tx, run, following, base=min(max(due_at, began or due_at), run.now), followup=followup)


def settle_sleeps(tx: Transaction, run: RunRow, followup: Followup) -> None:
    """Record every sleep of the run whose end has come."""
    query = (
        sa.select(nodes.c.node_id, nodes.c.next, nodes.c.due_at, nodes.c.started_at)
        .where(
            nodes.c.run_id == run.run_id,
            nodes.c.kind == NodeKind.SLEEP,
            nodes.c.status == NodeStatus.RUNNING,
            nodes.c.due_at <= run.now,
        )
        .order_by(nodes.c.due_at, nodes.c.position)
    )
    for node_id, following, due_at, began in tx.execute(query).all():
        finish_sleep(
            tx, run, node_id, load_targets(following), due_at=due_at, began=began, followup=followup
        )


def mark_carried(tx: Transaction, run_id: RunId, node_ids: Iterable[NodeId]) -> None:
    """Note that a message with a countdown ends these sleeps, so that the clock comes second."""
    ids = list(node_ids)
    if ids:
        tx.execute(
            sa.update(nodes)
            .where(nodes.c.run_id == run_id, nodes.c.node_id.in_(ids))
            .values(is_carried=True)
        )


def recall_carried(tx: Transaction, run_id: RunId) -> None:
    """Note that no message can be relied on to end the sleeps of a run."""
    tx.execute(
        sa.update(nodes)
        .where(nodes.c.run_id == run_id, nodes.c.is_carried, nodes.c.status == NodeStatus.RUNNING)
        .values(is_carried=False)
    )


def fire_join(tx: Transaction, run_id: RunId, join_id: str, *, from_state: str, to_state: str) -> bool:
    """Move a complete join to its next state; of several callers one is told `True`."""
    moved = tx.execute(
        sa.update(joins)
        .where(
            joins.c.run_id == run_id,
            joins.c.join_id == join_id,
            joins.c.state == from_state,
            joins.c.remaining == 0,
        )
        .values(state=to_state)
    )
    return moved.rowcount == 1
