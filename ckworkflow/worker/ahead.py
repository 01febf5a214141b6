"""Run-ahead: how far a worker goes on in place, and what the world sees of it.

A step that is claimed with the record of the one before it needs no message. It is a Celery task all the
same: it has the id and the name that its message would have had, Celery's signals are sent for it, and so
are the events that Flower lives on.

While nobody waits for its slot, a worker goes on. Else it does so for a time box, so that one long run does not keep
a slot from others; the dearer it is for another worker to take over (which may have to replay the body), the longer.
What counts is the processor time that the run has had: on a busy worker it waits for most of the time, and to give up
the slot would only add a message to what all wait for. It does not go on with a step of another queue, with a rate
limit, or while the worker stops.

Not here: the claim itself (`ckworkflow.engine.claims`).
"""

from __future__ import annotations

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any

from celery import signals, states
from celery.worker import state

from ckworkflow import canvas
from ckworkflow.definition import Step, registry
from ckworkflow.engine import failures
from ckworkflow.worker.events import events_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from ckworkflow.engine.claims import Claimed
    from ckworkflow.engine.judging import Failure
    from ckworkflow.worker.runtime import Runtime

__all__ = ["RunAhead", "queue_without_message"]

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
    ) -> None:
        self._app, self._runtime, self._hostname = app, runtime, hostname
        self._queue = _queue_of(app, step.name, step.options.queue)
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
        now = time.monotonic()
        is_in_box = now < self._ends_at and self._own + self._on_lane < self._box
        if not is_in_box and (now > self._began_at + LONGEST_SECONDS or self._is_slot_wanted()):
            return False
        return queue_without_message(self._app, self._runtime, name) == self._queue

    def _is_slot_wanted(self) -> bool:
        """Whether this process holds steps whose turn has not come."""
        local = self._runtime.engine.local
        waiting = 0 if local is None else local.waiting
        return waiting > 0 or len(state.reserved_requests) > len(state.active_requests)

    @contextlib.contextmanager
    def telling(self, claimed: Claimed) -> Iterator[Told]:
        """Tell Celery's signals and events of a step that runs inside; set what it failed with, if it does."""
        row = claimed.row
        task = self._app.tasks.get(row.name)
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
                text = f"{failures.outline(failure.data)}; see `ckworkflow runs show {claimed.run_id}`"
                events.add(kind, uuid=task_id, exception=text, traceback=None)
            state = states.SUCCESS if failure is None else states.FAILURE
            if failure is None:
                _send(signals.task_success, task, result=None)
            _send(
                signals.task_postrun, task, task_id=task_id, task=task, args=args, kwargs={}, retval=None,
                state=state,
            )  # fmt: skip


def queue_without_message(app: Celery, runtime: Runtime, name: str) -> str | None:
    """The queue of a step that may go without a message; `None` where only a message will do.

    That is so while the worker stops, and for steps with a rate limit, which Celery keeps at its queues.
    """
    step = registry.steps.get(name)
    if step is None or step.options.rate_limit is not None or runtime.is_stopping:
        return None
    return _queue_of(app, name, step.options.queue)


class Told:
    """What the world is to be told of a step."""

    failure: Failure | None = None
    is_tried_again = False


_SIGNALS = (signals.task_prerun, signals.task_success, signals.task_postrun)


def _send(signal: Any, sender: Any, **arguments: Any) -> None:
    if signal.receivers:
        signal.send(sender=sender, **arguments)


@functools.lru_cache(maxsize=4096)
def _queue_of(app: Celery, name: str, queue: str | None) -> str:
    """The queue to which a step's message would go: also by `task_routes`."""
    route = app.amqp.router.route({} if queue is None else {"queue": queue}, name)
    found = route.get("queue")
    return str(getattr(found, "name", found))
