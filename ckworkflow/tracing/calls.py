"""What a step, a sleep, an inlined workflow or a `gather` gives back when a body calls it.

Each is an awaitable. Awaited plainly it is *strict*: it waits until what it stands for is recorded and
gives real values. Awaited through `lazy()` it records what it must and gives deferred values at once.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Self

from ckworkflow.errors import NotAwaitedError
from ckworkflow.model import NodeKind
from ckworkflow.tracing.deferred import Deferred
from ckworkflow.tracing.forgotten import used_as_a_value

if TYPE_CHECKING:
    from types import FrameType

    from ckworkflow.model import Json, NodeId
    from ckworkflow.tracing.forgotten import Alarm
    from ckworkflow.tracing.nodes import TracedNode
    from ckworkflow.tracing.tasks import AnyCoroutine, TaskState
    from ckworkflow.tracing.tracer import Tracer


class Call(Coroutine[object, object, object]):
    """A coroutine of the body; see the module. So whatever takes a coroutine takes it: `create_task`, a `TaskGroup`."""

    __slots__ = ("_alarm", "_coroutine", "_is_used", "_number", "line", "tracer")

    def __init__(self, tracer: Tracer, line: int) -> None:
        self.tracer, self.line, self._is_used = tracer, line, False
        self._coroutine: AnyCoroutine | None = None
        self._number = tracer.next_call()
        self._alarm: Alarm | None = None

    @property
    def what(self) -> str:
        """What was called, for a person."""
        raise NotImplementedError

    def made_by(self, frame: FrameType) -> Self:
        """Note who has made the call, so that it is found out if nobody awaits it; return the call."""
        self._alarm = self.tracer.unawaited.add(self._number, self.what, frame)
        return self

    def hand_over(self) -> None:
        """Note that the call is awaited, or is a `gather`'s or a task's to await."""
        if self._alarm is not None:
            self._alarm.tracer = None
            self._alarm = None
        self.tracer.unawaited.discard(self._number)

    def __await__(self) -> Generator[object, None, object]:
        return self.strict().__await__()

    def __hash__(self) -> int:
        # By its number in the body, not by its address: a set of calls (`asyncio.as_completed`) has one order.
        return self._number

    def __eq__(self, other: object) -> bool:
        if self is other or isinstance(other, Awaitable):
            return self is other
        raise used_as_a_value(self.tracer, self.what, self.line)

    def __getattr__(self, name: str) -> NoReturn:
        # Asked for what a call has not: of its result, most likely. Others ask `hasattr`, so it is no fault yet.
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(str(NotAwaitedError(self.what, self.line)))

    def send(self, value: object, /) -> object:
        """As of a coroutine."""
        return self._begun().send(value)

    def throw(self, *error: Any) -> object:
        """As of a coroutine."""
        return self._begun().throw(*error)

    def close(self) -> None:
        """As of a coroutine: one that was never awaited records nothing."""
        self.hand_over()
        if self._coroutine is None:
            self._is_used = True
        else:
            self._coroutine.close()

    def _begun(self) -> AnyCoroutine:
        self.hand_over()
        if self._coroutine is None:
            self._coroutine = self.strict()
        return self._coroutine

    async def lazily(self) -> object:
        """Record, and return deferred values without waiting."""
        raise NotImplementedError

    async def strict(self) -> object:
        """Record, wait until all of it is recorded, and return real values."""
        value = await self.in_order()
        await self.tracer.fence(self.line, self.reason)
        return self.tracer.resolve(value)

    async def in_order(self) -> object:
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
        self.hand_over()


def _refuse(self: Call, *_: object) -> NoReturn:
    raise used_as_a_value(self.tracer, self.what, self.line)


for _operation in (
    "bool", "str", "format", "lt", "le", "gt", "ge", "len", "iter", "contains", "getitem", "add", "radd", "sub",
    "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod", "int", "float", "index",
):  # fmt: skip
    setattr(Call, f"__{_operation}__", _refuse)


class NodeCall(Call):
    """A call that is one node: a step or a sleep."""

    __slots__ = ("args", "kind", "name")

    def __init__(self, tracer: Tracer, kind: NodeKind, name: str, args: Json, line: int) -> None:
        super().__init__(tracer, line)
        self.kind, self.name, self.args = kind, name, args

    @property
    def what(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]

    def record(self) -> TracedNode:
        """Add the node at the running task's next ordinal."""
        self.use()
        return self.tracer.add_node(self, self.tracer.state().next_node())

    async def lazily(self) -> object:
        """Pass the node, unless its outcome is at hand: then it is delivered in its turn."""
        node = self.record()
        await self.tracer.pass_node(node)
        return Deferred(node)

    async def strict(self) -> object:
        """Wait for the node and return its result or raise its error."""
        node = self.record()
        await self.tracer.wait_for(frozenset({node.node_id}), self.line, self.reason)
        return self.tracer.value_of(node)

    @property
    def reason(self) -> str:
        """Why a trace stops here."""
        return f"the result of {self.what} is looked at"


