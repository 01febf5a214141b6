"""The lane: steps of a run that follow each other on the event loop, without a thread in between.

A thread of the pool holds the slot and the message, and waits. While each step is async and the next one is known
before it ends, the loop runs it, hands its record to the writer and goes on with what that has claimed: two hand-overs
between threads for each group of records, where there were four for each step. Whatever else there is to do is the
thread's: a failure, a body that goes on, anything to publish, a database that is away.

Not here: how far a worker goes on in place (`ckworkflow.worker.ahead`), what a record is (`ckworkflow.engine.attempts`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ckworkflow.canvas import first_nodes
from ckworkflow.definition import registry
from ckworkflow.engine import attempts
from ckworkflow.worker.execution import StoppedError, run_async

if TYPE_CHECKING:
    import asyncio

    from ckworkflow.engine.attempts import Recorded
    from ckworkflow.engine.claims import Claimed
    from ckworkflow.worker.ahead import RunAhead, Told
    from ckworkflow.worker.runtime import Runtime

__all__ = ["Handed", "Lane", "may_carry", "pass_by"]


@dataclass(slots=True)
class Handed:
    """A step, for its thread to go on with.

    Attributes:
        claimed: The step.
        told: What the world is to be told of it, as its event for Flower.
        telling: What tells it, when it is closed.
        outcome: Returns what the step returned, or raises what it raised; runs it, if that is not done yet.
        recorded: What came of its record, if that is written already.
    """

    claimed: Claimed
    told: Told
    telling: ExitStack
    outcome: Callable[[], Any]
    recorded: Recorded | None = None


def may_carry(claimed: Claimed) -> bool:
    """Whether a step may run on the loop with nobody beside it."""
    return claimed.error is None and registry.require_step(claimed.row.name).is_async


def pass_by(chain: list[Any], claimed: Claimed) -> None:
    """Take a step that runs in place out of the rest of its message's chain, which may still be right."""
    if chain and first_nodes(chain[-1]) == {(claimed.row.node_id, claimed.row.generation)}:
        chain.pop()
    else:
        chain.clear()


class Lane:
    """See the module. All but `run` is called on the loop.

    Args:
        runtime: The runtime of this process.
        ahead: What the message may run in place.
        chain: The rest of its chain.
    """

    def __init__(self, runtime: Runtime, ahead: RunAhead, chain: list[Any]) -> None:
        self._runtime, self._ahead, self._chain = runtime, ahead, chain
        self._is_over = threading.Lock()
        self._is_over.acquire()
        self._handed: Handed | None = None

    def run(self, handed: Handed) -> Handed:
        """Run a step, and those that follow it on the lane; return the last one, for this thread to go on with."""
        try:
            self._runtime.soon(partial(self._begin, handed))
        except RuntimeError:  # the loop has ended
            handed.outcome = _stopped
            return handed
        self._is_over.acquire()
        assert self._handed is not None
        return self._handed

    def _begin(self, handed: Handed) -> None:
        step = registry.require_step(handed.claimed.row.name)
        self._runtime.begin_step(
            partial(run_async, self._runtime, step, handed.claimed), partial(self._ended, handed)
        )

    def _ended(self, handed: Handed, task: asyncio.Task[Any]) -> None:
        """Hand in the record of a step that has ended."""
        handed.outcome = partial(_result, task)
        if task.cancelled() or task.exception() is not None:
            self._hand_over(handed)
            return
        try:
            is_submitted = attempts.submit_success(
                self._runtime.engine,
                handed.claimed,
                task.result(),
                partial(self._written, handed),
                carries=first_nodes(self._chain[-1]) if self._chain else frozenset(),
                may_run=self._ahead.may_run,
            )
        except Exception:  # noqa: BLE001  # the thread meets it again
            is_submitted = False
        if not is_submitted:
            self._hand_over(handed)

    def _written(self, handed: Handed, recorded: Callable[[], Recorded]) -> None:
        """Take the lane up again after a record; called by the writer, on a thread that must go on."""
        try:
            self._runtime.soon(partial(self._go_on, handed, recorded))
        except RuntimeError:  # the loop has ended
            self._hand_over(handed)

    def _go_on(self, handed: Handed, outcome: Callable[[], Recorded]) -> None:
        try:
            recorded = outcome()
        except BaseException:  # noqa: BLE001  # the thread records it again
            self._hand_over(handed)
            return
        self._ahead.spend_on_step()
        following = recorded.next if recorded.is_next_all else None
        # Who watches may block, or look at the thread.
        if following is None or not may_carry(following) or self._ahead.is_watched:
            handed.recorded = recorded
            self._hand_over(handed)
            return
        handed.telling.close()
        pass_by(self._chain, following)
        telling = ExitStack()
        told = telling.enter_context(self._ahead.telling(following))
        self._begin(Handed(following, told, telling, _stopped))

    def _hand_over(self, handed: Handed) -> None:
        self._handed = handed
        self._is_over.release()


def _stopped() -> Any:
    raise StoppedError


def _result(task: asyncio.Task[Any]) -> Any:
    return _stopped() if task.cancelled() else task.result()
