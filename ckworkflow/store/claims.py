"""Claims: a process takes a node, so that it is its owner.

All functions work inside one transaction that has locked the run (`runs.lock_run`), or has asked for that.

Not here: how an owner writes what came of it (`records`).
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ckworkflow import codec
from ckworkflow.model import NodeId, NodeKind, NodeStatus, RunId
from ckworkflow.store.expectations import expecting
from ckworkflow.store.nodes import AFTER, COLUMNS, HERE, NodeRow, node_row, one_node, update_node
from ckworkflow.store.runs import ONLY_STEPS_HELD
from ckworkflow.store.tables import nodes, runs
from ckworkflow.store.transaction import Asked, Prepared, Rows

if TYPE_CHECKING:
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction


def begin_attempt(tx: Transaction, run: RunRow, row: NodeRow, *, owner: str) -> NodeRow:
    """Give a ready node to its owner."""
    changes: dict[str, Any] = {
        "status": NodeStatus.RUNNING, "attempt": row.attempt + 1, "owner": owner, "started_at": run.now,
        "due_at": None,
    }  # fmt: skip
    if row.is_held:
        changes["is_held"] = False
    update_node(tx, run.run_id, row.node_id, **changes)
    return row._replace(**changes)


def take(
    tx: Transaction, run_id: RunId, node_id: NodeId, *, owner: str, at: datetime
) -> Asked[NodeRow | None]:
    """Take a step that has never begun and whose last predecessor ends in this transaction.

    That is an expectation: if it turns out to be wrong, the transaction must be undone. The answer is `None` if the step waits
    for more than one thing, or has begun before.
    """
    values = {"b_run": run_id, "b_node": node_id, "v_owner": owner, "v_now": at}
    return Asked(tx.execute(_TAKE, values), one_node)


def expect_take(
    tx: Transaction, run_id: RunId, node_id: NodeId, *, generation: int, owner: str, at: datetime
) -> Asked[NodeRow]:
    """Take a step that is expected to wait for nothing but what this transaction records."""

    def read(rows: Rows) -> NodeRow:
        (row,) = rows.all()
        return node_row(row[1:])

    values = {
        "b_run": run_id, "b_node": node_id, "b_generation": generation, "v_owner": owner, "v_now": at,
    }  # fmt: skip
    return Asked(tx.execute(_EXPECTED_TAKE, values), read)


def claim(
    tx: Transaction,
    run_id: RunId,
    node_id: NodeId,
    *,
    generation: int,
    name: str,
    owner: str,
    at: datetime,
) -> Asked[NodeRow | None]:
    """Claim a step that may begin, as a message names it; `None`: it could not be had.

    A step whose arguments refer to results cannot: whether they can be had is known only after reading them.
    """
    values = {
        "b_run": run_id, "b_node": node_id, "b_generation": generation, "b_name": name, "b_now": at,
        "v_owner": owner, "v_now": at,
    }  # fmt: skip
    return Asked(tx.execute(_CLAIM, values), one_node)


def wake(
    tx: Transaction,
    run_id: RunId,
    node_id: NodeId,
    *,
    generation: int,
    name: str,
    owner: str,
    at: datetime,
) -> Asked[NodeRow | None]:
    """End the sleep that a step waits for, if its time has come, and claim the step; for servers.

    The answer is `None`, and nothing is changed, if the step waits for something else too, if its arguments refer to results, if
    another sleep of the run has ended as well (then both must be recorded in the order of their ends), or if the body is to be
    told of something first.
    """
    values = {
        "b_run": run_id, "b_node": node_id, "b_generation": generation, "b_name": name, "b_now": at,
        "b_next": codec.dumps([node_id]), "v_owner": owner, "v_now": at,
    }  # fmt: skip
    return Asked(tx.execute(_WAKE, values), one_node)


def give_back(tx: Transaction, run_id: RunId, row: NodeRow) -> NodeRow:
    """Make a step that `take` has taken ready like any other."""
    changes: dict[str, Any] = {
        "status": NodeStatus.PLANNED, "attempt": 0, "owner": None, "started_at": None,
    }  # fmt: skip
    update_node(tx, run_id, row.node_id, **changes)
    return row._replace(**changes)


_TAKEN = (
    HERE,
    nodes.c.status == NodeStatus.PLANNED,
    nodes.c.kind == NodeKind.STEP,
    # Waits for one thing, which ends here. A plan made meanwhile may have another node of this name, which waits for
    # nothing, and for which there is a message: it is not to be taken.
    nodes.c.unmet == 1,
    nodes.c.attempt == 0,
    nodes.c.due_at.is_(None),
)
_TAKE_UPDATE = (
    sa.update(nodes)
    .where(*_TAKEN)
    .values(
        unmet=0, status=NodeStatus.RUNNING, attempt=1, owner=sa.bindparam("v_owner"),
        started_at=sa.bindparam("v_now"),
    )
)  # fmt: skip
_TAKE = Prepared(_TAKE_UPDATE.returning(*COLUMNS))
_EXPECTED_TAKE = expecting(
    _TAKE_UPDATE.where(nodes.c.generation == sa.bindparam("b_generation")).returning(*COLUMNS, AFTER)
)
_NAMED = (  # as a message names it, and its arguments can be had without reading anything
    nodes.c.generation == sa.bindparam("b_generation"),
    nodes.c.name == sa.bindparam("b_name"),
    nodes.c.losses == 0,
    nodes.c.args.not_like('%{"$":"ref"%'),
)
_NOW = sa.bindparam("b_now", type_=nodes.c.due_at.type)
_CLAIM = Prepared(
    sa.update(nodes)
    .where(
        HERE,
        nodes.c.status == NodeStatus.PLANNED,
        nodes.c.kind == NodeKind.STEP,
        *_NAMED,
        nodes.c.unmet == 0,
        nodes.c.due_at.is_(None) | (nodes.c.due_at <= _NOW),
    )
    .values(
        status=NodeStatus.RUNNING, attempt=nodes.c.attempt + 1, owner=sa.bindparam("v_owner"),
        started_at=sa.bindparam("v_now"), due_at=None, is_held=False,
    )
    .returning(*COLUMNS, AFTER)
)  # fmt: skip


def _exists(query: Any) -> Any:
    """Whether a query of its own finds a node: not one that refers to the row that is being changed."""
    return sa.exists(query.correlate(None).subquery().select())


_SLEEPS = (
    nodes.c.run_id == sa.bindparam("b_run"),
    nodes.c.delivered.is_(None),  # so it is; said for the index of these
    nodes.c.kind == NodeKind.SLEEP,
    nodes.c.status == NodeStatus.RUNNING,
    nodes.c.due_at <= _NOW,
)
_ONLY = nodes.c.next == sa.bindparam("b_next")
_told = sa.select(runs.c.id).where(  # as `RunRow.is_to_be_told`
    runs.c.id == sa.bindparam("b_run"),
    (runs.c.signals == runs.c.seen)
    | (sa.func.coalesce(runs.c.held, ONLY_STEPS_HELD) != ONLY_STEPS_HELD),
)
_ready = sa.select(nodes.c.node_id).where(*_TAKEN, *_NAMED)
_ended = (
    sa.update(nodes)
    .where(
        *_SLEEPS,
        _ONLY,
        _exists(_ready),
        ~_exists(sa.select(nodes.c.node_id).where(*_SLEEPS, ~_ONLY)),
        _exists(_told),
    )
    .values(status=NodeStatus.COMPLETED, output="null", finished_at=sa.bindparam("v_now"))
    .returning(nodes.c.node_id)
    .cte("ended")
)
_WAKE = Prepared(
    _TAKE_UPDATE.where(*_NAMED, sa.exists(sa.select(_ended.c.node_id))).returning(*COLUMNS, AFTER)
)
