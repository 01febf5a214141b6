"""The budget: a body that computes, or blocks, without awaiting anything holds up nobody for long.

A body only decides what comes next, so between two awaits it takes microseconds. Bodies run on threads of their own, and one more
thread looks at how far each has come. A body that has not come further for its limit of processor time is interrupted: an
exception is raised in it, wherever it is. So is one that blocks for longer than its limit by the clock. A body that goes on
nevertheless (it catches everything, or waits inside C code) is given up, and its thread with it.

Guarantee: `run` returns, or raises, within the limits and the time for interruptions; its own thread runs no user code. A thread that
may itself be lost runs a body in place (`run_here`): somebody else is told that it is lost, and it does nothing more.

Not here: what becomes of the run (`ckworkflow.engine.advance`, `.start`).
"""

from __future__ import annotations

import ctypes
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from ckworkflow.background import BackgroundThread, LostThreadError, SpareThreads, Tell
from ckworkflow.errors import BodyTimeoutError

if TYPE_CHECKING:
    from types import FrameType

    from ckworkflow.tracing import Tracer

__all__ = [
    "CONTINUE",
    "START",
    "BodyStoppedError",
    "Budget",
    "Limits",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a body may run without making progress, in seconds.

    Attributes:
        busy: Of processor time.
        blocked: By the clock.
    """

    busy: float
    blocked: float


CONTINUE: Final = Limits(busy=5.0, blocked=30.0)
"""Where a worker runs the body."""
START: Final = Limits(busy=2.0, blocked=10.0)
"""Where somebody waits for `start`; a worker tries again what takes longer."""
LOOK_SECONDS: Final = 0.25
INTERRUPT_SECONDS: Final = 0.5
"""Between two interruptions of a body that goes on."""
INTERRUPTIONS: Final = 6
"""After so many a body is given up."""
IDLE_SECONDS: Final = 5.0
"""After so long without work the thread that looks ends."""


class _Interrupt(BaseException):
    """Raised in a body from outside. Not an `Exception`, which bodies catch."""


class BodyStoppedError(Exception):
    """The worker stops while a body goes on, or before, or has no thread for it: another one continues it."""


class Budget:
    """See the module.

    Args:
        threads: Where bodies run.
    """

    def __init__(self, threads: SpareThreads) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._watched: set[_Watched[Any]] = set()
        self._is_watching = self._is_stopping = False

    def run(
        self, tracer: Tracer, workflow: str, call: Callable[[], T], limits: Limits | None = None
    ) -> T:
        """Run a body, and wait for it.

        Args:
            tracer: The body. One that is given up is closed by its own thread, if that ever comes back.
            workflow: Its workflow's name.
            call: Runs it.
            limits: Its limits; `CONTINUE` by default.

        Raises:
            BodyTimeoutError: It did not come further for its limits.
            BodyStoppedError: The worker stops, or the system gives no more threads, as it may to a process that ends.
        """
        if self._is_stopping and limits is not START:
            raise BodyStoppedError
        watched = _Watched(tracer, workflow, call, limits or CONTINUE)
        # In the context of the caller: a body reads its context variables.
        context = copy_context()
        try:
            self._threads.begin(lambda: context.run(self._run_body, watched))
        except RuntimeError:
            raise BodyStoppedError from None
        watched.is_done.acquire()
        return watched.outcome()

    def run_here(
        self, tracer: Tracer, workflow: str, call: Callable[[], T], lost: Callable[[], object],
        limits: Limits | None = None,
    ) -> T:  # fmt: skip
        """Run a body on this thread, which is one of `SpareThreads`.

        Args:
            tracer: The body. One that is given up is closed by its own thread, if that ever comes back.
            workflow: Its workflow's name.
            call: Runs it.
            lost: Called on another thread when this one is given up, to do in its place what comes after the body.
            limits: Its limits; `CONTINUE` by default.

        Raises:
            BodyTimeoutError: It did not come further for its limits, and could be interrupted.
            BodyStoppedError: The worker stops, and the body had not begun.
            LostThreadError: It came back after it was given up; `lost` is called, or has been.
        """
        if self._is_stopping and limits is not START:
            raise BodyStoppedError
        watched = _Watched(tracer, workflow, call, limits or CONTINUE, lost)
        self._run_body(watched)
        if watched.is_given_up:
            raise LostThreadError
        return watched.outcome()

    def _run_body(self, watched: _Watched[Any]) -> Tell:
        """Run a body; return the function that wakes its caller."""
        watched.thread, watched.clock = threading.get_ident(), _thread_clock()
        watched.trace, watched.profile = sys.gettrace(), sys.getprofile()
        self._watched.add(watched)
        try:
            if not self._is_watching:
                self._watch()
        except RuntimeError:  # a body that nobody watches is not run
            self._watched.discard(watched)
            watched.error = BodyStoppedError()
            return watched.is_done.release
        try:
            try:
                watched.value = watched.call()
            except Exception as error:  # noqa: BLE001  # raised where it is waited for
                watched.error = watched.error or error
            finally:
                self._leave(watched)
        except _Interrupt:  # in the body, or between two lines of ours: `error` says it
            self._leave(watched)
        except BaseException as error:  # noqa: BLE001  # as above
            watched.error = watched.error or error
        if not watched.is_given_up:
            return watched.is_done.release
        watched.tracer.is_lost = False
        watched.tracer.close()
        return None

    def _leave(self, watched: _Watched[Any]) -> None:
        watched.is_over = True  # first: one interruption at most is under way from now on
        with self._lock:
            self._watched.discard(watched)
        if watched.interruptions:
            _end_interruption()
        if sys.gettrace() is not watched.trace or sys.getprofile() is not watched.profile:
            sys.settrace(watched.trace)  # what a body sets is not for what comes after it on this thread
            sys.setprofile(watched.profile)

    def begin(self) -> None:
        """Let bodies go on in this process: it is a worker again."""
        self._is_stopping = False

    def stop(self) -> None:
        """Let no body go on in this process; those that do are given up, at no cost to their runs. Starts are left alone."""
        self._is_stopping = True
        for watched in self._watched.copy():
            with self._lock:
                if watched.is_over or watched.limits is START:
                    continue
                watched.error = watched.error or BodyStoppedError()
                self._give_up(watched)
            watched.lost()

    def _give_up(self, watched: _Watched[Any]) -> None:
        """Let nobody wait for a body any more; under the lock."""
        watched.is_over = watched.is_given_up = watched.tracer.is_lost = True
        self._watched.discard(watched)
        watched.is_done.release()

    # --- the thread that looks -------------------------------------------------------------------

    def _watch(self) -> None:
        with self._lock:
            if not self._is_watching:
                BackgroundThread(
                    self._look_on, name="ckworkflow-budget", loss="a body may go on for ever"
                ).start()
                self._is_watching = True

    def _look_on(self) -> None:
        idle_since = time.monotonic()
        while True:
            time.sleep(LOOK_SECONDS)
            for watched in self._watched.copy():
                self._look_at(watched)
            now = time.monotonic()
            if self._watched:
                idle_since = now
            elif now - idle_since > IDLE_SECONDS:
                with self._lock:
                    if not self._watched:  # who comes after this looks at `_is_watching`
                        self._is_watching = False
                        return

    def _look_at(self, watched: _Watched[Any]) -> None:
        if not watched.is_overdue():
            return
        with self._lock:
            if watched.is_over:
                return
            if watched.interruptions < INTERRUPTIONS:
                watched.interrupt()
                return
            error = watched.error
            self._give_up(watched)
        watched.lost()
        logger.critical(
            "%s It cannot be interrupted, so its thread is lost to it: restart this process once the workflow is mended.",
            error,
        )


class _Watched(Generic[T]):
    """A body that runs now, and how far it has come."""

    thread: int
    clock: Callable[[], float]
    trace: Any
    profile: Any
    value: T

    def __init__(
        self, tracer: Tracer, workflow: str, call: Callable[[], T], limits: Limits,
        lost: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        self.tracer, self.call, self.lost = tracer, call, lost
        self.is_done = threading.Lock()  # held until it is over, or given up
        self.is_done.acquire()
        self.error: BaseException | None = None
        self.interruptions = 0
        self.is_over = self.is_given_up = False
        self._workflow, self.limits = workflow, limits
        self._progress = tracer.progress
        self._busy_at: float | None = None
        self._looks = 0

    def outcome(self) -> T:
        """Return what it returned, or raise what it raised, or what it was given up for; asked once."""
        error, self.error = self.error, None  # whose traceback leads here: it would take the collector
        if error is None:
            return self.value
        try:
            raise error
        finally:
            del error

    def is_overdue(self) -> bool:
        """Whether it is to be interrupted now; asked every `LOOK_SECONDS`."""
        progress, busy = self.tracer.progress, self._busy()
        if self._busy_at is None or progress != self._progress:
            self._progress, self._busy_at, self._looks = progress, busy, 0
            return False
        # Looks, and not the time: a process that was stopped has not looked.
        self._looks += 1
        seconds = self._looks * LOOK_SECONDS
        if self.interruptions:
            return seconds >= INTERRUPT_SECONDS
        is_busy = busy - self._busy_at >= self.limits.busy
        return is_busy or seconds >= self.limits.blocked

    def interrupt(self) -> None:
        """Raise an exception in it; it is not over."""
        if not self.interruptions:
            is_blocked = self._looks * LOOK_SECONDS >= self.limits.blocked
            what = (
                f"did not return for {self.limits.blocked:g} s"
                if is_blocked
                else f"computed for {self.limits.busy:g} s without awaiting anything"
            )
            self.error = BodyTimeoutError(
                self.tracer.run_id, self._workflow, f"{what}, last {_place(self.thread)}"
            )
            self.tracer.interrupt(self.error)
        self.interruptions += 1
        self._looks = 0
        _set_interrupt(self.thread)
        _end_interruption()  # of this thread; CPython announces the other one again when it takes the GIL

    def _busy(self) -> float:
        try:
            return self.clock()
        except OSError:  # its thread has ended just now
            return 0.0


class _Clocks(threading.local):
    clock: Callable[[], float] | None = None


_clocks = _Clocks()


def _thread_clock() -> Callable[[], float]:
    """What tells the processor time of this thread, on any thread."""
    found = _clocks.clock
    if found is None:
        clock_of = getattr(time, "pthread_getcpuclockid", None)
        if clock_of is None:  # macOS, Windows: only the limit by the clock holds
            found = lambda: 0.0  # noqa: E731
        else:
            clock_id: int = clock_of(threading.get_ident())
            found = lambda: time.clock_gettime(clock_id)  # noqa: E731
        _clocks.clock = found
    return found


def _set_interrupt(thread: int) -> None:
    """Have a thread raise an `_Interrupt` as soon as it runs Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Interrupt))


def _end_interruption() -> None:
    """Withdraw a pending interrupt of this thread, and leave no interrupt announced in the process.

    Up to Python 3.12 one flag of the interpreter announces an interrupt, and only a thread that raises one clears it. While it is
    set, every thread takes the slow path, and on 3.11 a thread with a trace function (a debugger, coverage) never gets past the
    first line of a function.
    """
    try:
        _set_interrupt(threading.get_ident())
        while True:
            pass
    except _Interrupt:
        pass


def _place(thread: int) -> str:
    frame: FrameType | None = sys._current_frames().get(thread)  # noqa: SLF001  # as `faulthandler` does
    if frame is None:
        return "nowhere"
    return f"in {frame.f_code.co_filename}, line {frame.f_lineno}, in {frame.f_code.co_qualname}"
