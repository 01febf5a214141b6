"""Background threads: the one way to start a thread on which others rely.

Such a thread ends when its function returns, and the function returns only when it was asked to. If it raises
instead, the process would go on without the thread and look healthy. So the end is logged with its cause, and the worker
of the process is told to stop: a supervisor starts a whole one in its place.

`OffLoop` is for calls that a coroutine waits for, `Beside` for what nobody waits for, `SpareThreads` for what may never come back. Not here: threads that run one step.
Somebody waits for its end.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, TypeVar

from ckworkflow.per_process import PerProcess

__all__ = [
    "AtOnce",
    "BackgroundThread",
    "Beside",
    "Lost",
    "LostThreadError",
    "OffLoop",
    "SpareThreads",
    "Tell",
    "stop_worker_with",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Tell = Callable[[], object] | None
"""Reports the end of a job; `None` where nobody waits for it."""
Lost = Callable[[Callable[[], T]], object]
"""Called when a thread does not come back, with what is to be done in its place."""

IDLE_SECONDS: Final = 5.0
"""After so long without work a spare thread ends."""
LONG_SECONDS: Final = 0.05
"""If no job has ended for so long, those that wait get a thread more."""
EXIT_SECONDS: Final = 30.0
"""How long a process that ends waits for what a coroutine has handed to its threads."""

_stop: PerProcess[Callable[[], object]] = PerProcess()


def stop_worker_with(stop: Callable[[], object] | None) -> None:
    """Say how the worker of this process is told to stop; `None`: there is none any more.

    Args:
        stop: Called on the thread that ends, so it must return at once. A forked child does not inherit it.
    """
    _stop.take()
    if stop is not None:
        _stop.set(stop)


class BackgroundThread(threading.Thread):
    """A daemon thread that does not end in silence; see the module.

    Args:
        run: What it does, until it is asked to end.
        name: The thread's name.
        loss: What no longer happens without it; completes the sentence "Without it ...".
    """

    def __init__(self, run: Callable[[], object], *, name: str, loss: str) -> None:
        super().__init__(target=run, name=name, daemon=True)
        self._loss = loss

    def run(self) -> None:
        """Run the function; log whatever it raises, and stop the worker."""
        try:
            super().run()
        except BaseException as error:  # whatever it is, the thread is over
            stop = _stop.peek()
            logger.critical(
                "thread %s has ended with %s: %s. Without it %s, so %s. Please report this as a bug of ckworkflow.",
                self.name, type(error).__name__, error, self._loss,
                "restart this process" if stop is None else "the worker stops; start it again",
                exc_info=error,
            )  # fmt: skip
            if stop is not None:
                stop()


class LostThreadError(BaseException):
    """This thread was given up while it ran a body, and another one does its work. Not an `Exception`: nobody handles it."""


class SpareThreads:
    """Threads that may be lost to what they run. They are made when needed, kept for a while, and never joined.

    Args:
        name: Their name.
    """

    def __init__(self, name: str = "ckworkflow-body") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[Callable[[], Tell]]] = []

    def begin(self, job: Callable[..., Tell], *args: Any) -> None:
        """Run a job, which raises nothing, on a thread that has nothing to do; return at once.

        The function that the job returns is called after its thread has become idle. So a caller that is woken by it gets the
        same thread for its next job; two threads in turn cost a quarter more processor time.

        Raises:
            RuntimeError: The system gives no more threads.
        """
        with self._lock:
            jobs = self._idle.pop() if self._idle else None
        if jobs is None:
            jobs = SimpleQueue()
            threading.Thread(target=self._run, args=(jobs,), name=self._name, daemon=True).start()
        jobs.put(lambda: job(*args))

    def _run(self, jobs: SimpleQueue[Callable[[], Tell]]) -> None:
        while True:
            try:
                job = jobs.get(timeout=IDLE_SECONDS)
            except Empty:
                with self._lock:
                    if jobs in self._idle:
                        self._idle.remove(jobs)
                        return
                continue  # it is about to come
            tell = job()
            del job  # and with it the body
            with self._lock:
                self._idle.append(jobs)
            if tell is not None:
                tell()
                del tell


class AtOnce:
    """What stands for `Beside` where nothing goes on beside something else: in a test that owns time."""

    def do(self, key: Hashable, job: Callable[[], object]) -> None:  # noqa: ARG002  # nothing waits
        """Do it."""
        job()

    def finish(self) -> None:
        """Nothing goes on."""


class Beside:
    """A thread for what nobody waits for, and somebody else finds again if it is not done here; a few, if a job takes long.

    One is faster than several: they would take turns at Python's lock with those who hand in jobs.

    Args:
        threads: Whence its threads are.
        size: How many jobs go on at a time at most; others wait for these.
        most: How many wait; a further one is not done here.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self, threads: SpareThreads, *, size: int = 4, most: int = 1_000, clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        self._threads, self._size, self._most, self._clock = threads, size, most, clock
        self.renew()
        _all_beside.add(self)

    def renew(self) -> None:
        """Begin anew, in a forked child: what its parent does is not done there."""
        self._lock = threading.Lock()
        self._is_idle = threading.Condition(self._lock)
        self._at_work = 0
        self._last_begun = self._clock()
        self._waiting: dict[Hashable, Callable[[], object]] = {}

    def do(self, key: Hashable, job: Callable[[], object]) -> None:
        """Have a job done, unless one of its key still waits, which will do as well; return at once.

        Args:
            key: What the job is about.
            job: Raises nothing.
        """
        with self._lock:
            if key in self._waiting or len(self._waiting) >= self._most:
                return
            self._waiting[key] = job
            is_quick = self._clock() - self._last_begun < LONG_SECONDS
            if self._at_work == self._size or (self._at_work and is_quick):
                return
            self._at_work += 1
        try:
            self._threads.begin(self._work)
        except RuntimeError:  # the system gives no more threads
            with self._lock:
                self._at_work -= 1
                if not self._at_work:
                    self._waiting.clear()

    def finish(self) -> None:
        """Wait until all is done, or for half a minute."""
        self.finish_until(time.monotonic() + EXIT_SECONDS)

    def finish_until(self, until: float) -> None:
        """Wait until all is done, or until then, by the monotonic clock."""
        with self._is_idle:
            self._is_idle.wait_for(lambda: not self._at_work, max(0.0, until - time.monotonic()))

    def _work(self) -> Tell:
        while True:
            with self._lock:
                if not self._waiting:
                    self._at_work -= 1
                    self._is_idle.notify_all()
                    return None
                job = self._waiting.pop(next(iter(self._waiting)))
                self._last_begun = self._clock()
            job()
            del job


