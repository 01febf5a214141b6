"""Notes: what a run has to tell another one, as rows of its own.

No transaction changes two runs that exist. So a run that ends, or is to be cancelled, leaves notes in its own transaction; each is delivered
in a transaction of the receiver alone, and crossed out in one of the sender. To deliver a note twice does nothing.

Not here: what a note does to its receiver (`ckworkflow.engine.notes`).
"""

from __future__ import annotations

import enum
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from ckworkflow.model import AWAITS_CHILD, NodeId, NodeKind, RunId, child_id, life_of
from ckworkflow.store.runs import update_run
from ckworkflow.store.tables import nodes, notes, runs
from ckworkflow.store.transaction import Prepared

if TYPE_CHECKING:
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction

__all__ = [
    "AWAITS",
    "Note",
    "NoteKind",
    "cross_out",
    "leave",
    "live_children",
    "live_of_earlier",
    "notes_of",
    "parent_node",
]


class NoteKind(enum.StrEnum):
    """What a note says: the sender has ended; the receiver is to be cancelled; or, the sender is to be told if the receiver has ended."""

    ENDED = "ended"
    CANCEL = "cancel"
    AWAIT = "await"


class Note(NamedTuple):
    """What a run has to tell another one.

    Attributes:
        kind: What it says.
        receiver: Whom.
        node_id: Of an end: where the parent has started the child. Of a question for it: the node of the sender that waits. Of a request: where
            the body of the sender makes it; empty: the sender is cancelled itself.
        reason: Of a request to cancel: why.
        grace: Of a request to cancel: when the receiver is terminated, from then on.
    """

    kind: NoteKind
    receiver: RunId
    node_id: NodeId = NodeId("")
    reason: str | None = None
    grace: timedelta | None = None


def leave(tx: Transaction, run: RunRow, left: list[Note]) -> None:
    """Write notes of a locked run; one that is there already stays as it is."""
    for note in left:
        tx.execute(
            _LEAVE,
            {
                "sender": run.run_id, "kind": note.kind, "receiver": note.receiver, "node_id": note.node_id,
                "reason": note.reason, "created_at": run.now,
                "grace": None if note.grace is None else note.grace // _MICROSECOND,
            },
        )  # fmt: skip


def notes_of(tx: Transaction, run_id: RunId) -> list[Note]:
    """Read what a run has to tell."""
    return [
        Note(
            NoteKind(kind),
            receiver,
            node_id,
            reason,
            None if grace is None else grace * _MICROSECOND,
        )
        for kind, receiver, node_id, reason, grace in tx.execute(_NOTES, {"b_run": run_id})
    ]


def cross_out(tx: Transaction, run: RunRow, note: Note) -> None:
    """Delete a note of a locked run, which was delivered; with the last one, an ended run rests for good."""
    tx.execute(
        _CROSS_OUT,
        {
            "b_run": run.run_id, "b_kind": note.kind, "b_receiver": note.receiver, "b_node": note.node_id,
        },
    )  # fmt: skip
    if not notes_of(tx, run.run_id):
        values: dict[str, object] = {"wake_at": None} if run.status.is_final else {}
        update_run(tx, run.run_id, has_notes=False, **values)


def parent_node(tx: Transaction, run_id: RunId) -> NodeId:
    """Return the node of its parent that waits for the end of a run."""
    ((node_id,),) = tx.execute(_PARENT_NODE, {"b_run": run_id}).all()
    return NodeId(node_id)


def live_children(tx: Transaction, run_id: RunId) -> list[RunId]:
    """The runs that a run has started and of whose end it has not been told."""
    return [child_id(run_id, NodeId(row[0])) for row in tx.execute(_LIVE_CHILDREN, {"b_run": run_id})]


def live_of_earlier(tx: Transaction, run_id: RunId, life: int) -> frozenset[NodeId]:
    """The nodes of runs that a run has started in lives before, and of whose end it has not been told."""
    if not life:
        return frozenset()
    found = tx.execute(_LIVE_CHILDREN, {"b_run": run_id})
    return frozenset(NodeId(row[0]) for row in found if life_of(row[0]) < life)


AWAITS: Final = f"{AWAITS_CHILD}%"
"""The arguments of a node that only waits for a child, which a life before has started."""
_MICROSECOND = timedelta(microseconds=1)
_LEAVE = Prepared(
    postgresql.insert(notes)  # which SQLite writes alike
    .values({column.name: sa.bindparam(column.name) for column in notes.columns})
    .on_conflict_do_nothing()
)
_NOTES = Prepared(
    sa.select(notes.c.kind, notes.c.receiver, notes.c.node_id, notes.c.reason, notes.c.grace)
    .where(notes.c.sender == sa.bindparam("b_run"))
    # Of several requests to one receiver: as they were made.
    .order_by(notes.c.created_at, sa.func.length(notes.c.node_id), notes.c.node_id, notes.c.receiver)
)
_CROSS_OUT = Prepared(
    sa.delete(notes).where(
        notes.c.sender == sa.bindparam("b_run"),
        notes.c.kind == sa.bindparam("b_kind"),
        notes.c.receiver == sa.bindparam("b_receiver"),
        notes.c.node_id == sa.bindparam("b_node"),
    )
)
_PARENT_NODE = Prepared(sa.select(runs.c.parent_node).where(runs.c.id == sa.bindparam("b_run")))
_LIVE_CHILDREN = Prepared(
    sa.select(nodes.c.node_id)
    .where(
        nodes.c.run_id == sa.bindparam("b_run"),
        nodes.c.kind == NodeKind.CHILD,
        nodes.c.finished_at.is_(None),
        nodes.c.args.not_like(AWAITS),
    )
    .order_by(nodes.c.position)
)
