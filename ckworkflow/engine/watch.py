"""The watch: who waits for the end of a run, and how often they look.

The end of a run in this process is reported at once. For runs that other processes end, the database is asked: soon at
first, and less and less often while nothing ends. A few who wait ask for themselves, which is the shortest way; for
more of them one thread asks, once for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, TypeVar

from ckworkflow.background import BackgroundThread
from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.store import runs

if TYPE_CHECKING:
    from ckworkflow.model import RunId
    from ckworkflow.store.database import Database

__all__ = ["LoopEvent", "RunWatch"]

LEAST_REST = 5
"""Times what the last look took, until the next: never more than a small part of the time, however busy all are."""
FEW = 3
"""So many look for themselves."""
SHORTEST_SECONDS = 0.001
LONGEST_SECONDS = 0.1
SHARE_OF_AGE = 0.1
"""Between two looks: a part of how long the youngest of those who wait has waited, within these bounds."""
LEAST_WHERE_RUNS_END = 0.02
"""In a process that runs steps itself: most of what is waited for here ends here."""
LINGER_SECONDS = 1.0
AT_ONCE = 500


class Settable(Protocol):
    """What is set when a run has ended."""

    def set(self) -> None:
        """Set it; from any thread."""
        ...


S = TypeVar("S", bound=Settable)


class LoopEvent:
    """An event that the running loop waits for and any thread sets."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def set(self) -> None:
        """Set it, unless its loop has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, seconds: float) -> None:
        """Wait until it is set, for so long at most; it is not set any more then."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()


class RunWatch:
    """See the module.

    Args:
        database: Where the runs are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._waiting: dict[RunId, set[Settable]] = {}
        self._has_come = threading.Event()
        self._youngest = 0.0  # monotonic: since when the last one to come has waited
        self._is_looking = False
        self.shortest_seconds = SHORTEST_SECONDS

    def waiting(self, run_id: RunId) -> contextlib.AbstractContextManager[threading.Event]:
        """Wait for the end of a run, inside: the event is set then, or when the run is gone."""
        return self.telling(run_id, threading.Event())

    @contextlib.contextmanager
    def telling(self, run_id: RunId, event: S) -> Iterator[S]:
        """Set an event at the end of a run, inside, or when the run is gone."""
        with self._lock:
            self._waiting.setdefault(run_id, set()).add(event)
            self._youngest = time.monotonic()
            must_start = not self._is_looking and len(self._waiting) > FEW
            self._is_looking |= must_start
        if must_start:
            try:
                BackgroundThread(
                    self._run, name="ckworkflow-watch", loss="waiting for the end of a run takes longer"
                ).start()
            except RuntimeError:  # the system gives no more threads: each looks for itself
                self._is_looking = False
        self._has_come.set()
        try:
            yield event
        finally:
            with self._lock:
                events = self._waiting[run_id]
                events.discard(event)
                if not events:
                    del self._waiting[run_id]

    def next_look(self, waited: float, spent: float) -> float | None:
        """In how many seconds one who has waited so long is to look for itself; `None`: it is told.

        Its last look took `spent` seconds.
        """
        return None if self._is_looking else self._pause(waited, spent)

    def _pause(self, waited: float, spent: float) -> float:
        pause = min(max(waited * SHARE_OF_AGE, self.shortest_seconds), LONGEST_SECONDS)
        return max(pause, LEAST_REST * spent)

    def notify(self, run_id: RunId) -> None:
        """Tell those who wait for a run that it has ended, in this process."""
        if not self._waiting:
            return
        with self._lock:
            for event in self._waiting.get(run_id, ()):
                event.set()

    def _run(self) -> None:
        spent = 0.0
        while True:
            with self._lock:
                is_idle = not self._waiting
            if is_idle:
                # Somebody who waits for one run after the other is about to come again.
                came = self._has_come.wait(LINGER_SECONDS)
                with self._lock:
                    if not came and not self._waiting:
                        self._is_looking = False
                        return
                self._has_come.clear()
            time.sleep(self._pause(time.monotonic() - self._youngest, spent))
            with self._lock:
                wanted = list(self._waiting)
            began = time.monotonic()
            self._tell(wanted)
            spent = time.monotonic() - began

    def _tell(self, wanted: list[RunId]) -> None:
        """Set the events of those that have ended."""
        live: set[RunId] = set()
        try:
            for at in range(0, len(wanted), AT_ONCE):
                part = wanted[at : at + AT_ONCE]
                live.update(self._database.read(lambda tx, part=part: runs.live_of(tx, part)))  # type: ignore[misc]  # bound now
        except DatabaseUnavailableError:
            # Who waits asks for itself, and hears it in its own thread.
            live.clear()
        ended = [run_id for run_id in wanted if run_id not in live]
        with self._lock:
            for run_id in ended:
                for event in self._waiting.get(run_id, ()):
                    event.set()
