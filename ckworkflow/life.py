"""The life of a run and of a node: every change of state, and what causes it.

Tables and nothing else. The diagrams of `docs/internals.md` are drawn from them, and the tests hold the database to them: in the
differential tests no run and no node changes in a way that is not written here. A new state, or a new way from one state to
another, is written here first.

Not here: the statements that make the changes (`ckworkflow.store`), and when they are made (`ckworkflow.engine`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Generic, NamedTuple, TypeVar

from ckworkflow.model import NodeStatus, RunStatus

__all__ = [
    "CHILD_CHANGES",
    "CLOSE_CHANGES",
    "HOOK_CHANGES",
    "RUN_CHANGES",
    "SLEEP_CHANGES",
    "STEP_CHANGES",
    "Change",
    "diagram",
]

S = TypeVar("S", RunStatus, NodeStatus)


class Change(NamedTuple, Generic[S]):
    """One change of state.

    Attributes:
        before: The state before; `None`: there is no row yet.
        after: The state after; `None`: the row is deleted.
        cause: What makes the change, in a few words.
    """

    before: S | None
    after: S | None
    cause: str


RUN_CHANGES: Final = (
    Change(None, RunStatus.PENDING, "start"),
    Change(
        RunStatus.PENDING,
        RunStatus.RUNNING,
        "a step begins, the run sleeps, or a continuation is committed",
    ),
    Change(RunStatus.PENDING, RunStatus.COMPLETED, "the body returns before it awaits anything"),
    Change(RunStatus.PENDING, RunStatus.FAILED, "the body fails before anything has begun"),
    Change(
        RunStatus.RUNNING,
        RunStatus.COMPLETED,
        "the body has returned and all that it awaited is recorded",
    ),
    Change(RunStatus.RUNNING, RunStatus.FAILED, "the body raises, or cannot go on"),
    Change(
        RunStatus.PENDING, RunStatus.CANCELLED, "it is cancelled or terminated before anything has begun"
    ),
    Change(
        RunStatus.RUNNING,
        RunStatus.CANCELLED,
        "the body raises CancelledError, or the run is terminated",
    ),
    Change(RunStatus.COMPLETED, None, "retention"),
    Change(RunStatus.FAILED, None, "retention"),
    Change(RunStatus.CANCELLED, None, "retention"),
)
"""Of a run."""

STEP_CHANGES: Final = (
    Change(None, NodeStatus.PLANNED, "traced"),
    Change(None, NodeStatus.RUNNING, "traced, and claimed in the same transaction"),
    Change(NodeStatus.PLANNED, NodeStatus.RUNNING, "claim"),
    Change(NodeStatus.PLANNED, None, "no longer wanted, and never begun"),
    Change(NodeStatus.PLANNED, NodeStatus.ABANDONED, "no longer wanted, between two attempts"),
    Change(NodeStatus.RUNNING, NodeStatus.PLANNED, "retry, release, hold, lost worker, or given back"),
    Change(NodeStatus.RUNNING, NodeStatus.COMPLETED, "record of a result"),
    Change(
        NodeStatus.RUNNING,
        NodeStatus.FAILED,
        "record of a final failure, or of any end of a step that is to stop but a result",
    ),
    Change(NodeStatus.RUNNING, NodeStatus.ABANDONED, "no longer wanted, while it runs"),
    Change(NodeStatus.ABANDONED, NodeStatus.PLANNED, "wanted again, between two attempts"),
    Change(NodeStatus.ABANDONED, NodeStatus.RUNNING, "wanted again, while it runs"),
    Change(NodeStatus.ABANDONED, NodeStatus.COMPLETED, "wanted again, with a result"),
    Change(NodeStatus.ABANDONED, NodeStatus.FAILED, "wanted again, with a failure"),
)
"""Of a node that is a step. Not wanted: the body has let go of it, or the run has ended. Retention deletes nodes with their run;
those of a life that has ended for the next one are deleted afterwards, however they are."""

SLEEP_CHANGES: Final = (
    Change(None, NodeStatus.PLANNED, "traced"),
    Change(None, NodeStatus.RUNNING, "traced, and waits for nothing else"),
    Change(NodeStatus.PLANNED, NodeStatus.RUNNING, "everything before it is recorded"),
    Change(NodeStatus.PLANNED, NodeStatus.COMPLETED, "it may begin, and its time has passed"),
    Change(NodeStatus.PLANNED, None, "no longer wanted, and never begun"),
    Change(NodeStatus.RUNNING, NodeStatus.COMPLETED, "its time has come"),
    Change(NodeStatus.RUNNING, NodeStatus.ABANDONED, "no longer wanted"),
    Change(NodeStatus.RUNNING, None, "a timer that is no longer wanted"),
    Change(NodeStatus.ABANDONED, NodeStatus.RUNNING, "wanted again"),
)
"""Of a node that is a sleep."""

HOOK_CHANGES: Final = (
    Change(None, NodeStatus.COMPLETED, "made, with the commit of its continuation"),
    Change(None, NodeStatus.FAILED, "another hook has its token"),
)
"""Of a node that is a hook. Whether the hook is open is in its own row."""

CHILD_CHANGES: Final = (
    Change(None, NodeStatus.RUNNING, "the run is started, with the same commit"),
    Change(None, NodeStatus.ABANDONED, "the run is started, and the body has ended in the same breath"),
    Change(NodeStatus.RUNNING, NodeStatus.COMPLETED, "the run has completed, and said so"),
    Change(NodeStatus.RUNNING, NodeStatus.FAILED, "the run has failed or was cancelled, and said so"),
    Change(NodeStatus.RUNNING, NodeStatus.ABANDONED, "the body has ended before it"),
    Change(NodeStatus.ABANDONED, NodeStatus.RUNNING, "wanted again"),
    Change(NodeStatus.ABANDONED, NodeStatus.COMPLETED, "wanted again, and the run has completed"),
    Change(
        NodeStatus.ABANDONED, NodeStatus.FAILED, "wanted again, and the run has failed or was cancelled"
    ),
)
"""Of a node that is a run which the body has started. A request to cancel such a run is a node that is complete at once."""

CLOSE_CHANGES: Final = (
    Change(None, NodeStatus.PLANNED, "traced"),
    Change(NodeStatus.PLANNED, NodeStatus.COMPLETED, "the hook is closed, with the same commit"),
)
"""Of a node that is the close of a hook, which the body waits for."""


def diagram(changes: Iterable[Change[S]]) -> str:
    """Draw a table as a Mermaid state diagram.

    Args:
        changes: The table.

    Returns:
        The text of the diagram, without a fence around it.
    """
    lines = ["stateDiagram-v2"]
    for change in changes:
        before, after = (str(state) if state else "[*]" for state in (change.before, change.after))
        lines.append(f"    {before} --> {after}: {change.cause}")
    return "\n".join(lines)
