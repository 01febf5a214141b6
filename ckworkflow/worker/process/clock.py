"""The clock: one thread in every worker for everything that comes due.

Runs whose time has come, processes that have died, runs that are old, a schema that has gone beyond this code.

Several clocks do not disturb each other: SQL gives each due run to one of them. No Celery beat, no state: killing
it loses nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from celery import bootsteps
from celery.signals import worker_shutting_down
from celery.worker import state

from ckworkflow.background import BackgroundThread, stop_worker_with
from ckworkflow.definition import registry
from ckworkflow.engine import claims, holding, liveness, recovery, retention
from ckworkflow.engine.installation import current
from ckworkflow.errors import CkWorkflowError, SchemaVersionError
from ckworkflow.outage import Outage
from ckworkflow.store import schema
from ckworkflow.worker.process import runtime as runtimes
from ckworkflow.worker.process.continuing import Continuations
from ckworkflow.worker.process.heartbeat import Heartbeat
from ckworkflow.worker.process.host import WorkerHost
from ckworkflow.worker.process.pools import describe, exit_on_error
from ckworkflow.worker.process.prefork import Children, is_prefork
from ckworkflow.worker.steps import events
from ckworkflow.worker.steps.local import LocalSteps

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.worker import WorkController

    from ckworkflow.engine.core import Engine

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25
"""How often a clock looks for what other processes have scheduled."""
REAP_SECONDS = 1.0
SCHEMA_SECONDS = 5.0
"""How often it looks whether this code may still use the database."""
EXIT_CODE = 1
"""Of a worker that must not go on."""


class ClockThread:
    """Tick until stopped.

    Args:
        engine: Whose runs it looks at.
        is_somebody_lost: Asked before each tick; if so, dead processes are looked for now.
    """

    def __init__(self, engine: Engine, *, is_somebody_lost: Callable[[], bool] | None = None) -> None:
        self._engine = engine
        self._is_somebody_lost = is_somebody_lost or (lambda: False)
        self._wake = threading.Event()
        self._is_stopped = self._is_locked_out = False
        self._wakes_at = 0.0  # monotonic
        self._thread = BackgroundThread(
            self._run, name="ckworkflow-clock", loss="no sleep ends and no lost step is found"
        )
        self._ticks = 0
        self._has_retried = False
        # Monotonic: when to look at the schema (it was checked before this started), and for old runs.
        self._checks_at = time.monotonic() + SCHEMA_SECONDS
        self._prunes_at = 0.0
        self._continuations = Continuations(engine.spare_threads)
        self._forget = engine.on_wake(self._on_wake)

    def start(self) -> None:
        """Begin; what is due is recovered at once."""
        self._thread.start()

    def stop(self) -> None:
        """End; waits for the tick that is under way."""
        self._is_stopped = True
        self._wake.set()
        self._forget()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(5)
        self._continuations.stop(5)

    @property
    def is_alive(self) -> bool:
        """Whether it ticks."""
        return self._thread.is_alive()

    def info(self) -> dict[str, int]:
        """What `inspect stats` shows."""
        return {"ticks": self._ticks}

    def _on_wake(self, at: datetime) -> None:
        # Times are the database's; the machine's clock is near enough to wake up too early or late by its
        # skew, which the poll bounds.
        if self._is_locked_out:  # it has looked at what is due, and others are at it
            return
        left = (at - datetime.now(UTC)).total_seconds()
        if time.monotonic() + left < self._wakes_at:
            self._wake.set()

    def _run(self) -> None:
        reaped_at = 0.0
        outage = Outage(logger, "database of the clock")
        # Once a heartbeat at least, since a look counts for so much time only.
        look_seconds = min(REAP_SECONDS, self._engine.settings.heartbeat.total_seconds())
        while not self._is_stopped:
            wait = POLL_SECONDS
            try:
                self._check_schema()
                self._retry_held()
                if self._is_somebody_lost() or time.monotonic() - reaped_at >= look_seconds:
                    liveness.reap_dead(self._engine)
                    reaped_at = time.monotonic()
                claims.offer_turns(self._engine)
                self._continuations.begin_next()
                left = recovery.tick(self._engine, spread=self._continuations.spread)
                self._ticks += 1
                self._prune()
                if left is not None:
                    wait = min(max(left.total_seconds(), 0.001), POLL_SECONDS)
                self._is_locked_out = left == recovery.LOCKED_WAIT
            except Exception as error:  # noqa: BLE001  # a database that is down is waited for
                outage.begins(error)
                self._is_locked_out = False
                wait = 1.0
            else:
                outage.ends()
            self._wakes_at = time.monotonic() + wait
            self._wake.wait(wait)
            self._wake.clear()

    def _retry_held(self) -> None:
        """Try held runs and steps again, once, since this may be a deploy."""
        if not self._has_retried:
            holding.retry_held(self._engine)
            self._has_retried = True

    def _prune(self) -> None:
        """Delete old runs, if that is wanted and it is time, after everything that is due."""
        older_than = self._engine.settings.retention
        if older_than is None or time.monotonic() < self._prunes_at:
            return
        # First: what goes wrong must not be tried again with every tick.
        self._prunes_at = time.monotonic() + retention.LOOK.total_seconds()
        again = retention.prune_when_due(self._engine, older_than=older_than)
        self._prunes_at = time.monotonic() + again.total_seconds()

    def _check_schema(self) -> None:
        """Stop the worker when the database has left its code behind: a worker that was forgotten in a deploy."""
        if time.monotonic() < self._checks_at:
            return
        self._checks_at = time.monotonic() + SCHEMA_SECONDS
        try:
            schema.check(self._engine.database)
        except SchemaVersionError as error:
            logger.critical("the worker stops: %s", error)
            self._is_stopped = True
            stop_worker()


def stop_worker() -> None:
    """Begin a warm shutdown of the worker of this process that ends with an error; from any thread."""
    # As Celery's handler of SIGTERM does: with it begins the grace time of steps, here and in pool processes.
    worker_shutting_down.send(sender=None, sig=None, how="Warm", exitcode=EXIT_CODE)
    state.should_stop = EXIT_CODE


class Clock(bootsteps.StartStopStep):
    """The worker-level bootstep: opens the runtime, then ticks; survives reconnects to the broker."""

    label = "Workflow clock"
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: WorkController, **kwargs: object) -> None:
        self._thread: ClockThread | None = None
        self._children: Children | None = None
        self._heartbeat: Heartbeat | None = None
        super().__init__(worker, **kwargs)

    def create(self, worker: WorkController) -> Clock:
        """Before anything is forked: check what the children will need."""
        if is_prefork(worker):
            self._children = Children(worker)
            with exit_on_error():
                self._children.prepare()
        return self

    def start(self, worker: WorkController) -> None:
        """Open the runtime where steps run in this process, then begin to tick."""
        stop_worker_with(stop_worker)
        try:
            if self._children is None:
                runtimes.running()
            else:
                self._heartbeat = Heartbeat(current().engine)
                self._heartbeat.start()
        except CkWorkflowError as error:
            # Celery would add the traceback of what the sentence says.
            logger.critical("the worker stops: %s", error)
            raise SystemExit(EXIT_CODE) from None
        is_embedded = getattr(worker, "ckworkflow_is_embedded", False)
        logger.info(describe(worker, is_embedded=is_embedded))
        if not registry.steps and not is_embedded:
            logger.warning(
                "this worker knows no workflow and no step. celeryconfig.py is looked for in %s; its workflow_packages "
                "names the packages to import",
                Path.cwd(),
            )
        engine, local = current().engine, None
        executor = getattr(worker.pool, "executor", None)
        if self._children is None and executor is not None:
            local = LocalSteps(
                worker.app,
                runtimes.running(),
                executor,
                slots=worker.pool.limit,
                hostname=worker.hostname,
            )
        engine.attach(WorkerHost(worker, local))
        self._thread = ClockThread(
            current().engine, is_somebody_lost=self._children.replace_lost if self._children else None
        )
        self._thread.start()

    def stop(self, worker: WorkController) -> None:
        """End the clock and the runtime."""
        current().engine.detach()
        if self._thread is not None:
            self._thread.stop()
        # Celery stops the pool after this step, and the steps that still run need the loop to end on.
        worker.pool.stop()
        events.flush_events()
        if self._heartbeat is not None:
            self._heartbeat.stop()
        runtimes.stop()
        stop_worker_with(None)

    def terminate(self, worker: WorkController) -> None:
        """Do what `stop` does, since nothing here may be left half done, but without waiting for async steps."""
        if (running := runtimes.peek()) is not None:
            running.cancel_steps()
        self.stop(worker)

    def info(self, worker: WorkController) -> dict[str, dict[str, int]]:
        """What `inspect stats` shows."""
        return {"clock": self._thread.info() if self._thread else {}}
