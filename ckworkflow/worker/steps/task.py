"""The Celery task of a step: claim, run, record, and let Celery go on where that is right.

The outcome is committed inside the task's body, never in hooks: Celery publishes the rest of a chain
before it stores a result, and a publish that fails turns a success into a failure in its eyes.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, TypeVar

from celery import Task
from celery.exceptions import AlwaysEagerIgnored, Ignore, SoftTimeLimitExceeded

from ckworkflow.canvas import OPENS, first_nodes
from ckworkflow.definition import Step, registry
from ckworkflow.engine import attempts, claims, failures, judging, verdicts
from ckworkflow.engine.advance import go_on
from ckworkflow.engine.answer import Answer, MayRun
from ckworkflow.engine.called import step_of
from ckworkflow.engine.claims import Claimed, Dropped, Early
from ckworkflow.engine.judging import Failure
from ckworkflow.errors import DatabaseUnavailableError, FatalError, StepTimeLimitError
from ckworkflow.model import NodeId, NodeRef, RunId
from ckworkflow.outage import Outage
from ckworkflow.plan import Chain
from ckworkflow.plan import Task as PlannedTask
from ckworkflow.worker.process import interrupts
from ckworkflow.worker.process import runtime as runtimes
from ckworkflow.worker.steps import limits, revokes
from ckworkflow.worker.steps.ahead import RunAhead, TaskReport, send_retry
from ckworkflow.worker.steps.events import flush_events
from ckworkflow.worker.steps.execution import StoppedError, execute
from ckworkflow.worker.steps.lane import Handed, Lane, may_carry, pass_by
from ckworkflow.worker.steps.reports import AttemptFailedError, log_attempt, log_release
from ckworkflow.worker.steps.shell import shell_of

if TYPE_CHECKING:
    from celery import Celery

    from ckworkflow.canvas import Serialized
    from ckworkflow.engine.core import Engine
    from ckworkflow.engine.host import Host
    from ckworkflow.worker.process.runtime import Runtime

logger = logging.getLogger(__name__)

T = TypeVar("T")
_database = Outage(logger, "database")
IN_PLACE = timedelta(seconds=1)
"""A message that is this early at most waits in its slot instead of being sent again."""


_FIXED: Final = (
    "acks_late", "expires", "ignore_result", "max_retries", "reject_on_worker_lost", "run", "serializer", "Request",
)  # fmt: skip
"""What the record in SQL stands on."""


class StepTask(Task):
    """The task of one step; `step` is set by `register_step`."""

    abstract = True
    acks_late = True
    reject_on_worker_lost = True
    ignore_result = True
    max_retries = None
    serializer = "json"
    throws = (FatalError,)
    Request = "ckworkflow.worker.steps.request:StepRequest"
    step: ClassVar[Step[..., object]]
    shell: ClassVar[type[Task] | None] = None
    """See `ckworkflow.worker.steps.shell`."""

    @classmethod
    def annotate(cls) -> None:
        """Apply `task_annotations`, without what a step cannot do without."""
        before = {name: getattr(cls, name) for name in _FIXED}
        super().annotate()
        for name, value in before.items():
            if getattr(cls, name) != value:
                logger.warning("`task_annotations` cannot set %s of step %s: left out", name, cls.name)
                setattr(cls, name, value)

    def apply_async(
        self, args: Any = None, kwargs: Any = None, task_id: str | None = None, producer: Any = None,
        link: Any = None, link_error: Any = None, shadow: str | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        """Send the message of a retry, or of the next of a chain; also with `task_always_eager`, which would run it here."""
        given = {
            "task_id": task_id,
            "producer": producer,
            "link": link,
            "link_error": link_error,
            "shadow": shadow,
        }
        if not self.app.conf.task_always_eager:
            return super().apply_async(args, kwargs, **given, **options)
        options = {**self._get_exec_options(), "ignore_result": True, **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AlwaysEagerIgnored)  # which is what is wanted
            return self.app.send_task(self.name, args, kwargs, task_type=self, **given, **options)

    def run(self, run_id: str, node_id: str, generation: int) -> None:
        """Run the step that a message names, if it is still to be run, and those that follow it in place."""
        runtime = _opened()
        with interrupts.deferred():
            self._run(runtime, run_id, node_id, generation)

    def _run(self, runtime: Runtime, run_id: str, node_id: str, generation: int) -> None:
        opens = bool(self.request.get(OPENS))
        host = runtime.engine.host
        claimed = self._claim(runtime, host, RunId(run_id), NodeId(node_id), generation, opens=opens)
        with given_up(runtime.engine, claimed):
            with given_up(runtime.engine, claimed.beside):
                runtime.engine.publish(claimed.run_id, claimed.pieces)
                if claimed.beside is not None:
                    host.run(claimed.beside)
            chain: list[Serialized] = self.request.chain if self.request.chain is not None else []
            ahead = RunAhead(
                self.app, self.step, claimed, runtime, hostname=self.request.hostname,
                limits=limits.of_request(self.request),
            )  # fmt: skip
            handed = self._carry(runtime, claimed, chain, ahead, TaskReport())
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
        with given_up(runtime.engine, claimed):
            ahead = RunAhead(self.app, self.step, claimed, runtime, hostname=hostname, has_message=False)
        following: Claimed | None = claimed
        while following is not None:
            following = self._run_in_place(runtime, following, [], ahead)

    def _run_in_place(
        self, runtime: Runtime, claimed: Claimed, chain: list[Serialized], ahead: RunAhead
    ) -> Claimed | None:
        """Run a step that was claimed without a message, and perhaps others after it; return the next such."""
        with given_up(runtime.engine, claimed):
            ahead.note_own_time()
            handed = self._carry(runtime, claimed, chain, ahead, ahead.report(claimed))
        return self._end_in_place(runtime, handed, chain, ahead)

    def _carry(
        self, runtime: Runtime, claimed: Claimed, chain: list[Serialized],
        ahead: RunAhead, report: TaskReport,
    ) -> Handed:  # fmt: skip
        """Run a step, and on a lane those after it, up to one that this thread has to do with."""
        step = step_of(claimed.row)
        if revokes.is_revoked(claimed):
            return Handed(claimed, report, partial(_raise, verdicts.revoked(step.name)))
        handed = Handed(claimed, report, partial(execute, runtime, step, claimed))
        return Lane(runtime, ahead, chain).run(handed) if may_carry(self.app, claimed) else handed

    def _end_in_place(
        self, runtime: Runtime, handed: Handed, chain: list[Serialized], ahead: RunAhead
    ) -> Claimed | None:
        """Record how a step in place has ended, and do what follows; return the next such."""
        claimed, report = handed.claimed, handed.report
        attempt: Attempt | None = None
        with ExitStack() as leaving:
            leaving.enter_context(given_up(runtime.engine, claimed))
            with closing(report):
                try:
                    carries = first_nodes(chain[-1]) if chain else frozenset()
                    attempt = self._attempt(runtime, handed, carries, ahead, chain)
                except Ignore:  # the worker stops
                    report.failure, report.is_tried_again = judging.RELEASED, True
                    chain.clear()
                    return None
                leaving.enter_context(given_up(runtime.engine, attempt.following))
                report.failure = attempt.failure
                report.is_tried_again = not attempt.is_final
            if attempt.failure is not None and attempt.recorded.retry_in is not None:
                # Before the next attempt can tell of itself: the last event is what Flower shows.
                flush_events()
                row = claimed.row
                again = PlannedTask(
                    row.node_id,
                    row.name,
                    row.generation,
                    attempt.recorded.retry_in,
                    attempts=row.attempt,
                )
                runtime.engine.publish(claimed.run_id, [Chain((again,))])
        return attempt.following

    def _attempt(
        self, runtime: Runtime, handed: Handed, carries: frozenset[NodeRef], ahead: RunAhead,
        chain: list[Serialized],
    ) -> Attempt:  # fmt: skip
        """Record how a step has ended, where that is not done, and do what follows from the record."""
        claimed = handed.claimed
        if handed.recorded is not None:
            log_attempt(runtime.engine, claimed, None, handed.recorded, is_final=False)
            following = self._follow(runtime, claimed, handed.recorded, ahead, chain)
            return Attempt(claimed, handed.recorded, None, following)
        failure: Failure | None = None
        with given_up(runtime.engine, claimed):
            value: object = None
            try:
                value = handed.outcome()
            except StoppedError:
                _until_reachable(runtime, lambda: attempts.release(runtime.engine, claimed))
                log_release(claimed)
                raise Ignore from None
            except SoftTimeLimitExceeded as error:
                limit = self._limit(claimed, error)
                failure = attempts.judge(runtime.engine, claimed, limit, now=lambda: datetime.now(UTC))
            except Exception as error:  # noqa: BLE001  # a step may raise anything, and no record leave it owned
                failure = attempts.judge(runtime.engine, claimed, error, now=lambda: datetime.now(UTC))
            # Not in the handler: what is raised here would have the step's error, and its text, for its context.
            failure, recorded = attempts.record(
                runtime.engine, claimed, value, failure, carries=carries, may_run=ahead.may_run,
                keep_trying=partial(_until_reachable, runtime),
            )  # fmt: skip
        is_final = is_final_failure(failure, recorded)
        log_attempt(runtime.engine, claimed, failure, recorded, is_final=is_final)
        following = self._follow(runtime, claimed, recorded, ahead, chain)
        return Attempt(claimed, recorded, failure, following)

    def _limit(self, claimed: Claimed, error: SoftTimeLimitExceeded) -> StepTimeLimitError:
        """Celery's word for a soft time limit in ours; its traceback says where the step was."""
        found = limits.of_request(self.request)
        soft = None if found is None else found.soft
        limit = StepTimeLimitError(claimed.row.name, soft, is_hard=False)
        limit.__cause__ = error
        return limit

    def _claim(
        self, runtime: Runtime, host: Host, run_id: RunId, node_id: NodeId, generation: int, *,
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
                    wakes=self.request.eta is not None,
                    may_begin=host.may_run if host.runs_steps else None,
                ),
            )
            if isinstance(claimed, Claimed):
                return claimed
            if isinstance(claimed, Early):
                if claimed.wait > max(runtime.engine.settings.horizon, IN_PLACE):
                    # Nobody is to hold it for so long: the clock sends another one at its time.
                    self._drop(
                        runtime, run_id, node_id, Dropped(f"the node's time comes in {claimed.wait}")
                    )
                if claimed.wait > IN_PLACE:
                    # Never just dropped: the rest of the time travels with the same chain.
                    headers = {OPENS: True} if opens else None
                    raise self.retry(countdown=claimed.wait.total_seconds(), headers=headers)
                time.sleep(max(claimed.wait.total_seconds(), 0))
                continue
            self._drop(runtime, run_id, node_id, claimed)

    def _drop(self, runtime: Runtime, run_id: RunId, node_id: NodeId, dropped: Dropped) -> None:
        logger.debug("message for step %s of run %s dropped: %s", node_id, run_id, dropped.reason)
        if dropped.wakes_body:
            _go_on(runtime, run_id, Answer(must_advance=True))
        raise Ignore

    def _carries(self) -> frozenset[NodeRef]:
        """The nodes that Celery publishes next by itself: the next of the chain, else the chord's body."""
        chain = self.request.chain
        return first_nodes(chain[-1]) if chain else first_nodes(self.request.chord)

    def _follow(
        self,
        runtime: Runtime,
        claimed: Claimed,
        recorded: Answer,
        ahead: RunAhead,
        chain: list[Serialized],
    ) -> Claimed | None:
        """Publish what a record made possible and let the body go on; return a step to run in place."""
        if not recorded.keeps_chain and recorded.retry_in is None and recorded.here is None:
            # What SQL does not want next must not be sent: Celery reads this list after the body.
            chain.clear()
        with given_up(runtime.engine, recorded.here):
            return _go_on(runtime, claimed.run_id, recorded, ahead.may_run)

    def _fail(self, attempt: Attempt) -> None:
        failure, recorded = attempt.failure, attempt.recorded
        if failure is None:
            return
        text = failures.public_text(failure.data, RunId(self.request.args[0]))
        if recorded.retry_in is not None:
            raise self.retry(exc=AttemptFailedError(text), countdown=recorded.retry_in.total_seconds())
        if attempt.is_final:
            raise FatalError(text) from None
        # A long wait is only a row in SQL, and no message that Celery could tell of.
        self.send_event("task-retried", exception=text, traceback=None)
        send_retry(self, attempt.claimed, failure, hostname=self.request.hostname)
        raise Ignore from None


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a step that was run has ended."""

    claimed: Claimed
    recorded: Answer
    failure: Failure | None
    following: Claimed | None

    @property
    def is_final(self) -> bool:
        """Whether the step has failed for good."""
        return is_final_failure(self.failure, self.recorded)


def is_final_failure(failure: Failure | None, recorded: Answer) -> bool:
    """Whether a step has failed for good."""
    return failure is not None and (failure.action.is_final or recorded.must_advance)


def _raise(error: Exception) -> NoReturn:
    raise error


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
            if runtime.is_stopping or interrupts.is_leaving():
                pause = min(pause, 0.5)
                gives_up_at = gives_up_at or time.monotonic() + runtimes.GRACE_SECONDS
                if time.monotonic() > gives_up_at:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 15.0)
        else:
            _database.ends()
            return value


class given_up:  # noqa: N801  # reads as what becomes of the steps
    """Give steps up where an error ends the block: nobody runs them any more.

    The heartbeat finds what a process owns and does not run, and frees it; it is tried again at no cost.
    """

    __slots__ = ("_claims", "_engine")

    def __init__(self, engine: Engine, *claims: Claimed | None) -> None:
        self._engine, self._claims = engine, claims

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for claimed in self._claims:
                if claimed is not None:
                    self._engine.active.discard((claimed.run_id, claimed.row.node_id))


def _go_on(
    runtime: Runtime, run_id: RunId, answer: Answer, may_run: MayRun | None = None
) -> Claimed | None:
    """Do what follows from a commit; while the database is down, to let the body go on is the clock's to do."""
    try:
        return go_on(runtime.engine, run_id, answer, may_run=may_run)
    except DatabaseUnavailableError as error:
        _database.begins(error)
        return answer.here


# -- registration -----------------------------------------------------------------------------------


def register_steps(app: Celery) -> Callable[[], None]:
    """Give every step its Celery task on an app, now and whenever one is defined; return what ends this."""
    for step in list(registry.steps.values()):
        register_step(app, step)

    def added(definition: object) -> None:
        if isinstance(definition, Step):
            register_step(app, definition)

    return registry.on_register(added)


def register_step(app: Celery, step: Step[..., object]) -> None:
    """Make and register the task of a step; a step of the same name is replaced."""
    cls = type(
        "StepTask",
        (StepTask,),
        {
            "name": step.name,
            "step": step,
            "abstract": False,
            "rate_limit": step.options.rate_limit,
            "shell": shell_of(app, step),
            "__module__": step.function.__module__,
            "__doc__": step.function.__doc__,
        },
    )
    # As `app.register_task`, but for `app.tasks`: Celery finalizes an app under one lock, and calls this; whoever looks at
    # `app.tasks` first has another one, from within which it finalizes the app. The two would wait for each other.
    task = cls()
    app._tasks[step.name] = task  # noqa: SLF001
    task.bind(app)
