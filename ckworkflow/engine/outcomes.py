"""Outcomes: a caller waits for the end of a run, and gets what it returned or raised.

To wait takes no thread. An async caller is woken on its own loop; to look at the database takes a thread for a moment, of a few that do
nothing else. So any number may wait, a run that has ended is told at the first look, and the caller's timeout counts from
its call, however many others wait.

Not here: who wakes whom (`watch`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ckworkflow import codec
from ckworkflow.background import OffLoop
from ckworkflow.engine import failures, holding
from ckworkflow.engine.installation import ready_engine
from ckworkflow.engine.queues import is_worker_alive
from ckworkflow.engine.watch import LoopEvent
from ckworkflow.errors import (
    ReturnValueTimeoutError,
    RunCancelledError,
    RunFailedError,
    RunTerminatedError,
)
from ckworkflow.model import RunId, RunStatus
from ckworkflow.store import runs

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.store.runs import RunRecord

__all__ = ["error_of", "wait", "wait_on_loop"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

NO_WORKER_SECONDS = 5.0
"""After so long it is looked whether any worker is alive."""
TOLD_SECONDS = 60.0
"""How often one looks by itself that is told when its run ends."""
GRACE_SECONDS = 1.0
"""So much longer than its timeout a caller waits for a look that is under way."""

_lookers = OffLoop(4, "ckworkflow-look")


class _Caller:
    """A caller that waits.

    Args:
        engine: The engine.
        run_id: The run.
        timeout: How many seconds.
        began: Since when, by the monotonic clock.
    """

    def __init__(self, engine: Engine, run_id: RunId, timeout: float | None, began: float) -> None:
        self._engine, self._run_id, self._timeout, self._began = engine, run_id, timeout, began
        self._is_warned = False
        self.pause = 0.0
        """Seconds until the next look."""

    @property
    def left(self) -> float | None:
        """Seconds until the timeout."""
        return None if self._timeout is None else self._timeout - (time.monotonic() - self._began)

    def look(self) -> RunRecord | None:
        """Read the run; `None` while it has not ended.

        Raises:
            RunNotFoundError: It was deleted.
            ReturnValueTimeoutError: It has not ended in time.
            DatabaseUnavailableError: Nobody knows.
        """
        engine, run_id = self._engine, self._run_id
        looked_at = time.monotonic()
        record = engine.database.read(lambda tx: runs.read_ending(tx, run_id))
        if record.status.is_final:
            return record
        now = time.monotonic()
        waited, left = now - self._began, self.left
        if left is not None and left <= 0:
            raise self.late(
                is_worker_alive=is_worker_alive(engine), held=_why_held(engine, record),
                has_begun=record.status is not RunStatus.PENDING,
            )  # fmt: skip
        if waited >= NO_WORKER_SECONDS and not self._is_warned:
            self._warn(record)
        pause = engine.watch.next_look(waited, now - looked_at)
        looks_in = [TOLD_SECONDS if pause is None else pause]
        if left is not None:
            looks_in.append(left)
        if not self._is_warned:
            looks_in.append(NO_WORKER_SECONDS - waited)
        self.pause = max(min(looks_in), 0)
        return None

    def late(
        self, *, is_worker_alive: bool | None, held: str | None = None, has_begun: bool = True
    ) -> ReturnValueTimeoutError:
        """The error of a timeout."""
        return ReturnValueTimeoutError(
            self._run_id,
            self._timeout or 0,
            is_worker_alive=is_worker_alive,
            held=held,
            has_begun=has_begun,
        )

    def _warn(self, record: RunRecord) -> None:
        """Log once why the run may take long."""
        self._is_warned = True
        run_id = record.run_id
        if not is_worker_alive(self._engine):
            logger.warning(
                "run %s waits: no worker is alive. Run `celery -A ckworkflow worker`, or load the bot extension.",
                run_id,
                extra={"run_id": run_id},
            )


def wait(engine: Engine, run_id: RunId, timeout: float | None) -> Any:
    """Wait for the end of a run and return its result; blocks.

    Raises:
        RunFailedError: It failed.
        RunCancelledError: It was cancelled.
        ReturnValueTimeoutError: It has not ended within `timeout` seconds.
        RunNotFoundError: It was deleted.
        DatabaseUnavailableError: The database cannot be reached.
    """
    caller = _Caller(engine, run_id, timeout, time.monotonic())
    with engine.watch.waiting(run_id) as ended:
        while (record := caller.look()) is None:
            if engine.host.wait_here(run_id, ended, caller.pause):
                ended.clear()
    return _outcome(record)


async def wait_on_loop(
    find_engine: Callable[[], Engine],
    run_id: RunId,
    timeout: float | None,  # noqa: ASYNC109  # its error names the run
) -> Any:
    """Do what `wait` does, without blocking the running loop; `find_engine` may block.

    Raises:
        CkWorkflowError: As `wait`.
    """
    began = time.monotonic()
    engine = ready_engine()
    if engine is None:
        engine = await _lookers.run(find_engine)
    caller = _Caller(engine, run_id, timeout, began)
    with engine.watch.telling(run_id, LoopEvent()) as ended:
        while True:
            looking = _lookers.run(caller.look)
            left = caller.left
            await asyncio.wait([looking], timeout=None if left is None else max(left, 0) + GRACE_SECONDS)
            if not looking.done():
                looking.cancel()
                raise caller.late(is_worker_alive=None)
            record = looking.result()
            if record is not None:
                return _outcome(record)
            await engine.host.wait(run_id, ended, caller.pause)


def _outcome(record: RunRecord) -> Any:
    error = error_of(record)
    if error is None:
        return codec.decode(codec.loads(record.output or "null"))
    raise error from error.__cause__


def error_of(record: RunRecord) -> RunFailedError | RunCancelledError | None:
    """Return what is raised where the result of a run that has ended is awaited; `None`: it has a result."""
    if record.status is RunStatus.COMPLETED:
        return None
    cause = failures.loads(record.error) if record.error else None
    error: RunFailedError | RunCancelledError
    if record.status is RunStatus.CANCELLED:
        reason = record.cancel_reason
        if record.cancel_requested_at is None and isinstance(cause, asyncio.CancelledError):
            reason = str(cause) or None
        if cause is None:  # it had not begun
            cause = asyncio.CancelledError(*([] if reason is None else [reason]))
        error = RunCancelledError(
            record.run_id, record.workflow, reason, is_terminated=isinstance(cause, RunTerminatedError)
        )
    else:
        error = RunFailedError(record.run_id, record.workflow, failures.one_line(record.error) or "")
    error.__cause__ = cause
    return error


def _why_held(engine: Engine, record: RunRecord) -> str | None:
    if record.held is None:
        return None
    return engine.database.read(lambda tx: holding.why(tx, record.run_id, record.held))
