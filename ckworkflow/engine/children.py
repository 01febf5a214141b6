"""Children: writing the runs that a body has started, and what it has asked of them, with the commit of its continuation.

A child is inserted as a run that nothing is known of yet: its own first continuation begins its body. So no transaction does the
work of two runs.

Not here: what is told to whom afterwards (`ckworkflow.engine.notes`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckworkflow import codec
from ckworkflow.definition import registry
from ckworkflow.model import NodeId, NodeKind, RunStatus, child_id
from ckworkflow.store import nodes, notes, plans, runs
from ckworkflow.store.notes import Note, NoteKind
from ckworkflow.store.runs import RunRow

if TYPE_CHECKING:
    from collections.abc import Collection, Container
    from datetime import datetime

    from ckworkflow.model import RunId
    from ckworkflow.store.transaction import Transaction
    from ckworkflow.tracing import Trace

__all__ = ["leave_notes", "leave_to_children", "new_run", "write_children"]


def write_children(
    tx: Transaction, run: RunRow, trace: Trace, *, told: int, planned: Container[NodeId] = ()
) -> tuple[RunId, ...]:
    """Insert the runs that a body has started, and return their ids.

    Args:
        tx: A transaction that has locked the run.
        run: The run.
        trace: What its body came to.
        told: How many events the body has got.
        planned: The nodes of the plan that is written: of a child that is not there, the body has let go.
    """
    for index, node in enumerate(trace.started):
        child = new_run(child_id(run.run_id, node.node_id), node.name, run.now)
        runs.insert_run(
            tx, child._replace(parent=run.run_id), input_=codec.pack(node.args), wake_at=run.now, signals=1,
            parent_node=node.node_id,
        )  # fmt: skip
        if node.node_id not in planned:
            position = plans.first_position(run.epoch, told) - len(trace.started) + index
            plans.insert_let_go(tx, run, node, position=position)
    return tuple(child_id(run.run_id, node.node_id) for node in trace.started)


def new_run(run_id: RunId, workflow: str, now: datetime) -> RunRow:
    """A run of which nothing is known yet: its first continuation begins its body."""
    return RunRow(
        run_id=run_id, status=RunStatus.PENDING, workflow=workflow,
        source_hash=registry.require_workflow(workflow).source_hash, plan=None, wake_at=now, signals=0, seen=0,
        delivered=0, dispatches=0, epoch=1, created_at=now, started_at=None, spins=0, spins_since=None, held=None,
        told_at=None, last_surprise=None, cancel_requested_at=None, cancel_delivered=None, terminate_at=None,
        untold_payloads=None, parent=None, has_notes=False, life=0, now=now,
    )  # fmt: skip


def leave_to_children(tx: Transaction, run: RunRow, reason: str | None) -> RunRow:
    """Ask all children to end that have not, since a run ends that was cancelled; return the run with that.

    Args:
        tx: A transaction that has locked the run.
        run: The run.
        reason: Why; `None`: as its request says.
    """
    children = notes.live_children(tx, run.run_id)
    if not children:
        return run
    if reason is None and (request := runs.read_request(tx, run.run_id)) is not None:
        reason = request.reason
    notes.leave(tx, run, [Note(NoteKind.CANCEL, child, reason=reason) for child in children])
    return run._replace(has_notes=True)


def leave_notes(
    tx: Transaction,
    run: RunRow,
    trace: Trace,
    *,
    told: int,
    orphans: Collection[NodeId],
) -> bool:
    """Write what a body has to tell its children; return whether there is anything.

    Args:
        tx: A transaction that has locked the run.
        run: The run.
        trace: What the body came to.
        told: How many events the body has got.
        orphans: The children that are to be cancelled with it.
    """
    request = runs.read_request(tx, run.run_id) if orphans else None
    reason = None if request is None else request.reason
    left = [
        Note(NoteKind.CANCEL, child_id(run.run_id, node_id), reason=reason)
        for node_id in sorted(orphans)
    ]
    for index, each in enumerate(trace.cancelled):
        left.append(
            Note(
                NoteKind.CANCEL, child_id(run.run_id, each.child), each.node_id, each.reason, each.grace
            )
        )
        nodes.insert_done(
            tx, run, each.node_id, kind=NodeKind.CANCEL, name=each.name, args=codec.pack(each.args), line=each.line,
            position=plans.first_position(run.epoch, told) - len(trace.cancelled) + index,
        )  # fmt: skip
    left += [
        Note(NoteKind.AWAIT, child_id(run.run_id, each.child), each.node_id) for each in trace.awaited
    ]
    notes.leave(tx, run, left)
    return bool(left)
