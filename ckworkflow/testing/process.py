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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ckworkflow import integration as integrations
from ckworkflow.definition import Step, registry
from ckworkflow.engine import attempts, claims, recovery
from ckworkflow.engine.advance import go_on
from ckworkflow.engine.answer import Answer
from ckworkflow.engine.budget import Budget, Limits
from ckworkflow.engine.claims import Claimed, Dropped
from ckworkflow.engine.core import Engine
from ckworkflow.engine.host import Host
from ckworkflow.engine.shared import SharedStore
from ckworkflow.model import NodeKind, NodeStatus
from ckworkflow.store import nodes, runs
from ckworkflow.testing.crashes import CrashableDatabase
from ckworkflow.worker.steps.execution import StoppedError, run_async, run_sync
from ckworkflow.worker.steps.reports import log_attempt
from ckworkflow.worker.steps.task import is_final_failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckworkflow.engine.judging import Failure
    from ckworkflow.engine.settings import Settings
    from ckworkflow.engine.watch import LoopEvent
    from ckworkflow.integration import Integration
    from ckworkflow.model import RunId
    from ckworkflow.plan import Piece
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.testing.clock import TestClock
    from ckworkflow.tracing import Tracer

__all__ = ["FAR", "Process", "ProcessEngine", "never"]

T = TypeVar("T")

_step: ContextVar[asyncio.Task[Any] | None] = ContextVar("ckworkflow_step")
"""The task of the step that runs here."""
FAR = timedelta(days=365 * 4_000)
"""What never comes in a test: messages that are late, looks at runs that wait for nothing. Longer than any sleep."""


async def never(*_args: object, **_kwargs: object) -> None:
    """Stand for a step that waits until it is cancelled."""
    await asyncio.get_running_loop().create_future()


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
        stand_ins: What is called in place of the functions of steps, by name.
        opened: The integrations that are open.
        app: Gives the Celery app that steps may ask for.
        settle: Waits until nothing more happens; tells a caller that only time could end a run.
        loop: The loop of the test, where that is known yet.
    """

    runs_steps = True
    """So that nobody is told that there is no worker; `may_run` takes none all the same."""

    def __init__(
        self, engine: ProcessEngine, clock: TestClock, *, stand_ins: Mapping[str, Callable[..., Any]],
        opened: Sequence[Integration], app: Callable[[], Any], settle: Callable[[RunId], Coroutine[Any, Any, None]],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:  # fmt: skip
        self.engine, self.store = engine, SharedStore(engine)
        self._clock, self._stand_ins, self._opened = clock, stand_ins, opened
        self._app, self._settle = app, settle
        self._touched: deque[RunId] = deque()
        self._steps: dict[asyncio.Task[None], Claimed] = {}
        self._patient: dict[asyncio.Task[Any], RunId | None] = {}
        self._errors: list[BaseException] = []
        self._changed = asyncio.Event()
        self._plain_steps = asyncio.Lock()
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
        """The steps that run, without those that wait for time, for another run, or for ever."""
        return [claimed for task, claimed in self._steps.items() if task not in self._patient]

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
        self.engine.database.dispose()

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
        loop.call_soon_threadsafe(self._plain_steps.release)  # others may run meanwhile
        try:
            with self._waits(step, run_id):
                return ended.wait(seconds)
        finally:
            asyncio.run_coroutine_threadsafe(self._plain_steps.acquire(), loop).result()

    # -- what it offers to steps ----------------------------------------------------------------------

    def client(self) -> Any:
        """Return the client of the first integration that has one."""
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
        return self._is_over or (task is not None and task.cancelling() > 0)

    def interruption(self) -> BaseException | None:
        """Nothing interrupts a step here."""
        return None

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
            stand_in = self._stand_ins.get(row.name)  # now: it may be gone when the task begins
            # A worker's steps do not see the context variables of whoever started the run.
            task = asyncio.get_running_loop().create_task(
                self._run(claimed, stand_in),
                name=f"{row.name} ({row.node_id})",
                context=contextvars.Context(),
            )
            self._steps[task] = claimed
            if stand_in is never:
                self._patient[task] = None
            task.add_done_callback(self._ended)
        elif isinstance(claimed, Dropped) and claimed.wakes_body:
            self._follow(run_id, Answer(must_advance=True))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._steps.pop(task, None)
        self._patient.pop(task, None)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)

    async def _run(self, claimed: Claimed, stand_in: Callable[..., Any] | None) -> None:
        engine, value = self.engine, None
        failure: Failure | None = None
        _step.set(asyncio.current_task())
        try:
            value = await self._call(claimed, stand_in)
        except StoppedError:
            return
        except Exception as error:  # noqa: BLE001  # a step may raise anything
            failure = attempts.judge(engine, claimed, error, now=self._clock)
        if self._is_over:
            return
        failure, recorded = attempts.record(
            engine, claimed, value, failure, carries=frozenset(), may_run=None,
            keep_trying=lambda record: record(),
        )  # fmt: skip
        log_attempt(engine, claimed, failure, recorded, is_final=is_final_failure(failure, recorded))
        self._follow(claimed.run_id, recorded)

    def _follow(self, run_id: RunId, answer: Answer) -> None:
        go_on(self.engine, run_id, answer)
        self.touch(run_id)

    async def _call(self, claimed: Claimed, stand_in: Callable[..., Any] | None) -> object:
        if claimed.error is not None:
            raise claimed.error
        step = registry.require_step(claimed.row.name)
        if stand_in is not None:
            step = _with_function(step, stand_in)
        if step.is_async:
            return await run_async(self, step, claimed)
        call = partial(step.function, *claimed.args, **claimed.kwargs)
        async with self._plain_steps:
            return await asyncio.to_thread(run_sync, self, step, claimed, call)

    @contextmanager
    def _waits(self, step: asyncio.Task[Any], run_id: RunId) -> Iterator[None]:
        """Note, on any thread, that a step waits for the end of a run, inside; from that end on it does not."""
        self._patient[step] = run_id
        if not self.engine.database.read(lambda tx: runs.live_of(tx, [run_id])):
            self.note_end(run_id)  # it has ended meanwhile
        step.get_loop().call_soon_threadsafe(self._changed.set)
        try:
            yield
        finally:
            self._patient.pop(step, None)

    def note_end(self, run_id: RunId) -> None:
        """Note that a run has ended, and that who waits for it is about to go on."""
        for step, awaited in list(self._patient.items()):
            if awaited == run_id:
                self._patient.pop(step, None)


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
