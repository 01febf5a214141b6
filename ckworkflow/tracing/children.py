"""Children: runs that a body starts, waits for, and may ask to end.

A child is one node, which the commit of the continuation begins together with the child's run, and which ends when that has been told
that the child has. So the body goes on at once, and the end of the child is an event whether anybody waits for it or not.

Not here: the child's run (`ckworkflow.engine.children`), and what is told to whom (`ckworkflow.engine.notes`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from ckworkflow.errors import ReturnValueTimeoutError
from ckworkflow.model import NodeId, NodeKind, RunId, child_id
from ckworkflow.tracing.calls import MethodCall, NodeCall, NodeResult
from ckworkflow.tracing.nodes import CancelledChild
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
        self._started: list[TracedNode] = []
        self._cancelled: list[CancelledChild] = []
        self._orphans: set[NodeId] = set()

    def begin(self) -> None:
        """Forget the changes: they are committed, or this body would have been closed."""
        self._started.clear()
        self._cancelled.clear()
        self._orphans.clear()

    @property
    def started(self) -> tuple[TracedNode, ...]:
        """The children that were started since `begin`."""
        return tuple(self._started)

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
        live = self.tracer.live.values()
        self._orphans.update(node.node_id for node in live if node.kind is NodeKind.CHILD)

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
        if is_new:
            self._started.append(node)
        return Child(self, node)


class Child:
    """A run that the body has started."""

    def __init__(self, children: Children, node: TracedNode) -> None:
        self._children, self._node = children, node

    @property
    def run_id(self) -> RunId:
        """The id of the run."""
        return child_id(self._children.tracer.run_id, self._node.node_id)

    def return_value(self, timeout: float | None, *, frame: FrameType) -> Coroutine[None, None, Any]:
        """Wait until it has ended, and return its result or raise its error."""
        line = line_of(frame)
        if timeout is None:
            result = NodeResult(self._children.tracer, self._node, "return_value", line)
            return cast("Coroutine[None, None, Any]", result.made_by(frame))
        return self._call(lambda: self._return_value(timeout, line), "return_value", line, frame)

    def cancel(
        self, reason: str | None, grace: timedelta | None, *, frame: FrameType
    ) -> Coroutine[None, None, bool]:
        """Ask it to end, with the commit of the continuation; return whether the body has not been told of its end."""
        line = line_of(frame)
        return self._call(lambda: self._cancel(reason, grace, line), "cancel", line, frame)

    def _call(
        self, make: Callable[[], object], what: str, line: int, frame: FrameType
    ) -> Coroutine[None, None, Any]:
        call = MethodCall(self._children.tracer, make, what, line).made_by(frame)
        return cast("Coroutine[None, None, Any]", call)

    async def _return_value(self, seconds: float, line: int) -> object:
        tracer, node = self._children.tracer, self._node
        try:
            async with asyncio.timeout(seconds):
                await tracer.wait_for({node.node_id}, line, f"the end of {node.name} is awaited")
        except TimeoutError:
            raise ReturnValueTimeoutError(self.run_id, seconds, is_worker_alive=True) from None
        return tracer.value_of(node)

    async def _cancel(self, reason: str | None, grace: timedelta | None, line: int) -> bool:
        node, tracer = self._node, self._children.tracer
        args: dict[str, Json] = {
            "child": node.node_id, "reason": reason, "grace": None if grace is None else grace.total_seconds()
        }  # fmt: skip
        place = tracer.place().next_node()
        self._children.note_cancelled(
            CancelledChild(place, node.node_id, node.name, args, line, reason, grace)
        )
        return node.outcome is None
