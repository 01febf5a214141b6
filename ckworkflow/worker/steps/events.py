"""Events of tasks that Celery does not send by itself: of steps run in place, and of messages sent past it.

They are what Flower lives on. Many go out together, on a thread and a connection of their own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from celery.utils.time import utcoffset

from ckworkflow.background import BackgroundThread
from ckworkflow.per_process import PerProcess

if TYPE_CHECKING:
    from celery import Celery
    from celery.events import EventDispatcher

__all__ = ["Events", "events_of", "flush_events"]

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 0.25
"""How long events are kept to be sent together."""
IDLE_SECONDS = 5.0
"""After so long without an event the thread ends."""


class Events:
    """Events of this process, sent many at a time; what cannot be sent is dropped, for it is only a view."""

    def __init__(self, app: Celery, hostname: str | None) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._buffer: deque[dict[str, object]] = deque()
        self._dispatcher = self._open(hostname)
        self._hostname = self._dispatcher.hostname
        self._utcoffset = utcoffset()
        self._wake = threading.Event()
        self.pid = os.getpid()
        self._thread: BackgroundThread | None = None

    def add(self, kind: str, **fields: object) -> None:
        """Send an event soon; `fields` as Celery documents them for this kind."""
        # As Celery's own dispatcher makes them, without what it works out anew each time.
        fields.update(
            type=kind, hostname=self._hostname, utcoffset=self._utcoffset, pid=self.pid,
            clock=self._app.clock.forward(), timestamp=time.time(),
        )  # fmt: skip
        self._buffer.append(fields)
        if not self._wake.is_set():
            self._wake.set()
        if self._thread is None:
            self._begin()

    def flush(self) -> None:
        """Send what there is."""
        with self._lock:
            # Those that come meanwhile are the next time's.
            events = [self._buffer.popleft() for _ in range(len(self._buffer))]
            if not events:
                return
            self._utcoffset = utcoffset()
            dispatcher = self._dispatcher
            try:
                # Once: by itself the connection would wait for a broker that is down for as long as that takes, and
                # with it a worker that is to stop.
                dispatcher.connection.ensure_connection(max_retries=1, interval_start=0)
                dispatcher.producer.publish(
                    events, routing_key="task.multi", exchange=dispatcher.exchange.name,
                    declare=[dispatcher.exchange], serializer=dispatcher.serializer,
                    headers=dispatcher.headers, delivery_mode=dispatcher.delivery_mode, retry=False,
                )  # fmt: skip
            except Exception as error:  # noqa: BLE001  # a broker that is down, in any way of its client
                logger.debug("events dropped: %s", error)
                with contextlib.suppress(Exception):
                    dispatcher.connection.close()
                with contextlib.suppress(Exception):  # the next time, then
                    self._dispatcher = self._open(self._hostname)

    def _open(self, hostname: str | None) -> EventDispatcher:
        return self._app.events.Dispatcher(self._app.connection_for_write(), hostname=hostname)

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = BackgroundThread(
                    self._run, name="ckworkflow-events", loss="Flower shows no step that runs in place"
                )
                try:
                    self._thread.start()
                except RuntimeError:  # the system gives no more threads: the next time, then
                    self._thread = None

    def _run(self) -> None:
        while self._wake.wait(IDLE_SECONDS):
            time.sleep(FLUSH_SECONDS)
            self._wake.clear()
            self.flush()
        self._thread = None
        if self._wake.is_set():  # by who has seen the thread still there
            self._begin()


_made: dict[Celery, PerProcess[Events]] = {}


def events_of(app: Celery, hostname: str | None = None) -> Events | None:
    """The events of an app in this process; `None` where the app sends none, or has no usable broker.

    Args:
        app: The app.
        hostname: The worker's name, as Celery prints it; of a process that is none, Celery makes one up.
    """
    place = _made.get(app)
    if place is not None and (found := place.peek()) is not None:
        return found
    if not app.conf.worker_send_task_events:  # which costs as much as the rest
        return None
    try:
        return _made.setdefault(app, PerProcess()).get(lambda: Events(app, hostname))
    except Exception as error:  # noqa: BLE001  # a broker that cannot be used: who publishes says so
        logger.debug("no events: %s", type(error).__name__)
        return None


def flush_events() -> None:
    """Send what events are left, before the process ends."""
    for place in list(_made.values()):
        if (found := place.peek()) is not None:
            found.flush()
