"""Judging: what an error that a step raised means for its attempt, and for those to come."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ckworkflow.duration import parse_wait
from ckworkflow.engine import failures
from ckworkflow.errors import (
    FatalError,
    HookContextError,
    InvalidDurationError,
    MissingTokenError,
    NotAWorkflowError,
    RetryableError,
    UnserializableValueError,
    WorkflowCallError,
)
from ckworkflow.integration import Verdict, installed

logger = logging.getLogger(__name__)

LEAST_RETRY = timedelta(seconds=1)
_HOPELESS = (
    HookContextError, InvalidDurationError, MissingTokenError, NotAWorkflowError, UnserializableValueError,
    WorkflowCallError,
)  # fmt: skip
"""Errors of ours that every attempt would meet again: what they name must be changed first."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What is to happen after an error.

    Attributes:
        action: `fatal`, `hopeless` (as fatal, but the step has not said so: the body sees a `FatalError` with
            this as its cause), `retry`, or `release` (the worker is to blame).
        data: The error as data.
        delay: For a retry: how long, or `None` for the step's own delay.
        counts: Whether the attempt is one of the step's.
    """

    action: str
    data: Mapping[str, Any] = field(default_factory=dict)
    delay: timedelta | None = None
    counts: bool = True


RELEASED = Failure("release", {"type": "ckworkflow:Released", "message": "the worker stopped"})


RELEASED = Failure("release", {"type": "ckworkflow:Released", "message": "the worker stopped"})


def judge(error: BaseException, *, now: Callable[[], datetime]) -> Failure:
    """Decide what an error that a step raised means.

    The step's own word comes first (`FatalError`, `RetryableError`), then what no attempt can help, then the
    integrations (the Discord policy), then the default: try again after the step's own delay.
    """
    data = failures.to_data(error)
    if isinstance(error, FatalError):
        return Failure("fatal", data)
    if isinstance(error, _HOPELESS):
        return Failure("hopeless", data)
    if isinstance(error, RetryableError):
        try:
            delay = _delay(error, now)
        except InvalidDurationError as invalid:
            return Failure("hopeless", failures.to_data(invalid))
        return Failure("retry", data, delay)
    for integration in installed():
        try:
            verdict = integration.judge(error)
        except Exception:
            logger.exception("integration failed to judge", extra={"integration": integration.name})
            continue
        if verdict is not None:
            return _follow(verdict, data)
    return Failure("retry", data)


def _delay(error: RetryableError, now: Callable[[], datetime]) -> timedelta:
    if error.retry_after is None:
        return LEAST_RETRY
    wait = parse_wait(error.retry_after)
    if isinstance(wait, datetime):
        wait = wait - now()
    return max(wait, LEAST_RETRY)


def _follow(verdict: Verdict, data: dict[str, Any]) -> Failure:
    told = {**data, "kind": verdict.kind}
    for name in ("code", "status"):
        if getattr(verdict, name) is not None:
            told[name] = getattr(verdict, name)
    if verdict.details:
        told["details"] = dict(verdict.details)
    if verdict.action == "fatal":
        fatal = failures.to_data(FatalError(verdict.message, code=verdict.code, kind=verdict.kind,
                                            status=verdict.status, details=verdict.details))  # fmt: skip
        fatal.pop("traceback", None)
        return Failure("fatal", {**fatal, "cause": told})
    action = "release" if verdict.action == "fault" else "retry"
    return Failure(action, told, verdict.retry_after, verdict.counts)
