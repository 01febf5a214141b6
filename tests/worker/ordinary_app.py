"""A Celery app with ordinary tasks, for worker processes that tests start; the broker comes by CELERY_BROKER_URL."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

import ckworkflow.worker.broker.transport  # noqa: F401 - makes the scheme known

app = Celery("ordinary", set_as_current=False)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_send_task_events=True,
    worker_timer_precision=0.05,
    broker_connection_retry_on_startup=True,
)


@app.task(name="mark")
def mark(name: str) -> None:
    """Leave a file behind."""
    (Path(os.environ["MARKS"]) / f"{name}-{os.getpid()}").touch()
