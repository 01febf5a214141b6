"""The consumer of a worker: Celery's own, which lives on when its broker goes away.

With Celery and kombu 5.7, a Redis that goes away while the worker holds messages ends the worker. A channel
that could not be closed is closed a second time, when its connection is gone; and each step that ends later
acknowledges on that channel. What both raise is nothing that Celery expects there. Passing over it loses
nothing: an unacknowledged message is delivered again, and dropped, since its node is owned or done.

And with kombu 5.7 the solo pool's acknowledgements wait for the event loop's next timer, up to two seconds, and
with them the next message: the loop does not look for them before it sleeps. They are sent at once here.

Celery sends the events of tasks whenever its loop turns, which on a busy worker is once for each message, and
costs as much as receiving one. Here they go out together, ten times a second.

It sees how long messages take to come, so that a worker's clock can tell a long queue from messages that are lost.

No message can end it: one that Celery cannot read, or that makes it raise, is rejected for good with one line in the log.
Celery prints a traceback for some of those, acknowledges others, and ends over the rest, again after each restart.

Not here: how a connection is made again, which is Celery's; what is in flight, which is the database's; what a message must
look like (`ckworkflow.worker.broker.malformed`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING

from celery import signals
from celery.concurrency.base import BasePool
from celery.concurrency.solo import TaskPool as SoloPool
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.consumer.control import Control

from ckworkflow import canvas
from ckworkflow.canvas import published_at
from ckworkflow.definition import registry
from ckworkflow.engine import holding
from ckworkflow.engine.installation import current
from ckworkflow.errors import CkWorkflowError, DatabaseUnavailableError
from ckworkflow.model import NodeId, RunId
from ckworkflow.store import processes
from ckworkflow.worker.broker import compression
from ckworkflow.worker.broker.broker_loss import BrokerLostError, means_loss
from ckworkflow.worker.broker.malformed import (
    MalformedMessageError,
    Message,
    check_order,
    check_step,
    check_task,
    refuse,
)
from ckworkflow.worker.process import runtime as runtimes

if TYPE_CHECKING:
    from celery.worker.pidbox import Pidbox
    from celery.worker.request import Request

__all__ = ["Consumer"]

logger = logging.getLogger(__name__)

Receive = Callable[[Message], object]
HandOver = Callable[["Request"], object]
"""What gives a request to the pool."""


FLUSH_SECONDS = 0.1
"""How long events are kept to be sent together."""


LOST_SECONDS = 1.0
"""How long a broker is left alone that can be reached and not worked with: it would say the same again.

