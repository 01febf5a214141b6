"""The tasks of a body: where each is in it, and what each waits for."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from ckworkflow.model import NodeId
    from ckworkflow.tracing.tracer import Tracer

AnyCoroutine: TypeAlias = Coroutine[Any, Any, object]
"""What a task of the body runs; what it yields is between it and asyncio."""


class TaskState:
    """The place of an asyncio task in the body.

    Attributes:
        path: `0` for the root of the first life, `0.2` for its second child; `~` for what callbacks of the loop do, in no task. Of
            a later life: `1`, `1.2`, `1~`.
        frontier: The nodes that this task awaited last: what comes next may begin after them.
        inlined: How many workflows the task is inside of, called one by the other.
        ahead: Awaits that this task has passed since all it awaited was recorded; a `gather` is one.
        is_stepwise: Whether it never runs ahead: it, or a task around it, may be cancelled by others than the body's end.
    """

    __slots__ = (
        "_children",
        "_ordinal",
        "_randoms",
        "ahead",
        "frontier",
        "inlined",
        "is_stepwise",
        "path",
    )

    def __init__(self, path: str, frontier: Iterable[NodeId] = (), *, is_stepwise: bool = False) -> None:
        self.path, self.is_stepwise = path, is_stepwise
        self.frontier: set[NodeId] = set(frontier)
        self._children = self._ordinal = self._randoms = self.ahead = self.inlined = 0

    @property
    def is_root(self) -> bool:
        """Whether this is the task of the body itself."""
        return self.path.isdecimal()

    def next_node(self) -> NodeId:
        """Return the identity of the task's next node."""
        self._ordinal += 1
        return f"{self.path}:{self._ordinal}"  # type: ignore[return-value]  # where NodeIds are made

    def next_child(self) -> TaskState:
        """Return the state of the task's next child."""
        self._children += 1
        return TaskState(f"{self.path}.{self._children}", self.frontier, is_stepwise=self.is_stepwise)

    def next_random(self) -> str:
        """Return the place of the task's next random value."""
        self._randoms += 1
        return f"{self.path}/{self._randoms}"


class Waiter:
    """Something that goes on when the last of some nodes is delivered."""

    def __init__(self, tracer: Tracer, path: str, line: int, reason: str) -> None:
        self.path, self.line, self.reason = path, line, reason
        self.nodes: set[NodeId] = set()
        self._tracer = tracer

    def add(self, node_id: NodeId, callback: Callable[[], None]) -> None:
        """Call back when the node is delivered."""

        def delivered() -> None:
            self.nodes.discard(node_id)
            callback()

        self.nodes.add(node_id)
        self._tracer.waiters[id(self)] = self
        self._tracer.on_delivery.setdefault(node_id, []).append(delivered)

    def close(self) -> None:
        """Wait no longer."""
        self._tracer.waiters.pop(id(self), None)
