"""The host of a worker: what its engine may have it do.

Where steps run in the worker's own process, on its threads, they may be begun without a message; in a prefork pool's main
process they may not.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from celery.worker import state

from ckworkflow import canvas
from ckworkflow.engine.host import Host
from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.worker.process import runtime as runtimes

if TYPE_CHECKING:
    from celery.worker import WorkController

    from ckworkflow.engine.claims import Claimed
    from ckworkflow.worker.steps.local import LocalSteps

__all__ = ["WorkerHost"]


class WorkerHost(Host):
    """See the module.

    Args:
        worker: Celery's worker.
        local: The steps that this process runs without a message; `None` where it cannot.
    """

    def __init__(self, worker: WorkController, local: LocalSteps | None) -> None:
        self._app, self._local = worker.app, local
        self._slots = worker.pool.limit or 1
        self.runs_steps = local is not None

    @property
    def waiting(self) -> int:
        """See `Host`."""
        return 0 if self._local is None else self._local.waiting

    @property
    def is_full(self) -> bool:
        """See `Host`."""
        local = 0 if self._local is None else self._local.running
        return len(state.reserved_requests) + local >= self._slots

    def may_run(self, name: str) -> bool:
        """See `Host`."""
        return self._local is not None and self._local.may_run(name)

    def run(self, claimed: Claimed) -> None:
        """See `Host`."""
        if self._local is None:
            super().run(claimed)
        else:
            self._local.run(claimed)

    def tell_to_stop(self) -> None:
        """See `Host`."""
        if (runtime := runtimes.peek()) is not None:
            with suppress(DatabaseUnavailableError):  # the heartbeat's thread looks again
                runtime.tell_to_stop()

    def queue_of(self, name: str) -> str | None:
        """See `Host`."""
        return canvas.queue_of(self._app, name)
