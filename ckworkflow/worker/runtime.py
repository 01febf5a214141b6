"""The runtime of a worker process: one event loop, the integrations, the shared store.

Made after fork and lazily, keyed by pid. The loop is a thread of its own, or, in a worker embedded in a
bot, the bot's: one discord.py client touched from two loops breaks for good.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from ckworkflow import integration as integrations
from ckworkflow.engine.installation import Installation, current
from ckworkflow.engine.shared import SharedStore
from ckworkflow.errors import HookContextError, MissingTokenError
from ckworkflow.worker.heartbeat import Heartbeat

if TYPE_CHECKING:
    from ckworkflow.integration import Integration

logger = logging.getLogger(__name__)

T = TypeVar("T")
GRACE_SECONDS = 10.0
"""How long a warm shutdown lets async steps run before it cancels and releases them."""


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
        self._is_own_loop = loop is None
        self.loop = loop or _start_loop()
        self.engine = installation.engine
        self.store = SharedStore(self.engine)
        self.is_stopping = False
        self._opened: list[Integration] = []
        self._steps: set[asyncio.Task[Any]] = set()
        self._are_cancelled = False
        self._calls: deque[Callable[[], object]] = deque()
        self._is_woken = False
        self._heartbeat = Heartbeat(self.engine)

    @property
    def app(self) -> Any:
        """The Celery app."""
        return self._installation.app

    @property
    def config(self) -> Any:
        """The app's settings."""
        return self._installation.app.conf

    def client(self) -> Any:
        """Return the client of the first integration that has one."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise HookContextError(
                "use_client",
                "this step is not async, and a discord.py client lives on one event loop. Make the step "
                "an `async def`.",
            ) from None
        for integration in self._opened:
            return integration.client()
        raise MissingTokenError

    def open(self) -> None:
        """Check the database, register the process, and open the integrations.

        Raises:
            CkWorkflowError: The worker must not consume anything.
        """
        self.engine.ensure_schema()
        self._heartbeat.start()
        integrations.load_providers()
        for integration in integrations.installed():
            self.call(integration.open())
            self._opened.append(integration)

    def close(self) -> None:
        """Let go of everything, in order: steps, integrations, store, process row, loop."""
        self.is_stopping = True
        self.cancel_steps()
        for integration in reversed(self._opened):
            try:
                self.call(integration.close())
            except Exception:
                logger.exception("integration did not close", extra={"integration": integration.name})
        self._opened.clear()
        self.store.close()
        self._heartbeat.stop()
        if self._is_own_loop:
            self.loop.call_soon_threadsafe(self.loop.stop)

    def call(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it, from any other thread."""
        return asyncio.run_coroutine_threadsafe(coro, self.loop).result()

    def run_step(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a step on the loop, so that a shutdown can cancel it, and wait for it in this thread.

        Raises:
            asyncio.CancelledError: It was cancelled, or the loop has ended.
        """
        is_done = threading.Lock()  # cheaper than a future of `concurrent.futures` and its condition
        is_done.acquire()
        found: list[asyncio.Task[T]] = []

        def ended(task: asyncio.Task[T]) -> None:
            found.append(task)
            is_done.release()

        try:
            self.soon(lambda: self.begin_step(make, ended))
        except RuntimeError:
            raise asyncio.CancelledError from None
        is_done.acquire()
        return found[0].result()

    def begin_step(
        self, make: Callable[[], Coroutine[Any, Any, T]], ended: Callable[[asyncio.Task[T]], object]
    ) -> None:
        """Begin a step, on the loop, so that a shutdown can cancel it; or has done so, and then nothing of it runs.

        Args:
            make: Makes the coroutine.
            ended: Told on the loop when it has ended.
        """
        task = self.loop.create_task(make())
        self._steps.add(task)
        task.add_done_callback(self._steps.discard)
        task.add_done_callback(ended)
        if self._are_cancelled:
            task.cancel()

    def soon(self, call: Callable[[], object]) -> None:
        """Call something on the loop, from any thread; what comes together wakes the loop once.

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
        """Cancel every async step of this process, also those that are still to begin."""
        self.is_stopping = self._are_cancelled = True

        def cancel() -> None:
            for task in list(self._steps):
                task.cancel()

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(cancel)


def _start_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    started = threading.Event()

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.call_soon(started.set)
        try:
            while not _has_ended(loop):
                pass
        finally:
            loop.close()

    threading.Thread(target=run, name="ckworkflow-loop", daemon=True).start()
    started.wait()
    return loop


def _has_ended(loop: asyncio.AbstractEventLoop) -> bool:
    """Run the loop; `False` when a task that some step left behind has thrown it out."""
    try:
        loop.run_forever()
    except (SystemExit, KeyboardInterrupt) as error:
        # asyncio lets these through a task. In the main thread they end a program; here, only that task.
        # Neither its traceback, which is not ours, nor its argument, which may quote what a step was told.
        logger.error("task of a step ended with %s", type(error).__name__)  # noqa: TRY400
        return False
    return True


_lock = threading.Lock()
_runtime: tuple[int, Runtime] | None = None
_inherited: list[Runtime] = []


def start(
    loop: asyncio.AbstractEventLoop | None = None, installation: Installation | None = None
) -> Runtime:
    """Make and open the runtime of this process.

    Raises:
        CkWorkflowError: As `Runtime.open`.
    """
    global _lock, _runtime  # noqa: PLW0603  # one per process
    if _runtime is not None and _runtime[0] != os.getpid():
        _inherited.append(_runtime[1])
        _runtime, _lock = None, threading.Lock()
    with _lock:
        if _runtime is None:
            runtime = Runtime(installation or current(), loop)
            try:
                runtime.open()
            except BaseException:
                runtime.close()
                raise
            _runtime = (os.getpid(), runtime)
        return _runtime[1]


def running() -> Runtime:
    """Return the runtime of this process; make it when nobody has."""
    found = _runtime
    return found[1] if found is not None and found[0] == os.getpid() else start()


def peek() -> Runtime | None:
    """Return the runtime of this process, if it has one."""
    found = _runtime
    return found[1] if found is not None and found[0] == os.getpid() else None


def stop() -> None:
    """Close the runtime of this process, if it has one."""
    global _runtime  # one per process
    with _lock:
        found, _runtime = _runtime, None
    if found is not None and found[0] == os.getpid():
        found[1].close()
