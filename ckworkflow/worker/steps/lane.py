"""The lane: steps of a run that follow each other on the event loop, and hardly a thread in between.

A thread of the pool holds the slot and the message, and waits. While each step is async and the next one is known
before it ends, the loop runs it, hands its record to the writer and goes on with what that has claimed: two hand-overs
between threads for each group of records, where there were four for each step. Where the body must say what comes next, and is
here, a spare thread has it do so and records both, and the loop goes on. Whatever else there is to do is the thread's: a failure, a
body that is not here or does not come back, anything to publish, a database that is away.

Not here: how far a worker goes on in place (`ckworkflow.worker.steps.ahead`), what a record is (`ckworkflow.engine.attempts`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from ckworkflow.background import LostThreadError
from ckworkflow.canvas import first_nodes
from ckworkflow.definition import registry
from ckworkflow.engine import attempts
from ckworkflow.engine.called import step_of
from ckworkflow.worker.process.runtime import wake
from ckworkflow.worker.steps.execution import StoppedError, run_async
from ckworkflow.worker.steps.reports import log_attempt
from ckworkflow.worker.steps.revokes import is_revoked
from ckworkflow.worker.steps.shell import has_shell

if TYPE_CHECKING:
    import asyncio

    from celery import Celery

    from ckworkflow.canvas import Serialized
    from ckworkflow.engine.answer import Answer
    from ckworkflow.engine.claims import Claimed
    from ckworkflow.model import NodeRef
    from ckworkflow.worker.process.runtime import Runtime
    from ckworkflow.worker.steps.ahead import RunAhead, TaskReport

__all__ = ["Handed", "Lane", "may_carry", "pass_by"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Handed:
    """A step, for its thread to go on with.

    Attributes:
        claimed: The step.
        report: What Celery's signals and events are told of it; closed when it has ended.
        outcome: Returns what the step returned, or raises what it raised; runs it, if that is not done yet.
        recorded: What came of its record, if that is written already.
    """

    claimed: Claimed
    report: TaskReport
    outcome: Callable[[], object]
    recorded: Answer | None = None


def may_carry(app: Celery, claimed: Claimed) -> bool:
    """Whether a step may run on the loop with nobody beside it."""
    if has_shell(app, claimed.row.name):
        return False  # which is entered on a thread, and is open while the step runs
    is_async = registry.require_step(claimed.row.name).is_async
    return claimed.error is None and is_async and not is_revoked(claimed)


def pass_by(chain: list[Serialized], claimed: Claimed) -> None:
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

    def __init__(self, runtime: Runtime, ahead: RunAhead, chain: list[Serialized]) -> None:
        self._runtime, self._ahead, self._chain = runtime, ahead, chain
        self._is_over = threading.Lock()
        self._is_over.acquire()
        self._handed: Handed | None = None
        self._current: Handed
        self._task: asyncio.Task[object] | None = None
        self._interruption: BaseException | None = None

    def run(self, handed: Handed) -> Handed:
        """Run a step, and those that follow it on the lane; return the last one, for this thread to go on with.

        What a signal raises in this thread cancels the step that runs then, and nothing more begins on the lane.
        """
        self._current = handed
        try:
            self._runtime.soon(partial(self._begin, handed))
        except RuntimeError:  # the loop has ended
            handed.outcome = _stopped
            return handed
        self._runtime.wait(self._is_over, lambda: self._handed is not None, self._interrupt_soon)
        if self._handed is None:  # given up
            self._current.outcome = _stopped
            return self._current
        return self._handed

    def _begin(self, handed: Handed) -> None:
        self._current = handed
        try:
            step = step_of(handed.claimed.row)
            self._task = self._runtime.begin_step(
                step.name, partial(run_async, self._runtime, step, handed.claimed),
                partial(self._ended, handed), node=(handed.claimed.run_id, handed.claimed.row.node_id),
            )  # fmt: skip
        except Exception as error:  # noqa: BLE001  # the thread records it: nobody else waits for the lane
            handed.outcome = partial(_raise, error)
            self._hand_over(handed)

    def _interrupt_soon(self, error: BaseException) -> None:
        self._runtime.soon(partial(self._interrupt, error))

    def _interrupt(self, error: BaseException) -> None:
        self._interruption = self._interruption or error
        if self._task is not None:
            self._runtime.interrupt_step(self._task, error)

    def _ended(self, handed: Handed, task: asyncio.Task[object]) -> None:
        """Hand in the record of a step that has ended."""
        cause = self._runtime.unbegun_because(task)
        handed.outcome = partial(_result, task) if cause is None else partial(_raise, cause)
        if task.cancelled() or task.exception() is not None:
            self._hand_over(handed)
            return
        try:
            is_submitted = attempts.submit_success(
                self._runtime.engine,
                handed.claimed,
                task.result(),
                partial(self._written, handed),
                carries=self._carries(),
                may_run=self._ahead.may_run,
            )
        except BaseException:  # noqa: BLE001  # the thread meets it again
            is_submitted = False
        if not is_submitted and not self._is_begun_with_body(handed, task.result()):
            self._hand_over(handed)

    def _is_begun_with_body(self, handed: Handed, value: object) -> bool:
        """Have a spare thread record a step with what its body says to it, if the body is here."""
        claimed, engine = handed.claimed, self._runtime.engine
        is_here = engine.bodies.is_waiting_for(claimed.run_id, claimed.row.node_id)
        if not is_here or self._is_over_soon():
            return False
        try:
            engine.spare_threads.begin(self._record_with_body, handed, value)
        except RuntimeError:  # the system gives no more threads
            return False
        return True

    def _record_with_body(self, handed: Handed, value: object) -> Callable[[], object] | None:
        """Continue the body and record both; return the function that resumes the lane.

        Runs on a thread that the body may hang; the lane's own thread then does all of it.
        """
        try:
            recorded = attempts.record_success(
                self._runtime.engine, handed.claimed, value, carries=self._carries(),
                may_run=self._ahead.may_run, lost=partial(self._hand_over, handed),
            )  # fmt: skip
        except LostThreadError:
            return None
        except BaseException:  # noqa: BLE001  # the thread meets it again
            return partial(self._hand_over, handed)
        return partial(self._written, handed, lambda: recorded)

    def _carries(self) -> frozenset[NodeRef]:
        return first_nodes(self._chain[-1]) if self._chain else frozenset()

    def _written(self, handed: Handed, recorded: Callable[[], Answer]) -> None:
        """Take the lane up again after a record; called by the writer, on a thread that must go on."""
        try:
            self._runtime.soon(partial(self._go_on, handed, recorded))
        except RuntimeError:  # the loop has ended
            self._hand_over(handed)

    def _go_on(self, handed: Handed, outcome: Callable[[], Answer]) -> None:
        try:
            recorded = outcome()
        except BaseException:  # noqa: BLE001  # the thread records it again
            self._hand_over(handed)
            return
        handed.recorded = recorded
        try:
            following = self._take_up(handed, recorded)
        except Exception:
            logger.exception("lane of run %s left: its thread goes on", handed.claimed.run_id)
            following = None
        if following is None:
            self._hand_over(handed)
        else:
            self._begin(following)

    def _take_up(self, handed: Handed, recorded: Answer) -> Handed | None:
        """Take up the step after one that is recorded; `None`: there is more to do, which is the thread's."""
        self._ahead.spend_on_step()
        following = recorded.here if recorded.is_only_here else None
        if following is None or not may_carry(self._runtime.app, following) or self._is_over_soon():
            return None
        handed.report.close()
        log_attempt(self._runtime.engine, handed.claimed, None, recorded, is_final=False)
        pass_by(self._chain, following)
        return Handed(following, self._ahead.report(following), _stopped)

    def _is_over_soon(self) -> bool:
        """Whether nothing more begins here: who watches may block, or look at the thread."""
        return self._ahead.is_watched or self._interruption is not None

    def _hand_over(self, handed: Handed) -> None:
        self._handed = handed
        wake(self._is_over)


def _stopped() -> NoReturn:
    raise StoppedError


def _raise(error: BaseException) -> NoReturn:
    raise error


def _result(task: asyncio.Task[object]) -> object:
    return _stopped() if task.cancelled() else task.result()