So it is if it says so, or if the connection is lost as soon as it is made: the disk of its file is full, say.
"""


class Consumer(CeleryConsumer):
    """See the module."""

    _lost_at = -math.inf
    """When the connection was lost last (monotonic)."""

    class Blueprint(CeleryConsumer.Blueprint):
        """The steps of the consumer, the last of which receives messages until the connection is lost."""

        def start(self, parent: CeleryConsumer) -> None:
            """Start the steps; an error that means a lost connection is raised as one."""
            try:
                super().start(parent)
            except Exception as error:
                if means_loss(error):
                    raise BrokerLostError(error) from error
                raise

    _is_flush_due = False

    def __init__(self, on_task_request: HandOver, *args: object, **kwargs: object) -> None:
        compression.install()
        super().__init__(on_task_request, *args, **kwargs)
        self.connection_errors: tuple[type[Exception], ...] = (
            *self.conninfo.connection_errors,
            BrokerLostError,
        )
        self.on_task_message.add(_note_delay)
        self.on_task_request: HandOver = _handing_over(on_task_request)

    # --- messages that cannot be read -----------------------------------------------------------------

    def create_task_handler(self, *args: object, **kwargs: object) -> Receive:
        """Make the receiver of task messages; every bootstep of the consumer has started by then."""
        for consumer in self.gossip.consumers or ():
            # Events of other workers are messages too, and Celery reads them as trustingly.
            consumer.on_message = self._guarded(consumer.on_message)
            consumer.on_decode_error = self.on_decode_error
        for box in [step.box for step in self.blueprint.order if isinstance(step, Control)]:
            self._guard_mailbox(box)
        receive = super().create_task_handler(*args, **kwargs)
        self._tell_queues()

        def check_and_receive(message: Message) -> None:
            if check_task(message) in registry.steps:
                check_step(message)
            receive(message)

        return self._guarded(check_and_receive)

    def _guarded(self, receive: Receive) -> Receive:
        broken = (*self.connection_errors, *self.channel_errors)

        def guarded(message: Message) -> None:
            try:
                receive(message)
            except _HandOverError as error:
                raise error.reason from None
            except Exception as error:
                # kombu's Redis transport counts KeyError among the connection's errors; on a message it is the message's.
                if isinstance(error, broken) and not isinstance(error, KeyError):
                    raise
                self._refuse(message, error)

        return guarded

    def _guard_mailbox(self, box: Pidbox) -> None:
        """Have the mailbox of remote control check what comes in; Celery makes its consumer anew with each connection."""
        if "on_message" not in vars(box):
            obey = box.on_message

            def check_and_obey(body: object, message: Message) -> None:
                try:
                    check_order(body)
                except MalformedMessageError as error:
                    self._refuse(message, error)
                else:
                    obey(body, message)

            box.on_message = check_and_obey
        if box.consumer is not None:
            box.consumer.callbacks = [box.on_message]

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Reject a message whose body cannot be decoded."""
        self._refuse(message, exc)

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:  # noqa: ARG002  # Celery's
        """Reject a message that is no task."""
        self._refuse(message, exc)

    def on_unknown_message(self, body: object, message: Message) -> None:  # noqa: ARG002  # Celery's
        """Reject a message that names no task."""
        self._refuse(message, MalformedMessageError("it names no task"))

    def _refuse(self, message: Message, error: Exception) -> None:
        headers = getattr(message, "headers", None)
        names = headers if isinstance(headers, Mapping) else {}
        delivery = getattr(message, "delivery_info", None) or {}
        refuse(error, queue=delivery.get("routing_key"), name=names.get("task"), id_=names.get("id"))
        # A mailbox takes no acknowledgements, and RabbitMQ closes the channel over one.
        takes_none = getattr(message.channel, "no_ack_consumers", None) or ()
        if not message.acknowledged and delivery.get("consumer_tag") not in takes_none:
            reject_log_error(message, logger, self.connection_errors)
        signals.task_rejected.send(sender=self, message=message, exc=error)

    # --- queues ---------------------------------------------------------------------------------------

    def add_task_queue(self, queue: str, *args: object, **options: object) -> None:
        """Begin to consume another queue."""
        super().add_task_queue(queue, *args, **options)
        self._tell_queues()

    def cancel_task_queue(self, queue: str) -> None:
        """Consume a queue no longer."""
        super().cancel_task_queue(queue)
        self._tell_queues()

    def _tell_queues(self) -> None:
        """Write into this process's row what is consumed; on another thread, since the database may take long."""
        queues = frozenset(queue.name for queue in self.task_consumer.queues)
        engine = current().engine
        if engine.queues == queues:
            return
        engine.queues = queues  # the next heartbeat writes it, too

        def tell() -> None:
            try:
                engine.database.transact(lambda tx: processes.tell_queues(tx, engine.owner, queues))
            except CkWorkflowError as error:
                logger.debug("queues not told: %s", error)

        threading.Thread(target=tell, name="ckworkflow-queues", daemon=True).start()

    # --- events, connection, acknowledgements ---------------------------------------------------------

    def on_send_event_buffered(self) -> None:
        """Send what events there are, soon; called on any thread."""
        if self.hub is not None and not self._is_flush_due:
            self._is_flush_due = True
            self.hub.call_soon(self._flush_later)  # only its own thread may set the loop's timers

    def _flush_later(self) -> None:
        self.hub.call_later(FLUSH_SECONDS, self._flush_now)

    def _flush_now(self) -> None:
        self._is_flush_due = False
        self._flush_events()

    def stop(self) -> None:
        """Stop, after sending the events of what has ended."""
        with contextlib.suppress(Exception):  # events are only a view, and the broker may be gone
            self._flush_events()
        super().stop()

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Hold a step that this worker does not know, so that its run says so; anything else is Celery's to reject."""
        match message.headers, _arguments(message):
            # By its id: what Celery itself sends, the next of a chain, has none of our headers.
            case (
                {"task": str(step), "id": str(id_)},
                [str(run_id), str(node_id), int(generation)],
            ) if id_ == canvas.task_id(RunId(run_id), NodeId(node_id), generation):
                pass
            case _:
                super().on_unknown_task(body, message, exc)
                return
        message.reject_log_error(logger, self.connection_errors)
        # Not on this thread: the database may be away, and the consumer must not wait for it.
        hold = partial(_hold_unknown, RunId(run_id), NodeId(node_id), generation, step)
        threading.Thread(target=hold, name="ckworkflow-hold", daemon=True).start()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let go of a lost connection, whatever goes wrong meanwhile."""
        try:
            super().on_connection_error_after_connected(exc)
        except Exception as error:  # noqa: BLE001  # the connection is given up anyway
            logger.debug("lost connection not closed in order: %r", error)
        if isinstance(exc, BrokerLostError) or time.monotonic() - self._lost_at < LOST_SECONDS:
            time.sleep(LOST_SECONDS)
        self._lost_at = time.monotonic()

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Say that there is no connection yet."""
        super().on_connection_error_before_connected(exc)
        if isinstance(exc, BrokerLostError):
            time.sleep(LOST_SECONDS)

    def cancel_active_requests(self) -> None:
        """Cancel what runs, at a cold shutdown.

        Celery has the pool end the process of each task, and raises where steps have none. Their coroutines are cancelled there,
        and they are released.
        """
        if getattr(self.pool.terminate_job, "__func__", None) is not BasePool.terminate_job:
            super().cancel_active_requests()
        elif (running := runtimes.peek()) is not None:
            running.cancel_steps()

    def call_soon_ack(self, p: Callable[..., object], *args: object, **kwargs: object) -> object:
        """Acknowledge or reject a message on the thread that owns its channel, if the channel still is there.

        Args:
            p: `ack_log_error` or `reject_log_error` of the message.
            *args: Its arguments.
            **kwargs: The same.
        """
        quiet = _QUIET.get(getattr(p, "__name__", ""))
        message = getattr(p, "__self__", None)
        if quiet is not None and message is not None:
            # A method still, and by the same name: the prefork pool tells by both what it must run at its end.
            p = MethodType(quiet, message)
            if isinstance(self.pool, SoloPool):
                p(*args, **kwargs)  # steps run on that very thread
                return p
        return super().call_soon_ack(p, *args, **kwargs)


