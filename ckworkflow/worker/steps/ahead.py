"""Run-ahead: how far a worker goes on in place, and what Celery is told of that.

A step that is claimed with the record of the one before it needs no message. It is a Celery task all the
same: it has the id and the name that its message would have had, Celery's signals are sent for it, and so
are the events that Flower lives on.

While nobody waits for its slot, a worker goes on. Else it does so for a time box, so that one long run does not keep
a slot from others; the dearer it is for another worker to take over (which may have to replay the body), the longer.
What counts is the processor time that the run has had: on a busy worker it waits for most of the time, and to give up
the slot would only add a message to what all wait for. It does not go on with a step of another queue, with a rate
limit, under a time limit of Celery's (which the prefork pool keeps, for each message), or while the worker stops.

Not here: the claim itself (`ckworkflow.engine.claims`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.app.task import Context
from celery.exceptions import Retry
from celery.worker import state

from ckworkflow import canvas
from ckworkflow.definition import Step, registry
from ckworkflow.engine import failures, judging
from ckworkflow.errors import FatalError
from ckworkflow.worker.steps.events import events_of
from ckworkflow.worker.steps.limits import has_rate_limit, has_time_limit

if TYPE_CHECKING:
    from celery import Celery, Task
    from celery.utils.dispatch import Signal

    from ckworkflow.engine.claims import Claimed
    from ckworkflow.engine.judging import Failure
    from ckworkflow.worker.process.runtime import Runtime
    from ckworkflow.worker.steps.limits import Limits

__all__ = ["RunAhead", "queue_without_message", "send_retry"]

BOX_SECONDS = 0.05
"""Of processor time."""
STEP_SECONDS = 0.0002
"""About what a step costs the event loop and the writer, which serve many runs."""
BOX_SECONDS_PER_NODE = 0.0005
"""What is added for each node that the run has had: about what a replay of it costs."""
LONGEST_BOX_SECONDS = 1.0
"""By the clock: for steps that wait themselves."""
LONGEST_SECONDS = 60.0
"""By the clock, whoever waits: so long is the first step's message kept from its broker."""


