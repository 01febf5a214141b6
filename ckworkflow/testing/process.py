"""A process of an environment: the real engine, without Celery and without threads of its own.

It takes the steps that are ready, in the order of the plan, and runs them on the loop of the test: async ones side by side,
plain ones one after the other, each on a thread. It records how they end, and lets bodies go on. Time does not pass
by itself, nothing is published, and nobody is taken for dead.

Not here: when it goes on (`ckworkflow.testing.environment`).
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import inspect
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ckworkflow import integration as integrations
from ckworkflow.background import AtOnce, SpareThreads
from ckworkflow.definition import Step, registry
from ckworkflow.engine import attempts, cancellation, claims, recovery
from ckworkflow.engine.advance import go_on
from ckworkflow.engine.answer import Answer
from ckworkflow.engine.budget import Budget, Limits
from ckworkflow.engine.called import step_of
from ckworkflow.engine.claims import Claimed, Dropped
from ckworkflow.engine.core import Engine
from ckworkflow.engine.host import Host
from ckworkflow.engine.shared import SharedStore
from ckworkflow.errors import HookContextError, StepCancelledError, StepTimeoutError
from ckworkflow.model import NodeKind, NodeStatus
from ckworkflow.store import nodes, runs
from ckworkflow.testing.crashes import CrashableDatabase
from ckworkflow.worker.steps.execution import StoppedError, run_async, run_sync
from ckworkflow.worker.steps.reports import log_attempt
from ckworkflow.worker.steps.task import is_final_failure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from ckworkflow.engine.judging import Failure
    from ckworkflow.engine.settings import Settings
    from ckworkflow.engine.watch import LoopEvent
    from ckworkflow.integration import Integration
    from ckworkflow.model import NodeId, RunId
    from ckworkflow.plan import Piece
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.testing.clock import TestClock
    from ckworkflow.tracing import Tracer

__all__ = ["FAR", "Process", "ProcessEngine", "is_in_step", "never"]

T = TypeVar("T")

_step: ContextVar[asyncio.Task[Any] | None] = ContextVar("ckworkflow_step")
"""The task of the step that runs here."""
FAR = timedelta(days=365 * 4_000)
"""What never comes in a test: messages that are late, looks at runs that wait for nothing. Longer than any sleep."""


_has_turn: ContextVar[bool] = ContextVar("ckworkflow_turn", default=False)
"""Whether this is a plain step, whose turn it is."""
_threads = SpareThreads("ckworkflow-step")


async def never(*_args: object, **_kwargs: object) -> None:
    """Stand for a step that waits until it is cancelled, or its `timeout=` has passed."""
    raise AssertionError("it is never called")


def is_in_step() -> bool:
    """Whether a step of an environment runs here."""
    return _step.get(None) is not None


@dataclass(slots=True)
class _Waiting:
    """What a step waits for that does not come by itself.

    Attributes:
        runs: Whose ends.
        is_about_to_go_on: One of them has ended just now.
        until: Of a step that never ends: when its `timeout=` passes.
        never: Of such a step: fails then.
    """

    runs: list[RunId] = field(default_factory=list)
    is_about_to_go_on: bool = False
    until: datetime | None = None
    never: asyncio.Future[None] | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What a step has returned or raised. Not all that it may raise can pass through a coroutine."""

    value: object = None
    error: Exception | None = None


class ProcessEngine(Engine):
    """An engine that is a process of its own to the database."""

    def __init__(
        self, name: str, settings: Settings, publish: Callable[[RunId, Sequence[Piece]], bool],
        database: CrashableDatabase,
    ) -> None:  # fmt: skip
        super().__init__(settings, publish, database=database)
        self._name = name
        self.process: Process | None = None
        self.budget = _BodiesHere(self.spare_threads)
        self.beside = AtOnce()

    @property
    def owner(self) -> str:
        """The name of the process."""
        return self._name

    def notify(self, run_id: RunId) -> None:
        """Tell who waits for a run that it has ended."""
        if self.process is not None:
            self.process.note_end(run_id)
        super().notify(run_id)

    def redispatch_after(self, dispatches: int) -> timedelta:  # noqa: ARG002  # it is never late
        """Messages do not get lost here: none is published."""
        return FAR


