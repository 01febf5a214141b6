"""The Celery task of a step: claim, run, record, and let Celery go on where that is right.

The outcome is committed inside the task's body, never in hooks: Celery publishes the rest of a chain
before it stores a result, and a publish that fails turns a success into a failure in its eyes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from celery import Task
from celery.exceptions import Ignore

from ckworkflow.canvas import OPENS, first_nodes
from ckworkflow.definition import Step, registry
from ckworkflow.engine import attempts, claims, failures, judging
from ckworkflow.engine.advance import advance
from ckworkflow.engine.attempts import Recorded
from ckworkflow.engine.claims import Claimed, Dropped, Early
from ckworkflow.engine.judging import Failure
from ckworkflow.errors import DatabaseUnavailableError, FatalError, UnserializableValueError
from ckworkflow.model import NodeId, RunId
from ckworkflow.outage import Outage
from ckworkflow.plan import Chain
from ckworkflow.plan import Task as PlannedTask
from ckworkflow.worker import runtime as runtimes
from ckworkflow.worker.ahead import RunAhead, Told
from ckworkflow.worker.events import flush_events
from ckworkflow.worker.execution import StoppedError, execute
from ckworkflow.worker.lane import Handed, Lane, may_carry, pass_by

if TYPE_CHECKING:
    from celery import Celery

    from ckworkflow.engine.core import Local
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.worker.runtime import Runtime

logger = logging.getLogger(__name__)

T = TypeVar("T")
_database = Outage(logger, "database")
IN_PLACE = timedelta(seconds=1)
"""A message that is this early at most waits in its slot instead of being sent again."""


class StepTask(Task):
    """The task of one step; `step` is set by `register_step`."""

    abstract = True
    acks_late = True
    reject_on_worker_lost = True
    ignore_result = True
    max_retries = None
    serializer = "json"
    throws = (FatalError,)
    step: ClassVar[Step[..., Any]]

    def run(self, run_id: str, node_id: str, generation: int) -> None:
        """Run the step that a message names, if it is still to be run, and those that follow it in place."""
        runtime = _opened()
        opens = bool(self.request.get(OPENS))
        local = runtime.engine.local
        claimed = self._claim(runtime, local, RunId(run_id), NodeId(node_id), generation, opens=opens)
        runtime.engine.publish(claimed.run_id, claimed.pieces)
        if claimed.beside is not None and local is not None:
            local.run(claimed.beside)
        chain: list[Any] = self.request.chain if self.request.chain is not None else []
        ahead = RunAhead(self.app, self.step, claimed, runtime, hostname=self.request.hostname)
        handed = self._carry(runtime, claimed, chain, ahead, Told(), ExitStack())
        attempt: Attempt | None = None
        if handed.claimed is claimed:
            attempt = self._attempt(runtime, handed, self._carries(), ahead, chain)
            if attempt.recorded.keeps_chain and not chain:
                _joins.completed_by = self.request.id
            following = attempt.following
        else:
            following = self._end_in_place(runtime, handed, chain, ahead)
        while following is not None:
            pass_by(chain, following)  # its message is not needed any more
            following = self._run_in_place(runtime, following, chain, ahead)
        if attempt is not None and attempt.failure is not None:
            self._fail(attempt)

    def run_claimed(self, claimed: Claimed, *, hostname: str | None) -> None:
        """Run a step that this process has claimed without a message, and those that follow it in place."""
        runtime = runtimes.running()
        ahead = RunAhead(self.app, self.step, claimed, runtime, hostname=hostname, has_message=False)
        following: Claimed | None = claimed
        while following is not None:
            following = self._run_in_place(runtime, following, [], ahead)

    def _run_in_place(
        self, runtime: Runtime, claimed: Claimed, chain: list[Any], ahead: RunAhead
    ) -> Claimed | None:
        """Run a step that was claimed without a message, and perhaps others after it; return the next such."""
        ahead.note_own_time()
        telling = ExitStack()
        told = telling.enter_context(ahead.telling(claimed))
        handed = self._carry(runtime, claimed, chain, ahead, told, telling)
        return self._end_in_place(runtime, handed, chain, ahead)

    def _carry(
        self, runtime: Runtime, claimed: Claimed, chain: list[Any], ahead: RunAhead, told: Told,
        telling: ExitStack,
    ) -> Handed:  # fmt: skip
        """Run a step, and on a lane those after it, up to one that this thread has to do with."""
        step = registry.require_step(claimed.row.name)
        handed = Handed(claimed, told, telling, partial(execute, runtime, step, claimed))
        return Lane(runtime, ahead, chain).run(handed) if may_carry(claimed) else handed

    def _end_in_place(
        self, runtime: Runtime, handed: Handed, chain: list[Any], ahead: RunAhead
    ) -> Claimed | None:
        """Record how a step in place has ended, and do what follows; return the next such."""
        claimed, told = handed.claimed, handed.told
        with handed.telling:
            try:
                carries = first_nodes(chain[-1]) if chain else frozenset()
                attempt = self._attempt(runtime, handed, carries, ahead, chain)
            except Ignore:  # the worker stops
                told.failure, told.is_tried_again = judging.RELEASED, True
                chain.clear()
                return None
            told.failure = attempt.failure
            told.is_tried_again = not attempt.is_final
        if attempt.failure is not None and attempt.recorded.retry_in is not None:
            # Before the next attempt can tell of itself: the last event is what Flower shows.
            flush_events()
            row = claimed.row
            again = PlannedTask(row.node_id, row.name, row.generation, attempt.recorded.retry_in)
            runtime.engine.publish(claimed.run_id, [Chain((again,))])
        return attempt.following

    def _attempt(
        self, runtime: Runtime, handed: Handed, carries: frozenset[tuple[NodeId, int]], ahead: RunAhead,
        chain: list[Any],
    ) -> Attempt:  # fmt: skip
        """Record how a step has ended, where that is not done, and do what follows from the record."""
        claimed = handed.claimed
        if handed.recorded is not None:
            return Attempt(
                handed.recorded, None, self._follow(runtime, claimed, handed.recorded, ahead, chain)
            )
        failure: Failure | None = None
        try:
            value = handed.outcome()
        except StoppedError:
            _until_reachable(runtime, lambda: attempts.release(runtime.engine, claimed))
            raise Ignore from None
        except Exception as error:  # noqa: BLE001  # a step may raise anything, and no record leave it owned
            failure = judging.judge(error, now=lambda: datetime.now(UTC))
        # Not in the handler: what is raised here would have the step's error, and its text, for its context.
        try:
            if failure is None:
                try:
                    recorded = _until_reachable(
                        runtime,
                        lambda: attempts.record_success(
                            runtime.engine, claimed, value, carries=carries, may_run=ahead.may_run
                        ),
                    )
                except UnserializableValueError as error:  # the step's fault; every other would be ours
                    failure = judging.judge(error, now=lambda: datetime.now(UTC))
            if failure is not None:
                step = registry.require_step(claimed.row.name)
                recorded = _until_reachable(
                    runtime,
                    lambda: attempts.record_failure(
                        runtime.engine, claimed, failure, step=step, carries=carries
                    ),
                )
        except BaseException:
            # Nobody runs it any more: the heartbeat frees it, and it is tried again at no cost.
            runtime.engine.active.discard((claimed.run_id, claimed.row.node_id))
            raise
        return Attempt(recorded, failure, self._follow(runtime, claimed, recorded, ahead, chain))

    def _claim(
        self, runtime: Runtime, local: Local | None, run_id: RunId, node_id: NodeId, generation: int, *,
        opens: bool,
    ) -> Claimed:  # fmt: skip
        while True:
            claimed = _until_reachable(
                runtime,
                lambda: claims.claim(
                    runtime.engine,
                    run_id,
                    node_id,
                    generation,
                    step=self.name,
                    opens=opens,
                    may_begin=None if local is None else local.may_run,
                ),
            )
            if isinstance(claimed, Claimed):
                return claimed
            if isinstance(claimed, Early):
                if claimed.wait > IN_PLACE:
                    # Never just dropped: the rest of the time travels with the same chain.
                    headers = {OPENS: True} if opens else None
                    raise self.retry(countdown=claimed.wait.total_seconds(), headers=headers)
                time.sleep(max(claimed.wait.total_seconds(), 0))
                continue
            self._drop(runtime, run_id, node_id, claimed)

    def _drop(self, runtime: Runtime, run_id: RunId, node_id: NodeId, dropped: Dropped) -> None:
        logger.debug("message dropped: %s", dropped.reason, extra={"run_id": run_id, "node_id": node_id})
        if dropped.wakes_body:
            _go_on(runtime, run_id)
        raise Ignore

    def _carries(self) -> frozenset[tuple[NodeId, int]]:
        """The nodes that Celery publishes next by itself: the next of the chain, else the chord's body."""
        chain = self.request.chain
        return first_nodes(chain[-1]) if chain else first_nodes(self.request.chord)

    def _follow(
        self, runtime: Runtime, claimed: Claimed, recorded: Recorded, ahead: RunAhead, chain: list[Any]
    ) -> Claimed | None:
        """Publish what a record made possible and let the body go on; return a step to run in place."""
        if not recorded.keeps_chain and recorded.retry_in is None and recorded.next is None:
            # What SQL does not want next must not be sent: Celery reads this list after the body.
            chain.clear()
        if recorded.has_ended:
            runtime.engine.notify(claimed.run_id)
        runtime.engine.publish(claimed.run_id, recorded.pieces)
        if not recorded.wakes_body:
            return recorded.next
        row = _go_on(runtime, claimed.run_id, None if recorded.next else ahead.may_run)
        if recorded.next is not None or row is None:
            return recorded.next
        return claims.begun(claimed.run_id, claimed.workflow, row)

    def _fail(self, attempt: Attempt) -> None:
        failure, recorded = attempt.failure, attempt.recorded
        if failure is None:
            return
        text = public_text(failure, RunId(self.request.args[0]))
        if recorded.retry_in is not None:
            raise self.retry(exc=FatalError(text), countdown=recorded.retry_in.total_seconds())
        if attempt.is_final:
            raise FatalError(text) from None
        self.send_event("task-retried", exception=text, traceback=None)
        raise Ignore from None


