"""Continuing: bodies that the clock lets go on, on threads that it can do without.

A body is a user's code, and may compute or block for as long as its budget lets it (`ckworkflow.engine.budget`). The clock waits for
bodies only while they come to their ends. A few threads are enough for bodies that decide what comes next and no more; one that takes
longer does not count among them, so that others go on beside it.

What is not begun, because too much waits, loses nothing: the clock finds it again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from ckworkflow.errors import DatabaseUnavailableError, RunNotFoundError

if TYPE_CHECKING:
    from ckworkflow.background import SpareThreads
    from ckworkflow.model import RunId
    from ckworkflow.store.runs import RunRow

__all__ = ["Continuations"]

logger = logging.getLogger(__name__)

AT_ONCE: Final = 4
"""Bodies that go on side by side: they wait for the database, and share its commits."""
SLOW_SECONDS: Final = 0.25
"""A body that takes longer does not count among these."""
MOST: Final = 32
"""Bodies that go on at a time, slow ones too."""
LONGEST_QUEUE: Final = 100
PATIENCE_SECONDS: Final = 0.1
"""How long the clock waits for the next of them to end."""


class Continuations:
    """See the module.

    Args:
        threads: Where bodies run.
    """

    def __init__(self, threads: SpareThreads) -> None:
        self._threads = threads
        self._has_ended = threading.Condition()
        self._queue: OrderedDict[RunId, Callable[[], object]] = OrderedDict()
        self._running: dict[RunId, float] = {}
        self._ended = 0

    def spread(self, call: Callable[[RunRow], object], found: Sequence[RunRow], /) -> None:
        """Let the bodies of some runs go on, and wait for them as long as bodies end."""
        with self._has_ended:
            for run in found:
                if run.run_id not in self._running and len(self._queue) < LONGEST_QUEUE:
                    self._queue[run.run_id] = partial(call, run)
            self._begin_next()
            while any(run.run_id in self._queue or run.run_id in self._running for run in found):
                ended = self._ended
                self._has_ended.wait(PATIENCE_SECONDS)
                if self._ended == ended:
                    return

    def begin_next(self) -> None:
        """Begin bodies that wait behind others that have become slow."""
        if self._queue:
            with self._has_ended:
                self._begin_next()

    def stop(self, timeout: float) -> None:
        """Begin no more, and wait for those that go on."""
        with self._has_ended:
            self._queue.clear()
            self._has_ended.wait_for(lambda: not self._running, timeout)

    def _begin_next(self) -> None:
        slow_since = time.monotonic() - SLOW_SECONDS
        while self._queue and len(self._running) < MOST:
            if sum(began > slow_since for began in self._running.values()) >= AT_ONCE:
                return
            run_id, call = self._queue.popitem(last=False)
            self._running[run_id] = time.monotonic()
            self._threads.begin(partial(self._run, run_id, call))

    def _run(self, run_id: RunId, call: Callable[[], object]) -> None:
        try:
            call()
        except (DatabaseUnavailableError, RunNotFoundError):
            pass  # the clock meets an outage as well, says so, and finds the run again; or it was deleted meanwhile
        except Exception:
            logger.exception("run %s not continued", run_id, extra={"run_id": run_id})
        finally:
            with self._has_ended:
                del self._running[run_id]
                self._ended += 1
                self._begin_next()
                self._has_ended.notify_all()
