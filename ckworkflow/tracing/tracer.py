"""The tracer: runs a body against what is recorded and says what the run needs next.

The invariant is that laziness cannot be observed. A lazy await *speculates*: the body runs on as if the
node had succeeded, up to the next fence or strict await. Whenever an outcome is at hand the await waits
for its turn instead, so a replay tells the body everything in the order that earlier continuations
fixed, errors included.

A **surprise** is an event that may change the way of a task that has run ahead: a failure, or a success of which
another task is cancelled. When it is told, every task stands at its first await that is not recorded: telling is
*strict* up to the last surprise, and then the tasks run ahead again. A body that has run ahead already is thrown away and
replayed.

Not here: which nodes to publish (`plan`), what is stored (`store`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from ckworkflow import codec
from ckworkflow.errors import (
    BodyStuckError,
    ContinueAsNewError,
    ReplayDivergenceError,
    UnreadableValueError,
    UnserializableValueError,
)
from ckworkflow.model import CALL_OPTIONS, CANCEL, TIMER, NodeKind
from ckworkflow.tracing.calls import Call, NodeCall, OtherCall, WorkflowCall
from ckworkflow.tracing.children import Children
from ckworkflow.tracing.deferred import Deferred, holds_deferred, reference
from ckworkflow.tracing.forgotten import Unawaited, used_as_a_value
from ckworkflow.tracing.history import History
from ckworkflow.tracing.hooks import Hooks
from ckworkflow.tracing.lives import NextLife, as_next_life
from ckworkflow.tracing.loop import TraceLoop, TraceTask
from ckworkflow.tracing.nodes import End, Known, Outcome, Payload, Trace, TracedNode, Wait
from ckworkflow.tracing.stuck import where_they_stand
from ckworkflow.tracing.tasks import AnyCoroutine, TaskState, Waiter

if TYPE_CHECKING:
    from types import FrameType

    from ckworkflow.model import Json, NodeId, RunId

SEGMENT_LIMIT = 200
"""Awaits that a task of the body may run ahead of what is recorded (a `gather` is one, and never cut)."""


LONGEST_PATIENCE = 1_024
"""Events after a surprise in which a body that is outrun again and again does not run ahead."""


class ReplayNeededError(Exception):
    """The body has run ahead of what it is told: throw it away and replay.

    Attributes:
        strict: How many of the outcomes that it was given are to be told strictly, up to the last surprise among them.
    """

    def __init__(self, strict: int) -> None:
        super().__init__(strict)
        self.strict = strict


class Tracer:
    """One body, alive between `resume` calls; see the module.

    Args:
        run_id: The run, for messages and as the seed of `random()` and `uuid4()`.
        body: Makes the coroutine of the body.
        workflow: Registered name of the run's workflow, for `use_run()`.
        started_at: When the run was started: what `now()` says at first.
        known: What the database holds of claimed and delivered nodes.
        is_same_source: Whether the body is the one that recorded them.
        outruns: How often a surprise has found that the body had run ahead: after each further surprise it waits twice as long
            before it runs ahead again, or each of many would cost a replay.
        secret: From what the tokens of its hooks are derived; `None`: none has been yet.
        life: The life of the run that it is the body of: the places in it begin with that number.
    """

    def __init__(
        self,
        run_id: RunId,
        body: Callable[[], AnyCoroutine],
        *,
        workflow: str = "",
        started_at: datetime,
        known: Mapping[NodeId, Known] | None = None,
        is_same_source: bool = True,
        outruns: int = 0,
        segment_limit: int = SEGMENT_LIMIT,
        secret: str | None = None,
        life: int = 0,
    ) -> None:
        self.run_id, self.workflow, self.life = run_id, workflow, life
        self.loop = TraceLoop(self)  # type: ignore[abstract]  # `loop` fills in the rest by name
        self.live: dict[NodeId, TracedNode] = {}
        self.waiters: dict[int, Waiter] = {}
        self.on_delivery: dict[NodeId, list[Callable[[], None]]] = {}
        self.is_alive = True
        self.is_lost = False
        """Whether it is inside a call of `resume` that nobody waits for any more, and so cannot be closed."""
        self.unawaited = Unawaited(self)
        self.hooks = Hooks(self, secret)
        self.children = Children(self)
        self.has_lent = False
        self._body = body
        self._calls = 0
        self.begun: list[asyncio.Future[Any]] = []
        self._now = started_at
        self._history = History(run_id, known or {}, is_same_source=is_same_source)
        self._limit = segment_limit
        self._root: TraceTask | None = None
        self._beside = TaskState(f"{life or ''}~", is_stepwise=True)
        self._coming: dict[NodeId, Outcome | Payload] = {}
        self._early: dict[NodeId, Outcome] = {}
        self.outruns = outruns
        self._patience = min(1 << outruns, LONGEST_PATIENCE) if outruns else 0
        self._calm = 0
        """How many events have been told since the last surprise."""
        self._is_strict = False
        self._telling: int | None = None
        """The number, in this `resume`, of the outcome that is told; `None` of one that is told strictly."""
        self._told = 0
        """How many outcomes were told in this `resume`, or are being told."""
        self._standing: dict[Callable[[], None], None] = {}
        """What lets the tasks that stand at lazy awaits pass them."""
        self._let_go: set[NodeId] = set()
        self._stoppable: set[NodeId] = {
            node_id for node_id, node in (known or {}).items() if node.is_stopping
        }
        """The steps whose end is waited for if their await is cancelled: they run, or did when it was."""
        self._stopping: set[NodeId] = set()
        """Those of which it was."""
        self._has_surprises = False
        self._end: End | None = None
        self._next_lives: list[NextLife] = []
        self._leaves_request = False
        self._is_cut = False
        self._ending: set[NodeId] = set()

    # -- the engine's side ------------------------------------------------------------------------

    def resume(
        self, outcomes: Sequence[Outcome | Payload] = (), *, strict: int = 0,
        running: Iterable[NodeId] = (),
    ) -> Trace:  # fmt: skip
        """Tell the body of outcomes and payloads, in this order, and run it as far as it goes.

        Args:
            outcomes: On the first call everything delivered before and everything new; later only what
                is new.
            strict: So many of them are told strictly: up to the last surprise.
            running: The steps that run, and whose end an await that is cancelled waits for.

        Returns:
            What the run needs next.

        Raises:
            ReplayNeededError: The body has run ahead of a surprise, or to its end; close the tracer.
            ReplayDivergenceError: The body took another path than the recorded one.
            BodyAwaitError: The body left the durable world.
            BodyStuckError: Nothing can move the body any more, or it never waits.
        """
        # A body that has ended holds stand-ins in its result, which only a replay can work out by now.
        if self._root is not None and (self._is_outrun(outcomes, strict) or self.has_ended):
            raise ReplayNeededError(strict)
        self.loop.forget_done()
        self.hooks.begin()
        self.children.begin()
        self._coming.update((outcome.node_id, outcome) for outcome in outcomes)
        self._stoppable.update(running)
        self._is_strict = self._is_strict or strict > 0
        self._has_surprises = self._has_surprises or strict > 0
        self._told = 0
        if self._root is None:
            self._history.note(outcomes)
            with self.loop.entered():
                # Empty: what the process that happens to continue the body has in its own is none of it.
                self._root = self.loop.spawn(self._body(), TaskState(str(self.life)), context=Context())
                self.loop.stop_with(self._root)
        self._run()
        self._settle_end()
        for number, outcome in enumerate(outcomes, 1):
            self._told, self._telling = number, number if number > strict else None
            self._deliver(outcome)
            self._run()
            self._settle_end()  # at each: what comes after the end finds its task cancelled
            self._calm = 0 if number <= strict else self._calm + 1
            if number >= strict and self._is_strict and self._calm >= self._patience:
                self._run_ahead()
        self._telling = None
        # Of the others nobody knows whether they run the next time.
        self._stoppable = set(self._stopping)
        if self._end is not None and self._root is not None:
            after = frozenset(self.undelivered(self._root.state.frontier))
            self._end = replace(self._end, after=after, leaves_request=self._leaves_request)
        wanted = tuple(self._wanted())
        let_go = frozenset(self._let_go)
        if len(wanted) < len(self.live):
            let_go |= self.live.keys() - {node.node_id for node in wanted}
        trace = Trace(
            wanted,
            tuple(self._boundaries()),
            self._end,
            let_go,
            frozenset(self.undelivered(self._stopping)),
            self.hooks.changes,
            self.children.started,
            self.children.cancelled,
            self.children.orphans,
            self.children.awaited,
        )
        if self._end is None and not trace.waits:
            raise self.loop.fail(
                BodyStuckError(
                    "waits for what nothing in it can bring any more", where_they_stand(self.loop.tasks)
                )
            )
        self._check_met()
        return trace

    @property
    def has_ended(self) -> bool:
        """Whether the body has returned or raised: what it is told after that takes a replay."""
        return self._end is not None

    @property
    def progress(self) -> int:
        """Grows while the body comes further."""
        return self.loop.progress

    def interrupt(self, error: BaseException) -> None:
        """Have `resume` raise this error as soon as the body lets it; from any thread."""
        if self.loop.fault is None:
            self.loop.fault = error

    def close(self) -> None:
        """Abandon the body: no user code runs while its coroutines are closed."""
        if self.is_lost:
            return
        self.is_alive = False
        self.waiters.clear()
        self.on_delivery.clear()
        self._standing.clear()
        self.loop.close()

    def __del__(self) -> None:
        # The last resort for a body that was dropped and not closed: a `finally` of its coroutines would run as they are
        # collected, perhaps in the midst of another body. Not certain: the collector may come to those first.
        if getattr(self, "is_alive", False):
            self.close()

    def _is_outrun(self, outcomes: Sequence[Outcome | Payload], strict: int) -> bool:
        """Whether a task has run past an await at which it must stand."""
        if strict:
            return self._has_run_ahead()
        failed = [self.live.get(outcome.node_id) for outcome in outcomes if outcome.error is not None]
        return any(node is not None and node.passed for node in failed)

    def _has_run_ahead(self) -> bool:
        return any(node.passed for node in self.live.values())

    def _run_ahead(self) -> None:
        """Let the tasks that stand at lazy awaits pass them: the last surprise has been told."""
        self._is_strict = False
        standing = list(self._standing)
        self._standing.clear()
        for go_on in standing:
            go_on()
        self._run()
        self._settle_end()

    def stand(self, go_on: Callable[[], None]) -> Callable[[], object]:
        """Call back when tasks may run ahead again; return a function that ends this."""
        if self._is_strict:
            self._standing[go_on] = None
        return partial(self._standing.pop, go_on, None)

    def before_cancel(self, state: TaskState) -> None:
        """Note that a task is about to be cancelled: if it has run ahead, what is told is a surprise."""
        if self._is_cut or state.is_stepwise:
            return
        own = (f"{state.path}:", f"{state.path}.")
        if any(node.passed and node.node_id.startswith(own) for node in self.live.values()):
            # Where nothing is told, or a surprise: not even by what is told next may it run ahead.
            strict = self._told + 1 if self._telling is None else self._telling
            self.interrupt(ReplayNeededError(strict))

    def is_root(self, task: object) -> bool:
        """Whether a task is that of the body itself."""
        return task is self._root

    def _run(self) -> None:
        self.loop.run_until_idle()
        if self.loop.fault is not None:
            raise self.loop.fault

    def _deliver(self, outcome: Outcome | Payload) -> None:
        self._now = outcome.at
        self._coming.pop(outcome.node_id, None)
        if outcome.error is not None or outcome.node_id == CANCEL or self._is_timer(outcome.node_id):
            self._next_lives.clear()  # it may take the place of what the body was about to return
        if isinstance(outcome, Payload):
            self.hooks.tell(outcome)
            return
        if outcome.node_id == CANCEL:
            self.children.note_request()
            if self._root is not None:  # which may have ended; then nothing comes of it in this life
                self._leaves_request = self._root.done()
                self._root.cancel(*() if outcome.error is None else outcome.error.args)
            return
        node = self.live.pop(outcome.node_id, None)
        self._let_go.discard(outcome.node_id)
        self._stopping.discard(outcome.node_id)
        if node is None:
            # Recorded, but the body is not there (yet): it finds the outcome when it comes.
            self._early[outcome.node_id] = outcome
            return
        self._settle(node, outcome)

    def _is_timer(self, node_id: NodeId) -> bool:
        node = self.live.get(node_id)
        return node is not None and (node.kind, node.name) == (NodeKind.SLEEP, TIMER)

    def _settle(self, node: TracedNode, outcome: Outcome) -> None:
        node.outcome = outcome
        for callback in self.on_delivery.pop(node.node_id, ()):
            callback()

    def _settle_end(self) -> None:
        """When the root has ended: cancel what is unfinished, as `asyncio.run` does, and let it end."""
        root = self._root
        if root is None or not root.done() or self._end is not None:
            return
        if not self._is_cut:
            if self._goes_on_beside(root):
                self._run()  # on from where it stopped
                if self._goes_on_beside(root):
                    return
            if self._telling is not None and not self._ending and self._has_run_ahead():
                raise ReplayNeededError(self._telling)
            self._is_cut = True
            for task in self.loop.tasks:
                task.cancel()
            self._run()
        if self.loop.generators and all(task.done() for task in self.loop.tasks):
            self.loop.spawn(self._close_generators(), root.state.next_child())
            self._run()
        self._stop_rest(root)
        if any(not task.done() for task in self.loop.tasks) or self.undelivered(self._stopping):
            return  # a `finally` of a cancelled task, or of a generator, awaits a step; or a step is to end first
        self._end = self._end_of(root)

    def _end_of(self, root: TraceTask) -> End:
        """How the body has ended, but for what is to be waited for."""
        error = _error_of(root)
        if error is None:
            error = self.unawaited.at_end()
        result: Json = None
        if error is None and (next_life := as_next_life(root.result())) is not None:
            return End(None, None, frozenset(), next_life.args, self._now)
        if error is None and self._next_lives:
            error = ContinueAsNewError(self._next_lives[0].line)
        if error is None:
            try:
                result = codec.encode(root.result(), path="result", ref=reference)
            except Exception as unstorable:  # noqa: BLE001  # a value's own code may raise anything
                error = self.unawaited.at_end(is_surely_wrong=True) or unstorable
        return End(result, error, frozenset())

    def _stop_rest(self, root: TraceTask) -> None:
        """Have the steps stop that run on for nobody, as members of a `gather` that has failed."""
        awaited = self._awaited() | {
            node.node_id for node in self._leading_to(self.undelivered(root.state.frontier))
        }
        left = [node for node in self.live if node in self._stoppable and node not in awaited]
        if left:
            waiter = Waiter(self, str(self.life), 0, "steps that are to stop have not ended")
            for node_id in left:
                self._stopping.add(node_id)
                waiter.add(node_id, lambda: None if waiter.nodes else waiter.close())

    async def _close_generators(self) -> None:
        """End what the body has left of its asynchronous generators, when all that it awaited is recorded."""
        await self.fence(0, "asynchronous generators are closed")
        await self.loop.shutdown_asyncgens()

    def _goes_on_beside(self, root: TraceTask) -> bool:
        """Whether the body has run ahead to its end while tasks beside it may still do something.

        They are cancelled when it really ends, which is when what it awaited is recorded.
        """
        # On Python 3.11 the task of a `wait_for` has the place of the one that waits. Is that cancelled while the other cleans up after
        # its deadline, the other is left behind: what it awaits the body does not.
        is_left = any(task.state is root.state and not task.done() for task in self.loop.tasks)
        self._ending = set() if is_left else self.undelivered(root.state.frontier)
        return bool(self._ending) and (
            any(not task.done() for task in self.loop.tasks)
            or bool(self.loop.generators)
            or len(self._leading_to(self._ending)) < len(self.live)
        )

    def _boundaries(self) -> Iterator[Wait]:
        for waiter in self.waiters.values():
            if waiter.nodes:
                yield Wait(waiter.path, frozenset(waiter.nodes), waiter.line, waiter.reason)
        yield from self.hooks.waits.values()
        if self._ending and not self._is_cut:
            yield Wait(
                str(self.life),
                frozenset(self._ending),
                0,
                "the body ends, and others may still be under way",
            )

    def _wanted(self) -> list[TracedNode]:
        """The live nodes; once the body has ended, only those that lead to its end."""
        if self._end is None:
            if self._is_cut:
                waited = {node for waiter in self.waiters.values() for node in waiter.nodes}
                return self._leading_to(
                    waited | self.undelivered(self._root.state.frontier if self._root else ())
                )
            return list(self.live.values())
        return self._leading_to(self._end.after)

    def _leading_to(self, targets: Iterable[NodeId]) -> list[TracedNode]:
        wanted: set[NodeId] = set()
        stack = list(targets)
        while stack:
            node_id = stack.pop()
            if node_id not in wanted and node_id in self.live:
                wanted.add(node_id)
                stack.extend(self.live[node_id].after)
        return [node for node in self.live.values() if node.node_id in wanted]

    def _check_met(self) -> None:
        """A node that was delivered before must be met again, unless a surprise or an end cut its task."""
        is_cut_short = self._is_cut and self.loop.has_had_tasks
        early = [] if self._has_surprises or is_cut_short else self._early
        with self._faults():
            self._history.check_met(early, has_ended=self._end is not None)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Make what is raised inside the fault of the run, whatever the body does with it."""
        try:
            yield
        except (ReplayDivergenceError, UnreadableValueError) as error:
            self.loop.fault = error
            raise

    # -- the body's side --------------------------------------------------------------------------

    def now(self) -> datetime:
        """The time as far as the body has been told."""
        return self._now

    def step_call(
        self, name: str, args: tuple[object, ...], kwargs: Mapping[str, object], *, frame: FrameType,
        options: Mapping[str, object] | None = None,
    ) -> NodeCall:  # fmt: skip
        """What a step gives back in a body; its arguments, and the options of this call, are encoded here, at the call.

        Raises:
            UnserializableValueError: An argument cannot be stored.
            NotAwaitedError: It is, or holds, a call that was to be awaited first.
        """
        calls: list[Call] = []

        def note(value: object) -> Json | None:
            if issubclass(type(value), Call):  # not isinstance: that asks `__class__`
                calls.append(cast("Call", value))
            return reference(value)

        try:
            tree: dict[str, Json] = {
                "args": [codec.encode(arg, path=f"args[{i}]", ref=note) for i, arg in enumerate(args)],
                "kwargs": codec.encode(dict(kwargs), path="kwargs", ref=note) if kwargs else {},
            }
            if options:
                tree[CALL_OPTIONS] = codec.encode(dict(options), path="options")
        except UnserializableValueError:
            if calls:
                raise used_as_a_value(self, calls[0].what, calls[0].line) from None
            raise
        return NodeCall(self, NodeKind.STEP, name, tree, frame.f_lineno).made_by(frame)

    def sleep_call(self, wait: timedelta | datetime, *, frame: FrameType) -> NodeCall:
        """What `sleep` gives back in a body."""
        return NodeCall(self, NodeKind.SLEEP, "sleep", _wait_tree(wait), frame.f_lineno).made_by(frame)

    def continue_as_new(
        self, args: tuple[object, ...], kwargs: Mapping[str, object], *, line: int
    ) -> NextLife:
        """What `continue_as_new` gives back in a body; the arguments are encoded here, at the call.

        Raises:
            ContinueAsNewError: It is not the body of the run itself that calls.
            UnserializableValueError: An argument cannot be stored.
        """
        state = self.place()
        if not state.is_root or state.inlined:
            raise ContinueAsNewError(line)
        tree: Json = {
            "args": [codec.encode(arg, path=f"args[{i}]", ref=reference) for i, arg in enumerate(args)],
            "kwargs": codec.encode(dict(kwargs), path="kwargs", ref=reference),
        }
        self._next_lives.append(made := NextLife(tree, line))
        return made

    def workflow_call(
        self, body: Callable[[], AnyCoroutine], name: str, *, frame: FrameType
    ) -> WorkflowCall:
        """What a workflow gives back in the body of another."""
        return WorkflowCall(self, body, name, frame.f_lineno).made_by(frame)

    def later(
        self,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        *,
        line: int,
    ) -> OtherCall:
        """Call a function when all that the task awaited is recorded, with the real values of what it is given."""
        return OtherCall(self, lambda: function(*self.resolve(args), **self.resolve(kwargs)), line)

    def next_call(self) -> int:
        """Return the number of the body's next call."""
        self._calls += 1
        return self._calls

    def state(self) -> TaskState:
        """The place of the running task."""
        task = asyncio.current_task(self.loop)
        if not isinstance(task, TraceTask):
            msg = "no task of the body is running"
            raise RuntimeError(msg)  # noqa: TRY004  # not a wrong argument: only our bug can raise it
        return task.state

    def place(self) -> TaskState:
        """The place of the running task, or of the loop itself in one of its callbacks."""
        task = asyncio.current_task(self.loop)
        return task.state if isinstance(task, TraceTask) else self._beside

    def child_state(self) -> TaskState:
        """The place of a new child of the running task."""
        return self.place().next_child()

    def set_timer(
        self, wait: timedelta | datetime, ring: Callable[[], object], *, line: int,
        node_id: NodeId | None = None, reason: str = "a timer runs",
    ) -> Callable[[], object]:  # fmt: skip
        """Make a durable timer, which begins now; return a function that cancels it.

        Args:
            wait: How long it takes, or until when.
            ring: Called when its time has come.
            line: Line of the body's file that it is for.
            node_id: Its identity, if it has one already.
            reason: What it is for, in words.
        """
        call = NodeCall(self, NodeKind.SLEEP, TIMER, _wait_tree(wait), line)
        call.use()
        node = self.add_node(call, node_id or self.place().next_node(), after=())
        waiter = Waiter(self, node.node_id, line, reason)

        def due() -> None:
            waiter.close()
            ring()

        def cancel() -> None:
            waiter.close()
            self.drop([node.node_id])

        if node.outcome is not None:
            ring()
        else:
            waiter.add(node.node_id, due)
        return cancel

    def add_node(
        self, call: NodeCall, node_id: NodeId, *, after: Iterable[NodeId] | None = None,
        fails_as_value: bool = False,
    ) -> TracedNode:  # fmt: skip
        """Record a call as the node of this identity; settle it if its outcome came before it."""
        self.meet(node_id, call.kind, call.name, call.args)
        state = self.place()
        node = TracedNode(
            node_id,
            call.kind,
            call.name,
            call.args,
            frozenset(self.undelivered(state.frontier if after is None else after)),
            call.line,
            fails_as_value,
        )
        self.loop.progress += 1
        early = self._early.pop(node_id, None)
        if early is not None:
            node.outcome = early
        else:
            self.live[node_id] = node
        if after is None:
            state.frontier = {node_id}
        return node

    def knows(self, node_id: NodeId) -> bool:
        """Whether the database holds a node in a place of the body, to which the body has not come yet."""
        return node_id in self._history.unmet

    def meet(self, node_id: NodeId, kind: NodeKind, name: str, args: Json) -> Known | None:
        """Return the node that is recorded in a place of the body, if it is what the body does there; `None`: none is.

        Raises:
            ReplayDivergenceError: It is something else.
        """
        if not self._history.unmet:
            return None
        with self._faults():
            return self._history.meet(node_id, kind, name, args)

    def is_alone(self) -> bool:
        """Whether the root task runs, and no other is unfinished."""
        return self.state().is_root and all(task.done() for task in self.loop.tasks[1:])

    def undelivered(self, nodes: Iterable[NodeId]) -> set[NodeId]:
        """Those of the nodes whose outcome the body has not been told of."""
        return {node_id for node_id in nodes if node_id in self.live}

    def is_settled(self, state: TaskState) -> bool:
        """Whether all that a task awaited is recorded."""
        return not any(node_id in self.live for node_id in state.frontier)

    def may_pass(self, node: TracedNode, state: TaskState) -> bool:
        """Whether a lazy await of a task may go on without the outcome.

        Not when it is at hand, not while a surprise is to be told, and not in a task that can be cancelled, for then it
        matters which await it stands at: one that the body has made itself; nor in one that is about to be, at this await.
        """
        if self._is_strict or node.outcome is not None or node.node_id in self._coming:
            return False
        return not state.is_stepwise and not getattr(self._root, "_must_cancel", False)

    async def pass_node(self, node: TracedNode) -> None:
        """Go on without the outcome, or wait for its turn."""
        if self.may_pass(node, self.state()):
            node.passed = True
        elif node.outcome is None:
            await self.wait_for({node.node_id}, node.line, "its turn", lazily=node)
        if node.outcome is None:
            await self.bound_segment(node.line)
        elif node.outcome.error is not None:
            raise node.outcome.error

    async def bound_segment(self, line: int) -> None:
        """End the segment when it has run far enough ahead."""
        state = self.state()
        state.ahead += 1
        if state.ahead >= self._limit:
            await self.fence(line, f"a segment ends after {self._limit} awaits")

    async def fence(self, line: int, reason: str) -> None:
        """Wait until all that this task awaited before is recorded."""
        state = self.state()
        await self.wait_for(self.undelivered(state.frontier), line, reason)
        state.ahead = 0

    def waiter(self, line: int, reason: str) -> Waiter:
        """Make a boundary of the running task."""
        return Waiter(self, self.state().path, line, reason)

    async def wait_for(
        self, nodes: Iterable[NodeId], line: int, reason: str, *, lazily: TracedNode | None = None
    ) -> None:
        """Suspend the running task until these nodes are delivered.

        Args:
            nodes: The nodes.
            line: Where the body stands.
            reason: Why it does, in words.
            lazily: The node, where it may also be passed once all surprises have been told.
        """
        missing = self.undelivered(nodes)
        if not missing:
            return
        waiter = self.waiter(line, reason)
        future = self.loop.create_future()

        def delivered() -> None:
            if not waiter.nodes and not future.done():
                future.set_result(None)

        for node_id in sorted(missing):
            waiter.add(node_id, delivered)
        state = self.state()

        def pass_() -> None:
            if lazily is not None and not future.done() and self.may_pass(lazily, state):
                lazily.passed = True
                future.set_result(None)

        leave = None if lazily is None else self.stand(pass_)
        try:
            await future
        except asyncio.CancelledError:
            # The task is cancelled at this await: what it does next (a `finally`) waits for none of it but what must end first.
            state.frontier -= missing
            waiter.close()
            own = (f"{state.path}:", f"{state.path}.")
            # What it has run past, too; not the members of a gather that has failed, which go on for nobody.
            left = [
                node_id
                for node_id, node in self.live.items()
                if node_id in missing or (node.passed and node_id.startswith(own))
            ]
            last = await self._until_stopped(self.drop(left), line)
            if last is not None:
                raise last from None
            raise
        finally:
            waiter.close()
            if leave is not None:
                leave()

    def drop(self, nodes: Iterable[NodeId]) -> set[NodeId]:
        """Take nodes out of the plan whose await was cancelled, unless somebody else waits for them.

        As in asyncio, what has not begun never does. What is running is to stop; its end is recorded, and told to nobody.

        Returns:
            Those that stay, since the await ends when they have.
        """
        awaited = self._awaited()
        stopping = set()
        for node_id in nodes:
            if node_id in awaited or node_id not in self.live:
                continue
            if self.live[node_id].kind is NodeKind.CHILD:
                continue  # it goes on, and its end is an event
            if node_id in self._stoppable:
                stopping.add(node_id)
                continue
            del self.live[node_id]
            self._let_go.add(node_id)
        self._stopping |= stopping
        return stopping

    def _awaited(self) -> set[NodeId]:
        return {node_id for waiter in self.waiters.values() for node_id in waiter.nodes}

    async def _until_stopped(self, nodes: set[NodeId], line: int) -> asyncio.CancelledError | None:
        """Wait until steps that are to stop have ended; who is cancelled meanwhile waits all the same, and gets the last of these."""
        last = None
        while self.undelivered(nodes):
            try:
                await self._ends_of(self.undelivered(nodes), line)
            except asyncio.CancelledError as error:
                last = error
        return last

    async def _ends_of(self, nodes: Iterable[NodeId], line: int) -> None:
        waiter = self.waiter(line, "a step that is to stop has not ended")
        future = self.loop.create_future()

        def ended() -> None:
            if not waiter.nodes and not future.done():
                future.set_result(None)

        for node_id in sorted(nodes):
            waiter.add(node_id, ended)
        try:
            await future
        finally:
            waiter.close()

    def resolve(self, value: Any, known: dict[Any, Any] | None = None) -> Any:
        """Replace the deferred values of a display by real ones; all of them are recorded.

        What was one object is one object afterwards.
        """
        known = {} if known is None else known
        kind = type(value)
        if kind is Deferred:
            node = value._ckw_node
            if node.node_id not in known:
                known[node.node_id] = self.value_of(node)
            part = known[node.node_id]
            # As Python does, with a property's code and Python's own error: what the body awaited is recorded.
            for how, key in value._ckw_path:
                part = getattr(part, str(key)) if how == "attr" else part[key]
            return part
        if id(value) in known:
            return known[id(value)]
        if kind in (list, tuple) and any(holds_deferred(item) for item in value):
            known[id(value)] = kind(self.resolve(item, known) for item in value)
        elif kind is dict and any(holds_deferred(item) for item in value.values()):
            known[id(value)] = {key: self.resolve(item, known) for key, item in value.items()}
        else:
            return value
        return known[id(value)]

    def value_of(self, node: TracedNode) -> object:
        """Return a fresh copy of a node's result, or raise its error.

        Raises:
            UnreadableValueError: This process cannot rebuild the result. No body can handle that: what it would do
                next is not what it does where the result can be read.
        """
        try:
            return node.value()
        except UnreadableValueError as error:
            if node.outcome is None or node.outcome.error is None:
                self.loop.fault = error
            raise

    def random_bits(self) -> bytes:
        """32 bytes that are the same in every replay."""
        return hashlib.sha256(f"{self.run_id}/{self.state().next_random()}".encode()).digest()


def _wait_tree(wait: timedelta | datetime) -> Json:
    """A length of time, or a moment, as the arguments of a sleep."""
    if isinstance(wait, timedelta):
        return {"seconds": wait.total_seconds()}
    return {"until": wait.astimezone(UTC).isoformat()}


def _error_of(task: asyncio.Task[Any]) -> BaseException | None:
    """What a task that has ended has raised, its cancellation too; `None`: it has returned."""
    try:
        return task.exception()
    except asyncio.CancelledError as error:
        return error
