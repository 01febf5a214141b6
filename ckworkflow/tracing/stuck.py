"""Where the tasks of a body stand that nothing can move any more, in words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ckworkflow.tracing.calls import Call

if TYPE_CHECKING:
    from types import FrameType

    from ckworkflow.tracing.loop import TraceTask

__all__ = ["where_they_stand"]

MOST_TASKS = 10
"""That are named."""


def where_they_stand(tasks: Iterable[TraceTask]) -> list[str]:
    """Say of each unfinished task where it is, and what it waits for."""
    left = [task for task in tasks if not task.done()]
    said = [_place(task) for task in left[:MOST_TASKS]]
    more = len(left) - len(said)
    return [*said, *([f"{more} more"] if more else [])]


def _place(task: TraceTask) -> str:
    line, what = "", "a future"
    for frame in _frames(task.get_coro()):
        module = str(frame.f_globals.get("__name__")).partition(".")[0]
        if module == "asyncio":
            what = frame.f_code.co_qualname
        elif module != "ckworkflow":
            file = os.path.basename(frame.f_code.co_filename)  # noqa: PTH119  # it may be no path
            line, what = f", line {frame.f_lineno} of {file}", "a future"
    return f"task {task.state.path}{line}, waits for {what}"


def _frames(awaited: Any) -> Iterator[FrameType]:
    """The frames of a coroutine and of what it awaits, from the outside in."""
    while awaited is not None:
        if isinstance(awaited, Call):
            awaited = awaited._coroutine  # of the same package
            continue
        for kind in ("cr", "gi", "ag"):
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                yield frame
                awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)
                break
        else:
            return