_all_beside: weakref.WeakSet[Beside] = weakref.WeakSet()


def _renew_all() -> None:
    for each in list(_all_beside):
        each.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


@atexit.register
def _finish_all() -> None:
    """Let what goes on come to its end before the process does."""
    until = time.monotonic() + EXIT_SECONDS
    for each in list(_all_beside):
        each.finish_until(until)


class OffLoop:
    """A few threads to which coroutines hand what blocks. A forked child has its own: its parent's threads are not there.

    Args:
        size: How many calls go on at a time; others wait for these.
        name: The name of the threads.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size, self._name = size, name
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)
        atexit.register(self._finish)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._is_idle = threading.Condition(self._lock)
        self._threads = SpareThreads(self._name)
        self._at_work = 0
        self._queue: deque[_Call[Any]] = deque()

    def _finish(self) -> None:
        """Let what goes on come to its end before the process does: a run that is being started, say."""
        with self._is_idle:
            self._is_idle.wait_for(lambda: not self._at_work, EXIT_SECONDS)

    def run(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Call something there, in the context of the caller; give what the running loop may wait for."""
        return self._begin(_Call(lambda _: call(), self._replace))

    def run_body(self, call: Callable[[Lost[T]], T]) -> asyncio.Future[T]:
        """Do as `run` for a call that runs a body, which may keep its thread for good.

        Args:
            call: Gets a function to be called, on any thread, when its own thread is lost, with what is to be done instead. The
                future then has the outcome of that, and what the call itself returns later is ignored.
        """
        return self._begin(_Call(call, self._replace))

    def _begin(self, call: _Call[T]) -> asyncio.Future[T]:
        with self._lock:
            if self._at_work == self._size:
                self._queue.append(call)
                return call.future
            self._at_work += 1
        try:
            self._threads.begin(self._work, call)
        except RuntimeError:  # the system gives no more threads
            with self._lock:
                self._give_up_place()
            raise
        return call.future

    def _give_up_place(self) -> None:
        """Go on with a thread less; under the lock."""
        self._at_work -= 1
        self._is_idle.notify_all()

    def _work(self, call: _Call[Any]) -> Tell:
        while True:
            call.run()
            if call.is_lost:  # another thread has its place
                return None
            with self._lock:
                following = self._queue.popleft() if self._queue else None
                if following is None:
                    self._give_up_place()
            if following is None:
                return call.tell
            call.tell()
            call = following

    def _replace(self, call: _Call[Any]) -> None:
        try:
            self._threads.begin(self._work, call)
        except RuntimeError as error:
            call.fail(error)
            with self._lock:
                self._give_up_place()


class _Call(Generic[T]):
    """Something that a coroutine waits for."""

    value: T

    def __init__(
        self, call: Callable[[Lost[T]], T], replace: Callable[[_Call[T]], object],
        future: asyncio.Future[T] | None = None,
    ) -> None:  # fmt: skip
        self.future: asyncio.Future[T] = future or asyncio.get_running_loop().create_future()
        self.is_lost = False
        self._is_begun = future is not None
        self._call, self._replace = call, replace
        self._context = copy_context()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Call it, unless nobody waits for it any more and none of it is done."""
        if self.future.cancelled() and not self._is_begun:
            return
        try:
            self.value = self._context.run(self._call, self._lost)
        except LostThreadError:  # it may be here before `_lost`
            self.is_lost = True
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            self._error = error

    def tell(self) -> None:
        """Let the coroutine go on; on a thread."""
        try:
            self.future.get_loop().call_soon_threadsafe(self._set)
        except RuntimeError:  # its loop has ended
            self._error = None

    def fail(self, error: BaseException) -> None:
        """Let the coroutine raise this error; on a thread."""
        self._error = error
        self.tell()

    def _lost(self, rest: Callable[[], T]) -> None:
        self.is_lost = True
        self._replace(_Call(lambda _: rest(), self._replace, self.future))

    def _set(self) -> None:
        error, self._error = self._error, None  # whose traceback leads here: it would take the collector
        if self.future.done():
            return
        if error is None:
            self.future.set_result(self.value)
        elif isinstance(error, StopIteration):  # which a coroutine cannot raise
            self.future.set_exception(RuntimeError(f"StopIteration: {error}"))
        else:
            self.future.set_exception(error)
