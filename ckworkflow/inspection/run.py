"""A run as a reader sees it: how it stands, and in detail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ckworkflow.engine.holding import Hold, StepHold
    from ckworkflow.inspection.failure import Failure
    from ckworkflow.model import Json, NodeId, RunId, RunStatus, StepInfo

__all__ = ["OpenHook", "RunDetails", "RunSummary", "StepDetails"]


class OpenHook(NamedTuple):
    """A hook that takes payloads.

    Attributes:
        node_id: Its place in the body.
        name: What it is called.
        metadata: What the body has said of it, as it is stored.
        created_at: When it was made, UTC.
        expires_at: From when on it takes nothing, UTC; `None`: it does not expire.
    """

    node_id: NodeId
    name: str
    metadata: Json
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """How a run stands. Times are UTC.

    Attributes:
        run_id: Its id.
        workflow: The full name of its workflow.
        status: Its state.
        sleeping_until: When the first of its sleeps ends, if it does nothing but sleep.
        open_hooks: Its hooks that take payloads, in the order in which they were made.
        is_idle: Whether none of its steps runs, or could.
        held_body: Why its body is not continued, if it is held.
        held_steps: Its steps that are held, in the order of the body, and why.
        failure: Why it failed, or what its body raised when it was cancelled.
        cancel_requested_at: Since when it is to be cancelled; `None`: nobody has asked for that.
        cancel_reason: Why.
        terminate_at: When it is terminated, if it has not ended by then; `None`: it has all the time that it needs.
        life: Which life it is in: how often its body has returned `continue_as_new(...)`.
        wake_at: When a clock looks at it next; `None`: it has ended.
        created_at: When it was started.
        started_at: When it began to run; `None`: it has not.
        finished_at: When it ended.
    """

    run_id: RunId
    workflow: str
    status: RunStatus
    sleeping_until: datetime | None
    open_hooks: tuple[OpenHook, ...]
    is_idle: bool
    held_body: Hold | None
    held_steps: tuple[StepHold, ...]
    failure: Failure | None
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    terminate_at: datetime | None
    life: int
    wake_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def held_until(self) -> datetime | None:
        """When the first of what is held is tried again; `None`: nothing is held."""
        times = [step.until for step in self.held_steps]
        if self.held_body is not None:
            times.append(self.held_body.until)
        return min(times, default=None)


@dataclass(frozen=True, slots=True)
class StepDetails:
    """A step or sleep, and how it ended.

    Attributes:
        info: What `Run.steps` tells of it.
        result: What the step returned, as it is stored; `None` also if there is none yet.
        failure: The last error that it raised.
    """

    info: StepInfo
    result: Json
    failure: Failure | None

    @property
    def took(self) -> timedelta | None:
        """How long the last attempt took, or the sleep; `None`: it has not ended."""
        started_at, finished_at = self.info.started_at, self.info.finished_at
        return None if started_at is None or finished_at is None else finished_at - started_at


@dataclass(frozen=True, slots=True)
class RunDetails:
    """A run with its steps, what it got and gave, and what it may be waiting for.

    Attributes:
        summary: How it stands.
        input: Its arguments, as they are stored.
        return_value: What its body returned, as it is stored; `None` also if there is nothing yet.
        steps: Its steps and sleeps in the order of the body, those to come included.
        is_worker_alive: Whether there is any worker that could go on with it.
        unconsumed_queues: Queues that no live worker consumes, with the names of the steps that wait in them.
        read_at: When all this was so, by the clock of the database.
    """

    summary: RunSummary
    input: Json
    return_value: Json
    steps: tuple[StepDetails, ...]
    is_worker_alive: bool
    unconsumed_queues: Mapping[str, tuple[str, ...]]
    read_at: datetime

    @property
    def traceback(self) -> str | None:
        """The traceback nearest to the code that failed: that of the innermost cause.

        An error that the body got from a step was rebuilt without frames; the step's own record has them.
        """
        failure = self.summary.failure
        if failure is None:
            return None
        line = failure.line
        same = [
            step.failure for step in self.steps if step.failure is not None and step.info.error == line
        ]
        chain = [found for first in (failure, *same) for found in (first, *first.causes)]
        return next(filter(None, (found.traceback for found in reversed(chain))), None)
