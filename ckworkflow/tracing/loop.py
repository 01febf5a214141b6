"""The deterministic event loop that runs the body of a workflow.

A real asyncio event loop as far as tasks, futures and timers go, so that `asyncio.gather`, `asyncio.Task` and
`asyncio.timeout` work on it unchanged. Its clock is what the body has been told, and its timers are nodes of the run, as
durable as a sleep. It has no sockets and no threads: callbacks run in the order in which they were scheduled, and everything
that would reach the outside world is a `BodyAwaitError`.

Not here: what an await records (`tracer`).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import sys
import sysconfig
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Never, NoReturn, TypeVar, cast

from ckworkflow.duration import LONGEST
from ckworkflow.errors import BodyAwaitError, BodyStuckError
from ckworkflow.tracing.abandon import abandon, holds_no_frames
from ckworkflow.tracing.calls import Call
from ckworkflow.tracing.places import line_of
from ckworkflow.tracing.stuck import where_they_stand

if TYPE_CHECKING:
    from contextvars import Context
    from types import FrameType

    from ckworkflow.tracing.tasks import AnyCoroutine, TaskState
    from ckworkflow.tracing.tracer import Tracer

E = TypeVar("E", bound=BaseException)

CALLBACK_LIMIT = 1_000_000
"""Callbacks of one pass; a body that spins on `asyncio.sleep(0)` ends here instead of never."""


FEW_TASKS = 16
"""So many may be kept though they have ended."""
_bodies = itertools.count()
_BODY_BITS: Final = 16
_TASK_BITS: Final = 44
"""Of a hash, the lower ones, which alone give the order of a set; Python uses 61."""


class TraceTask(asyncio.Task[Any]):
    """An asyncio task that knows its place in the body."""

    state: TaskState

    def __init__(
        self, coro: AnyCoroutine, *, hash_: int, loop: TraceLoop, name: str, context: Context | None
    ) -> None:
        self._hash = hash_  # first: asyncio keeps a set of all tasks
        super().__init__(coro, loop=loop, name=name, context=context)

    def cancel(self, msg: object = None) -> bool:
        """As of any task, unless it has run ahead: then the body is replayed, so that it stands where it really is."""
        tracer = cast("TraceLoop", self.get_loop()).tracer
        if not self.done() or tracer.is_root(self):  # the root may have run ahead to its end
            tracer.before_cancel(self.state)
        return super().cancel(msg)

    def __hash__(self) -> int:
        # By its number in the body, not by its address: a set of tasks (`asyncio.wait`) has one order.
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other


class TraceLoop(asyncio.AbstractEventLoop):
    """Runs callbacks until none is left; see the module."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.tasks: list[TraceTask] = []
        self.generators: list[AsyncGenerator[object, Never]] = []
        self.fault: BaseException | None = None
        self.progress = 0
        """Grows while the body comes further: with each callback, and with each node."""
        self._ready: deque[asyncio.Handle] = deque()
        self._turn = 0
        """Callbacks that are left of this turn: those that were scheduled when it began."""
        self._is_stopping = False
        self._timers: dict[int, Callable[[], object]] = {}
        """What cancels each timer, by the identity of its handle."""
        self._begun_ahead: dict[int, TraceTask] = {}
        """Tasks that `as_completed` is about to ask for, by the identity of their coroutine."""
        self._closed = False
        self._task_count = 0
        self._forget_above = FEW_TASKS
        # Tasks of different bodies meet in asyncio's set of all tasks, and must not all have one hash there.
        self._hash_base = next(_bodies) % (1 << _BODY_BITS) << _TASK_BITS

    # -- what asyncio's own tasks and futures use -----------------------------------------------

    def call_soon(
        self, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.Handle:
        """Schedule a callback behind those already scheduled."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        """Make a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        """Start a child of the running task; its path is the parent's, then its ordinal."""
        caller = _maker_of(sys._getframe(1))
        if caller is not None and caller.f_code is asyncio.wait_for.__code__:
            # As in Python 3.12 and later, which await it in the task that calls `wait_for`.
            return self.spawn(coro, self.tracer.place(), context=context, name=name)
        if caller is not None:
            return self._begin_in_order(coro, caller, context)
        return self._begin(coro, context, name)

    def _begin(self, coro: AnyCoroutine, context: Context | None, name: str | None = None) -> TraceTask:
        state = self.tracer.child_state()
        state.is_stepwise = True
        return self.spawn(coro, state, context=context, name=name)

    def _begin_in_order(
        self, coro: AnyCoroutine, caller: FrameType, context: Context | None
    ) -> asyncio.Task[Any]:
        """Begin what `as_completed` was given in the order of its list; asyncio does in that of a set, which is none."""
        given = caller.f_locals.get("fs", caller.f_locals.get("aws"))
        if id(coro) not in self._begun_ahead:
            if not isinstance(given, list | tuple) or all(each is not coro for each in given):
                raise self.refuse(
                    "asyncio.as_completed() of something that has no order",
                    "Pass a list of coroutines or of tasks.",
                )
            for each in {id(each): each for each in given if asyncio.iscoroutine(each)}.values():
                self._begun_ahead[id(each)] = self._begin(each, context)
        return self._begun_ahead.pop(id(coro))

    def spawn(
        self,
        coro: AnyCoroutine,
        state: TaskState,
        *,
        context: Context | None = None,
        name: str | None = None,
    ) -> TraceTask:
        """Start a task at a given place in the body."""
        self._task_count += 1
        if isinstance(coro, Call):
            coro.hand_over()
        task = TraceTask(
            coro,
            hash_=self._hash_base + self._task_count,
            loop=self,
            name=name or f"workflow task {state.path}",
            context=context,
        )
        task.state = state
        self.tasks.append(task)
        return task

    @property
    def has_had_tasks(self) -> bool:
        """Whether there has been another task beside that of the body itself."""
        return self._task_count > 1

    def forget_done(self) -> None:
        """Let go of the tasks that have ended and keep nothing: a body that lives long makes many."""
        if len(self.tasks) > self._forget_above:
            self.tasks[1:] = [
                task for task in self.tasks[1:] if not task.done() or _may_keep_frames(task)
            ]
            self._forget_above = max(FEW_TASKS, 2 * len(self.tasks))

    def time(self) -> float:
        """The time that the body sees, in seconds since 1970."""
        return self.tracer.now().timestamp()

    def get_debug(self) -> bool:
        """Debug mode would time callbacks, which this loop cannot."""
        return False

    def is_running(self) -> bool:
        """Whether a pass is under way."""
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        """Whether the body was abandoned or has ended."""
        return self._closed

    def call_exception_handler(self, context: dict[str, object]) -> None:
        """Errors that nobody awaits are dropped: their nodes have recorded them."""

    default_exception_handler = call_exception_handler

    async def shutdown_asyncgens(self) -> None:
        """Close the generators that the body has left, in the order in which it began them."""
        while self.generators:
            with suppress(Exception):  # as asyncio, which only logs it
                await self.generators.pop(0).aclose()

    # -- passes ---------------------------------------------------------------------------------

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make this the running loop of the thread."""
        outer, hooks = asyncio._get_running_loop(), sys.get_asyncgen_hooks()
        asyncio._set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=self._begin_generator, finalizer=_leave_generator)
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(*hooks)
            asyncio._set_running_loop(outer)

    def _begin_generator(self, generator: AsyncGenerator[object, Never]) -> None:
        """Keep an asynchronous generator of the body: it is closed when the body ends, and not when it is collected."""
        self.generators = [
            kept for kept in self.generators if getattr(kept, "ag_frame", None) is not None
        ]
        self.generators.append(generator)

    def stop_with(self, task: TraceTask) -> None:
        """Have a pass stop when this task has ended, after the turn in which that is noticed: as `asyncio.run` does."""
        task.add_done_callback(self._stop)

    def _stop(self, _task: asyncio.Task[Any]) -> None:
        self._is_stopping = True

    def run_until_idle(self) -> None:
        """Run callbacks until none is scheduled, or something unheard of was awaited, or the task of `stop_with` has ended."""
        with self.entered():
            for _ in range(CALLBACK_LIMIT):
                if self.fault is not None:
                    return
                if not self._turn:
                    if self._is_stopping or not self._ready:
                        self._is_stopping = False
                        return
                    self._turn = len(self._ready)
                self._turn -= 1
                handle = self._ready.popleft()
                self.progress += 1
                if handle.cancelled():
                    continue
                try:
                    handle._run()
                except (KeyboardInterrupt, SystemExit) as error:
                    # asyncio lets these through a task; a body may not stop its worker.
                    self.refuse(f"{type(error).__name__}, which would stop the worker")
        self.fail(BodyStuckError("spins, and never waits for a step", where_they_stand(self.tasks)))

    def close(self) -> None:
        """Abandon every unfinished coroutine: no user code runs."""
        if self._closed:
            return
        self._closed = True
        for task in self.tasks:
            if task.done():
                if not task.cancelled():
                    task.exception()  # mark as seen: its node has recorded it
                continue
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own switch
            if (awaited := task._fut_waiter) is not None:  # type: ignore[attr-defined]
                awaited.cancel()  # so that a lock does not think of it as next in its queue
        awaited = None
        left = [task for task in self.tasks if not task.done() or _may_keep_frames(task)]
        if left or self.generators:
            coroutines = [task.get_coro() for task in left]
            abandon([*left, *coroutines, *self.generators], beyond=(type(self.tracer), TraceLoop))
            coroutines.clear()
        left.clear()
        self.tasks.clear()
        self._timers.clear()
        self._begun_ahead.clear()
        self.generators.clear()
        self._ready.clear()

    def refuse(self, what: str, *instead: str) -> BodyAwaitError:
        """Remember that the body left the durable world, whatever it does with the error."""
        return self.fail(BodyAwaitError(what + _place(), *instead))

    def fail(self, error: E) -> E:
        """End the run with an error, whatever the body does with it."""
        if self.fault is None:
            self.fault = error
        return error

    # -- timers ---------------------------------------------------------------------------------

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: object,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call back after some seconds, through any restart; at once if there are none, and never if there are too many."""
        if math.isnan(delay):
            msg = "a delay must be a number of seconds, and got NaN"
            raise ValueError(msg)
        handle = asyncio.TimerHandle(self.time() + delay, callback, args, self, context)
        if delay < _TURN_SECONDS:
            self._ready.append(handle)
        elif delay <= LONGEST.total_seconds():
            line = line_of(sys._getframe(1))
            key, span = id(handle), timedelta(seconds=round(delay, 6))
            self._timers[key] = self.tracer.set_timer(span, lambda: self._ring(handle), line=line)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back at a time of this loop (`time`); see `call_later`."""
        return self.call_later(when - self.time(), callback, *args, context=context)

    def _ring(self, handle: asyncio.TimerHandle) -> None:
        self._timers.pop(id(handle), None)
        self._ready.append(handle)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Asked by the handle of a timer, once, when it is cancelled."""
        cancel = self._timers.pop(id(handle), None)
        if cancel is not None:
            cancel()

    # -- what a body may not do -------------------------------------------------------------------

    def set_task_factory(self, factory: object) -> NoReturn:  # refused
        """Refused: eager tasks would run before their place in the body is known."""
        raise self.refuse("a task factory, as of eager tasks", "Make tasks with asyncio.create_task().")


def _maker_of(frame: FrameType | None) -> FrameType | None:
    """The frame of `asyncio.wait_for` or `as_completed`, if one of them makes a task of what it was given."""
    while frame is not None and frame.f_globals is vars(asyncio.tasks):
        if frame.f_code in _MAKERS:
            return frame
        frame = frame.f_back
    return None


_TURN_SECONDS: Final = 5e-7
"""A timer that is shorter is a turn of the loop: moments are kept in microseconds."""
_iterator: Final = getattr(asyncio.tasks, "_AsCompletedIterator", None)  # from Python 3.13 on
_MAKERS: Final = {
    asyncio.wait_for.__code__,
    asyncio.as_completed.__code__ if _iterator is None else _iterator.__init__.__code__,
}


def _place() -> str:
    """Where the body stands, for a person: at its last line that is not a library's; nothing if none is running."""
    place, frame = "", cast("FrameType | None", sys._getframe(1))
    while frame is not None and frame.f_code is not TraceLoop.run_until_idle.__code__:
        path, name = frame.f_code.co_filename, str(frame.f_globals.get("__name__"))
        if not place and not path.startswith(_LIBRARIES) and name.partition(".")[0] != "ckworkflow":
            place = f" (line {frame.f_lineno} of {os.path.basename(path)})"  # noqa: PTH119  # it may be no path
        frame = frame.f_back
    return "" if frame is None else place


def _may_keep_frames(task: TraceTask) -> bool:
    """Whether what has come of a finished task may hold something suspended; its own frames have gone."""
    return not task.cancelled() and (task.exception() is not None or not holds_no_frames(task.result()))


_LIBRARIES: Final = (
    "<frozen ",
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
)


def _leave_generator(generator: AsyncGenerator[object, Never]) -> None:
    """Nothing to do for one that is collected: its body was abandoned."""


def _refusal(name: str) -> Callable[..., NoReturn]:
    def refuse(self: TraceLoop, *_: object, **__: object) -> NoReturn:
        raise self.refuse(f"the network, a thread or a process (the event loop's {name}())")

    refuse.__name__ = name
    return refuse


for _name in dir(asyncio.AbstractEventLoop):
    if not _name.startswith("_") and _name not in TraceLoop.__dict__:
        setattr(TraceLoop, _name, _refusal(_name))