class NodeResult(Call):
    """An await of a node that is there already: the end of a run that the body has started."""

    __slots__ = ("_what", "node")

    def __init__(self, tracer: Tracer, node: TracedNode, what: str, line: int) -> None:
        super().__init__(tracer, line)
        self.node, self._what = node, what

    @property
    def what(self) -> str:
        """What was called."""
        return self._what

    @property
    def reason(self) -> str:
        """Why a trace stops here."""
        return f"the end of {self.node.name} is awaited"

    async def lazily(self) -> object:
        """Wait for it, when all that was awaited before is recorded."""
        self.use()
        await self.tracer.fence(self.line, self.reason)
        await self.tracer.wait_for({self.node.node_id}, self.line, self.reason)
        return self.tracer.value_of(self.node)


class WorkflowCall(Call):
    """A workflow called in a body: its steps join the same run and the same task."""

    __slots__ = ("body", "name")

    def __init__(
        self, tracer: Tracer, body: Callable[[], Awaitable[object]], name: str, line: int
    ) -> None:
        super().__init__(tracer, line)
        self.body, self.name = body, name

    @property
    def what(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]

    async def lazily(self) -> object:
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
        return f"the result of {self.what} is looked at"


class OtherCall(Call):
    """Something else to await, once everything before is recorded."""

    __slots__ = ("make",)

    def __init__(self, tracer: Tracer, make: Callable[[], object], line: int) -> None:
        super().__init__(tracer, line)
        self.make = make

    @property
    def what(self) -> str:
        """Not known yet: it is awaited where it is made."""
        return "a call"

    async def lazily(self) -> object:
        """Wait, call, and await what came back."""
        self.use()
        await self.tracer.fence(self.line, "it is not known to be a step")
        value = self.make()
        return await value if isinstance(value, Awaitable) else value


class MethodCall(OtherCall):
    """A method of an object of the body (a hook, a child) that waits: as `OtherCall`, with a name."""

    __slots__ = ("_what",)

    def __init__(self, tracer: Tracer, make: Callable[[], object], what: str, line: int) -> None:
        super().__init__(tracer, make, line)
        self._what = what

    @property
    def what(self) -> str:
        """The name of the method."""
        return self._what


