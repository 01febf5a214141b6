"""The heartbeat: a process says in SQL that it lives, for as long as it does, and hears of steps that it is to stop.

Its row is what others go by when they cannot ask the kernel: whoever has let it lapse is taken for dead, and
what it owned is free.

Not here: who is dead, and what becomes of it (`ckworkflow.engine.liveness`).
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from ckworkflow.background import BackgroundThread
from ckworkflow.engine import liveness
from ckworkflow.errors import CkWorkflowError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckworkflow.engine.core import Engine

__all__ = ["Heartbeat"]

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often a process that runs steps looks whether one of them is to stop."""


class Heartbeat:
    """The heartbeat of this process.

    Args:
        engine: Where the row is.
        tell_to_stop: Has the steps stop that this process runs and that are to; none in a process that runs none.
    """

    def __init__(self, engine: Engine, tell_to_stop: Callable[[], object] = lambda: None) -> None:
        self._engine, self._tell_to_stop = engine, tell_to_stop
        self._is_stopped = threading.Event()
        self._thread = BackgroundThread(
            self._run, name="ckworkflow-heartbeat", loss="other processes take this one for dead"
        )

    def start(self) -> None:
        """Register the process and begin.

        Raises:
            DatabaseUnavailableError: The database cannot be reached.
        """
        liveness.heartbeat(self._engine)
        self._thread.start()

    def stop(self) -> None:
        """End, and remove the row: the process has given back what it owned."""
        if self._thread.ident is None:
            return  # it was never registered
        self._is_stopped.set()
        self._thread.join(5)
        try:
            liveness.leave(self._engine)
        except CkWorkflowError as error:
            logger.warning("process row left behind: %s", error)

    def _run(self) -> None:
        suspects: liveness.Orphans = frozenset()
        every = self._engine.settings.heartbeat.total_seconds()
        due_at = time.monotonic() + every
        while not self._is_stopped.wait(max(min(due_at - time.monotonic(), LOOK_SECONDS), 0)):
            try:
                self._tell_to_stop()
            except Exception as error:  # noqa: BLE001  # the next look may succeed, and the heartbeat says it aloud
                logger.debug("not looked whether steps are to stop: %s", error)
            if time.monotonic() < due_at:
                continue
            due_at = time.monotonic() + every
            try:
                liveness.heartbeat(self._engine)
                liveness.renew_leases(self._engine)
                suspects = liveness.release_orphans(self._engine, suspects)
            except Exception as error:  # noqa: BLE001  # the next one may succeed; a dead database is logged
                logger.warning("heartbeat failed: %s", error)