class RunAhead:
    """What one message may run in place, after its own step.

    Args:
        app: The app.
        step: The message's step.
        claimed: Its node.
        runtime: The runtime of this process.
        hostname: The worker's name, as Celery prints it.
        has_message: Whether its step came with a message, and is one more task beside those in place.
        limits: What the pool keeps for the message; `None` where that is not prefork.
    """

    def __init__(
        self,
        app: Celery,
        step: Step[..., object],
        claimed: Claimed,
        runtime: Runtime,
        *,
        hostname: str | None,
        has_message: bool = True,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits
        self._app, self._runtime, self._hostname = app, runtime, hostname
        self._queues = {step.name: canvas.queue_of(app, step.name)}
        self._queue = self._queues[step.name]
        ordinal = int(claimed.row.node_id.rpartition(":")[2])
        extra = BOX_SECONDS_PER_NODE * ordinal
        self._began_at = time.monotonic()
        self._ends_at = self._began_at + LONGEST_BOX_SECONDS + extra
        self._box = BOX_SECONDS + extra
        self._own_began = time.thread_time()
        self._own = self._on_lane = 0.0
        self._parent: str | None = None
        if has_message:
            self._parent = _task_id(claimed)

    def note_own_time(self) -> None:
        """Note what processor time the thread of the message has had; called on it."""
        self._own = time.thread_time() - self._own_began

    def spend_on_step(self) -> None:
        """Note that a step has had processor time on other threads."""
        self._on_lane += STEP_SECONDS

    @property
    def is_watched(self) -> bool:
        """Whether anybody listens to Celery's signals for tasks."""
        return any(signal.receivers for signal in _SIGNALS)

    def may_run(self, name: str) -> bool:
        """Whether a step of that name may run now in this process, without a message."""
        if self._limits is not None and not self._is_free_of(self._limits, name):
            return False
        now = time.monotonic()
        is_in_box = now < self._ends_at and self._own + self._on_lane < self._box
        if not is_in_box and (now > self._began_at + LONGEST_SECONDS or self._is_slot_wanted()):
            return False
        if self._queue is None or not is_without_message(self._app, self._runtime, name):
            return False
        if name not in self._queues:
            self._queues[name] = canvas.queue_of(self._app, name)
        return self._queues[name] == self._queue

    def _is_free_of(self, limits: Limits, name: str) -> bool:
        # Celery times messages: the limit of one step would end the next.
        is_timed = limits.hard or limits.soft or has_time_limit(self._app, name)
        return not is_timed and name not in limits.rated

    def _is_slot_wanted(self) -> bool:
        """Whether this process holds steps whose turn has not come."""
        return self._runtime.engine.host.waiting > 0 or len(state.reserved_requests) > len(
            state.active_requests
        )

    def report(self, claimed: Claimed) -> TaskReport:
        """Report that a step begins; to close the report tells of its end."""
        parent, self._parent = self._parent, _task_id(claimed)
        return _InPlaceReport(self._app, claimed, hostname=self._hostname, parent=parent)


class TaskReport:
    """What Celery's signals and events are told about a step; nothing about one with a message, which Celery reports itself.

    Attributes:
        failure: What went wrong, if anything did.
        is_tried_again: Whether another attempt follows.
    """

    __slots__ = ("failure", "is_tried_again")

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self.is_tried_again = False

    def close(self) -> None:
        """Report that the step has ended."""


class _InPlaceReport(TaskReport):
    __slots__ = ("_app", "_args", "_began", "_claimed", "_events", "_hostname", "_task", "_task_id")

    def __init__(
        self, app: Celery, claimed: Claimed, *, hostname: str | None, parent: str | None
    ) -> None:
        super().__init__()
        row = claimed.row
        self._app, self._claimed, self._hostname = app, claimed, hostname
        self._task, self._task_id = canvas.task_of(app, row.name), _task_id(claimed)
        self._args = (claimed.run_id, row.node_id, row.generation)
        self._began = time.monotonic()
        self._events = events = events_of(app, hostname)
        if events is not None:
            events.add(
                "task-received", uuid=self._task_id, name=row.name, args=repr(self._args), kwargs="{}",
                root_id=claimed.run_id, parent_id=parent, retries=row.attempt - 1, eta=None, expires=None,
            )  # fmt: skip
            events.add("task-started", uuid=self._task_id)
        _send(
            signals.task_prerun, self._task, task_id=self._task_id, task=self._task, args=self._args,
            kwargs={},
        )  # fmt: skip

    def close(self) -> None:
        if self.failure is None:
            self._succeed()
        else:
            self._fail(self.failure)

    def _succeed(self) -> None:
        if self._events is not None:
            took = time.monotonic() - self._began
            self._events.add("task-succeeded", uuid=self._task_id, result="None", runtime=took)
        _send(signals.task_success, self._task, result=None)
        self._end(states.SUCCESS)

    def _fail(self, failure: Failure) -> None:
        text = failures.public_text(failure.data, self._claimed.run_id)
        if self._events is not None:
            kind = "task-retried" if self.is_tried_again else "task-failed"
            self._events.add(kind, uuid=self._task_id, exception=text, traceback=None)
        if self.is_tried_again:
            if failure is not judging.RELEASED:  # of which no message tells either
                send_retry(self._task, self._claimed, failure, hostname=self._hostname)
            self._end(states.RETRY)
            return
        error = FatalError(text)
        _send(
            signals.task_failure, self._task, task_id=self._task_id, exception=error, args=self._args,
            kwargs={}, traceback=None, einfo=_einfo(error),
        )  # fmt: skip
        self._end(states.FAILURE)

    def _end(self, state: str) -> None:
        _send(
            signals.task_postrun, self._task, task_id=self._task_id, task=self._task, args=self._args, kwargs={},
            retval=None, state=state,
        )  # fmt: skip


def _task_id(claimed: Claimed) -> str:
    return canvas.task_id(claimed.run_id, claimed.row.node_id, claimed.row.generation)


def queue_without_message(app: Celery, runtime: Runtime, name: str) -> str | None:
    """Return the queue of a step that may go without a message; `None` if it needs one."""
    return canvas.queue_of(app, name) if is_without_message(app, runtime, name) else None


def is_without_message(app: Celery, runtime: Runtime, name: str) -> bool:
    """Whether a step may go without a message.

    Not while the worker stops, and not with a rate limit, which Celery keeps at its queues.
    """
    return name in registry.steps and not runtime.is_stopping and not has_rate_limit(app, name)


_SIGNALS = (signals.task_prerun, signals.task_success, signals.task_postrun)


def send_retry(task: Task, claimed: Claimed, failure: Failure, *, hostname: str | None) -> None:
    """Send Celery's signal for a task that is tried again, where Celery itself does not."""
    if not signals.task_retry.receivers:
        return
    row = claimed.row
    error = FatalError(failures.public_text(failure.data, claimed.run_id))
    request = Context(
        id=canvas.task_id(claimed.run_id, row.node_id, row.generation), task=row.name, hostname=hostname,
        args=(claimed.run_id, row.node_id, row.generation), kwargs={}, retries=row.attempt - 1,
        called_directly=False, root_id=claimed.run_id,
    )  # fmt: skip
    reason = Retry(exc=error)
    _send(signals.task_retry, task, request=request, reason=reason, einfo=_einfo(reason))


def _einfo(error: Exception) -> ExceptionInfo:
    try:
        raise error  # noqa: TRY301  # it needs a traceback, and that of the step is not for everybody
    except Exception:  # noqa: BLE001  # see above
        return ExceptionInfo()


def _send(signal: Signal, sender: Task, **arguments: object) -> None:
    if signal.receivers:
        signal.send(sender=sender, **arguments)
