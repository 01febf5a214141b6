"""The reference of children and lives: a future for the end of each run that a body starts, and what a body returns to live on.

A run that is started is another run, with an oracle of its own; here it is only an end that is told at some time. What it ended with is
told by whoever runs the oracle (`Facts.ends`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from types import FrameType
from typing import Any, NamedTuple, Protocol

from ckworkflow import codec
from ckworkflow.engine import failures
from ckworkflow.errors import ContinueAsNewError, ReturnValueTimeoutError
from ckworkflow.model import NodeId, RunId, child_id, life_of
from ckworkflow.tracing.lives import NextLife, as_next_life
from ckworkflow.tracing.tasks import TaskState
from differential.simulator import canonical


class ChildEnd(NamedTuple):
    """How a run has ended that a body has started.

    Attributes:
        output: Its result, encoded, as text; meaningless with an error.
        error: The error that its `return_value()` raises, as stored; `None`: it has a result.
    """

    output: str | None
    error: str | None


class Request(NamedTuple):
    """A body has asked a run to end that it has started."""

    child: str
    reason: str | None
    grace: timedelta | None


class World(Protocol):
    """What children need of the body."""

    run_id: str
    life: int

    def place(self) -> TaskState:
        """Where the body is."""
        ...

    def kept(self, coro: Any) -> Any:
        """Close a coroutine in the end."""
        ...

    def set_child(self, node_id: str, workflow: str, args: str) -> None:
        """Let the end of a run be something that happens."""
        ...

    def fail(self, why: str) -> None:
        """Note that the engine did what it may not."""
        ...


class PlainChildren:
    """The runs that one body has started, under plain asyncio."""

    def __init__(self, world: World, ends: Mapping[str, ChildEnd]) -> None:
        self.world, self.ends = world, ends
        self.made: dict[str, PlainChild] = {}
        self.earlier: dict[str, PlainChild] = {}
        """Those that a life before has started, by the place of that."""
        self.awaited: dict[str, PlainChild] = {}
        """Of these, those for which the body waits, by the node of the wait."""
        self.asked: dict[str, Request] = {}
        self.orphans: set[str] = set()

    async def start(self, workflow: str, args: Any, *, frame: FrameType | None) -> PlainChild:
        child = PlainChild(self, self.world.place().next_node(), workflow, is_awaited=True)
        self.made[child.place] = child
        self.world.set_child(child.place, workflow, canonical(args))
        return child

    def wait_for(self, child: PlainChild) -> None:
        """Have the end of a run told in this life, too, which a life before has started."""
        if not child.is_awaited:
            child.is_awaited = True
            node_id = self.world.place().next_node()
            self.awaited[node_id] = child
            self.world.set_child(node_id, child.workflow, canonical({"child": child.place}))

    def call(
        self, make: Callable[[], Coroutine[Any, Any, Any]], what: str, frame: FrameType
    ) -> Coroutine[Any, Any, Any]:
        return self.world.kept(make())  # type: ignore[no-any-return]

    def find(self, run_id: RunId, place: NodeId, workflow: str) -> PlainChild | None:
        found = self.made.get(place)
        if found is None and life_of(place) < self.world.life:
            found = self.earlier.setdefault(place, PlainChild(self, place, workflow))
        return found if found is not None and found.run_id == run_id else None

    def note_request(self) -> None:
        """The body is told that it is to be cancelled."""
        self.orphans |= {place for place, child in self.made.items() if child.end is None}

    def tell(self, node_id: str) -> ChildEnd | None:
        """A run has ended; return how."""
        child = self.made.get(node_id) or self.awaited[node_id]
        end = self.ends.get(child.place)
        if end is None:
            self.world.fail(f"the engine tells of the end of {child.place}, which has not ended")
        else:
            child.tell(end)
        return end


class PlainChild:
    """A run that a body has started, in this life or in one before."""

    def __init__(
        self, children: PlainChildren, place: str, workflow: str, *, is_awaited: bool = False
    ) -> None:
        self.place, self.workflow, self.is_awaited = NodeId(place), workflow, is_awaited
        self.end: ChildEnd | None = None
        self._error: BaseException | None = None
        self._children = children
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def run_id(self) -> RunId:
        return child_id(RunId(self._children.world.run_id), self.place)

    def tell(self, end: ChildEnd) -> None:
        """It has ended."""
        self.end = end
        self._error = None if end.error is None else failures.loads(end.error)
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def _ended(self) -> None:
        if self.end is not None:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await future
        finally:
            self._waiting.remove(future)

    def _value(self) -> Any:
        assert self.end is not None
        if self._error is not None:
            raise self._error
        return codec.decode(codec.loads(self.end.output or "null"))

    def return_value(self, timeout: float | None, *, frame: FrameType) -> Coroutine[Any, Any, Any]:
        if timeout is None:
            self._children.wait_for(self)
        return self._children.world.kept(self._return_value(timeout))  # type: ignore[no-any-return]

    async def _return_value(self, seconds: float | None) -> Any:
        self._children.wait_for(self)
        if seconds is None:
            await self._ended()
            return self._value()
        try:
            async with asyncio.timeout(seconds):
                await self._ended()
        except TimeoutError:
            raise ReturnValueTimeoutError(self.run_id, seconds, is_worker_alive=True) from None
        return self._value()

    def cancel(
        self, reason: str | None, grace: timedelta | None, *, frame: FrameType
    ) -> Coroutine[Any, Any, bool]:
        return self._children.world.kept(self._cancel(reason, grace))  # type: ignore[no-any-return]

    async def _cancel(self, reason: str | None, grace: timedelta | None) -> bool:
        children = self._children
        children.asked[children.world.place().next_node()] = Request(self.place, reason, grace)
        return self.end is None


class PlainLives:
    """What a body says of its next life."""

    def __init__(self) -> None:
        self._made: list[NextLife] = []

    def make(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], state: TaskState, line: int
    ) -> NextLife:
        if not state.is_root or state.inlined:
            raise ContinueAsNewError(line)
        made = NextLife(
            {
                "args": [codec.encode(arg, path=f"args[{index}]") for index, arg in enumerate(args)],
                "kwargs": codec.encode(dict(kwargs), path="kwargs"),
            },
            line,
        )
        self._made.append(made)
        return made

    def forget(self) -> None:
        """Something comes that may take the place of what the body was about to return."""
        self._made.clear()

    def outcome(self, result: Any) -> dict[str, Any]:
        """How a body has ended that has returned something."""
        found = as_next_life(result)
        if found is not None:
            return {"next": found.args}
        if self._made:
            return {"error": ContinueAsNewError(self._made[0].line)}
        return {"result": result}


async def inlined(body: Callable[[], Coroutine[Any, Any, Any]], state: TaskState) -> Any:
    """Run a workflow in the body of another."""
    state.inlined += 1
    try:
        return await body()
    finally:
        state.inlined -= 1
