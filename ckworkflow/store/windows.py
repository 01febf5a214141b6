"""Windows: some steps of a wide group are published, and the others are held back until claims make room.

All functions work inside one transaction that has locked the run (`runs.lock_run`).

Not here: how wide a window is, and who opens it (`ckworkflow.engine`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ckworkflow.model import NodeId, NodeStatus, RunId
from ckworkflow.store.events import OUT_OF_REACH
from ckworkflow.store.nodes import COLUMNS, HERE, NodeRow, one_node
from ckworkflow.store.tables import nodes
from ckworkflow.store.transaction import Asked, Prepared, Rows

if TYPE_CHECKING:
    from ckworkflow.store.transaction import Transaction


def hold(
    tx: Transaction, run_id: RunId, published: Iterable[NodeId], held: Sequence[NodeId],
    rows: Mapping[NodeId, NodeRow],
) -> None:  # fmt: skip
    """Note which ready steps are held back, because a window of them is published already.

    Of those in `rows` it is known whether they are; where none is to be held back, the others are not.
    """
    # Also of what is published: it may have been held back before.
    changes = [*((node_id, True) for node_id in held), *((node_id, False) for node_id in published)]
    values = [
        {"b_run": run_id, "b_node": node_id, "v_held": is_held}
        for node_id, is_held in changes
        if (rows[node_id].is_held != is_held if node_id in rows else held)
    ]
    if values:
        tx.execute_many(_HOLD, values)


def first_held(tx: Transaction, run_id: RunId) -> Asked[NodeRow | None]:
    """Ask for the first step of those held back; releases those that the plan, which has changed since, does not let begin.

    None while they are out of reach.
    """

    def read(rows: Rows) -> NodeRow | None:
        row = one_node(rows)
        while row is not None and (row.status is not NodeStatus.PLANNED or row.unmet):
            if row.unmet >= OUT_OF_REACH:
                return None
            release(tx, run_id, row)
            row = one_node(tx.execute(_FIRST_HELD, {"b_run": run_id}))
        return row

    return Asked(tx.execute(_FIRST_HELD, {"b_run": run_id}), read)


def release(tx: Transaction, run_id: RunId, held: NodeRow) -> NodeRow:
    """Hold a step back no longer: it is published or claimed now."""
    tx.execute(_HOLD, {"b_run": run_id, "b_node": held.node_id, "v_held": False})
    return held._replace(is_held=False)


_HOLD = Prepared(sa.update(nodes).where(HERE).values(is_held=sa.bindparam("v_held")))
_FIRST_HELD = Prepared(
    sa.select(*COLUMNS)
    # In the words of the index: `is_held = 1`, as SQLAlchemy has it, SQLite does not find in it. And no other
    # condition: PostgreSQL would expect to read all of them, and sort them, where the first will do.
    .where(nodes.c.run_id == sa.bindparam("b_run"), sa.text("nodes.is_held"))
    .order_by(nodes.c.position)
    .limit(1)
)
