"""The loop watch: names the step that holds the event loop.

An async step that blocks (`time.sleep`, a database driver for sync code) stops every other async step of its process, and in a bot the
bot itself. A thread asks the loop for a sign of life while steps run on it, and says which step it is in when none comes.

Not here: steps that do not end when the worker stops (`ckworkflow.worker.process.runtime`).
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ckworkflow.background import BackgroundThread
from ckworkflow.context import current_step
from ckworkflow.definition import registry

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["LoopWatch"]

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5
HELD_SECONDS: Final = 1.0
"""Without a sign of life for so long, the loop is held."""
AGAIN_SECONDS: Final = 60.0
"""How long nothing more is said of a step."""


class LoopWatch:
    """See the module.

    Args:
        loop: The loop.
        steps: The steps that run on it: their tasks, and their names.
        is_own: Whether nothing but steps runs on it.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, steps: Mapping[asyncio.Task[object], str], *, is_own: bool
    ) -> None:
        self._loop, self._steps, self._is_own = loop, steps, is_own
        self._is_stopped = threading.Event()
        self._has_answered = True
        self._asked_at = 0.0
        self._loop_thread = 0
        self._last_task: asyncio.Task[object] | None = None
        self._told: dict[str, float] = {}
        self._thread = BackgroundThread(
            self._run, name="ckworkflow-loop-watch", loss="nothing names a step that holds the loop"
        )

    def start(self) -> None:
        """Begin."""
        self._loop.call_soon_threadsafe(self._answer)
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._is_stopped.set()

    def _run(self) -> None:
        while not self._is_stopped.wait(LOOK_SECONDS):
            try:
                self._look()
            except RuntimeError:  # the loop is closed: its owner says so
                return

    def _look(self) -> None:
        now = time.monotonic()
        if self._has_answered:
            self._last_task = None
            if self._steps:
                self._has_answered, self._asked_at = False, now
                self._loop.call_soon_threadsafe(self._answer)
            return
        task, before = asyncio.current_task(self._loop), self._last_task
        self._last_task = task
        # Twice the same: a loop that has only much to do is in another one by now.
        if task is None or task is not before or now - self._asked_at < HELD_SECONDS:
            return
        name = self._steps.get(task) or _step_around(task)
        if name is None and not self._is_own:
            return  # the bot's own: discord.py warns of these
        holder = f"coroutine {_coroutine_of(task)} of a step" if name is None else f"step {name}"
        if now - self._told.get(holder, -AGAIN_SECONDS) < AGAIN_SECONDS:
            return
        self._told[holder] = now
        logger.warning(
            "%s has held the event loop for %.1f s%s: no other async step of this process goes on meanwhile, nor a bot in it. "
            "Await instead of blocking, or make the step a plain `def`, which runs on a thread of its own.",
            holder, now - self._asked_at, _place(self._loop_thread, task, name), extra={"step": name},
        )  # fmt: skip

    def _answer(self) -> None:
        self._loop_thread = threading.get_ident()
        self._has_answered = True


def _step_around(task: asyncio.Task[object]) -> str | None:
    """The name of the step that has begun a task; `None` where Python cannot tell (3.11), or none has."""
    context_of = getattr(task, "get_context", None)
    step = None if context_of is None else context_of().get(current_step)
    return None if step is None else str(step.step)


def _coroutine_of(task: asyncio.Task[object]) -> str:
    return getattr(task.get_coro(), "__qualname__", task.get_name())


def _place(thread: int, task: asyncio.Task[object], name: str | None) -> str:
    """Say where a thread is in the file of the step or of the coroutine, or where it is at all."""
    step = None if name is None else registry.steps.get(name)
    if step is not None:
        code = getattr(step.function, "__code__", None)
    else:
        code = getattr(task.get_coro(), "cr_code", None)
    innermost = frame = sys._current_frames().get(thread)  # noqa: SLF001  # as `faulthandler` does
    while frame is not None and code is not None and frame.f_code.co_filename != code.co_filename:
        frame = frame.f_back
    found: FrameType | None = frame or innermost
    return "" if found is None else f" ({found.f_code.co_filename}, line {found.f_lineno})"
