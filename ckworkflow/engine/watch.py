"""The watch: who waits for the end of a run, and one thread that looks for all of them.

A run that ends in this process is told of at once. For what another process ends, the database is asked: once
for all who wait, soon at first, and less and less often while nothing ends.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.store import runs

if TYPE_CHECKING:
    from ckworkflow.model import RunId
    from ckworkflow.store.database import Database

__all__ = ["RunWatch"]

POLL_SECONDS = (0.002, 0.1)
"""The first and the longest pause between two looks."""
GROWTH = 1.15
AT_ONCE = 500


class RunWatch:
    """See the module.

    Args:
        database: Where the runs are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._waiting: dict[RunId, set[threading.Event]] = {}
        self._look = threading.Event()
        self._is_looking = False

    @contextlib.contextmanager
    def waiting(self, run_id: RunId) -> Iterator[threading.Event]:
        """Wait for the end of a run, inside: the event is set then, or when the run is gone."""
        event = threading.Event()
        with self._lock:
            self._waiting.setdefault(run_id, set()).add(event)
            must_start, self._is_looking = not self._is_looking, True
        if must_start:
            threading.Thread(target=self._run, name="ckworkflow-watch", daemon=True).start()
        try:
            yield event
        finally:
            with self._lock:
                events = self._waiting[run_id]
                events.discard(event)
                if not events:
                    del self._waiting[run_id]

    def notify(self) -> None:
        """Look now: a run has ended in this process."""
        self._look.set()

    def _run(self) -> None:
        shortest, longest = POLL_SECONDS
        pause, known = shortest, 0
        while True:
            with self._lock:
                wanted = list(self._waiting)
                if not wanted:
                    self._is_looking = False
                    return
            began = time.monotonic()
            has_news = self._tell(wanted) or len(wanted) > known
            known = len(wanted)
            # Never more than a small part of the time, however much there is to look at.
            least = max(shortest, 5 * (time.monotonic() - began))
            pause = least if has_news else min(max(pause * GROWTH, least), longest)
            self._look.wait(pause)
            self._look.clear()

    def _tell(self, wanted: list[RunId]) -> bool:
        """Set the events of those that have ended; whether there were any."""
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
        return bool(ended)
