"""The reference: the very same function under plain asyncio.

Steps are coroutines that wait until they are told to complete; sleeps pass on a clock of their own. What is
durable about a step stays: its arguments are encoded at the call, its result is decoded anew, and a
failure reaches the body as the engine would rebuild it. Everything else is `asyncio.run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any, Protocol
from unittest import mock

from ckworkflow import codec, tracing
from ckworkflow.definition import Workflow, registry
from ckworkflow.duration import LONGEST
from ckworkflow.engine import failures, judging
from ckworkflow.model import CANCEL, TIMER, HookKey, Namespace, NodeId, NodeKind, payload_number
from ckworkflow.tracing.loop import _TURN_SECONDS, _maker_of
from ckworkflow.tracing.tasks import TaskState
from differential.reference_family import PlainChildren, PlainLives, inlined
from differential.reference_hooks import Facts, Item, PlainHooks
from differential.simulator import (
    FIRST_PAYLOAD,
    MOMENT,
    START,
    Entry,
    Fault,
    Move,
    call_step,
    canonical,
)


class DifferenceError(AssertionError):
    """The engine did what plain asyncio does not."""


class Chooser(Protocol):
    """Says which of several things happens next."""

    def choose(self, count: int) -> int:
        """Return a number from 0 up to `count`."""
        ...


@dataclass(slots=True)
class PlainRun:
    """How the body went under plain asyncio.

    Attributes:
        outcome: As `EngineRun.outcome`; `{"next": arguments}` of a life that ends for the next one.
        moves: What happened, as a script for the simulator.
        steps: Every step that was begun: node id to name and arguments.
        sleeps: Every sleep that was begun.
        completed: The nodes that completed, in this order.
        executions: How many attempts of steps there were.
        is_cancelled: Whether the run was to be cancelled.
        has_rung: Whether a timer of the loop has come due: what it cancels may have been under way.
        has_been_sent: Whether a payload has come: likewise.
        hooks: Its hooks.
        children: The runs that it has started.
        told: How many events it was told.
        ended_at: What time it is when it ends.
        ends_cancelled: Whether it ends with `CancelledError`.
    """

    outcome: dict[str, Any]
    moves: list[Move] = field(default_factory=list)
    steps: dict[str, tuple[str, str]] = field(default_factory=dict)
    sleeps: dict[str, tuple[str, str]] = field(default_factory=dict)
    completed: list[str] = field(default_factory=list)
    executions: int = 0
    is_cancelled: bool = False
    has_rung: bool = False
    has_been_sent: bool = False
    hooks: PlainHooks | None = None
    children: PlainChildren | None = None
    told: int = 0
    ended_at: datetime | None = None
    ends_cancelled: bool = False


@dataclass(slots=True)
class _Pending:
    """A call that waits to be told how it ends."""

    node_id: str
    kind: NodeKind
    name: str
    args: str
    tree: Any
    future: asyncio.Future[Any] | None
    due_at: datetime | None = None
    attempts: int = 0
    timer: asyncio.TimerHandle | None = None
    ended: tuple[Any, Any] | None = None
    """How it has ended, if the body is told of it later than of what ended after it."""
    is_stopping: bool = False
    """Whether its await was cancelled while it ran: it is waited for, and no further attempt follows."""
    ring: Callable[[], None] | None = None
    """Of a hook that expires: what becomes of it."""


class PlainTracer:
    """Stands where a body's trace stands, and gives coroutines."""

    def __init__(
        self, run_id: str, faults: Mapping[str, Fault], started_at: datetime, stopped: Collection[str],
        facts: Facts, *, workflow: str = "", life: int = 0,
    ) -> None:  # fmt: skip
        self.workflow, self.life, self.facts = workflow, life, facts
        self.run_id, self.faults, self.stopped = run_id, faults, stopped
        self.clock = self.started_at = started_at
        self.sleeps_from = started_at
        self.pending: list[_Pending] = []
        self.hooks = PlainHooks(self, facts)
        self.children = PlainChildren(self, facts.ends)
        self.lives = PlainLives()
        self.run = PlainRun({}, hooks=self.hooks, children=self.children)
        self.fault: DifferenceError | None = None
        self.leftovers: list[Any] = []
        self.beside = TaskState(f"{life or ''}~")
        self.ready: Any = None
        self.states: dict[int, TaskState] = {}
        self.root: asyncio.Task[Any] | None = None

    def now(self) -> datetime:
        return self.clock

    def state(self) -> TaskState:
        task = asyncio.current_task()
        assert isinstance(task, PlainTask)
        return task.state

    def random_bits(self) -> bytes:
        return hashlib.sha256(f"{self.run_id}/{self.state().next_random()}".encode()).digest()

    def step_call(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, frame: FrameType,
        options: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        assert not options
        tree = {
            "args": [codec.encode(arg, path=f"args[{index}]") for index, arg in enumerate(args)],
            "kwargs": {key: codec.encode(arg, path=key) for key, arg in kwargs.items()},
        }
        return self.kept(self._wait(NodeKind.STEP, name, tree, None))

    def sleep_call(self, wait: timedelta | datetime, *, frame: FrameType) -> Any:
        if isinstance(wait, timedelta):
            return self.kept(
                self._wait(NodeKind.SLEEP, "sleep", {"seconds": wait.total_seconds()}, wait)
            )
        tree = {"until": wait.astimezone(UTC).isoformat()}
        return self.kept(self._wait(NodeKind.SLEEP, "sleep", tree, wait))

    def workflow_call(self, body: Callable[[], Any], name: str, *, frame: FrameType) -> Any:
        return self.kept(self._inlined(body))

    async def _inlined(self, body: Callable[[], Any]) -> Any:
        return await inlined(body, self.state())

    def continue_as_new(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, line: int) -> Any:
        return self.lives.make(args, kwargs, self.place(), line)

    def kept(self, coro: Any) -> Any:
        self.leftovers.append(coro)  # a call that the body never awaits is no matter of ours
        return coro

    async def _wait(
        self, kind: NodeKind, name: str, tree: Any, wait: timedelta | datetime | None
    ) -> Any:
        node_id = self.state().next_node()
        pending = _Pending(
            node_id, kind, name, canonical(tree), tree, asyncio.get_running_loop().create_future()
        )
        if wait is not None:
            pending.due_at = wait if isinstance(wait, datetime) else self.sleeps_from + wait
        begun = self.run.steps if wait is None else self.run.sleeps
        begun[node_id] = (name, pending.args)
        self.pending.append(pending)
        try:
            value, error = await pending.future
        except asyncio.CancelledError:
            if node_id in self.stopped:  # it ran: the await ends when it has
                last = await self._until_stopped(pending)
                if last is not None:
                    raise last from None
            raise
        finally:
            if pending in self.pending:
                self.pending.remove(pending)
        if error is not None:
            raise error  # here, as a coroutine does: a future's would not know what is being handled
        return value

    async def _until_stopped(self, pending: _Pending) -> asyncio.CancelledError | None:
        pending.is_stopping, last = True, None
        while pending in self.pending:
            pending.future = asyncio.get_running_loop().create_future()
            try:
                await pending.future
            except asyncio.CancelledError as error:  # who is cancelled meanwhile waits all the same
                last = error
        return last

    def set_timer(self, seconds: float, timer: asyncio.TimerHandle) -> None:
        """Let a timer of the loop be something that happens."""
        pending = _Pending(
            self.place().next_node(), NodeKind.SLEEP, TIMER, canonical({"seconds": seconds}), None, None
        )
        pending.due_at, pending.timer = self.sleeps_from + timedelta(seconds=seconds), timer
        self.run.sleeps[pending.node_id] = (TIMER, pending.args)
        self.pending.append(pending)

    def place(self) -> TaskState:
        """Where the body is: in a task, or in a callback of the loop."""
        task = asyncio.current_task()
        return task.state if isinstance(task, PlainTask) else self.beside

    def set_expiry(self, node_id: str, at: datetime, ring: Callable[[], None]) -> None:
        """Let the end of a hook be something that happens."""
        args = canonical({"until": at.isoformat()})
        self.run.sleeps[node_id] = (TIMER, args)
        self.pending.append(
            _Pending(node_id, NodeKind.SLEEP, TIMER, args, None, None, due_at=at, ring=ring)
        )

    def cancel_expiry(self, node_id: str) -> None:
        """Let it never happen."""
        self.pending = [pending for pending in self.pending if pending.node_id != node_id]

    async def closing(self, name: str, hook: str) -> None:
        """Wait until the close of a hook is said to be committed."""
        future = asyncio.get_running_loop().create_future()
        args = canonical({"hook": hook})
        pending = _Pending(self.state().next_node(), NodeKind.CLOSE, name, args, None, future)
        self.run.sleeps[pending.node_id] = (name, args)
        self.pending.append(pending)
        try:
            await future
        finally:
            if pending in self.pending:
                self.pending.remove(pending)

    def set_child(self, node_id: str, workflow: str, args: str) -> None:
        """Let the end of a run be something that happens."""
        self.run.sleeps[node_id] = (workflow, args)
        self.pending.append(_Pending(node_id, NodeKind.CHILD, workflow, args, None, None))

    def fail(self, why: str) -> None:
        """Note that the engine did what it may not; a body could handle an error."""
        self.fault = self.fault or DifferenceError(why)

    def cancel_timer(self, timer: asyncio.TimerHandle) -> None:
        """Let a timer never ring."""
        self.pending = [pending for pending in self.pending if pending.timer is not timer]

    # -- what happens ---------------------------------------------------------------------------------

    def attempt(self, pending: _Pending, *, is_lost: bool = False, at: datetime | None = None) -> bool:
        """Run a step once; whether that was its end."""
        ended = pending.ended or self.execute(pending, is_lost=is_lost)
        if ended is None:
            return False
        self.complete(pending, *ended, at=at)
        return True

    def execute(self, pending: _Pending, *, is_lost: bool = False) -> tuple[Any, Any] | None:
        """Run a step once; its result and its error if that was its end, which it has not been told yet."""
        self.run.executions += 1
        pending.attempts += not is_lost
        given = codec.decode(pending.tree)
        step = registry.require_step(pending.name)
        value: Any = None
        data: Any = None
        try:
            value = call_step(
                pending.name, given["args"], given["kwargs"], self.faults.get(pending.node_id)
            )
            value = codec.encode(value, path="result")
        except Exception as error:
            failure = judging.judge(error, now=self.now)
            data = failure.data
            if failure.action == "retry":
                if pending.attempts <= step.options.max_retries:
                    delay = failure.delay
                    if delay is None:
                        delay = step.options.delay_after(pending.attempts)
                    pending.due_at = self.clock + delay
                    return None
                data = failures.exhausted(pending.name, pending.attempts, data)
        return None if is_lost else (value, data)

    def complete(self, pending: _Pending, value: Any, data: Any, *, at: datetime | None = None) -> None:
        """Let a call end; at which time, if the body is told of it later."""
        # A sleep that is noticed late ended in time all the same: the next one counts from there.
        is_late = pending.kind is NodeKind.SLEEP and pending.due_at is not None
        at = at or self.clock
        self.sleeps_from = min(at, pending.due_at) if is_late else at
        self.pending.remove(pending)
        self.run.completed.append(pending.node_id)
        if data is not None or pending.timer is not None or pending.ring is not None:
            self.lives.forget()
        if pending.kind is NodeKind.CHILD:
            self.run.has_been_sent = True  # it may end while a step runs
            end = self.children.tell(pending.node_id)
            if end is not None and end.error is not None:
                self.lives.forget()
        if pending.timer is not None:
            self.run.has_rung = True
            self.ready.append(pending.timer)
        if pending.ring is not None:
            self.run.has_rung = True
            pending.ring()
        if pending.future is None or pending.future.done():
            return
        if data is not None:
            pending.future.set_result((None, failures.loads(codec.dumps(data))))
        else:
            pending.future.set_result((codec.decode(codec.loads(codec.dumps(value))), None))

    def send(self, key: HookKey, item: Item) -> None:
        """Let a payload come."""
        self.sleeps_from = self.clock
        self.run.has_been_sent = True
        self.hooks.put(key, item)

    def wake(self) -> bool:
        """Let a close be committed, or end the first sleep whose time has come."""
        closing = [pending for pending in self.pending if pending.kind is NodeKind.CLOSE]
        if closing:
            self.complete(closing[0], None, None)
            return True
        due = [
            p for p in self.pending if p.kind is NodeKind.SLEEP and p.due_at and p.due_at <= self.clock
        ]
        if not due:
            return False
        self.complete(min(due, key=lambda pending: pending.due_at or START), None, None)
        return True


class Leader:
    """Lets things happen as a chooser says."""

    def __init__(self, tracer: PlainTracer, chooser: Chooser) -> None:
        self._tracer, self._chooser = tracer, chooser
        self._sent = 0

    def next(self) -> None:
        tracer = self._tracer
        if tracer.wake():
            return
        now = [
            p
            for p in tracer.pending
            if p.kind is NodeKind.STEP and not (p.due_at and p.due_at > tracer.clock)
        ]
        later = [p.due_at for p in tracer.pending if p.due_at and p.due_at > tracer.clock]
        hooks = tracer.hooks.awaited()
        count = len(now) + len(hooks) + bool(later)
        if not count:
            raise DifferenceError("plain asyncio waits for nothing that is known")
        chosen = self._chooser.choose(count) if count > 1 else 0
        if len(now) <= chosen < len(now) + len(hooks):
            tracer.clock += MOMENT
            self._sent += 1
            hook, value = hooks[chosen - len(now)], FIRST_PAYLOAD + self._sent
            tracer.run.moves.append(("payload", (hook.node_id, value)))
            tracer.send(hook.key, Item(self._sent, canonical(value)))
            return
        if chosen == len(now) + len(hooks):
            tracer.clock = min(later)
            tracer.run.moves.append(("time", tracer.clock - tracer.started_at))
            return
        tracer.clock += MOMENT
        tracer.run.moves.append(("attempt", now[chosen].node_id))
        tracer.attempt(now[chosen])


class Follower:
    """Lets happen what happened in the engine.

    Args:
        tracer: The body.
        log: What happened.
        allows_overlap: Whether steps may have been under way when the body let go of them.
    """

    def __init__(self, tracer: PlainTracer, log: Sequence[Entry], *, allows_overlap: bool) -> None:
        self._tracer, self._log, self._allows_overlap = tracer, list(log), allows_overlap

    def next(self) -> None:
        tracer = self._tracer
        if not self._log:
            waiting = [pending.node_id for pending in tracer.pending]
            raise DifferenceError(
                f"the engine ended the run, and plain asyncio still waits for {waiting}"
            )
        entry = self._log.pop(0)
        tracer.clock = max(tracer.clock, entry.told_at or entry.at)
        tracer.run.told += entry.told_at is not None
        if entry.kind is NodeKind.HOOK:
            self._send(entry)
            return
        if entry.node_id == CANCEL:
            tracer.run.is_cancelled = True
            tracer.lives.forget()
            tracer.children.note_request()
            if tracer.root is not None:
                reason = tracer.facts.reason
                tracer.root.cancel(*() if reason is None else (reason,))
            return
        pending = next((p for p in tracer.pending if p.node_id == entry.node_id), None)
        if pending is None and self._was_under_way(entry):
            # It was claimed when the body let go of it: it finishes and feeds nothing, but has its effect.
            if entry.kind is NodeKind.STEP:
                tree = json.loads(entry.args)
                left = _Pending(entry.node_id, entry.kind, entry.name, entry.args, tree, None)
                tracer.execute(left, is_lost=entry.outcome == "lost")
            return
        if pending is None:
            raise DifferenceError(f"plain asyncio does not wait for {entry}, but for {tracer.pending}")
        if entry.outcome == "stopped":
            if not pending.is_stopping:
                raise DifferenceError(f"plain asyncio does not wait until {entry} has stopped")
            tracer.complete(pending, None, None, at=entry.at)
            return
        if (pending.name, pending.args) != (entry.name, entry.args):
            raise DifferenceError(f"the engine ran {entry} where plain asyncio calls {pending}")
        if pending.kind is NodeKind.SLEEP:
            if pending.due_at is not None and pending.due_at > entry.at:
                raise DifferenceError(f"{entry} ended before {pending.due_at}")
            tracer.complete(pending, None, None, at=entry.at)
            return
        if pending.kind in (NodeKind.CLOSE, NodeKind.CHILD):
            tracer.complete(pending, None, None, at=entry.at)
            return
        self._execute_before(entry)
        if pending.is_stopping:
            if pending.ended is None:
                tracer.execute(pending)
            if all(other.node_id != entry.node_id for other in self._log):
                tracer.complete(pending, None, None, at=entry.at)
            return
        has_ended = tracer.attempt(pending, is_lost=entry.outcome == "lost", at=entry.at)
        if has_ended != (entry.outcome == "recorded"):
            raise DifferenceError(
                f"{entry}: plain asyncio {'ends' if has_ended else 'goes on with'} the step"
            )

    def _send(self, entry: Entry) -> None:
        number = payload_number(NodeId(entry.node_id))
        assert number is not None
        self._tracer.send(HookKey(Namespace.CODE, entry.name), Item(number, entry.args))

    def _execute_before(self, entry: Entry) -> None:
        """Let the steps have their effects in the order of time, though the body is told in another one."""
        tracer = self._tracer
        for other in sorted(self._log, key=lambda other: other.at):
            if other.at >= entry.at or other.kind is not NodeKind.STEP or other.outcome != "recorded":
                continue
            pending = next((p for p in tracer.pending if p.node_id == other.node_id), None)
            if pending is not None and pending.ended is None:
                pending.ended = tracer.execute(pending)

    def check_rest(self) -> None:
        """What the engine ran after the body's end must have been under way at it."""
        for entry in self._log:
            if entry.kind is NodeKind.HOOK:  # it came when the body had ended, and is left over
                self._send(entry)
            elif entry.node_id != CANCEL and not self._was_under_way(entry):
                raise DifferenceError(f"plain asyncio has ended, and the engine ran {entry}")

    def _was_under_way(self, entry: Entry) -> bool:
        run = self._tracer.run
        begun = run.steps if entry.kind is NodeKind.STEP else run.sleeps
        # Sleeps that end in one moment are recorded together, and the body may let go of one when it is told of another.
        return (
            (
                self._allows_overlap
                or run.has_rung
                or run.has_been_sent
                or run.is_cancelled
                or entry.kind is not NodeKind.STEP
            )
            and (begun.get(entry.node_id) == (entry.name, entry.args) or entry.outcome == "stopped")
            and entry.node_id not in run.completed
        )


class PlainTask(asyncio.Task[Any]):
    """A task that knows its place in the body, so that steps have the same names in both worlds."""

    state: TaskState


class PlainLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop; when it has nothing left to do, something happens."""

    def __init__(self, tracer: PlainTracer, world: Leader | Follower) -> None:
        super().__init__()
        self.tracer = tracer
        self._world = world
        self._has_begun = False
        self._generators: list[Any] = []
        self.error: BaseException | None = None
        tracer.ready = self._ready  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.tracer.clock.timestamp()

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = asyncio.TimerHandle(self.time() + delay, callback, args, self, context)
        if delay < _TURN_SECONDS:
            self._ready.append(handle)  # type: ignore[attr-defined]
        elif delay <= LONGEST.total_seconds():
            self.tracer.set_timer(round(float(delay), 6), handle)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_later(when - self.time(), callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self.tracer.cancel_timer(handle)

    def _asyncgen_firstiter_hook(self, agen: Any) -> None:
        """Keep each generator: the language ends them in order when the body ends, and not when they are collected."""
        self._generators.append(agen)

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """Never asked: they are kept."""

    async def shutdown_asyncgens(self) -> None:
        while self._generators:
            with contextlib.suppress(Exception):
                await self._generators.pop(0).aclose()

    def create_task(self, coro: Any, **options: Any) -> Any:
        parent = asyncio.current_task() if asyncio._get_running_loop() is self else None
        task = PlainTask(coro, loop=self, **options)
        if isinstance(parent, PlainTask):
            caller = _maker_of(sys._getframe(1))
            is_same = caller is not None and caller.f_code is asyncio.wait_for.__code__
            task.state = parent.state if is_same else parent.state.next_child()
        elif self._has_begun:
            task.state = self.tracer.beside.next_child()
        else:
            place = TaskState(str(self.tracer.life))
            self._has_begun, task.state, self.tracer.root = True, place, task
        return task

    def _run_once(self) -> None:
        # Nothing is ready: without us asyncio would wait for the outside world here.
        while not self._ready and not self._scheduled and not self._stopping:  # type: ignore[attr-defined]
            if self.error is None and not self.tracer.pending and not self.tracer.hooks.awaited():
                self.error = DifferenceError("plain asyncio waits for something unknown")
            if self.error is None:
                try:
                    self._world.next()
                except BaseException as error:
                    self.error = error
            if self.error is not None:
                self.tracer.pending.clear()  # what waits until a step has stopped would wait for ever
                for task in asyncio.all_tasks(self):
                    task.cancel()
                break
        super()._run_once()  # type: ignore[misc]


_traced = tracing.current


def _current() -> Any:
    loop = asyncio._get_running_loop()
    return loop.tracer if isinstance(loop, PlainLoop) else _traced()


_compiled = Workflow.__dict__["body"]
_originals: dict[Workflow[..., Any], Any] = {}


def _original(workflow: Workflow[..., Any]) -> Any:
    if workflow not in _originals:
        body = _compiled.__get__(workflow, Workflow)
        _originals[workflow] = dataclasses.replace(body, function=workflow.function)
    return _originals[workflow]


def uncompiled() -> AbstractContextManager[object]:
    """Let bodies run as they were written, wherever they run."""
    return mock.patch.object(Workflow, "body", property(_original))


def run_plain(
    workflow: Any,
    args: Sequence[Any] = (),
    *,
    chooser: Chooser | None = None,
    log: Sequence[Entry] = (),
    run_id: str = "plain",
    started_at: datetime = START,
    faults: Mapping[str, Fault] | None = None,
    allows_overlap: bool = False,
    stopped: Collection[str] = (),
    facts: Facts | None = None,
    kwargs: Mapping[str, Any] | None = None,
    life: int = 0,
) -> PlainRun:
    """Run the original function of a workflow with `asyncio.run`.

    Args:
        workflow: The workflow.
        args: Its arguments.
        chooser: Says what happens next; or:
        log: What happened in the engine.
        run_id: The seed of `random()` and `uuid4()`.
        started_at: When it starts.
        faults: As for the simulator.
        allows_overlap: As for `Follower`.
        stopped: The steps that ran there when their await was cancelled, and were waited for.
        facts: What the database knows of its hooks, and of the runs that it starts.
        kwargs: More arguments.
        life: Which life of its run it is.

    Raises:
        DifferenceError: What the log says cannot happen here.
    """
    tracer = PlainTracer(
        run_id, faults or {}, started_at, stopped, facts or Facts(), workflow=workflow.name, life=life
    )
    world: Leader | Follower = (
        Leader(tracer, chooser)
        if chooser is not None
        else Follower(tracer, log, allows_overlap=allows_overlap)
    )
    given = [codec.decode(codec.encode(arg, path="argument")) for arg in args]
    named = {name: codec.decode(codec.encode(arg, path=name)) for name, arg in (kwargs or {}).items()}
    loop: PlainLoop | None = None

    def make_loop() -> PlainLoop:
        nonlocal loop
        loop = PlainLoop(tracer, world)
        return loop

    with (
        mock.patch.object(tracing, "current", _current),
        uncompiled(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            with asyncio.Runner(loop_factory=make_loop) as runner:
                result = runner.run(workflow.function(*given, **named))
            tracer.run.outcome = tracer.lives.outcome(result)
        except (Exception, asyncio.CancelledError) as error:
            tracer.run.outcome = {"error": error}
        for coro in tracer.leftovers:
            coro.close()
    assert loop is not None
    if tracer.fault is not None:
        raise tracer.fault
    if loop.error is not None:
        raise loop.error
    if isinstance(world, Follower):
        world.check_rest()
        if tracer.fault is not None:
            raise tracer.fault
    tracer.run.ended_at = tracer.clock
    tracer.run.ends_cancelled = isinstance(tracer.run.outcome.get("error"), asyncio.CancelledError)
    tracer.run.outcome = _stored(tracer.run.outcome)
    return tracer.run


def _stored(outcome: dict[str, Any]) -> dict[str, Any]:
    """The outcome as the engine would keep it."""
    if "next" in outcome:
        return outcome
    if "error" in outcome:
        return {"error": failures.to_data(outcome["error"])}
    try:
        return {"result": codec.encode(outcome["result"], path="result")}
    except Exception as error:
        return {"error": failures.to_data(error)}