class GatherCall(Call):
    """`asyncio.gather` over calls: a group, or the header of a chord.

    Members that are single nodes need no task of their own; others run in child tasks. As in asyncio
    the first failure *delivered* is raised at once and the siblings go on.
    """

    __slots__ = (
        "_errors",
        "_future",
        "_is_strict",
        "_missing",
        "_nodes",
        "_places",
        "_results",
        "_stopping",
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
            if isinstance(member, Call):
                member.hand_over()
        # As asyncio: what is there twice runs once.
        self.members = list({id(member): member for member in members}.values())
        places = {id(member): place for place, member in enumerate(self.members)}
        self._places = [places[id(member)] for member in members]
        self.return_exceptions = return_exceptions
        self._results: list[object] = [None] * len(self.members)
        self._missing = len(self.members)
        self._is_strict = False
        self._future = _Gathering(self)
        self._tasks: dict[int, asyncio.Future[Any]] = {}
        self._nodes: dict[int, TracedNode] = {}
        self._errors: dict[int, Callable[[], asyncio.CancelledError]] = {}
        """What the members that were cancelled have ended with."""
        self._stopping: dict[int, object] = {}
        """The members that are to stop and have not ended, with what they were cancelled with."""
        # One boundary for all direct members: a thousand of them must not wake the body a thousand times.
        self._waiter = tracer.waiter(line, "a member of gather is awaited")

    @property
    def what(self) -> str:
        """Asyncio's name for it."""
        return "gather"

    @property
    def reason(self) -> str:
        """Why a trace stops here."""
        return "the results of gather are looked at"

    async def strict(self) -> object:
        """Wait for all members: who cancels a gather ends those that have not ended."""
        self._is_strict, self._waiter.reason = True, self.reason
        return await super().strict()

    async def lazily(self) -> list[object]:
        """Start all members and wait for those whose outcome is at hand or that wait themselves."""
        self.use()
        tracer = self.tracer
        if any(isinstance(member, asyncio.Future) for member in self.members):
            await tracer.fence(self.line, "a member of gather is not a step or workflow")
        parent = tracer.state()
        frontiers: list[set[NodeId]] = []
        for index, member in enumerate(self.members):
            if isinstance(member, NodeCall):
                member.use()
                node = tracer.add_node(
                    member, parent.next_child().next_node(), after=parent.frontier,
                    fails_as_value=self.return_exceptions,
                )  # fmt: skip
                self._start_node(index, node, parent, frontiers)
            elif isinstance(member, NodeResult):
                member.use()
                parent.next_child()  # as its task would be
                self._wait_for_node(index, member.node)
            else:
                self._start_task(index, member, frontiers)
        if self._missing:
            leave = tracer.stand(partial(self._pass_nodes, parent, frontiers))
            try:
                await self._future
            finally:
                leave()
                self._waiter.close()
                self._future.call = None  # which has it: the two would wait for the collector
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
        if not self._is_strict and tracer.may_pass(node, parent):
            self._pass(index, node, frontiers)
            return
        self._wait_for_node(index, node)

    def _wait_for_node(self, index: int, node: TracedNode) -> None:
        def delivered() -> None:
            if index in self._stopping:
                message = self._stopping.pop(index)  # of the last cancellation
                self._cancelled(index, message, partial(_cancellation, message))
                return
            if self._nodes.pop(index, None) is None:
                return  # it was cancelled in the same pass
            error = node.outcome.error if node.outcome else None
            if error is not None:
                self._failed(index, error)
            else:
                self._done(index, Deferred(node))

        self._nodes[index] = node
        if node.outcome is not None:
            delivered()  # its turn came before the body did
        else:
            self._waiter.add(node.node_id, delivered)

    def _pass_nodes(self, parent: TaskState, frontiers: list[set[NodeId]]) -> None:
        """Pass the members that are nodes: the last surprise has been told, and it did not end the gather."""
        for index, node in sorted(self._nodes.items()):
            is_passable = node.kind is not NodeKind.CHILD and not self._is_strict
            if is_passable and not self._future.done() and self.tracer.may_pass(node, parent):
                del self._nodes[index]
                self._waiter.nodes.discard(node.node_id)
                self._pass(index, node, frontiers)

    def _pass(self, index: int, node: TracedNode, frontiers: list[set[NodeId]]) -> None:
        node.passed = True
        frontiers.append({node.node_id})
        self._done(index, Deferred(node))

    def _start_task(self, index: int, member: Awaitable[object], frontiers: list[set[NodeId]]) -> None:
        tracer = self.tracer
        state = tracer.child_state()
        # What is under way already is waited for itself, as by asyncio: nothing comes in between.
        task = (
            member
            if isinstance(member, asyncio.Future)
            else tracer.loop.spawn(_run_member(tracer, member), state)
        )
        is_own = task is not member
        self._tasks[index] = task

        def finished(task: asyncio.Future[Any]) -> None:
            del self._tasks[index]
            if task.cancelled():
                # As asyncio's own: the error itself, once, and the message where errors are results.
                self._cancelled(index, task._cancel_message, task._make_cancelled_error)  # type: ignore[attr-defined]
            elif (error := task.exception()) is not None:
                self._failed(index, error)
            else:
                if is_own:
                    frontiers.append(state.frontier)
                self._done(index, task.result())

        task.add_done_callback(finished)

    def cancel_members(self, message: object) -> bool:
        """Cancel the members that have not ended; whether there were any."""
        is_any = bool(self._stopping)
        self._stopping = dict.fromkeys(self._stopping, message)
        for index in sorted({**self._tasks, **self._nodes}):
            if index in self._tasks:
                # Not one that has ended, and says so in a moment.
                is_any |= self._tasks[index].cancel(message)
                continue
            is_any = True
            node_id = self._nodes.pop(index).node_id
            self._waiter.nodes.discard(node_id)
            if self.tracer.drop([node_id]):  # it runs, and has ended when its attempt has
                self._waiter.nodes.add(node_id)
                self._stopping[index] = message
                continue
            # As the task that asyncio would have for it: it wakes, and then says that it has ended.
            loop = self.tracer.loop
            loop.call_soon(
                loop.call_soon, self._cancelled, index, message, partial(_cancellation, message)
            )
        return is_any

    def _cancelled(
        self, index: int, message: object, error: Callable[[], asyncio.CancelledError]
    ) -> None:
        if self.return_exceptions:
            self._errors[index] = error
            self._done(index, asyncio.CancelledError("" if message is None else message))
        else:
            self._failed(index, error())

    def _failed(self, index: int, error: BaseException) -> None:
        if self.return_exceptions:
            self._done(index, error)
        elif not self._future.done():
            self._future.set_exception(error)

    def _done(self, index: int, value: object) -> None:
        self._results[index] = value
        self._missing -= 1
        if self._missing or self._future.done():
            return
        if self._future.is_cancelling:
            # As asyncio's own: that of the last in the list, whoever ended last.
            self._future.set_exception(self._errors.get(self._places[-1], asyncio.CancelledError)())
        else:
            self._future.set_result(None)


class _Gathering(asyncio.Future[None]):
    """What a `gather` waits for: as asyncio's own, to cancel it is to cancel the members, and they end it."""

    def __init__(self, call: GatherCall) -> None:
        super().__init__(loop=call.tracer.loop)
        self.is_cancelling = False
        self.call: GatherCall | None = call

    def cancel(self, msg: object = None) -> bool:
        """Cancel the members; whether any could be."""
        if self.done() or self.call is None or not self.call.cancel_members(msg):
            return False
        self.is_cancelling = True
        return True


def _cancellation(message: object) -> asyncio.CancelledError:
    return asyncio.CancelledError() if message is None else asyncio.CancelledError(message)


async def _run_member(tracer: Tracer, member: Awaitable[object]) -> object:
    if isinstance(member, Call):
        return await member.in_order()
    value = await member
    await tracer.fence(0, "a member of gather is not a step or workflow")
    return value


class Lazy:
    """`lazy(call)`: the await that the compiler has proved lazy."""

    __slots__ = ("awaitable",)

    def __init__(self, awaitable: Awaitable[object]) -> None:
        self.awaitable = awaitable

    def __await__(self) -> Generator[object, None, object]:
        if not isinstance(self.awaitable, Call):
            return self.awaitable.__await__()
        return self.awaitable.lazily().__await__()
