"""Hooks, and the payloads that were sent to them.

A hook belongs to a run, and its token to whoever has it first. So what makes or closes hooks changes rows that runs share, after
all rows of its own run, in the order of tokens, and is written alone: never in one transaction with works on other runs.
A payload is written under the lock of its run.

Not here: when hooks are made and closed (`ckworkflow.tracing.hooks`), and who sends (`ckworkflow.engine.hooks`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from ckworkflow import codec
from ckworkflow.model import HookKey, Namespace, NodeId, NodeKind, RunId, life_of, payload_id
from ckworkflow.store import large
from ckworkflow.store.nodes import insert_done
from ckworkflow.store.runs import LIVE
from ckworkflow.store.tables import hook_payloads, hooks, runs
from ckworkflow.store.transaction import Asked, Prepared, Row, Rows
from ckworkflow.tracing import ClosedHook, MadeHook

if TYPE_CHECKING:
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction
    from ckworkflow.tracing import HookChange

HIGHEST_PLACE = 1_000
"""Hooks that one continuation may make with places of their own in the order of the body."""


class TokenTakenError(Exception):
    """A hook cannot be made, since another has its token: commit nothing, and tell the body.

    Attributes:
        made: The hook that cannot be made.
        holder: The run that has the token.
    """

    def __init__(self, made: MadeHook, holder: RunId) -> None:
        super().__init__(made.node_id, holder)
        self.made, self.holder = made, holder


class PayloadRow(NamedTuple):
    """A payload, as the body of its run is told of it."""

    number: int
    namespace: Namespace
    token_hash: str
    body: str
    received_at: datetime
    delivered: int | None
    delivered_at: datetime | None
    is_taken: bool

    @property
    def node_id(self) -> NodeId:
        """What stands for it among the nodes."""
        return payload_id(self.number)

    @property
    def key(self) -> HookKey:
        """What it was sent to."""
        return HookKey(self.namespace, self.token_hash)


class HookRow(NamedTuple):
    """A hook, with what is to be known of its run."""

    run_id: RunId
    node_id: NodeId
    workflow: str
    name: str
    metadata: str
    created_at: datetime
    expires_at: datetime | None
    closed_at: datetime | None
    is_live: bool

    def is_open(self, now: datetime) -> bool:
        """Whether it takes payloads."""
        is_expired = self.expires_at is not None and self.expires_at <= now
        return self.closed_at is None and self.is_live and not is_expired


_HERE = (hooks.c.run_id == sa.bindparam("b_run"), hooks.c.node_id == sa.bindparam("b_node"))
_OF_TOKEN = (
    hooks.c.namespace == sa.bindparam("b_namespace"),
    hooks.c.token_hash == sa.bindparam("b_token"),
)
_OF_RUN = hook_payloads.c.run_id == sa.bindparam("b_run")


# -- making and closing -----------------------------------------------------------------------------------


def change(
    tx: Transaction, run: RunRow, changes: Sequence[HookChange], *, positions: Mapping[int, int]
) -> None:
    """Make and close hooks of a locked run, as its body did, in the order of their tokens.

    Args:
        tx: A transaction of this run alone.
        run: The run.
        changes: In the order of the body.
        positions: Of each life, that of the first of the nodes that the body plans with it; hooks come before.

    Raises:
        TokenTakenError: Another hook has the token: of several, that which the body meets first. Commit nothing.
    """
    taken = list[TokenTakenError]()
    made = [change for change in changes if isinstance(change, MadeHook)]
    places = {each.node_id: place for place, each in enumerate(made)}
    for each in sorted(
        changes, key=lambda change: change.key
    ):  # stable: those of one token stay in order
        if isinstance(each, ClosedHook):
            tx.execute(_CLOSE, {"b_run": run.run_id, "b_node": each.node_id, "v_at": run.now})
            continue
        try:
            _make(tx, run, each)
        except TokenTakenError as error:
            taken.append(error)
            continue
        first = positions[life_of(each.node_id)] - HIGHEST_PLACE
        _insert_node(tx, run, each, None, first + places[each.node_id])
    if taken:
        # What comes after the first of them in the body is not certain: it did not know of it when it went on.
        raise min(taken, key=lambda error: changes.index(error.made))


def refuse(tx: Transaction, run: RunRow, made: MadeHook, *, error: str, position: int) -> None:
    """Write that a hook cannot be made: the body is told so, in this and in each further replay."""
    _insert_node(tx, run, made, error, position - HIGHEST_PLACE)


def close_all(tx: Transaction, run: RunRow) -> int:
    """Close the hooks of a run that ends; return how many payloads nobody has taken."""
    for node_id, _ in open_of_run(tx, run.run_id):
        tx.execute(_CLOSE, {"b_run": run.run_id, "b_node": node_id, "v_at": run.now})
    return untaken(tx, run.run_id).get()[0]


def open_of_run(tx: Transaction, run_id: RunId) -> list[tuple[NodeId, HookKey]]:
    """The hooks of a run that it has not closed, in the order of their tokens."""
    return [
        (node_id, HookKey(Namespace(namespace), token_hash))
        for namespace, token_hash, node_id in tx.execute(_OPEN_OF_RUN, {"b_run": run_id}).all()
    ]


def _make(tx: Transaction, run: RunRow, made: MadeHook) -> None:
    parameters = {
        "run_id": run.run_id, "node_id": made.node_id, "namespace": made.key.namespace,
        "token_hash": made.key.token_hash, "name": made.name, "metadata": codec.dumps(made.metadata),
        "created_at": run.now, "expires_at": made.expires_at, "life": life_of(made.node_id),
    }  # fmt: skip
    while not tx.execute(_INSERT, parameters).all():
        holder = find_open(tx, made.key).get()
        if holder is None:
            continue  # it was closed just now
        if holder.is_open(run.now):
            raise TokenTakenError(made, holder.run_id)
        # Only this row: it has expired, or its run has ended.
        tx.execute(
            _CLOSE,
            {"b_run": holder.run_id, "b_node": holder.node_id, "v_at": holder.expires_at or run.now},
        )


def _insert_node(tx: Transaction, run: RunRow, made: MadeHook, error: str | None, position: int) -> None:
    insert_done(
        tx, run, made.node_id, kind=NodeKind.HOOK, name=made.name, args=codec.pack(made.args), line=made.line,
        position=position, error=error, due_at=made.expires_at,
    )  # fmt: skip


_INSERT = Prepared(
    postgresql.insert(hooks)  # which SQLite writes alike
    .values(
        {
            name: sa.bindparam(name)
            for name in (
                "run_id", "node_id", "namespace", "token_hash", "name", "metadata", "created_at", "expires_at", "life",
            )
        }
    )
    .on_conflict_do_nothing()
    .returning(hooks.c.node_id)
)  # fmt: skip
_CLOSE = Prepared(
    sa.update(hooks).where(*_HERE, hooks.c.closed_at.is_(None)).values(closed_at=sa.bindparam("v_at"))
)
_OPEN_OF_RUN = Prepared(
    sa.select(hooks.c.namespace, hooks.c.token_hash, hooks.c.node_id)
    .where(hooks.c.run_id == sa.bindparam("b_run"), hooks.c.closed_at.is_(None))
    .order_by(hooks.c.namespace, hooks.c.token_hash)
)


# -- finding ------------------------------------------------------------------------------------------------


def find_open(tx: Transaction, key: HookKey) -> Asked[HookRow | None]:
    """Find the hook that has a token now; it may have expired, or its run may have ended."""

    def read(rows: Rows) -> HookRow | None:
        row = rows.one_or_none()
        return None if row is None else _hook(row)

    return Asked(tx.execute(_FIND_OPEN, _key(key)), read)


def find_last(tx: Transaction, key: HookKey) -> HookRow | None:
    """Find the last hook that had a token."""
    row = tx.execute(_FIND_LAST, _key(key)).one_or_none()
    return None if row is None else _hook(row)


def open_hooks(tx: Transaction, run_id: RunId, *, now: datetime) -> list[HookRow]:
    """The hooks of a run that take payloads, in the order in which they were made."""
    found = [_hook(row) for row in tx.execute(_HOOKS_OF_RUN, {"b_run": run_id})]
    return [hook for hook in found if hook.is_open(now)]


def _key(key: HookKey) -> dict[str, object]:
    return {"b_namespace": key.namespace, "b_token": key.token_hash}


def _hook(row: Row) -> HookRow:
    *values, status = row
    return HookRow._make((*values, status in LIVE))


_HOOK = (
    sa.select(
        hooks.c.run_id, hooks.c.node_id, runs.c.workflow, hooks.c.name, hooks.c.metadata, hooks.c.created_at,
        hooks.c.expires_at, hooks.c.closed_at, runs.c.status,
    ).join(runs, runs.c.id == hooks.c.run_id)
)  # fmt: skip
_FIND_OPEN = Prepared(_HOOK.where(*_OF_TOKEN, hooks.c.closed_at.is_(None)))
_FIND_LAST = Prepared(_HOOK.where(*_OF_TOKEN).order_by(hooks.c.created_at.desc()).limit(1))
_HOOKS_OF_RUN = Prepared(
    _HOOK.where(hooks.c.run_id == sa.bindparam("b_run"), hooks.c.closed_at.is_(None)).order_by(
        hooks.c.created_at, hooks.c.node_id
    )
)


# -- payloads -------------------------------------------------------------------------------------------------


def add_payload(
    tx: Transaction, run: RunRow, key: HookKey, *, number: int, body: str, size: int, dedup_key: str | None,
    received_at: datetime,
) -> None:  # fmt: skip
    """Write a payload for a locked run."""
    large.keep(tx, run.run_id, [body], life=run.life)
    tx.execute(
        _ADD_PAYLOAD,
        {
            "run_id": run.run_id, "number": number, "namespace": key.namespace, "token_hash": key.token_hash,
            "body": body, "size": size, "dedup_key": dedup_key, "received_at": received_at, "life": run.life,
        },
    )  # fmt: skip


def was_accepted(tx: Transaction, run_id: RunId, key: HookKey, dedup_key: str) -> Asked[bool]:
    """Whether a run has accepted a sending under a token."""
    rows = tx.execute(_ACCEPTED, {"b_run": run_id, **_key(key), "b_dedup_key": dedup_key})
    return Asked(rows, lambda rows: bool(rows.all()))


def untaken(tx: Transaction, run_id: RunId) -> Asked[tuple[int, int]]:
    """How many payloads of a run nobody has taken, and their bytes."""

    def read(rows: Rows) -> tuple[int, int]:
        ((count, size),) = rows.all()
        return count, size

    return Asked(tx.execute(_UNTAKEN, {"b_run": run_id}), read)


def last_received(tx: Transaction, run_id: RunId) -> datetime | None:
    """When the last payload came of which the body has not been told."""
    ((at,),) = tx.execute(_LAST_RECEIVED, {"b_run": run_id}).all()
    return at if isinstance(at, datetime) else None


def load_untold(tx: Transaction, run_id: RunId) -> list[PayloadRow]:
    """Read the payloads of which the body has not been told, in the order in which they came."""
    return _payloads(tx, run_id, tx.execute(_UNTOLD, {"b_run": run_id}))


def load_told(tx: Transaction, run_id: RunId, life: int) -> list[PayloadRow]:
    """Read the payloads of which the body has been told in a life, in the order in which it was."""
    return _payloads(tx, run_id, tx.execute(_TOLD, {"b_run": run_id, "b_life": life}))


def deliver(tx: Transaction, run_id: RunId, numbers: Iterable[tuple[int, int]], *, at: datetime) -> None:
    """Note of payloads, by their numbers, as which events the body was told of them."""
    tx.execute_many(
        _DELIVER,
        [
            {"b_run": run_id, "b_number": number, "v_delivered": delivered, "v_at": at}
            for number, delivered in numbers
        ],
    )


def take(tx: Transaction, run_id: RunId, numbers: Iterable[int]) -> None:
    """Note that the body has taken payloads from their queues."""
    tx.execute_many(_TAKE, [{"b_run": run_id, "b_number": number} for number in numbers])


def _payloads(tx: Transaction, run_id: RunId, found: Rows) -> list[PayloadRow]:
    rows = [PayloadRow(number, Namespace(namespace), *rest) for number, namespace, *rest in found.all()]
    return [row._replace(body=large.whole(tx, run_id, row.body)) for row in rows]


_PAYLOAD = sa.select(*[hook_payloads.c[name] for name in PayloadRow._fields])
_UNTOLD = Prepared(
    _PAYLOAD.where(
        _OF_RUN,
        # What is taken was told; said for the index of the others.
        sa.not_(hook_payloads.c.is_taken),
        hook_payloads.c.delivered.is_(None),
    ).order_by(hook_payloads.c.number)
)
_TOLD = Prepared(
    _PAYLOAD.where(
        _OF_RUN, hook_payloads.c.delivered.is_not(None), hook_payloads.c.life == sa.bindparam("b_life")
    ).order_by(hook_payloads.c.delivered)
)
_ADD_PAYLOAD = Prepared(
    sa.insert(hook_payloads).values(
        {
            name: sa.bindparam(name)
            for name in (
                "run_id", "number", "namespace", "token_hash", "body", "size", "dedup_key", "received_at", "life",
            )
        }
    )
)  # fmt: skip
_ACCEPTED = Prepared(
    sa.select(hook_payloads.c.number).where(
        _OF_RUN,
        hook_payloads.c.namespace == sa.bindparam("b_namespace"),
        hook_payloads.c.token_hash == sa.bindparam("b_token"),
        hook_payloads.c.dedup_key == sa.bindparam("b_dedup_key"),
    )
)
_UNTAKEN = Prepared(
    sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(hook_payloads.c.size), 0)).where(
        _OF_RUN, sa.not_(hook_payloads.c.is_taken)
    )
)
_LAST_RECEIVED = Prepared(
    sa.select(sa.func.max(hook_payloads.c.received_at, type_=hook_payloads.c.received_at.type)).where(
        _OF_RUN, sa.not_(hook_payloads.c.is_taken), hook_payloads.c.delivered.is_(None)
    )
)
_NUMBER = (_OF_RUN, hook_payloads.c.number == sa.bindparam("b_number"))
_DELIVER = Prepared(
    sa.update(hook_payloads)
    .where(*_NUMBER)
    .values(delivered=sa.bindparam("v_delivered"), delivered_at=sa.bindparam("v_at"))
)
_TAKE = Prepared(sa.update(hook_payloads).where(*_NUMBER).values(is_taken=sa.true()))
