"""Shells: what the task class of the user's app puts around each task, around the function of each step.

`Celery(task_cls=...)` with a `__call__` of its own is how Flask's documentation enters an app context. The task of a step
is ours and handles a message, which may be of many steps or of none; so the user's `__call__` is called for each attempt,
whatever carries it. For an async step it is called on a thread, and is open while the coroutine runs in a copy of the
context variables that it has set.

Not here: other methods of a task class (`on_failure` and its like): they are not called for steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery import Task

from ckworkflow import canvas

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery

    from ckworkflow.definition import Step
    from ckworkflow.engine.claims import Claimed

__all__ = ["call_in_shell", "has_shell", "shell_of"]


def shell_of(app: Celery, step: Step[..., object]) -> type[Task] | None:
    """Make the class whose `__call__` goes around a step; `None` where the app's tasks have none of their own."""
    base: type[Task] = app.Task
    # Not as Celery asks: a worker in this process exchanges the `__call__` of its own class.
    if not any("__call__" in vars(cls) for cls in base.__mro__ if cls not in (Task, object)):
        return None
    made: type[Task] = type("StepShell", (base,), {"name": step.name, "abstract": True})
    made.bind(app)
    return made


def has_shell(app: Celery, name: str) -> bool:
    """Whether the app's task class has something to put around a step."""
    return _find(app, name) is not None


def call_in_shell(app: Celery, claimed: Claimed, function: Callable[..., object]) -> object:
    """Call the function of a step, with its arguments, inside of what the app's task class puts around it."""
    shell = _find(app, claimed.row.name)
    if shell is None:
        return function(*claimed.args, **claimed.kwargs)
    row, task = claimed.row, shell()
    task.run = function
    task.push_request(
        id=canvas.task_id(claimed.run_id, row.node_id, row.generation), task=row.name, args=claimed.args,
        kwargs=claimed.kwargs, retries=row.attempt - 1, called_directly=False, root_id=claimed.run_id,
    )  # fmt: skip
    try:
        return task(*claimed.args, **claimed.kwargs)
    finally:
        task.pop_request()


def _find(app: Celery, name: str) -> type[Task] | None:
    found: type[Task] | None = getattr(canvas.task_of(app, name), "shell", None)
    return found
