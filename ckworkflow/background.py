"""Background threads: the one way to start a thread on which others rely.

Such a thread ends when its function returns, and the function returns only when it was asked to. If it raises
instead, the process would go on without the thread and look healthy. So the end is logged with its cause, and the worker
of the process is told to stop: a supervisor starts a whole one in its place.

`OffLoop` is for calls that a coroutine waits for. Not here: threads that run one step or one body. Somebody waits for their end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from ckworkflow.per_process import PerProcess

__all__ = ["BackgroundThread", "OffLoop", "stop_worker_with"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

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


class OffLoop:
    """A few threads to which coroutines hand what blocks. A forked child has its own: its parent's threads are not there.

    Args:
        size: How many.
        name: What their names begin with.
    """

    def __init__(self, size: int, name: str) -> None:
        self._make = partial(ThreadPoolExecutor, size, thread_name_prefix=name)
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._executor = self._make()

    def run(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Call something there, in the context of the caller; give what the running loop may wait for."""
        loop, context = asyncio.get_running_loop(), copy_context()
        return loop.run_in_executor(self._executor, context.run, call)
