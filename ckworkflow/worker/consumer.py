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

Not here: how a connection is made again, which is Celery's; what is in flight, which is the database's.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from types import MethodType
from typing import Any

from celery.concurrency.solo import TaskPool as SoloPool
from celery.worker.consumer import Consumer as CeleryConsumer

from ckworkflow.canvas import published_at
from ckworkflow.engine.installation import current

__all__ = ["Consumer"]

logger = logging.getLogger(__name__)


FLUSH_SECONDS = 0.1
"""How long events are kept to be sent together."""


class Consumer(CeleryConsumer):
    """See the module."""

    _is_flush_due = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_task_message.add(_note_delay)

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
        """Stop, and let no event of what has ended be lost with that."""
        with contextlib.suppress(Exception):  # events are only a view, and the broker may be gone
            self._flush_events()
        super().stop()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let go of a lost connection, whatever that meets."""
        try:
            super().on_connection_error_after_connected(exc)
        except Exception as error:  # noqa: BLE001  # the connection is given up anyway
            logger.debug("lost connection not closed in order: %r", error)

    def call_soon_ack(self, p: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
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


def _note_delay(request: Any) -> None:
    """Note how long the message of a step has taken, if it tells."""
    at = published_at(request.request_dict)
    if at is not None:
        engine = current().engine
        engine.delay.note(engine.database.about_now() - datetime.fromtimestamp(at, UTC))


# Not one traceback for each message that a lost connection has left, as kombu's own have it: the consumer has
# told of the loss.


def ack_log_error(message: Any, _logger: Any, _errors: Any, *args: Any, **options: Any) -> None:
    try:
        message.ack(*args, **options)
    except Exception as error:  # noqa: BLE001  # see above
        logger.debug("message not acknowledged: %r", error)


def reject_log_error(message: Any, _logger: Any, _errors: Any, *args: Any, **options: Any) -> None:
    try:
        message.reject(*args, **options)
    except Exception as error:  # noqa: BLE001  # see above
        logger.debug("message not rejected: %r", error)


_QUIET = {function.__name__: function for function in (ack_log_error, reject_log_error)}