def public_text(failure: Failure, run_id: RunId) -> str:
    """Say what Celery's events and logs may: the kind of failure and where the rest is, no live exception."""
    return f"{failures.outline(failure.data)}; see `ckworkflow runs show {run_id}`"


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a step that was run has ended."""

    recorded: Recorded
    failure: Failure | None
    following: Claimed | None

    @property
    def is_final(self) -> bool:
        """Whether the step has failed for good."""
        failure = self.failure
        return failure is not None and (
            failure.action in ("fatal", "hopeless") or self.recorded.wakes_body
        )


class _Joins(threading.local):
    completed_by: str | None = None


_joins = _Joins()


def completes_join(task_id: str) -> bool:
    """Whether the record of the task that ended last on this thread leaves its chord's body to Celery."""
    is_this, _joins.completed_by = _joins.completed_by == task_id, None
    return is_this


def _opened() -> Runtime:
    """The runtime of this process; a pool process that was born while the database was down waits for it."""
    pause = 0.5
    while True:
        try:
            return runtimes.running()
        except DatabaseUnavailableError as error:
            _database.begins(error)
            time.sleep(pause)
            pause = min(pause * 2, 15.0)


def _until_reachable(runtime: Runtime, call: Callable[[], T]) -> T:
    """Wait for a database that is down: a step that has run must be recorded, not run again.

    A worker that stops waits as well, for as long as it lets steps run.
    """
    pause = 0.5
    gives_up_at: float | None = None
    while True:
        try:
            value = call()
        except DatabaseUnavailableError as error:
            _database.begins(error)
            if runtime.is_stopping:
                pause = min(pause, 0.5)
                gives_up_at = gives_up_at or time.monotonic() + runtimes.GRACE_SECONDS
                if time.monotonic() > gives_up_at:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 15.0)
        else:
            _database.ends()
            return value


def _go_on(
    runtime: Runtime, run_id: RunId, may_run: Callable[[str], bool] | None = None
) -> NodeRow | None:
    """Let the body of a run go on; while the database is down, that is the clock's to do."""
    try:
        return advance(runtime.engine, run_id, may_run=may_run)
    except DatabaseUnavailableError as error:
        _database.begins(error)
        return None


# -- registration -----------------------------------------------------------------------------------


def register_steps(app: Celery) -> Callable[[], None]:
    """Give every step its Celery task on an app, now and whenever one is defined; return what ends this."""
    for step in list(registry.steps.values()):
        register_step(app, step)

    def added(definition: object) -> None:
        if isinstance(definition, Step):
            register_step(app, definition)

    return registry.on_register(added)


def register_step(app: Celery, step: Step[..., Any]) -> None:
    """Make and register the task of a step; a step of the same name is replaced."""
    cls = type(
        "StepTask",
        (StepTask,),
        {
            "name": step.name,
            "step": step,
            "abstract": False,
            "rate_limit": step.options.rate_limit,
            "__module__": step.function.__module__,
            "__doc__": step.function.__doc__,
        },
    )
    app.tasks.pop(step.name, None)
    app.register_task(cls())
