"""The peer: a plain Celery app with the same tasks, its best fair settings from the environment.

Results are stored only where the canvas or the client needs them (`quiet` stores none), events are off and
messages are acknowledged early: all as fast as Celery can, and none of it durable.
"""

from __future__ import annotations

import os
import time
from datetime import datetime
from typing import Any

from celery import Celery

app = Celery("raw", broker=os.environ["RAW_BROKER"], backend=os.environ["RAW_BACKEND"])
app.conf.update(
    worker_prefetch_multiplier=int(os.environ.get("RAW_PREFETCH", "4")),
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
    broker_heartbeat=0,  # the runner stops this side while it is not its turn
)
if app.conf.broker_url.startswith("memory"):
    app.conf.broker_transport_options = {"polling_interval": 0.001}
if app.conf.broker_url.startswith("ckworkflow"):
    import ckworkflow.worker.broker.transport  # noqa: F401 - registers the transport

    app.conf.worker_timer_precision = 0.05


@app.task
def noop(number: int) -> int:
    """Do nothing."""
    return number


@app.task(ignore_result=True)
def quiet(number: int) -> int:
    """Do nothing, and store nothing."""
    return number


@app.task
def total(values: list[int]) -> int:
    """Join a fan-out."""
    return len(values)


@app.task
def rest(seconds: float) -> None:
    """Wait in the pool's thread."""
    time.sleep(seconds)


@app.task(bind=True)
def clock(self: Any) -> float:
    """Seconds after the time that the message was due."""
    return time.time() - datetime.fromisoformat(self.request.eta).timestamp()
