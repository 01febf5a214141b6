"""The consumer of a worker: Celery's own, which lives on when its broker goes away.

With kombu 5.7, a Redis that goes away while the worker holds messages ends the worker: a channel that could
not be closed is closed a second time, when its connection is gone, and the error of that is none that Celery
expects there. Nothing is lost by passing over it: what the worker held is in the database.

Not here: how a connection is made again, which is Celery's.
"""

from __future__ import annotations

import logging

from celery.worker.consumer import Consumer as CeleryConsumer

__all__ = ["Consumer"]

logger = logging.getLogger(__name__)


class Consumer(CeleryConsumer):
    """See the module."""

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let go of a lost connection, whatever that meets."""
        try:
            super().on_connection_error_after_connected(exc)
        except Exception as error:  # noqa: BLE001  # the connection is given up anyway
            logger.debug("lost connection not closed in order: %r", error)
