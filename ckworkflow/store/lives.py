"""Lives: the rows of a run when it begins its next life, and what is left of those before.

Whatever is left of the old life is put out of the way in the transaction that begins the new one, and deleted afterwards, in batches: it may be
much. No statement that asks what a run has to do finds it meanwhile, since all of it is delivered or abandoned.

Not here: when a life ends (`ckworkflow.engine.lives`).
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from ckworkflow.model import HookKey, NodeKind, NodeStatus
from ckworkflow.store import large, plans
from ckworkflow.store.hooks import open_of_run
from ckworkflow.store.nodes import NO_EVENT, RECORDED
from ckworkflow.store.notes import AWAITS
from ckworkflow.store.tables import attempts, hook_payloads, hooks, nodes, processes
from ckworkflow.store.transaction import Prepared
from ckworkflow.tracing import ClosedHook

if TYPE_CHECKING:
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction

__all__ = ["MOST_ROWS", "carry_payloads", "closings", "delete_old", "put_away"]

MOST_ROWS: Final = 1_000
"""How many nodes are deleted in one transaction."""


DEDUP_SPAN: Final = timedelta(days=1)
"""So long a payload is known by its `dedup_key`; and in the life after that in which it came."""


def put_away(tx: Transaction, run: RunRow) -> bool:
    """Put what is left of the present life of a locked run out of the way; return whether steps run that are to stop.

    What has not begun is dropped, what runs is to stop, and of what is recorded nobody is told.
    """
    runs_steps = bool(tx.execute(_AT_WORK, {"b_run": run.run_id}).all())
    plans.abandon_rest(tx, run)
    tx.execute(_FORGET_RECORDED, {"b_run": run.run_id, "v_at": run.body_time})
    return runs_steps


def closings(tx: Transaction, run: RunRow) -> tuple[ClosedHook, ...]:
    """What closes the open hooks of a locked run."""
    return tuple(ClosedHook(node_id, key) for node_id, key in open_of_run(tx, run.run_id))


def carry_payloads(
    tx: Transaction, run: RunRow, keys: Collection[HookKey], *, life: int
) -> tuple[int, int]:
    """Carry what nobody has taken over to the next life, where that has a hook of the same token; the rest nobody can take any more.

    Args:
        tx: A transaction that has locked the run.
        run: The run.
        keys: What the hooks of the next life are found by.
        life: Its number.

    Returns:
        How many payloads go over, and how many are left over.
    """
    carried = sum(
        len(tx.execute(_CARRY, {
            "b_run": run.run_id, "b_namespace": key.namespace, "b_token": key.token_hash, "v_life": life,
        }).all())
        for key in sorted(set(keys))
    )  # fmt: skip
    if carried:
        large.carry(tx, run.run_id, life=life)
    return carried, len(tx.execute(_LEAVE_OVER, {"b_run": run.run_id, "b_life": life}).all())


def delete_old(tx: Transaction, run: RunRow) -> int:
    """Delete rows of lives before the present one of a locked run; return how many nodes went, `MOST_ROWS` if there may be more.

    A step that still runs stays, since its record must find it; a run that the body has started and that has not ended, too. A payload with
    a `dedup_key` stays for a life, and for a day, so that it is not accepted again, and with it the hook that had its token last.
    """
    run_id, here = run.run_id, {"b_run": run.run_id, "b_life": run.life}
    found = [row[0] for row in tx.execute(_OLD, {**here, "b_most": MOST_ROWS}).all()]
    for table in (attempts, nodes):
        if found:
            tx.execute(sa.delete(table).where(table.c.run_id == run_id, table.c.node_id.in_(found)))
    if len(found) < MOST_ROWS:
        tx.execute(_DELETE_PAYLOADS, here | {"b_before": run.now - DEDUP_SPAN})
        tx.execute(_DELETE_HOOKS, here)
        large.delete_old(tx, run_id, life=run.life)
    return len(found)


_OF_RUN = nodes.c.run_id == sa.bindparam("b_run")
_AT_WORK = Prepared(
    sa.select(nodes.c.node_id)
    .where(
        _OF_RUN,
        nodes.c.delivered.is_(None),
        nodes.c.status == NodeStatus.RUNNING,
        nodes.c.owner.is_not(None),
    )
    .limit(1)
)
_FORGET_RECORDED = Prepared(
    sa.update(nodes)
    .where(
        _OF_RUN, nodes.c.delivered.is_(None), sa.or_(*[nodes.c.status == status for status in RECORDED])
    )
    .values(delivered=NO_EVENT, delivered_at=sa.bindparam("v_at"))
)
_OLD = Prepared(
    sa.select(nodes.c.node_id)
    .where(
        _OF_RUN,
        nodes.c.life < sa.bindparam("b_life"),
        sa.or_(nodes.c.owner.is_(None), nodes.c.owner.not_in(sa.select(processes.c.id))),
        sa.or_(
            nodes.c.kind != NodeKind.CHILD, nodes.c.finished_at.is_not(None), nodes.c.args.like(AWAITS)
        ),
    )
    .limit(sa.bindparam("b_most", type_=sa.Integer))
)
_PAYLOADS = hook_payloads.c.run_id == sa.bindparam("b_run")
_CARRY = Prepared(
    sa.update(hook_payloads)
    .where(
        _PAYLOADS,
        sa.not_(hook_payloads.c.is_taken),
        hook_payloads.c.namespace == sa.bindparam("b_namespace"),
        hook_payloads.c.token_hash == sa.bindparam("b_token"),
    )
    .values(delivered=None, delivered_at=None, life=sa.bindparam("v_life"))
    .returning(hook_payloads.c.number)
)
_LEAVE_OVER = Prepared(
    sa.update(hook_payloads)
    .where(_PAYLOADS, sa.not_(hook_payloads.c.is_taken), hook_payloads.c.life < sa.bindparam("b_life"))
    .values(is_taken=sa.true())
    .returning(hook_payloads.c.number)
)
_DELETE_PAYLOADS = Prepared(
    sa.delete(hook_payloads).where(
        _PAYLOADS,
        hook_payloads.c.is_taken,
        hook_payloads.c.life < sa.bindparam("b_life"),
        sa.or_(
            hook_payloads.c.dedup_key.is_(None),
            sa.and_(
                hook_payloads.c.received_at
                < sa.bindparam("b_before", type_=hook_payloads.c.received_at.type),
                hook_payloads.c.life < sa.bindparam("b_life") - 1,
            ),
        ),
    )
)
_later = hooks.alias("later")
_SAME_TOKEN = [
    (_later.c.run_id, hook_payloads.c.run_id, hooks.c.run_id),
    (_later.c.namespace, hook_payloads.c.namespace, hooks.c.namespace),
    (_later.c.token_hash, hook_payloads.c.token_hash, hooks.c.token_hash),
]
_DELETE_HOOKS = Prepared(
    sa.delete(hooks).where(
        hooks.c.run_id == sa.bindparam("b_run"),
        hooks.c.life < sa.bindparam("b_life"),
        hooks.c.closed_at.is_not(None),
        sa.or_(
            sa.exists().where(
                *[later == own for later, _, own in _SAME_TOKEN],
                sa.or_(_later.c.closed_at.is_(None), _later.c.created_at > hooks.c.created_at),
            ),
            ~sa.exists().where(*[payload == own for _, payload, own in _SAME_TOKEN]),
        ),
    )
)
