"""What a step, a sleep, an inlined workflow or a `gather` gives back when a body calls it.

Each is an awaitable. Awaited plainly it is *strict*: it waits until what it stands for is recorded and
gives real values. Awaited through `lazy()` it records what it must and gives deferred values at once.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any

from ckworkflow.tracing.deferred import Deferred

if TYPE_CHECKING:
    from ckworkflow.model import Json, NodeId, NodeKind
    from ckworkflow.tracing.nodes import TracedNode
    from ckworkflow.tracing.tracer import TaskState, Tracer


class Call(Coroutine[Any, Any, Any]):
    """A coroutine of the body; see the module. So whatever takes a coroutine takes it: `create_task`, a `TaskGroup`."""

    __slots__ = ("_coroutine", "_is_used", "_number", "line", "tracer")

    def __init__(self, tracer: Tracer, line: int) -> None:
        self.tracer, self.line, self._is_used = tracer, line, False
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._number = tracer.next_call()

    def __await__(self) -> Generator[Any, None, Any]:
        return self.strict().__await__()

    def __hash__(self) -> int:
        # By its number in the body, not by its address: a set of calls (`asyncio.as_completed`) has one order.
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other

    def send(self, value: Any, /) -> Any:
        """As of a coroutine."""
        return self._begun().send(value)

    def throw(self, *error: Any) -> Any:
        """As of a coroutine."""
        return self._begun().throw(*error)

    def close(self) -> None:
        """As of a coroutine: one that was never awaited records nothing."""
        if self._coroutine is None:
            self._is_used = True
        else:
            self._coroutine.close()

    def _begun(self) -> Coroutine[Any, Any, Any]:
        if self._coroutine is None:
            self._coroutine = self.strict()
        return self._coroutine

    async def lazily(self) -> Any:
        """Record, and return deferred values without waiting."""
        raise NotImplementedError

    async def strict(self) -> Any:
        """Record, wait until all of it is recorded, and return real values."""
        value = await self.in_order()
        await self.tracer.fence(self.line, self.reason)
        return self.tracer.resolve(value)

    async def in_order(self) -> Any:
        """As `lazily`; an error comes when all that was awaited before it is recorded."""
        try:
            return await self.lazily()
        except Exception:
            await self.tracer.fence(self.line, "an error comes after what was awaited before it")
            raise

    @property
    def reason(self) -> str:
        """Why a trace stops at a strict await of this call, in words."""
        return "its result is looked at"

    def use(self) -> None:
        """Mark as awaited; like a coroutine, a call can be awaited once."""
        if self._is_used:
            msg = "cannot reuse already awaited step, sleep or workflow call"
            raise RuntimeError(msg)
        self._is_used = True


class NodeCall(Call):
    """A call that is one node: a step or a sleep."""

    __slots__ = ("args", "kind", "name")

    def __init__(self, tracer: Tracer, kind: NodeKind, name: str, args: Json, line: int) -> None:
        super().__init__(tracer, line)
        self.kind, self.name, self.args = kind, name, args

    def record(self) -> TracedNode:
        """Add the node at the running task's next ordinal."""
        self.use()
        return self.tracer.add_node(self, self.tracer.state().next_node())

    async def lazily(self) -> Any:
        """Pass the node, unless its outcome is at hand: then it is delivered in its turn."""
        node = self.record()
        await self.tracer.pass_node(node)
        return Deferred(node)

    async def strict(self) -> Any:
        """Wait for the node and return its result or raise its error."""
        node = self.record()
        await self.tracer.wait_for(frozenset({node.node_id}), self.line, self.reason)
        return node.value()

    @property
    def reason(self) -> str:
        """Why a trace stops here."""
        return f"the result of {self.name.rpartition('.')[2]} is looked at"


class WorkflowCall(Call):
    """A workflow called in a body: its steps join the same run and the same task."""

    __slots__ = ("body", "name")

    def __init__(
        self, tracer: Tracer, body: Callable[[], Coroutine[Any, Any, Any]], name: str, line: int
    ) -> None:
        super().__init__(tracer, line)
        self.body, self.name = body, name

    async def lazily(self) -> Any:
        """Run the inlined body; its value may hold deferred values."""
        self.use()
        state = self.tracer.state()
        state.inlined += 1
        try:
            return await self.body()
        finally:
            state.inlined -= 1

    @property
    def reason(self) -> str:
        """Why a trace stops here."""
        return f"the result of {self.name.rpartition('.')[2]} is looked at"


class OtherCall(Call):
    """Something else to await, once everything before is recorded."""

    __slots__ = ("make",)

    def __init__(self, tracer: Tracer, make: Callable[[], Any], line: int) -> None:
        super().__init__(tracer, line)
        self.make = make

    async def lazily(self) -> Any:
        """Wait, call, and await what came back."""
        self.use()
        await self.tracer.fence(self.line, "it is not known to be a step")
        value = self.make()
        return await value if isinstance(value, Awaitable) else value


