"""Limits: those that Celery keeps for messages, known where their steps run.

A step with a rate limit, or in the prefork pool with a time limit, goes by a message: Celery keeps the one where it
takes messages, and counts the other for each of them. All limits may be set by `task_annotations`, by the app's defaults
and by remote control, so it is the task that is asked. Pool processes do not hear remote control: their main process
writes into each request what they must know.

Not here: what happens at a time limit (`ckworkflow.worker.process.interrupts` for a soft one, `.request` for a hard one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ckworkflow import canvas

if TYPE_CHECKING:
    from celery import Celery, Task
    from celery.app.task import Context
    from celery.worker import WorkController

__all__ = ["Limits", "has_rate_limit", "has_time_limit", "keep", "note_in", "of_request"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a prefork pool keeps for the message of a running task.

    Attributes:
        hard: Its hard time limit, in seconds.
        soft: Its soft one.
        rated: The tasks that have a rate limit now.
    """

    hard: float | None
    soft: float | None
    rated: frozenset[str]


TimeLimits = tuple[float | None, float | None]
"""A hard and a soft one, in seconds."""

_HEADER: Final = "ckworkflow_limits"
_of_pool: TimeLimits | None = None


def keep(worker: WorkController) -> None:
    """Note that this process is the main one of a prefork pool, and with which time limits."""
    global _of_pool  # noqa: PLW0603  # one pool per process
    _of_pool = (worker.time_limit, worker.soft_time_limit)


def note_in(request: dict[str, object], app: Celery, task: Task, of_message: TimeLimits) -> None:
    """Write into a request, on its way to a prefork pool, what is kept for it.

    Args:
        request: The headers that its task will see.
        app: The app.
        task: The task.
        of_message: The time limits that the message itself names.
    """
    if _of_pool is not None:
        of_task = (task.time_limit, task.soft_time_limit)
        hard, soft = (
            next(filter(None, each), None) for each in zip(of_message, of_task, _of_pool, strict=True)
        )
        request[_HEADER] = [hard, soft, [name for name in app.tasks if has_rate_limit(app, name)]]


def of_request(request: Context) -> Limits | None:
    """What is kept for the message of a running task; `None` outside of a prefork pool."""
    found = request.get(_HEADER)
    return None if found is None else Limits(found[0], found[1], frozenset(found[2]))


def has_time_limit(app: Celery, name: str) -> bool:
    """Whether a task has a time limit of its own."""
    task = canvas.task_of(app, name)
    return task is not None and bool(task.time_limit or task.soft_time_limit)


def has_rate_limit(app: Celery, name: str) -> bool:
    """Whether a task has a rate limit, as far as this process has heard."""
    task = canvas.task_of(app, name)
    if task is None or not task.rate_limit:
        return False
    return not app.conf.worker_disable_rate_limits
