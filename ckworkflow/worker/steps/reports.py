"""What the log says of steps: one line for each attempt, however the step was carried.

A step may come with a message, or run in place on a thread or on the event loop; Celery knows of the first kind alone
and prints the result of each, which is always `None`. So Celery's own lines about steps are left out, except at DEBUG,
and these are written: run, workflow, step and cause in the text. The cause is the kind of error; its message, which may
quote what the step was told, and its traceback stay in the database unless `workflow_log_tracebacks` is set.

Not here: lines about runs (`ckworkflow.engine`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from ckworkflow.definition import registry
from ckworkflow.engine import failures
from ckworkflow.engine.called import find_step
from ckworkflow.engine.judging import FailureAction
from ckworkflow.errors import StepCancelledError
from ckworkflow.foreign import place

if TYPE_CHECKING:
    from ckworkflow.engine.answer import Answer
    from ckworkflow.engine.claims import Claimed
    from ckworkflow.engine.core import Engine
    from ckworkflow.engine.judging import Failure

__all__ = ["AttemptFailedError", "log_attempt", "log_release", "quieten_celery"]

logger = logging.getLogger(__name__)

_STOPPED: Final = place(StepCancelledError)
_CELERYS: Final = ("celery.app.trace", "celery.worker.strategy", "celery.worker.request")


class AttemptFailedError(Exception):
    """What Celery is told of an attempt that another one follows: it prints just the text."""

    def __repr__(self) -> str:
        """The text: Celery's events and Flower show it."""
        return str(self)


def log_attempt(
    engine: Engine, claimed: Claimed, failure: Failure | None, recorded: Answer, *, is_final: bool
) -> None:
    """Write the line of an attempt that has been recorded.

    Args:
        engine: The engine.
        claimed: The step.
        failure: What went wrong, if anything did.
        recorded: What follows.
        is_final: Whether the step has failed for good.
    """
    is_stopped = failure is not None and failure.data.get("type") == _STOPPED
    level = logging.INFO if is_stopped else _level(failure, is_final=is_final)
    if not logger.isEnabledFor(level):
        return
    row = claimed.row
    if failure is None:
        text = "succeeded" if row.attempt == 1 else f"succeeded at attempt {row.attempt}"
    elif is_stopped:
        text = "was told to stop, and has ended"
    else:
        cause = failure.advice or failures.outline(failure.data)
        text = f"{_tried(claimed, failure)}: {cause}; {_what_next(recorded, is_final=is_final)}"
        text += f". `ckworkflow runs show {claimed.run_id}` has the message"
        if engine.settings.log_tracebacks:
            text += "\n" + failures.with_traceback(failure.data)
    _write(level, claimed, text)


def log_release(claimed: Claimed) -> None:
    """Write the line of a step that a worker gives back as it stops."""
    _write(logging.INFO, claimed, "was given back: the worker stops")


def quieten_celery() -> None:
    """Leave out Celery's own lines about steps, except at DEBUG. Idempotent."""
    for name in _CELERYS:
        theirs = logging.getLogger(name)
        if _filter not in theirs.filters:
            theirs.addFilter(_filter)


def _write(level: int, claimed: Claimed, text: str) -> None:
    row = claimed.row
    logger.log(
        level, "step %s (%s) of run %s (%s) %s", row.name, row.node_id, claimed.run_id, claimed.workflow, text,
        extra={
            "step": row.name, "node_id": row.node_id, "run_id": claimed.run_id, "workflow": claimed.workflow,
        },
    )  # fmt: skip


def _level(failure: Failure | None, *, is_final: bool) -> int:
    if failure is None:
        return logging.INFO
    return logging.ERROR if is_final or failure.action is FailureAction.RELEASE else logging.WARNING


def _tried(claimed: Claimed, failure: Failure) -> str:
    if not failure.counts or failure.action is FailureAction.RELEASE:
        return "could not run (this attempt is not counted)"
    step = find_step(claimed.row)
    most = "" if step is None else f" of {step.options.max_retries + 1}"
    return f"failed at attempt {claimed.counted_attempt}{most}"


def _what_next(recorded: Answer, *, is_final: bool) -> str:
    if is_final:
        return "it is not tried again"
    if recorded.retry_in is None:
        return "it is tried again"
    return f"it is tried again in {recorded.retry_in.total_seconds():g} s"


class _Filter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Let pass what is no step's, or more than its news, or wanted."""
        if record.levelno != logging.INFO or logger.isEnabledFor(logging.DEBUG):
            return True
        return _task_of(record) not in registry.steps


_filter = _Filter("ckworkflow-steps")


def _task_of(record: logging.LogRecord) -> object:
    """The name of the task that a record of Celery's is about."""
    data = getattr(record, "data", None)
    if isinstance(data, dict):
        return data.get("name")
    return record.args[0] if isinstance(record.args, tuple) and record.args else None
