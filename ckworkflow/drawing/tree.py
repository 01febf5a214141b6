"""The shape of a trace as a tree: what comes in order, what runs side by side, where it stops.

A node's id says which asyncio task of the body called it (`0.2:1`: the second member of the root's
gather), so the tree is that of the body, whatever the graph of the plan has made of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckworkflow.tracing import Wait

if TYPE_CHECKING:
    from ckworkflow.model import NodeId
    from ckworkflow.tracing import Trace, TracedNode

__all__ = ["Branch", "Fork", "arrange"]

_BEHIND = 1_000_000
"""Added to the number of a task that a callback of the loop has made: behind those of the body."""


@dataclass(slots=True)
class Branch:
    """What one task of the body awaits, in order; a `Wait` can only be the last of it."""

    items: list[TracedNode | Fork | Wait] = field(default_factory=list)


@dataclass(slots=True)
class Fork:
    """Branches that begin at the same time, after the same nodes.

    Attributes:
        after: Those nodes.
        members: The branches by their number among the children of the task that waits for them.
    """

    after: frozenset[NodeId]
    members: dict[int, Branch] = field(default_factory=dict)

    @property
    def branches(self) -> list[Branch]:
        """The branches in the order of the body; a trace meets single steps before workflows."""
        return [self.members[number] for number in sorted(self.members)]


def arrange(trace: Trace) -> Branch:
    """Return the tree of a first segment."""
    branches = {"0": Branch()}

    def branch(path: str, after: frozenset[NodeId]) -> Branch:
        found = branches.get(path)
        if found is not None:
            return found
        if path == "~":  # callbacks of the loop, in no task
            branches[path] = branches["0"]
            return branches[path]
        parent, _, number = path.rpartition(".")
        items = branch(parent, after).items
        last = items[-1] if items else None
        # Members of one gather begin after the same nodes; those of the next one begin after these.
        if not isinstance(last, Fork) or last.after != after:
            last = Fork(after)
            items.append(last)
        branches[path] = made = Branch()
        last.members[int(number) + (_BEHIND if parent == "~" else 0)] = made
        return made

    for node in trace.nodes:
        branch(node.node_id.rpartition(":")[0], node.after).items.append(node)
    for wait in _innermost_first(trace.waits):
        if not wait.is_of_timer:
            branch(wait.path, wait.nodes).items.append(wait)
    for wait in trace.waits:
        if wait.is_of_timer:  # told where its task says nothing else, as one in asyncio.sleep()
            items = branch(wait.path.rpartition(":")[0], wait.nodes).items
            if not isinstance(items[-1], Wait):
                items.append(wait)
    return branches["0"]


def _innermost_first(waits: Iterable[Wait]) -> list[Wait]:
    """Order waits so that no branch is opened behind a wait of its parent."""
    return sorted(waits, key=lambda wait: -wait.path.count("."))
