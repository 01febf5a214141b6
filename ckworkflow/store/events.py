"""Events: what the body of a run has not been told, what it has, and what stays out of reach meanwhile.

All functions work inside one transaction that has locked the run (`runs.lock_run`).

Not here: in which order the body is told (`ckworkflow.engine.events`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ckworkflow.model import CANCEL, NodeId, NodeKind, NodeStatus, RunId, payload_number
from ckworkflow.plan import JoinKind
from ckworkflow.store import hooks
from ckworkflow.store.nodes import (
    COLUMNS,
    HERE,
    RECORDED,
    NodeRow,
    load_targets,
    node_row,
    with_parts,
)
from ckworkflow.store.runs import update_run
from ckworkflow.store.tables import joins, nodes
from ckworkflow.store.transaction import Prepared

if TYPE_CHECKING:
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction

OUT_OF_REACH = 2
"""Added to the `unmet` of a node that nobody may begin until the body has heard of a surprise."""

_UNDELIVERED = (nodes.c.run_id == sa.bindparam("b_run"), nodes.c.delivered.is_(None))


def load_news(tx: Transaction, run_id: RunId) -> tuple[list[NodeRow], list[NodeRow]]:
    """Read what is recorded and not delivered, with all of its results; and the steps that run, and are not to stop."""
    rows = [node_row(row) for row in tx.execute(_NEWS, {"b_run": run_id})]
    recorded = [row for row in rows if row.status is not NodeStatus.RUNNING]
    return with_parts(tx, run_id, recorded), [row for row in rows if row.status is NodeStatus.RUNNING]


def load_begun(tx: Transaction, run_id: RunId) -> tuple[frozenset[str], dict[str, tuple[str, ...]]]:
    """The nodes that have begun and of which the body has not been told, and the fired joins with what they let begin."""
    begun = frozenset(row[0] for row in tx.execute(_BEGUN, {"b_run": run_id}))
    return begun, {row[0]: load_targets(row[1]) for row in tx.execute(_FIRED, {"b_run": run_id})}


def last_recorded(tx: Transaction, run_id: RunId) -> datetime | None:
    """When the last of what is recorded and not delivered was."""
    ((at,),) = tx.execute(_LAST_RECORDED, {"b_run": run_id}).all()
    return at if isinstance(at, datetime) else None


_NEWS = Prepared(
    sa.select(*COLUMNS)
    .where(
        *_UNDELIVERED,
        sa.or_(
            *[nodes.c.status == status for status in RECORDED],
            sa.and_(
                nodes.c.status == NodeStatus.RUNNING,
                nodes.c.kind == NodeKind.STEP,
                nodes.c.cancelled_at.is_(None),
            ),
        ),
    )
    .order_by(nodes.c.position)
)
_BEGUN = Prepared(
    sa.select(nodes.c.node_id).where(
        *_UNDELIVERED, sa.or_(nodes.c.status != NodeStatus.PLANNED, nodes.c.attempt > 0)
    )
)
_LAST_RECORDED = Prepared(
    sa.select(sa.func.max(nodes.c.finished_at, type_=nodes.c.finished_at.type)).where(*_UNDELIVERED)
)
_FIRED = Prepared(
    sa.select(joins.c.join_id, joins.c.next).where(
        joins.c.run_id == sa.bindparam("b_run"), joins.c.kind == JoinKind.CHORD, joins.c.remaining == 0
    )
)


def deliver(tx: Transaction, run: RunRow, event_ids: Iterable[NodeId], *, at: datetime) -> int:
    """Number what the body was told of in one continuation, nodes, payloads and `CANCEL`, in that order; return the last number."""
    numbers = {event_id: number for number, event_id in enumerate(event_ids, run.delivered + 1)}
    last = run.delivered + len(numbers)
    if (number := numbers.pop(CANCEL, None)) is not None:
        update_run(tx, run.run_id, cancel_delivered=number, cancel_delivered_at=at)
    if run.untold_payloads:
        payloads = [
            (payload, numbers.pop(event_id))
            for event_id in list(numbers)
            if (payload := payload_number(event_id)) is not None
        ]
        hooks.deliver(tx, run.run_id, payloads, at=at)
        update_run(tx, run.run_id, untold_payloads=run.untold_payloads - len(payloads))
    if numbers:
        updates = [
            {"b_run": run.run_id, "b_node": node_id, "v_number": number, "v_at": at}
            for node_id, number in numbers.items()
        ]
        tx.execute_many(_DELIVER, updates)
    return last


_DELIVER = Prepared(
    sa.update(nodes)
    .where(HERE)
    .values(delivered=sa.bindparam("v_number"), delivered_at=sa.bindparam("v_at"))
)


def withhold(tx: Transaction, run_id: RunId) -> None:
    """Put all that is planned, retries too, out of reach: no message, record or clock begins it.

    The commit of the continuation, or `records.release_withheld`, takes it back.
    """
    tx.execute(_WITHHOLD, {"b_run": run_id})


def restore(tx: Transaction, run_id: RunId) -> None:
    """Take back what `withhold` did; what may begin then the caller looks after."""
    tx.execute(_RESTORE, {"b_run": run_id})


_WITHHOLD = Prepared(
    sa.update(nodes)
    .where(*_UNDELIVERED, nodes.c.status == NodeStatus.PLANNED, nodes.c.unmet < OUT_OF_REACH)
    .values(unmet=nodes.c.unmet + OUT_OF_REACH)
)
_RESTORE = Prepared(
    sa.update(nodes)
    .where(*_UNDELIVERED, nodes.c.status == NodeStatus.PLANNED, nodes.c.unmet >= OUT_OF_REACH)
    .values(unmet=nodes.c.unmet - OUT_OF_REACH)
)
