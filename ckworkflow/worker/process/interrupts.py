"""Interrupts: what a signal raises in the thread of a step, and where it may.

Celery tells a pool process by signals that a soft time limit has passed (SIGUSR1) or that it must end (SIGTERM), and
its handlers raise in whatever the main thread does at that moment. Here they raise only while a step runs or is waited
for. What is done about a step (its claim, its record, the run's body) is not cut in two: there the signal is kept
until the next step begins or the message is done.

After a request to exit the step that ran is given back, nothing further begins, and the request is raised again once
the message is done.

Not here: what cancels a step on the event loop (`ckworkflow.worker.process.runtime`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from billiard import common, pool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

__all__ = ["allowed", "deferred", "is_leaving", "wait"]

_SIGNALS: Final = [
    getattr(signal, name)
    for name in ("SIGUSR1", "SIGTERM", "SIGHUP", "SIGQUIT")
    if hasattr(signal, name)
]
# Of billiard's that is private. Were it another one day, signals would raise anywhere again, as Celery has it.
_OF_THE_POOL: Final = (pool.soft_timeout_sighandler, common._shutdown_cleanup)  # noqa: SLF001
"""What raises; a signal that has another handler is somebody else's."""

Handler = Callable[[int, "FrameType | None"], object]


class _State(threading.local):
    is_deferring = is_open = False
    pending: Callable[[], object] | None = None
    """What a signal that came meanwhile would have called."""
    is_exit_pending = False
    leaving: BaseException | None = None
    """What has asked this thread to exit."""


_state = _State()


@contextmanager
def deferred() -> Iterator[None]:
    """Let signals raise in this block only where `allowed` says so; at its end, raise what asks to exit."""
    if _state.is_deferring:
        yield
        return
    _state.is_deferring = True
    _take_over()
    try:
        yield
    finally:
        _state.is_deferring = False
        pending, leaving = _taken_pending(), _state.leaving
        _state.leaving = None
        if leaving is not None:
            raise leaving
        if pending is not None:
            _end(pending)


class _Allowed:
    """See `allowed`. Not a generator: a signal must not find it half entered."""

    __slots__ = ()

    def __enter__(self) -> None:
        _state.is_open = True
        pending = _taken_pending()
        if pending is not None:
            _raise(pending)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _state.is_open = False


allowed: Final = _Allowed()
"""The block in which a signal may raise."""


def is_leaving() -> bool:
    """Whether this thread has been asked to exit: nothing further may begin."""
    return _state.leaving is not None or _state.is_exit_pending


def wait(
    lock: threading.Lock, is_over: Callable[[], bool], interrupt: Callable[[BaseException], object]
) -> None:
    """Wait on a lock until something is over, however often a signal raises meanwhile.

    Args:
        lock: Is released once, after it is over.
        is_over: Whether it is.
        interrupt: Told what a signal has raised, to bring the end about.
    """
    while not is_over():
        try:
            with allowed:
                lock.acquire()
        except BaseException as error:  # noqa: BLE001  # a handler may raise anything
            if not isinstance(error, Exception):
                _state.leaving = _state.leaving or error
            interrupt(error)


def _take_over() -> None:
    """Stand in front of the pool's handlers. They are set after everything that a pool process runs at its start."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        handler = signal.getsignal(number)
        if handler in _OF_THE_POOL and callable(handler):
            signal.signal(number, partial(_on_signal, handler))


def _on_signal(handler: Handler, number: int, frame: FrameType | None) -> None:
    call = partial(handler, number, frame)
    if not _state.is_deferring:
        call()
    elif _state.is_open:
        _raise(call)
    elif _state.pending is None or number != pool.SIG_SOFT_TIMEOUT:  # a request to exit replaces a limit
        _state.pending, _state.is_exit_pending = call, number != pool.SIG_SOFT_TIMEOUT


def _taken_pending() -> Callable[[], object] | None:
    pending, _state.pending, _state.is_exit_pending = _state.pending, None, False
    return pending


def _raise(call: Callable[[], object]) -> None:
    _state.is_open = False  # first: the block that is left by this may not get to say so
    try:
        call()
    except BaseException as error:
        if not isinstance(error, Exception):
            _state.leaving = _state.leaving or error
        raise


def _end(call: Callable[[], object]) -> None:
    """Handle what came too late for a step: a time limit means nothing any more, a request to exit does."""
    try:
        call()
    except Exception:  # noqa: BLE001  # a time limit: the task is done
        return
