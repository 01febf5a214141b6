"""Queues that nobody consumes, and runs that no worker is there for: they wait for ever, and somebody has to say so.

Each worker tells in its row which queues it consumes. A clock that publishes a step again, since its message was not
claimed, looks whether any live worker could have claimed it. While one lives that does not tell (of an older release),
nothing is known, and nothing is said.

Not here: to which queue a step goes (`ckworkflow.canvas`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.store import processes, runs

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.model import RunId
    from ckworkflow.store.transaction import Transaction

__all__ = ["QueueWatch", "WorkerLook", "advice", "is_worker_alive", "unconsumed"]

logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""How long a queue that was consumed is taken to be consumed still."""
SAY_SECONDS = 300.0
"""How long it is before the same is said of a queue again."""
WORKER_LOOK_SECONDS = 60.0
"""So seldom does a process that starts runs look for a worker."""


def unconsumed(
    engine: Engine, tx: Transaction, names: Iterable[str], queue_of: Callable[[str], str | None]
) -> dict[str, list[str]]:
    """Return the queues that no live worker consumes, each with the steps that go to it.

    Args:
        engine: The engine.
        tx: A transaction.
        names: Names of steps.
        queue_of: Tells to which queue a step goes; `None` where it cannot be told.
    """
    queues: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        queue = queue_of(name)
        if queue is not None:
            queues.setdefault(queue, []).append(name)
    consumed = processes.consumed_queues(tx, now=engine.database.now(tx)) if queues else None
    return {} if consumed is None else {q: steps for q, steps in queues.items() if q not in consumed}


def advice(queue: str, steps: Iterable[str]) -> str:
    """Say that nobody consumes a queue, and what helps."""
    return (
        f"No live worker consumes the queue {queue}, to which {', '.join(steps)} goes: start one with "
        f"`celery -A ckworkflow worker -Q {queue}`, or name another queue in task_routes or the step's queue="
    )


class QueueWatch:
    """What a clock has found out about queues, which it logs now and then."""

    def __init__(self) -> None:
        self._looks_at: dict[str, float] = {}

    def look(self, engine: Engine, run_id: RunId, names: Iterable[str]) -> None:
        """Look whether anybody consumes the queues of steps that were not claimed, and log of those that nobody does.

        Args:
            engine: The engine; it knows to which queue a step goes.
            run_id: A run that waits for these steps.
            names: Their names.
        """
        now = time.monotonic()
        suspects = [
            name for name in names if now >= self._looks_at.get(engine.host.queue_of(name) or "", 0.0)
        ]
        if not suspects:
            return
        found = engine.database.read(lambda tx: unconsumed(engine, tx, suspects, engine.host.queue_of))
        for name in suspects:
            queue = engine.host.queue_of(name) or ""
            self._looks_at[queue] = now + (SAY_SECONDS if queue in found else LOOK_SECONDS)
        for queue, steps in found.items():
            logger.warning(
                "%s (run %s waits)", advice(queue, steps), run_id,
                extra={"run_id": run_id, "queue": queue, "steps": steps},
            )  # fmt: skip


class WorkerLook:
    """Says in a process that starts runs and works on none, now and then, that nobody does.

    A bot whose workers were forgotten would be silent otherwise: what it starts is safe, and waits.
    """

    def __init__(self) -> None:
        self._next = time.monotonic()

    def after_start(self, engine: Engine, run_id: RunId) -> None:
        """Look for a worker; at most one of the starts of a minute does so."""
        now = time.monotonic()
        if now < self._next or engine.host.runs_steps:
            return
        self._next = now + WORKER_LOOK_SECONDS

        def waits(tx: Transaction) -> bool:
            status = runs.read_status(tx, run_id)
            is_live = status is not None and not status.is_final
            return is_live and not processes.has_live_worker(tx, now=engine.database.now(tx))

        try:
            is_waiting = engine.database.read(waits)
        except DatabaseUnavailableError:
            return  # the run is committed, and whoever asks for it is told what is wrong
        if is_waiting:
            logger.warning(
                "run %s is safe, and waits: no worker is alive. Run `celery -A ckworkflow worker`, or load the bot extension.",
                run_id,
                extra={"run_id": run_id},
            )


def is_worker_alive(engine: Engine) -> bool:
    """Whether any worker has renewed its row lately.

    Raises:
        DatabaseUnavailableError: The database cannot be reached.
    """
    return engine.database.read(lambda tx: processes.has_live_worker(tx, now=engine.database.now(tx)))