class GatherCall(Call):
    """`asyncio.gather` over calls: a group, or the header of a chord.

    Members that are single nodes need no task of their own; others run in child tasks. As in asyncio
    the first failure *delivered* is raised at once and the siblings go on.
    """

    __slots__ = (
        "_future",
        "_missing",
        "_places",
        "_results",
        "_tasks",
        "_waiter",
        "members",
        "return_exceptions",
    )

    def __init__(
        self, tracer: Tracer, members: Sequence[Any], line: int, *, return_exceptions: bool
    ) -> None:
        super().__init__(tracer, line)
        for index, member in enumerate(members):
            if not inspect.isawaitable(member):
                # As asyncio: those before it have begun.
                tracer.begun.extend(
                    asyncio.ensure_future(begun, loop=tracer.loop) for begun in members[:index]
                )
                msg = "An asyncio.Future, a coroutine or an awaitable is required"
                raise TypeError(msg)
        # As asyncio: what is there twice runs once.
        self.members = list({id(member): member for member in members}.values())
        places = {id(member): place for place, member in enumerate(self.members)}
        self._places = [places[id(member)] for member in members]
        self.return_exceptions = return_exceptions
        self._results: list[Any] = [None] * len(self.members)
        self._missing = len(self.members)
        self._future: asyncio.Future[None] = tracer.loop.create_future()
        self._tasks: list[asyncio.Task[Any]] = []
        # One boundary for all direct members: a thousand of them must not wake the body a thousand times.
        self._waiter = tracer.waiter(line, "a member of gather is awaited")

    @property
    def reason(self) -> str:
        """Why a trace stops here."""
        return "the results of gather are looked at"

    async def lazily(self) -> list[Any]:
        """Start all members and wait for those whose outcome is at hand or that wait themselves."""
        self.use()
        tracer = self.tracer
        parent = tracer.state()
        frontiers: list[set[NodeId]] = []
        for index, member in enumerate(self.members):
            if isinstance(member, NodeCall):
                member.use()
                node = tracer.add_node(member, parent.next_child().next_node(), after=parent.frontier)
                self._start_node(index, node, parent, frontiers)
            else:
                self._start_task(index, member, frontiers)
        if self._missing:
            try:
                await self._future
            except asyncio.CancelledError:
                # As asyncio: cancelling a gather cancels its members.
                for task in self._tasks:
                    task.cancel()
                self._waiter.close()
                tracer.drop(self._waiter.nodes)
                raise
            finally:
                self._waiter.close()
        if frontiers:
            parent.frontier = set().union(*frontiers)
        await tracer.bound_segment(self.line)
        if len(self._places) == len(self._results):
            return self._results
        return [self._results[place] for place in self._places]

    def _start_node(
        self, index: int, node: TracedNode, parent: TaskState, frontiers: list[set[NodeId]]
    ) -> None:
        tracer = self.tracer
        if tracer.may_pass(node):
            node.passed = True
            frontiers.append({node.node_id})
            self._done(index, Deferred(node))
            return

        def delivered() -> None:
            error = node.outcome.error if node.outcome else None
            if error is not None:
                self._failed(index, error)
            else:
                self._done(index, Deferred(node))

        if node.outcome is not None:
            delivered()  # its turn came before the body did
        else:
            self._waiter.add(node.node_id, delivered)

    def _start_task(self, index: int, member: Any, frontiers: list[set[NodeId]]) -> None:
        tracer = self.tracer
        state = tracer.child_state()
        task = tracer.loop.spawn(_run_member(tracer, member), state)
        self._tasks.append(task)

        def finished(task: asyncio.Task[Any]) -> None:
            if task.cancelled():
                said = getattr(task, "_cancel_message", None)
                self._failed(index, asyncio.CancelledError("" if said is None else said))
            elif (error := task.exception()) is not None:
                self._failed(index, error)
            else:
                frontiers.append(state.frontier)
                self._done(index, task.result())

        task.add_done_callback(finished)

    def _failed(self, index: int, error: BaseException) -> None:
        if self.return_exceptions:
            self._done(index, error)
        elif not self._future.done():
            self._future.set_exception(error)

    def _done(self, index: int, value: Any) -> None:
        self._results[index] = value
        self._missing -= 1
        if not self._missing and not self._future.done():
            self._future.set_result(None)


async def _run_member(tracer: Tracer, member: Any) -> Any:
    if isinstance(member, Call):
        return await member.in_order()
    value = await member
    await tracer.fence(0, "a member of gather is not a step or workflow")
    return value


class Lazy:
    """`lazy(call)`: the await that the compiler has proved lazy."""

    __slots__ = ("awaitable",)

    def __init__(self, awaitable: Any) -> None:
        self.awaitable = awaitable

    def __await__(self) -> Generator[Any, None, Any]:
        if not isinstance(self.awaitable, Call):
            return self.awaitable.__await__()  # type: ignore[no-any-return]  # whatever the body called
        return self.awaitable.lazily().__await__()
