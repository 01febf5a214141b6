"""The runtime of a worker process: one event loop, the integrations, the shared store.

It is made on demand, in each process anew. The loop is a thread of its own, or, in a worker embedded in a
bot, the bot's: one discord.py client touched from two loops breaks for good.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import wait as wait_for
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from celery.worker import state

from ckworkflow import integration as integrations
from ckworkflow.background import BackgroundThread
from ckworkflow.engine import cancellation
from ckworkflow.engine.installation import Installation, current
from ckworkflow.engine.shared import SharedStore
from ckworkflow.errors import StepCancelledError
from ckworkflow.model import NodeId, RunId
from ckworkflow.per_process import PerProcess
from ckworkflow.worker.process import interrupts
from ckworkflow.worker.process.heartbeat import Heartbeat
from ckworkflow.worker.process.loop_watch import LoopWatch

if TYPE_CHECKING:
    from contextvars import Context

    from celery import Celery
    from celery.app.utils import Settings

    from ckworkflow.integration import Integration

logger = logging.getLogger(__name__)

T = TypeVar("T")
Node = tuple[RunId, NodeId]
GRACE_SECONDS = 10.0
"""How long a warm shutdown lets async steps run before it cancels and releases them."""
GIVE_UP_SECONDS = 5.0
"""How long a cancelled step may take to clean up."""
WAIT_SECONDS, TELL_SECONDS = 2.0, 60.0
"""How long an integration may take to open until it is said, and how often it is said again."""
STOP_SECONDS = 0.2
"""How often a worker that waits looks whether it is to stop."""
CLOSE_SECONDS = 5.0
"""How long an integration may take to close: a step that was given up may still hold the loop."""


class Runtime:
    """What the steps of one process share. It is the `Services` of their contexts.

    Args:
        installation: Whose engine and settings it uses.
        loop: The loop on which async steps run; `None`: a thread of its own.
    """

    def __init__(
        self, installation: Installation, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._installation = installation
        self._waiting: set[threading.Lock] = set()
        self._has_given_up = False
        self._giving_up: threading.Timer | None = None
        self._own_loop = None if loop is not None else _OwnLoop(on_death=self._wake_all)
        self.loop = loop or self._own_loop.loop  # type: ignore[union-attr]  # one of the two is there
        self.engine = installation.engine
        self.store = SharedStore(self.engine)
        self.is_stopping = False
        self._opened: list[Integration] = []
        self._steps: dict[asyncio.Task[object], Node | None] = {}
        self._names: dict[asyncio.Task[object], str] = {}
        self._interruptions: dict[asyncio.Task[object], BaseException] = {}
        self._are_cancelled = False
        self._calls: deque[Callable[[], object]] = deque()
        self._is_woken = False
        self._told: set[Node] = set()
        """The steps of this process that are to stop."""
        self._heartbeat = Heartbeat(self.engine, self.tell_to_stop)
        self._loop_watch = LoopWatch(self.loop, self._names, is_own=loop is None)

    @property
    def app(self) -> Celery:
        """The Celery app."""
        return self._installation.app

    @property
    def config(self) -> Settings:
        """The app's settings."""
        return self._installation.app.conf

    def client(self) -> Any:
        """Return the client of the first integration that has one."""
        return integrations.client_of(self._opened)

    def open(self) -> None:
        """Check the database, register the process, and open the integrations.

        Raises:
            CkWorkflowError: The worker must not consume anything.
            WorkerShutdown: The worker was told to stop meanwhile.
        """
        self.engine.ensure_schema()
        self.engine.budget.begin()
        self._heartbeat.start()
        integrations.load_providers()
        for integration in integrations.installed():
            self._open(integration)
            self._opened.append(integration)
        self._loop_watch.start()

    def _open(self, integration: Integration) -> None:
        """Open an integration. It waits while the network is down, unless the worker is told to stop."""
        opening = asyncio.run_coroutine_threadsafe(integration.open(), self.loop)
        began = time.monotonic()
        tell_at = began + WAIT_SECONDS
        try:
            while not wait_for([opening], timeout=STOP_SECONDS).done:
                state.maybe_shutdown()  # a signal handler only sets a flag
                if (now := time.monotonic()) >= tell_at:
                    tell_at = now + TELL_SECONDS
                    logger.warning(
                        "the worker waits for %s, which is not open after %.0f s, and takes no work until then; SIGTERM stops it",
                        integration.name, now - began,
                    )  # fmt: skip
        except BaseException:
            opening.cancel()
            raise
        opening.result()

    def close(self) -> None:
        """Let go of everything, in order: steps, integrations, store, process row, loop."""
        self.is_stopping = True
        self.cancel_steps()
        # A loop that has died takes the connections with it.
        for integration in reversed([] if self.loop.is_closed() else self._opened):
            try:
                self.call(integration.close(), timeout=CLOSE_SECONDS)
            except TimeoutError:
                logger.warning(
                    "integration %s did not close within %g s: the event loop is held", integration.name,
                    CLOSE_SECONDS,
                )  # fmt: skip
            except Exception:
                logger.exception("integration %s did not close", integration.name)
        self._opened.clear()
        self._loop_watch.stop()
        self.store.close()
        self._heartbeat.stop()
        if self._giving_up is not None:
            self._giving_up.cancel()
        if self._own_loop is not None:
            self._own_loop.end()

    def call(self, coro: Coroutine[object, None, T], *, timeout: float | None = None) -> T:
        """Run a coroutine on the loop and wait for it, from any other thread.

        Args:
            coro: The coroutine.
            timeout: How long to wait, in seconds.

        Raises:
            RuntimeError: The loop has ended.
            TimeoutError: It has not ended in time.
        """
        try:
            future = asyncio.run_coroutine_threadsafe(coro, self.loop)
        except RuntimeError:
            coro.close()
            raise
        return future.result(timeout)

    def run_step(
        self,
        name: str,
        make: Callable[[], Coroutine[object, None, T]],
        *,
        node: Node | None = None,
        context: Context | None = None,
    ) -> T:
        """Run a step on the loop, so that a shutdown can cancel it, and wait for it in this thread.

        What a signal raises in this thread cancels the step, and is waited for as any other end.

        Raises:
            asyncio.CancelledError: It was cancelled, or given up, or the loop has ended.
            Exception: It was interrupted by this before its first turn, or is what the step raised.
        """
        is_done = threading.Lock()  # cheaper than a future of `concurrent.futures` and its condition
        is_done.acquire()
        begun: list[asyncio.Task[T]] = []
        found: list[asyncio.Task[T]] = []
        causes: list[BaseException | None] = []

        def ended(task: asyncio.Task[T]) -> None:
            causes.append(self.unbegun_because(task))
            found.append(task)
            wake(is_done)

        try:
            self.soon(
                lambda: begun.append(self.begin_step(name, make, ended, node=node, context=context))
            )
        except RuntimeError:
            raise asyncio.CancelledError from None
        self.wait(
            is_done,
            lambda: bool(found),
            lambda error: self.soon(lambda: self.interrupt_step(begun[0], error)),
        )
        if not found:  # given up
            raise asyncio.CancelledError
        if causes[0] is not None:
            raise causes[0]
        return found[0].result()

    def wait(
        self, is_done: threading.Lock, is_over: Callable[[], bool],
        interrupt: Callable[[BaseException], object],
    ) -> None:  # fmt: skip
        """Wait in this thread for what happens on the loop, as `interrupts.wait`, or until steps are given up.

        Args:
            is_done: A lock that is held; `wake` releases it.
            is_over: Whether it has happened.
            interrupt: Told what a signal has raised meanwhile.
        """
        self._waiting.add(is_done)
        try:
            interrupts.wait(is_done, lambda: self._has_given_up or is_over(), interrupt)
        finally:
            self._waiting.discard(is_done)

    def begin_step(
        self,
        name: str,
        make: Callable[[], Coroutine[object, None, T]],
        ended: Callable[[asyncio.Task[T]], object],
        *,
        node: Node | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Begin a step, on the loop, so that a shutdown can cancel it; after a shutdown nothing of it runs.

        Args:
            name: The step's.
            make: Makes the coroutine.
            ended: Told on the loop when it has ended.
            node: What it runs, where `interrupt_claimed` is to find it.
            context: The context variables that it sees; `None`: the loop's.
        """
        task = self.loop.create_task(make(), context=context)
        self._steps[task], self._names[task] = node, name
        task.add_done_callback(self._names.pop)
        task.add_done_callback(self._steps.pop)
        task.add_done_callback(ended)
        if self._are_cancelled:
            task.cancel()
        return task

    def interrupt_step(self, task: asyncio.Task[object], error: BaseException) -> None:
        """Cancel a step because of what was raised in the thread that waits for it; called on the loop.

        An `Exception` is what it then fails with. Anything else ends this process: its steps are released.
        """
        if not isinstance(error, Exception):
            self.cancel_steps()
        elif task not in self._interruptions and task.cancel():
            self._interruptions[task] = error
            task.add_done_callback(self._interruptions.pop)

    def unbegun_because(self, task: asyncio.Task[T]) -> BaseException | None:
        """Say what has interrupted a step before its first turn, so that nothing of it ran; called as it ends, on the loop.

        A step that has begun asks `interruption` itself. `None` while the worker stops: then it is released.
        """
        return self._interruptions.get(task) if task.cancelled() and not self.is_stopping else None

    def interrupt_claimed(self, run_id: RunId, node_id: NodeId, error: Exception) -> None:
        """Interrupt the async step of a node, if one runs; called on any other thread."""

        def interrupt() -> None:
            for task, node in list(self._steps.items()):
                if node == (run_id, node_id):
                    self.interrupt_step(task, error)

        self.soon(interrupt)

    def tell_to_stop(self) -> None:
        """Have the steps stop that this process runs and that are to: those that are async are cancelled; on any thread."""
        told = cancellation.told_to_stop(self.engine)
        self._told = {node for node in (*self._told, *told) if node in self.engine.active}

        def interrupt() -> None:
            for task, node in list(self._steps.items()):
                if node in told:
                    self.interrupt_step(task, StepCancelledError(self._names[task]))

        if told:
            with suppress(RuntimeError):  # the loop has ended, and all steps with it
                self.soon(interrupt)

    def is_told_to_stop(self, run_id: RunId, node_id: NodeId) -> bool:
        """Whether a step that runs here is to stop."""
        return (run_id, node_id) in self._told

    def interruption(self) -> BaseException | None:
        """Say why the current step was cancelled, if it was interrupted; called inside its task."""
        task = asyncio.current_task()
        return None if task is None else self._interruptions.get(task)

    def soon(self, call: Callable[[], object]) -> None:
        """Call something on the loop, from any thread; calls that come together wake the loop once.

        Raises:
            RuntimeError: The loop has ended.
        """
        self._calls.append(call)
        if not self._is_woken:
            self._is_woken = True
            try:
                self.loop.call_soon_threadsafe(self._call)
            except RuntimeError:
                self._is_woken = False
                raise

    def _call(self) -> None:
        self._is_woken = False  # first: what comes from now on wakes the loop again
        while self._calls:
            self._calls.popleft()()

    def begin_shutdown(self, grace_seconds: float | None = None) -> None:
        """Let steps run for a grace time, then cancel what still runs: it is released, not failed."""
        self.is_stopping = True
        timer = threading.Timer(
            GRACE_SECONDS if grace_seconds is None else grace_seconds, self.cancel_steps
        )
        timer.daemon = True
        timer.start()

    def cancel_steps(self) -> None:
        """Cancel every async step of this process, also those that are still to begin.

        One that has not ended `GIVE_UP_SECONDS` later is given up.
        """
        self.is_stopping = self._are_cancelled = True
        if self._giving_up is None:
            self._giving_up = threading.Timer(GIVE_UP_SECONDS, self.give_up_steps)
            self._giving_up.daemon = True
            self._giving_up.start()

        def cancel() -> None:
            for task in list(self._steps):
                task.cancel()

        with suppress(RuntimeError):  # the loop has ended, and all steps with it
            self.loop.call_soon_threadsafe(cancel)

    def give_up_steps(self) -> None:
        """Stop waiting for async steps and bodies: they are released, whatever they still do."""
        names = sorted(set(self._names.copy().values()))
        if names and self._waiting:
            logger.error(
                "%s: cancelled and not ended after %g s, so it is given up and released, and another worker runs it again. "
                "A step that catches asyncio.CancelledError must raise it again, and must not block the event loop.",
                ", ".join(names), GIVE_UP_SECONDS,
            )  # fmt: skip
        self._wake_all()
        self.engine.budget.stop()

    def _wake_all(self) -> None:
        self.is_stopping = self._has_given_up = True
        for is_done in list(self._waiting):
            wake(is_done)


def wake(is_done: threading.Lock) -> None:
    """Wake the thread that waits with `Runtime.wait`."""
    with suppress(RuntimeError):  # it was given up, and has not noticed yet
        is_done.release()


class _OwnLoop:
    """An event loop on a thread of its own, which runs until `end`, whatever steps do to it.

    Args:
        on_death: Called if its thread has died; no step ends on it any more.

    Attributes:
        loop: It runs already.
    """

    def __init__(self, on_death: Callable[[], object]) -> None:
        self.loop = asyncio.new_event_loop()
        self._on_death = on_death
        self._is_over = False
        started = threading.Event()
        self.loop.call_soon(started.set)
        BackgroundThread(self._run, name="ckworkflow-loop", loss="no async step runs").start()
        started.wait()

    def end(self) -> None:
        """Stop the loop and close it; from any thread."""
        self._is_over = True
        with suppress(RuntimeError):  # it has died
            self.loop.call_soon_threadsafe(self.loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            while not self._is_over:
                try:
                    self.loop.run_forever()
                except (SystemExit, KeyboardInterrupt) as error:
                    # asyncio lets these through a task. In the main thread they end a program; here, only that task.
                    # Neither its traceback, which is not ours, nor its argument, which may quote what a step was told.
                    logger.error(  # noqa: TRY400
                        "an asyncio task that a step left behind ended with %s", type(error).__name__
                    )
                else:
                    if not self._is_over:
                        logger.error(
                            "a step called stop() of its worker's event loop, on which all async steps run: the loop goes "
                            "on. Remove that call; a step ends by returning."
                        )
        except BaseException:
            self.loop.close()
            self._on_death()
            raise
        self.loop.close()


_runtime: PerProcess[Runtime] = PerProcess()


def start(
    loop: asyncio.AbstractEventLoop | None = None, installation: Installation | None = None
) -> Runtime:
    """Make and open the runtime of this process.

    Raises:
        CkWorkflowError: As `Runtime.open`.
    """

    def make() -> Runtime:
        runtime = Runtime(installation or current(), loop)
        try:
            runtime.open()
        except BaseException:
            runtime.close()
            raise
        return runtime

    return _runtime.get(make)


def running() -> Runtime:
    """Return the runtime of this process; make it when nobody has."""
    return _runtime.peek() or start()


def peek() -> Runtime | None:
    """Return the runtime of this process, if it has one."""
    return _runtime.peek()


def stop() -> None:
    """Close the runtime of this process, if it has one."""
    if (found := _runtime.take()) is not None:
        found.close()
