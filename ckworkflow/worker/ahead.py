"""Run-ahead: how far a worker goes on in place, and what the world sees of it.

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

import contextlib
import time
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery.app.task import Context
from celery.exceptions import Retry
from celery.worker import state

from ckworkflow import canvas
from ckworkflow.definition import Step, registry
from ckworkflow.engine import failures, judging
from ckworkflow.errors import FatalError
from ckworkflow.worker.events import events_of
from ckworkflow.worker.limits import has_rate_limit, has_time_limit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from ckworkflow.engine.claims import Claimed
    from ckworkflow.engine.judging import Failure
    from ckworkflow.worker.limits import Limits
    from ckworkflow.worker.runtime import Runtime

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
        step: Step[..., Any],
        claimed: Claimed,
        runtime: Runtime,
        *,
        hostname: str | None,
        has_message: bool = True,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits
        self._app, self._runtime, self._hostname = app, runtime, hostname
        self._queue = canvas.queue_of(app, step.name)
        ordinal = int(claimed.row.node_id.rpartition(":")[2])
        extra = BOX_SECONDS_PER_NODE * ordinal
        self._began_at = time.monotonic()
        self._ends_at = self._began_at + LONGEST_BOX_SECONDS + extra
        self._box = BOX_SECONDS + extra
        self._own_began = time.thread_time()
        self._own = self._on_lane = 0.0
        self._parent: str | None = None
        if has_message:
            self._parent = canvas.task_id(claimed.run_id, claimed.row.node_id, claimed.row.generation)
        self._root = claimed.run_id

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
        queue = queue_without_message(self._app, self._runtime, name)
        return queue is not None and queue == self._queue

    def _is_free_of(self, limits: Limits, name: str) -> bool:
        # Celery times messages: the limit of one step would end the next.
        is_timed = limits.hard or limits.soft or has_time_limit(self._app, name)
        return not is_timed and name not in limits.rated

    def _is_slot_wanted(self) -> bool:
        """Whether this process holds steps whose turn has not come."""
        local = self._runtime.engine.local
        waiting = 0 if local is None else local.waiting
        return waiting > 0 or len(state.reserved_requests) > len(state.active_requests)

    @contextlib.contextmanager
    def telling(self, claimed: Claimed) -> Iterator[Told]:
        """Tell Celery's signals and events of a step that runs inside; set what it failed with, if it does."""
        row = claimed.row
        task = canvas.task_of(self._app, row.name)
        task_id = canvas.task_id(claimed.run_id, row.node_id, row.generation)
        told = Told()
        args = (claimed.run_id, row.node_id, row.generation)
        began = time.monotonic()
        events = events_of(self._app, self._hostname)
        if events is not None:
            events.add(
                "task-received", uuid=task_id, name=row.name, args=repr(args), kwargs="{}",
                root_id=self._root, parent_id=self._parent, retries=row.attempt - 1, eta=None, expires=None,
            )  # fmt: skip
            events.add("task-started", uuid=task_id)
        _send(signals.task_prerun, task, task_id=task_id, task=task, args=args, kwargs={})
        try:
            yield told
        finally:
            self._parent = task_id
            failure = told.failure
            if events is not None and failure is None:
                took = time.monotonic() - began
                events.add("task-succeeded", uuid=task_id, result="None", runtime=took)
            elif events is not None and failure is not None:
                kind = "task-retried" if told.is_tried_again else "task-failed"
                text = failures.public_text(failure.data, claimed.run_id)
                events.add(kind, uuid=task_id, exception=text, traceback=None)
            state = states.SUCCESS
            if failure is None:
                _send(signals.task_success, task, result=None)
            elif told.is_tried_again:
                state = states.RETRY
                if failure is not judging.RELEASED:  # of which no message tells either
                    send_retry(task, claimed, failure, hostname=self._hostname)
            else:
                state = states.FAILURE
                error = FatalError(failures.public_text(failure.data, claimed.run_id))
                _send(
                    signals.task_failure, task, task_id=task_id, exception=error, args=args, kwargs={},
                    traceback=None, einfo=_einfo(error),
                )  # fmt: skip
            _send(
                signals.task_postrun, task, task_id=task_id, task=task, args=args, kwargs={}, retval=None,
                state=state,
            )  # fmt: skip


def queue_without_message(app: Celery, runtime: Runtime, name: str) -> str | None:
    """The queue of a step that may go without a message; `None` where only a message will do.

    That is so while the worker stops, and for steps with a rate limit, which Celery keeps at its queues.
    """
    step = registry.steps.get(name)
    if step is None or runtime.is_stopping or has_rate_limit(app, name):
        return None
    return canvas.queue_of(app, name)


class Told:
    """What the world is to be told of a step."""

    failure: Failure | None = None
    is_tried_again = False


_SIGNALS = (signals.task_prerun, signals.task_success, signals.task_postrun)


def send_retry(task: Any, claimed: Claimed, failure: Failure, *, hostname: str | None) -> None:
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


def _send(signal: Any, sender: Any, **arguments: Any) -> None:
    if signal.receivers:
        signal.send(sender=sender, **arguments)
