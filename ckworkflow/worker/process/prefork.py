"""The prefork pool: steps run in child processes, each with a runtime of its own that it makes after the fork.

Two things are added to what Celery does for its children. One that was killed is noticed at once: Celery hears
of the death a moment before it can ask the kernel about it, and then asks again only after five seconds. And
the grace time of a warm shutdown reaches them: after it their async steps are cancelled and released.

Not here: the runtime itself (`ckworkflow.worker.process.runtime`); who looks for lost children (`.clock`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Final

from celery.signals import worker_process_init, worker_process_shutdown, worker_shutting_down

from ckworkflow import integration as integrations
from ckworkflow.background import stop_worker_with
from ckworkflow.engine.identity import pid_started
from ckworkflow.engine.installation import current
from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.worker.process import runtime as runtimes
from ckworkflow.worker.steps import events, limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery.worker import WorkController

__all__ = ["Children", "is_prefork", "pids_of"]

logger = logging.getLogger(__name__)

_CANCEL_STEPS: Final = signal.SIGUSR2
"""What tells a child that the grace time is over; SIGUSR1 is Celery's, for soft time limits."""


def is_prefork(worker: WorkController) -> bool:
    """Whether a worker's steps run in child processes."""
    return "prefork" in worker.pool_cls.__module__


def pids_of(pool: object) -> Iterator[int]:
    """The processes of a pool."""
    for process in list(getattr(getattr(pool, "_pool", None), "_pool", ())):
        if process.pid is not None:
            yield process.pid


class Children:
    """The child processes of a worker, as its main process sees them."""

    def __init__(self, worker: WorkController) -> None:
        self._worker = worker

    def prepare(self) -> None:
        """Check, before the first fork, what the children will need, and have them open their runtimes.

        Raises:
            CkWorkflowError: They could not run anything.
        """
        current().engine.ensure_schema()
        integrations.load_providers()
        limits.keep(self._worker)
        asyncio.run(_try_integrations())
        worker_process_init.connect(_open)
        worker_process_shutdown.connect(_close)
        worker_shutting_down.connect(self._begin_shutdown)

    def replace_lost(self) -> bool:
        """Have Celery replace children that have died; return whether one has."""
        if all(pid_started(pid) is not None for pid in self._pids()):
            return False
        consumer = getattr(self._worker, "consumer", None)
        if consumer is not None:
            consumer.call_soon(self._worker.pool.maintain_pool)  # on the thread that owns the pool
        return True

    def _pids(self) -> Iterator[int]:
        return pids_of(self._worker.pool)

    def _begin_shutdown(self, **_: object) -> None:
        timer = threading.Timer(runtimes.GRACE_SECONDS, self._cancel_steps)
        timer.daemon = True
        timer.start()

    def _cancel_steps(self) -> None:
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, _CANCEL_STEPS)


async def _try_integrations() -> None:
    """Open what the children will open: a bad token must stop the worker, not every child in turn."""
    for integration in integrations.installed():
        await integration.open()
        await integration.close()


def _open(**_: object) -> None:
    signal.signal(_CANCEL_STEPS, _on_grace_over)
    current().engine.queues = frozenset()  # the main process consumes
    if current().engine.database.is_lost:
        logger.warning(
            "pool process ends: it was forked during a transaction. Another one takes its place"
        )
        os._exit(0)
    # Celery replaces a child that has ended.
    stop_worker_with(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        runtimes.running()
    except DatabaseUnavailableError as error:
        # Not waited for here: Celery kills a child that is not up within seconds. Its first step waits.
        logger.warning("pool process starts without its database: %s", error)


def _on_grace_over(*_: object) -> None:
    runtime = runtimes.peek()
    if runtime is None:
        # It waits for its database still: it owns nothing, and what it holds is delivered again.
        os._exit(0)
    runtime.cancel_steps()


def _close(**_: object) -> None:
    events.flush_events()
    runtimes.stop()
