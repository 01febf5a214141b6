"""Judging: what an error that a step raised means for its attempt, and for those to come.

It never raises: an error that cannot be judged ends its step, with what went wrong in judging as the reason.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ckworkflow.duration import parse_wait
from ckworkflow.engine import failures, holding
from ckworkflow.errors import (
    FatalError,
    HookContextError,
    InvalidDurationError,
    NotAWorkflowError,
    RetryableError,
    StepCancelledError,
    UnserializableValueError,
    WorkflowCallError,
)
from ckworkflow.foreign import is_interrupt
from ckworkflow.integration import Verdict, installed

if TYPE_CHECKING:
    from ckworkflow.definition.options import DiscordErrors, StepOptions

logger = logging.getLogger(__name__)

LEAST_RETRY = timedelta(seconds=1)
_HOPELESS = (
    HookContextError, InvalidDurationError, NotAWorkflowError, UnserializableValueError, WorkflowCallError,
)  # fmt: skip
"""Errors of ours that every attempt would meet again: what they name must be changed first."""


class FailureAction(enum.StrEnum):
    """What is done after an error of a step.

    `RETRY`: it is tried again, while attempts are left. `FATAL`: the step has said that it is not. `HOPELESS`: the same,
    but the step has not said so: the body sees a `FatalError` with the error as its cause. `HOLD`: another deploy is
    needed (see `holding`). `RELEASE`: the worker is to blame.
    """

    RETRY = "retry"
    FATAL = "fatal"
    HOPELESS = "hopeless"
    HOLD = "hold"
    RELEASE = "release"

    @property
    def is_final(self) -> bool:
        """Whether no attempt follows, however many are left."""
        return self in {FailureAction.FATAL, FailureAction.HOPELESS}


@dataclass(frozen=True, slots=True)
class Failure:
    """What is to happen after an error.

    Attributes:
        action: What is done.
        data: The error as data.
        delay: For a retry: how long, or `None` for the step's own delay.
        counts: Whether the attempt is one of the step's.
        is_suggestion: Whether a delay that the step names comes before `delay`.
        advice: For the log: what is wrong with the worker and what to do; nothing of what the step was told.
    """

    action: FailureAction
    data: Mapping[str, Any] = field(default_factory=dict)
    delay: timedelta | None = None
    counts: bool = True
    is_suggestion: bool = False
    advice: str = ""

    def delay_for(self, options: StepOptions, attempt: int) -> timedelta:
        """Return how long a step with these options waits after that attempt."""
        if self.delay is None or (self.is_suggestion and options.has_own_delay):
            return options.delay_after(attempt)
        return self.delay


RELEASED = Failure(
    FailureAction.RELEASE, {"type": "ckworkflow:Released", "message": "the worker stopped"}
)


def judge(
    error: BaseException, *, now: Callable[[], datetime], discord_errors: DiscordErrors = None
) -> Failure:
    """Decide what an error that a step raised means.

    The step's own word comes first (`FatalError`, `RetryableError`), then what only another deploy can help, then what
    nothing can, then the integrations (the Discord policy), then the default: try again after the step's own delay.

    Args:
        error: What it raised.
        now: Where to read the time.
        discord_errors: As the step or the app has it; see `StepOptions`.
    """
    try:
        return _judge(error, now, discord_errors)
    except BaseException as raised:  # to read an error runs code of its class
        if is_interrupt(raised):
            raise
        return unrecordable(raised, error)


def unrecordable(raised: BaseException, error: BaseException | None = None) -> Failure:
    """Give the failure of an attempt whose outcome made judging or recording raise: each further one might, too.

    Args:
        raised: What was raised. An error of the database is none of these: it says nothing of the outcome.
        error: What the step had raised.
    """
    data = failures.to_data(raised)
    if error is not None:
        data = {**data, "cause": failures.to_data(error)}
    return Failure(FailureAction.HOPELESS, data)


def _judge(error: BaseException, now: Callable[[], datetime], discord_errors: DiscordErrors) -> Failure:
    data = failures.to_data(error)
    if isinstance(error, FatalError | StepCancelledError):
        return Failure(FailureAction.FATAL, data)
    if isinstance(error, holding.STEP_CAUSES):
        return Failure(FailureAction.HOLD, data, counts=False)
    if isinstance(error, _HOPELESS):
        return Failure(FailureAction.HOPELESS, data)
    if isinstance(error, RetryableError):
        try:
            delay = _delay(error, now)
        except InvalidDurationError as invalid:
            return unrecordable(invalid, error)
        return Failure(FailureAction.RETRY, data, delay)
    for integration in installed():
        try:
            verdict = integration.judge(error)
        except BaseException as raised:
            if is_interrupt(raised):
                raise
            # Not its traceback: the last line of it would be the text of the step's error.
            logger.error(  # noqa: TRY400
                "integration %s failed to judge an error: %s", integration.name, type(raised).__name__
            )
            continue
        verdict = None if verdict is None else _as_wished(verdict, discord_errors)
        if verdict is not None:
            return _follow(verdict, data)
    return Failure(FailureAction.RETRY, data)


def _as_wished(verdict: Verdict, wish: DiscordErrors) -> Verdict | None:
    """A verdict as the step or the app wants it; `None`: the error is one like any other."""
    if wish is False:
        return None
    if not isinstance(wish, Mapping):
        return verdict
    by_code = None if verdict.code is None else wish.get(verdict.code)
    action = by_code or wish.get(verdict.kind)
    if action == "fatal":
        return replace(verdict, action="fatal", retry_after=None)
    if action == "retry" and verdict.action != "retry":
        return replace(verdict, action="retry", counts=True)
    return verdict


def _delay(error: RetryableError, now: Callable[[], datetime]) -> timedelta:
    if error.retry_after is None:
        return LEAST_RETRY
    given = error.retry_after
    if _is_negative(given):
        return LEAST_RETRY  # what was to come has come: as with a moment that has passed
    wait = parse_wait(given)
    if isinstance(wait, datetime):
        wait = wait - now()
    return max(wait, LEAST_RETRY)


def _is_negative(given: object) -> bool:
    if isinstance(given, timedelta):
        return given < timedelta()
    return isinstance(given, int | float) and not isinstance(given, bool) and given < 0


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
        return Failure(FailureAction.FATAL, {**fatal, "cause": told})
    action = FailureAction.RELEASE if verdict.action == "fault" else FailureAction.RETRY
    advice = f"{verdict.kind}: {verdict.message}" if verdict.action == "fault" else ""
    return Failure(action, told, verdict.retry_after, verdict.counts, verdict.is_suggestion, advice)