class _BodiesHere(Budget):
    """Runs bodies where they are called: what a debugger, or an endless loop, does to them is the test's."""

    def run(
        self, tracer: Tracer, workflow: str, call: Callable[[], T], limits: Limits | None = None  # noqa: ARG002
    ) -> T:  # fmt: skip
        return copy_context().run(call)

    def run_here(
        self, tracer: Tracer, workflow: str, call: Callable[[], T], lost: Callable[[], object],  # noqa: ARG002
        limits: Limits | None = None,  # noqa: ARG002
    ) -> T:  # fmt: skip
        return copy_context().run(call)


class Process(Host):
    """See the module.

    Args:
        engine: Its engine.
        clock: The time.
        stand_in: Gives what is called in place of a step's function, by the name of the step.
        opened: The integrations that are open.
        app: Gives the Celery app that steps may ask for.
        settle: Waits until nothing more happens; tells a caller that only time could end a run.
        loop: The loop of the test, where that is known yet.
    """

    runs_steps = True
    """So that nobody is told that there is no worker; `may_run` takes none all the same."""

    def __init__(
        self, engine: ProcessEngine, clock: TestClock, *, stand_in: Callable[[str], Callable[..., Any] | None],
        opened: Sequence[Integration], app: Callable[[], Any], settle: Callable[[RunId], Coroutine[Any, Any, None]],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:  # fmt: skip
        self.engine, self.store = engine, SharedStore(engine)
        self._clock, self._stand_in, self._opened = clock, stand_in, opened
        self._app, self._settle = app, settle
        self._touched: deque[RunId] = deque()
        self._steps: dict[asyncio.Task[None], Claimed] = {}
        self._told: set[tuple[RunId, NodeId]] = set()
        self._waiting: dict[asyncio.Task[Any], _Waiting] = {}
        self._errors: list[BaseException] = []
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self._loop = loop
        self._is_over = False
        engine.process = self
        engine.attach(self)

    # -- what the environment does with it ---------------------------------------------------------

    def touch(self, run_id: RunId) -> None:
        """Note, on any thread, that steps of a run may be ready."""
        self._touched.append(run_id)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    def begin_ready(self) -> None:
        """Begin every step that is ready, and let every body go on that can.

        Raises:
            BaseException: What went wrong in this process since the last time, and is no step's.
        """
        self._loop = asyncio.get_running_loop()
        self._changed.clear()
        while True:
            if self._errors:
                raise self._errors.pop(0)
            self._time_out()
            recovery.tick(self.engine)
            claims.offer_turns(self.engine)
            if not self._touched:
                return
            run_id = self._touched.popleft()
            for row in self._ready(run_id):
                self._begin(run_id, row)

    async def until_changed(self) -> None:
        """Wait until a step has ended or waits, or another run was touched."""
        await self._changed.wait()

    @property
    def busy(self) -> list[Claimed]:
        """The steps that run, without those that wait for another run, or for ever."""
        return [
            claimed
            for task, claimed in self._steps.items()
            if (waiting := self._waiting.get(task)) is None or waiting.is_about_to_go_on
        ]

    @property
    def next_timeout(self) -> datetime | None:
        """When the first `timeout=` of a step passes that never ends."""
        times = [waiting.until for waiting in self._waiting.values() if waiting.until is not None]
        return min(times, default=None)

    def timeout_of(self, run_id: RunId, node_id: NodeId) -> datetime | None:
        """When the `timeout=` of a step passes, if it is one that never ends."""
        for task, claimed in self._steps.items():
            if (claimed.run_id, claimed.row.node_id) == (run_id, node_id) and task in self._waiting:
                return self._waiting[task].until
        return None

    async def end(self) -> None:
        """End it: its steps are cancelled, and nothing that they did is recorded."""
        self._is_over = True
        for task in list(self._steps):
            task.cancel()
        await asyncio.gather(*self._steps, return_exceptions=True)
        self.forget()

    def forget(self) -> None:
        """Forget all that it remembers; its steps have ended, or their loop has."""
        self._is_over = True
        self._steps.clear()
        self.store.close()
        self.engine.bodies.clear()
        self.engine.database.close()

    # -- what it does for the engine ----------------------------------------------------------------

    async def wait(self, run_id: RunId, ended: LoopEvent, seconds: float) -> None:
        """Let everything settle, and then refuse to wait for a run that only time could end.

        In a step it waits, for as long as it takes.
        """
        step = _step.get(None)
        if step is None:
            await self._settle(run_id)
            return
        with self._waits(step, run_id):
            await ended.wait(seconds)

    def wait_here(self, run_id: RunId, ended: threading.Event, seconds: float) -> bool:
        """Do the same on another thread than the loop's.

        Raises:
            RuntimeError: This is the loop's.
        """
        loop = self._loop
        if loop is None or _is_on_a_loop():
            raise RuntimeError(
                "SyncRun.return_value() blocks, and environment() runs the steps on the event loop of the test: use "
                "`run = await start(...)` and `await run.return_value()`"
            )
        step = _step.get(None)
        if step is None:
            asyncio.run_coroutine_threadsafe(self._settle(run_id), loop).result()
            return True
        with self._waits(step, run_id):
            if not _has_turn.get():
                return ended.wait(seconds)
            loop.call_soon_threadsafe(self._turn.release)  # others may run meanwhile
            try:
                return ended.wait(seconds)
            finally:
                if not self._is_over:
                    asyncio.run_coroutine_threadsafe(self._turn.acquire(), loop).result()

    # -- what it offers to steps ----------------------------------------------------------------------

    def client(self) -> Any:
        """Return the client of the first integration that has one.

        Raises:
            HookContextError: The step is not async, or none is open.
        """
        if not self._opened:
            raise HookContextError(
                "use_client",
                "environment() reaches no Discord but a FakeDiscord: put the variables of its `env` into os.environ before "
                "the first step runs, or replace this step with env.replaced().",
            )
        return integrations.client_of(self._opened)

    @property
    def app(self) -> Any:
        """The Celery app."""
        return self._app()

    @property
    def config(self) -> Any:
        """The app's settings."""
        return self._app().conf

    @property
    def is_stopping(self) -> bool:
        """Whether the current step is cancelled since this process ends, or the loop of the test does."""
        task = asyncio.current_task()
        is_cancelled = task is not None and task.cancelling() > 0 and self.interruption() is None
        return self._is_over or is_cancelled

    def interruption(self) -> BaseException | None:
        """Say why the current step was cancelled: it was told to stop."""
        claimed = self._steps.get(asyncio.current_task())  # type: ignore[arg-type]  # a step has a task
        is_told = claimed is not None and self.is_told_to_stop(claimed.run_id, claimed.row.node_id)
        return StepCancelledError(claimed.row.name) if claimed is not None and is_told else None

    def tell_to_stop(self) -> None:
        """Have the steps stop that are to: those that are async are cancelled."""
        told = set(cancellation.told_to_stop(self.engine))
        for task, claimed in list(self._steps.items()):
            node = claimed.run_id, claimed.row.node_id
            step = registry.require_step(claimed.row.name)
            if node in told and node not in self._told and not self._is_over:
                self._told.add(node)
                waiting = self._waiting.get(task)
                # A plain one that waits for another run only looks whether it is told.
                if step.is_async or (waiting is not None and waiting.never is not None):
                    self._waiting.pop(task, None)  # it is about to end
                    task.get_loop().call_soon_threadsafe(task.cancel)

    def is_told_to_stop(self, run_id: RunId, node_id: NodeId) -> bool:
        """Whether a step is to stop."""
        return (run_id, node_id) in self._told

    # -- steps ----------------------------------------------------------------------------------------

    def _ready(self, run_id: RunId) -> list[NodeRow]:
        """The steps of a run that may begin, in the order of the plan."""
        now = self.engine.database.about_now()
        rows = self.engine.database.read(
            lambda tx: nodes.load_nodes(tx, run_id, statuses=[NodeStatus.PLANNED]).get()
        )
        ready = [
            row
            for row in rows
            if row.kind is NodeKind.STEP and row.unmet == 0 and (row.due_at is None or row.due_at <= now)
        ]
        # Those that are held back wait for the others, as in a worker.
        return [row for row in ready if not row.is_held] or ready

    def _begin(self, run_id: RunId, row: NodeRow) -> None:
        claimed = claims.claim(
            self.engine, run_id, row.node_id, row.generation, step=row.name, wakes=True
        )
        if isinstance(claimed, Claimed):
            stand_in = self._stand_in(row.name)  # now: it may be gone when the task begins
            waiting = _never_ending(claimed) if stand_in is never else None
            # A worker's steps do not see the context variables of whoever started the run.
            task = asyncio.get_running_loop().create_task(
                self._run(claimed, stand_in, None if waiting is None else waiting.never),
                name=f"{row.name} ({row.node_id})",
                context=contextvars.Context(),
            )
            self._steps[task] = claimed
            if waiting is not None:
                self._waiting[task] = waiting
            task.add_done_callback(self._ended)
        elif isinstance(claimed, Dropped) and claimed.wakes_body:
            self._follow(run_id, Answer(must_advance=True))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._steps.pop(task, None)
        self._waiting.pop(task, None)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)

    async def _run(
        self, claimed: Claimed, stand_in: Callable[..., Any] | None, end: asyncio.Future[None] | None
    ) -> None:
        engine = self.engine
        task = asyncio.current_task()
        _step.set(task)
        try:
            outcome = await self._call(claimed, stand_in, end)
        except StoppedError:
            return
        except Exception as error:  # noqa: BLE001  # a step may raise anything
            outcome = _Outcome(error=error)
        if self._is_over:
            return
        failure: Failure | None = None
        if outcome.error is not None:
            failure = attempts.judge(engine, claimed, outcome.error, now=self._clock)
        failure, recorded = attempts.record(
            engine, claimed, outcome.value, failure, carries=frozenset(), may_run=None,
            keep_trying=lambda record: record(),
        )  # fmt: skip
        log_attempt(engine, claimed, failure, recorded, is_final=is_final_failure(failure, recorded))
        self._follow(claimed.run_id, recorded)

    def _follow(self, run_id: RunId, answer: Answer) -> None:
        go_on(self.engine, run_id, answer)
        self.touch(run_id)

    async def _call(
        self, claimed: Claimed, stand_in: Callable[..., Any] | None, end: asyncio.Future[None] | None
    ) -> _Outcome:
        """Run a step, or let it wait for its end if it never ends by itself."""
        if claimed.error is not None:
            raise claimed.error
        step = step_of(claimed.row)
        if end is not None:
            try:
                await end
            except asyncio.CancelledError:
                raise StoppedError if self.is_stopping else StepCancelledError(step.name) from None
        if stand_in is not None:
            step = _with_function(step, stand_in)
        if step.is_async:
            return _Outcome(await run_async(self, step, claimed))
        plain = step
        call = partial(plain.function, *claimed.args, **claimed.kwargs)

        def run() -> _Outcome:
            try:
                return _Outcome(run_sync(self, plain, claimed, call))
            except Exception as error:  # noqa: BLE001  # a step may raise anything
                return _Outcome(error=error)

        async with self._turn:
            _has_turn.set(True)  # a context variable takes it so
            return await _on_thread(run)

    def _time_out(self) -> None:
        now = self.engine.database.about_now()
        for task, waiting in list(self._waiting.items()):
            if waiting.never is None or waiting.until is None or waiting.until > now:
                continue
            del self._waiting[task]
            step = step_of(self._steps[task].row)
            seconds = step.options.timeout.total_seconds() if step.options.timeout else 0.0
            waiting.never.set_exception(StepTimeoutError(step.name, seconds))

    @contextmanager
    def _waits(self, step: asyncio.Task[Any], run_id: RunId) -> Iterator[None]:
        """Note, on any thread, that a step waits for the end of a run, inside; from that end on it does not."""
        waiting = self._waiting.setdefault(step, _Waiting())
        waiting.runs.append(run_id)
        if not self.engine.database.read(lambda tx: runs.live_of(tx, [run_id])):
            self.note_end(run_id)  # it has ended meanwhile
        step.get_loop().call_soon_threadsafe(self._changed.set)
        try:
            yield
        finally:
            waiting.runs.remove(run_id)
            waiting.is_about_to_go_on = False
            if not waiting.runs:
                self._waiting.pop(step, None)

    def note_end(self, run_id: RunId) -> None:
        """Note that a run has ended, and that who waits for it is about to go on."""
        for waiting in list(self._waiting.values()):
            if run_id in waiting.runs:
                waiting.is_about_to_go_on = True


def _never_ending(claimed: Claimed) -> _Waiting:
    timeout, began = step_of(claimed.row).options.timeout, claimed.row.started_at
    until = None if timeout is None or began is None else began + timeout
    return _Waiting(until=until, never=asyncio.get_running_loop().create_future())


def _on_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Call something that raises nothing on a thread of its own, in the context of the caller."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = copy_context()

    def tell(value: T) -> None:
        if not future.done():
            future.set_result(value)

    def work() -> None:
        value = context.run(call)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, value)

    _threads.begin(work)
    return future


def _is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _with_function(step: Step[..., Any], function: Callable[..., Any]) -> Step[..., Any]:
    """Return a step with its name and options, and another function."""
    made = copy.copy(step)
    vars(made).update(function=function, is_async=inspect.iscoroutinefunction(function))
    return made
