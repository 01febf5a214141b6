"""Events: what the body of a run has not been told, what it has, and what stays out of reach meanwhile.

All functions work inside one transaction that has locked the run (`runs.lock_run`).

Not here: in which order the body is told (`ckworkflow.engine.events`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ckworkflow.model import NodeId, NodeStatus, RunId
from ckworkflow.plan import JoinKind
from ckworkflow.store.nodes import COLUMNS, HERE, RECORDED, NodeRow, load_targets, node_row
from ckworkflow.store.tables import joins, nodes
from ckworkflow.store.transaction import Prepared

if TYPE_CHECKING:
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction

OUT_OF_REACH = 2
"""Added to the `unmet` of a node that nobody may begin until the body has heard of a surprise."""

_UNDELIVERED = (nodes.c.run_id == sa.bindparam("b_run"), nodes.c.delivered.is_(None))


def load_news(tx: Transaction, run_id: RunId) -> list[NodeRow]:
    """Read what is recorded and not delivered."""
    return [node_row(row) for row in tx.execute(_NEWS, {"b_run": run_id})]


def load_begun(tx: Transaction, run_id: RunId) -> tuple[frozenset[str], dict[str, tuple[str, ...]]]:
    """The nodes that have begun and of which the body has not been told, and the fired joins with what they let begin."""
    begun = frozenset(row[0] for row in tx.execute(_BEGUN, {"b_run": run_id}))
    return begun, {row[0]: load_targets(row[1]) for row in tx.execute(_FIRED, {"b_run": run_id})}


_NEWS = Prepared(
    sa.select(*COLUMNS)
    .where(*_UNDELIVERED, sa.or_(*[nodes.c.status == status for status in RECORDED]))
    .order_by(nodes.c.position)
)
_BEGUN = Prepared(
    sa.select(nodes.c.node_id).where(
        *_UNDELIVERED, sa.or_(nodes.c.status != NodeStatus.PLANNED, nodes.c.attempt > 0)
    )
)
_FIRED = Prepared(
    sa.select(joins.c.join_id, joins.c.next).where(
        joins.c.run_id == sa.bindparam("b_run"), joins.c.kind == JoinKind.CHORD, joins.c.remaining == 0
    )
)


def deliver(tx: Transaction, run: RunRow, node_ids: Iterable[NodeId], *, at: datetime) -> int:
    """Number what the body was told of in one continuation, in that order; return the last number."""
    updates = [
        {"b_run": run.run_id, "b_node": node_id, "v_number": number, "v_at": at}
        for number, node_id in enumerate(node_ids, run.delivered + 1)
    ]
    if updates:
        tx.execute_many(_DELIVER, updates)
    return run.delivered + len(updates)


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