class _HandOverError(Exception):
    """The pool did not take a request; its message is not to blame and is delivered again."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(reason)
        self.reason = reason


def _handing_over(hand_over: HandOver) -> HandOver:
    def handing_over(request: Request) -> object:
        try:
            return hand_over(request)
        except Exception as error:
            raise _HandOverError(error) from error

    return handing_over


def _arguments(message: Message) -> object:
    """The positional arguments of a task's message; `None` where they cannot be read."""
    try:
        return message.payload[0]
    except Exception:  # noqa: BLE001  # anybody may have sent it
        return None


def _hold_unknown(run_id: RunId, node_id: NodeId, generation: int, step: str) -> None:
    try:
        holding.hold_unknown_step(current().engine, run_id, node_id, generation, step=step)
    except DatabaseUnavailableError as error:
        logger.warning("run %s: unknown step %s: %s", run_id, step, error, extra={"run_id": run_id})


def _note_delay(request: Request) -> None:
    """Note how long the message of a step has taken, if its headers tell."""
    at = published_at(request.request_dict)
    if at is not None:
        engine = current().engine
        with contextlib.suppress(DatabaseUnavailableError):
            engine.message_latency.note(engine.database.about_now() - at)


# Not one traceback for each message that a lost connection has left, as kombu's own have it: the consumer has
# told of the loss.


def ack_log_error(
    message: Message, _logger: object, _errors: object, *args: bool, **options: bool
) -> None:
    try:
        message.ack(*args, **options)
    except Exception as error:  # noqa: BLE001  # see above
        logger.debug("message not acknowledged: %r", error)


def reject_log_error(
    message: Message, _logger: object, _errors: object, *args: bool, **options: bool
) -> None:
    try:
        message.reject(*args, **options)
    except Exception as error:  # noqa: BLE001  # see above
        logger.debug("message not rejected: %r", error)


_QUIET = {function.__name__: function for function in (ack_log_error, reject_log_error)}
