"""Requests: the message of a step, as the main process of a worker sees it.

A hard time limit is recorded before Celery acts on it: the process that runs the step is killed within a tenth of a
second, and nobody else would know why. The message of a revoked step is thrown away by Celery; its step is ended here.

Not here: the record (`ckworkflow.engine.verdicts`), the command that revokes (`.revokes`), the task (`.task`).
"""

from __future__ import annotations

import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Final

from celery.platforms import signals
from celery.worker import state
from celery.worker.request import Request

from ckworkflow.canvas import parse_task_id
from ckworkflow.engine import verdicts
from ckworkflow.engine.installation import current
from ckworkflow.errors import CkWorkflowError, StepTimeLimitError
from ckworkflow.worker.steps import limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery.concurrency.base import BasePool

__all__ = ["StepRequest", "is_prefork_pool", "record"]

logger = logging.getLogger(__name__)

LONGEST_SECONDS: Final = 2.0
"""How long the worker's event loop waits for a record; a database that is away must not keep it longer."""


class StepRequest(Request):
    """See the module."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        limits.note_in(self.request_dict, self.app, self.task, self.time_limits)

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001  # Celery calls it so
        """Record that a hard time limit is past; after this, Celery kills the pool process."""
        if not soft and not state.should_terminate:
            error = partial(StepTimeLimitError, seconds=timeout, is_hard=True)
            record(partial(verdicts.end_owned, current().engine, pid=self.worker_pid, error=error))
        super().on_timeout(soft, timeout)

    def revoked(self) -> bool:
        """Whether the message is thrown away because its step was revoked: then end the step."""
        is_known = self._already_revoked
        is_revoked: bool = super().revoked()
        found = parse_task_id(self.id)
        if is_revoked and not is_known and found is not None and not self.expires:
            record(partial(verdicts.revoke, current().engine, *found, pids=()), wait_seconds=0)
        return is_revoked

    def terminate(self, pool: BasePool, signal: str | int | None = None) -> None:
        """Stop the step; where its process is this one, it has been stopped already (`.revokes`)."""
        if is_prefork_pool(pool):
            super().terminate(pool, signal)
        else:
            self._announce_revoked("terminated", True, signals.signum(signal or "TERM"), False)  # noqa: FBT003


def is_prefork_pool(pool: object) -> bool:
    """Whether a pool's steps run in child processes."""
    return "prefork" in type(pool).__module__


def record(call: Callable[[], object], *, wait_seconds: float = LONGEST_SECONDS) -> None:
    """Write to the database from the worker's event loop: on another thread, and not waited for without end."""

    def run() -> None:
        try:
            call()
        except CkWorkflowError as error:
            logger.warning("end of a step not recorded: %s", error)
        except Exception:
            logger.exception("end of a step not recorded")

    thread = threading.Thread(target=run, name="ckworkflow-verdict", daemon=True)
    thread.start()
    thread.join(wait_seconds)
