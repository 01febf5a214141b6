"""Steps that begin without a message: a process that makes them ready, and works itself, takes them at once.

The first step of a run that is started here, and what its clock finds to be due. The claim is written with what
made the step ready, so that a death in between is a lost worker like any other. It goes on as run-ahead does. Only what the slots of the pool have room for is taken; the rest travels.

Not here: how far it goes on (`ckworkflow.worker.steps.ahead`).
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from celery.worker import state

from ckworkflow.engine import attempts
from ckworkflow.errors import CkWorkflowError
from ckworkflow.worker.steps.ahead import queue_without_message

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from celery import Celery

    from ckworkflow.engine.claims import Claimed
    from ckworkflow.worker.process.runtime import Runtime

__all__ = ["LocalSteps"]

logger = logging.getLogger(__name__)


class LocalSteps:
    """What the engine of a worker's process may begin in it.

    Args:
        app: The app.
        runtime: The runtime of this process.
        executor: The threads of the worker's pool.
        slots: How many of them there are.
        hostname: The worker's name, as Celery prints it.
    """

    def __init__(
        self, app: Celery, runtime: Runtime, executor: Executor, *, slots: int, hostname: str | None
    ) -> None:
        self._app, self._runtime, self._executor = app, runtime, executor
        self._slots, self._hostname = slots, hostname
        self._lock = threading.Lock()
        self._begun = self._waiting = 0

    def may_run(self, name: str) -> bool:
        """Whether a step of that name may begin here, now."""
        queue = queue_without_message(self._app, self._runtime, name)
        return (
            queue is not None
            and self._begun + len(state.active_requests) < self._slots
            and queue in self._app.amqp.queues.consume_from
        )

    def run(self, claimed: Claimed) -> None:
        """Run a claimed step on a slot, and what follows it in place."""
        self._runtime.engine.active.add((claimed.run_id, claimed.row.node_id))
        with self._lock:
            self._begun += 1
            self._waiting += 1
        try:
            self._executor.submit(self._run, claimed)
        except RuntimeError:  # the pool has ended meanwhile
            with self._lock:
                self._waiting -= 1
            self._end(claimed)
            attempts.release(self._runtime.engine, claimed)

    def _run(self, claimed: Claimed) -> None:
        with self._lock:
            self._waiting -= 1
        try:
            if (
                self._runtime.is_stopping
            ):  # it has waited for its slot until now, and nothing begins any more
                attempts.release(self._runtime.engine, claimed)
                return
            self._app.tasks[claimed.row.name].run_claimed(claimed, hostname=self._hostname)
        except CkWorkflowError as error:
            self._tell(logging.WARNING, claimed, error)
        except Exception as error:  # noqa: BLE001  # the heartbeat frees the step
            self._tell(logging.ERROR, claimed, error, exc_info=True)
        finally:
            self._end(claimed)

    def _tell(self, level: int, claimed: Claimed, error: Exception, *, exc_info: bool = False) -> None:
        logger.log(
            level, "step %s (%s) of run %s (%s) not run to its end: %s",
            claimed.row.name, claimed.row.node_id, claimed.run_id, claimed.workflow, error,
            exc_info=exc_info, extra={"run_id": claimed.run_id, "node_id": claimed.row.node_id},
        )  # fmt: skip

    def _end(self, claimed: Claimed) -> None:
        with self._lock:
            self._begun -= 1
        # Whatever was not recorded is nobody's now, and found as such by the next heartbeats.
        self._runtime.engine.active.discard((claimed.run_id, claimed.row.node_id))

    @property
    def running(self) -> int:
        """How many of them run, or wait for a slot."""
        return self._begun

    @property
    def waiting(self) -> int:
        """How many of them wait for a slot."""
        return self._waiting
