"""Children: runs that a body starts, waits for, and may ask to end.

A child is one node, which the commit of the continuation begins together with the child's run, and which ends when that has been told
that the child has. So the body goes on at once, and the end of the child is an event whether anybody waits for it or not.

The next life of a run has no such node. It has the handle, if the life before has given it one, and the first wait for the child makes a node of
its own, which ends like the other.

Not here: the child's run (`ckworkflow.engine.children`), and what is told to whom (`ckworkflow.engine.notes`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from ckworkflow.errors import ReturnValueTimeoutError
from ckworkflow.model import NodeId, NodeKind, RunId, child_id, life_of, waits_for_child
from ckworkflow.tracing.calls import MethodCall, NodeCall, NodeResult
from ckworkflow.tracing.nodes import AwaitedChild, CancelledChild
from ckworkflow.tracing.places import line_of

if TYPE_CHECKING:
    from types import FrameType

    from ckworkflow.model import Json
    from ckworkflow.tracing.nodes import TracedNode
    from ckworkflow.tracing.tracer import Tracer

__all__ = ["Child", "Children"]


class Children:
    """The children of one body."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self._nodes: dict[NodeId, TracedNode] = {}
        """By the place where each was started."""
        self._started: list[TracedNode] = []
        self._awaited: list[AwaitedChild] = []
        self._cancelled: list[CancelledChild] = []
        self._orphans: set[NodeId] = set()

    def begin(self) -> None:
        """Forget the changes: they are committed, or this body would have been closed."""
        self._started.clear()
        self._awaited.clear()
        self._cancelled.clear()
        self._orphans.clear()

    @property
    def started(self) -> tuple[TracedNode, ...]:
        """The children that were started since `begin`."""
        return tuple(self._started)

    @property
    def awaited(self) -> tuple[AwaitedChild, ...]:
        """The children of lives before that the body has begun to wait for since `begin`."""
        return tuple(self._awaited)

    @property
    def cancelled(self) -> tuple[CancelledChild, ...]:
        """The children that were asked to end since `begin`."""
        return tuple(self._cancelled)

    @property
    def orphans(self) -> frozenset[NodeId]:
        """Those that had not ended when the body was told, since `begin`, that it is to be cancelled."""
        return frozenset(self._orphans)

    def note_request(self) -> None:
        """Note that the body is being told that it is to be cancelled."""
        live = self.tracer.live
        self._orphans.update(place for place, node in self._nodes.items() if node.node_id in live)

    def note_cancelled(self, cancelled: CancelledChild) -> None:
        """Note that a child was asked to end, unless the database knows of it."""
        tracer = self.tracer
        if tracer.meet(cancelled.node_id, NodeKind.CANCEL, cancelled.name, cancelled.args) is None:
            self._cancelled.append(cancelled)

    async def start(self, workflow: str, args: Json, *, frame: FrameType | None) -> Child:
        """Start a run of a workflow, when all that was awaited before is recorded.

        Args:
            workflow: Its registered name.
            args: Its arguments, encoded.
            frame: The body, for the line that is shown.
        """
        tracer, line = self.tracer, line_of(frame)
        await tracer.fence(line, "a run is started")
        call = NodeCall(tracer, NodeKind.CHILD, workflow, args, line)
        call.use()
        place = tracer.place().next_node()
        is_new = not tracer.knows(place)
        node = tracer.add_node(call, place, after=())
        self._nodes[place] = node
        if is_new:
            self._started.append(node)
        return Child(self, place, workflow)

    def call(
        self, make: Callable[[], object], what: str, frame: FrameType
    ) -> Coroutine[None, None, Any]:
        """What a function gives back in the body that must be awaited there."""
        call = MethodCall(self.tracer, make, what, line_of(frame)).made_by(frame)
        return cast("Coroutine[None, None, Any]", call)

    def find(self, run_id: RunId, place: NodeId, workflow: str) -> Child | None:
        """Return the run with this id, which was started at a place; `None` if this run has not started it."""
        tracer = self.tracer
        is_own = child_id(tracer.run_id, place) == run_id
        is_there = place in self._nodes or life_of(place) < tracer.life
        return Child(self, place, workflow) if is_own and is_there else None

    def node_of(self, child: Child, line: int) -> TracedNode:
        """Return the node that ends with a child, which the first wait in a life makes if there is none."""
        found = self._nodes.get(child.place)
        if found is not None:
            return found
        tracer = self.tracer
        call = NodeCall(tracer, NodeKind.CHILD, child.workflow, waits_for_child(child.place), line)
        call.use()
        place = tracer.place().next_node()
        if not tracer.knows(place):
            self._awaited.append(AwaitedChild(place, child.place))
        node = self._nodes[child.place] = tracer.add_node(call, place, after=())
        return node

    def was_told(self, child: Child) -> bool:
        """Whether the body has been told, in this life, that a child has ended."""
        node = self._nodes.get(child.place)
        return node is not None and node.outcome is not None


class Child:
    """A run that this run has started.

    Args:
        children: Those of the body.
        place: Where it was started.
        workflow: The registered name of its workflow.
    """

    def __init__(self, children: Children, place: NodeId, workflow: str) -> None:
        self._children, self.place, self.workflow = children, place, workflow

    @property
    def run_id(self) -> RunId:
        """The id of the run."""
        return child_id(self._children.tracer.run_id, self.place)

    def return_value(self, timeout: float | None, *, frame: FrameType) -> Coroutine[None, None, Any]:
        """Wait until it has ended, and return its result or raise its error."""
        line = line_of(frame)
        if timeout is None:
            node = self._children.node_of(self, line)
            result = NodeResult(self._children.tracer, node, "return_value", line)
            return cast("Coroutine[None, None, Any]", result.made_by(frame))
        return self._children.call(lambda: self._return_value(timeout, line), "return_value", frame)

    def cancel(
        self, reason: str | None, grace: timedelta | None, *, frame: FrameType
    ) -> Coroutine[None, None, bool]:
        """Ask it to end, with the commit of the continuation; return whether the body has not been told of its end."""
        line = line_of(frame)
        return self._children.call(lambda: self._cancel(reason, grace, line), "cancel", frame)

    async def _return_value(self, seconds: float, line: int) -> object:
        tracer, node = self._children.tracer, self._children.node_of(self, line)
        try:
            async with asyncio.timeout(seconds):
                await tracer.wait_for({node.node_id}, line, f"the end of {node.name} is awaited")
        except TimeoutError:
            raise ReturnValueTimeoutError(self.run_id, seconds, is_worker_alive=True) from None
        return tracer.value_of(node)

    async def _cancel(self, reason: str | None, grace: timedelta | None, line: int) -> bool:
        tracer = self._children.tracer
        args: dict[str, Json] = {
            "child": self.place, "reason": reason, "grace": None if grace is None else grace.total_seconds()
        }  # fmt: skip
        place = tracer.place().next_node()
        self._children.note_cancelled(
            CancelledChild(place, self.place, self.workflow, args, line, reason, grace)
        )
        return not self._children.was_told(self)
