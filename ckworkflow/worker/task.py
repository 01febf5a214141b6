"""The Celery task of a step: claim, run, record, and let Celery go on where that is right.

The outcome is committed inside the task's body, never in hooks: Celery publishes the rest of a chain
before it stores a result, and a publish that fails turns a success into a failure in its eyes.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from celery import Task
from celery.exceptions import Ignore

from ckworkflow import integration as integrations
from ckworkflow.canvas import OPENS, first_nodes
from ckworkflow.definition import Step, registry
from ckworkflow.engine import attempts, claims, failures, judging
from ckworkflow.engine.advance import advance
from ckworkflow.engine.attempts import Recorded
from ckworkflow.engine.claims import Claimed, Dropped, Early
from ckworkflow.engine.judging import Failure
from ckworkflow.errors import (
    DatabaseUnavailableError,
    FatalError,
    StepTimeoutError,
    UnserializableValueError,
)
from ckworkflow.hooks import StepContext, current_step
from ckworkflow.model import NodeId, RunId
from ckworkflow.outage import Outage
from ckworkflow.plan import Chain
from ckworkflow.plan import Task as PlannedTask
from ckworkflow.worker import runtime as runtimes
from ckworkflow.worker.ahead import RunAhead
from ckworkflow.worker.events import flush_events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

    from ckworkflow.engine.core import Local
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.worker.runtime import Runtime

logger = logging.getLogger(__name__)

T = TypeVar("T")
_database = Outage(logger, "database")
IN_PLACE = timedelta(seconds=1)
"""A message that is this early at most waits in its slot instead of being sent again."""


class StoppedError(Exception):
    """The worker stops while the step runs: it is released."""


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
        attempt = self._attempt(runtime, self.step, claimed, self._carries(), ahead, chain)
        if attempt.recorded.keeps_chain and not chain:
            _joins.completed_by = self.request.id
        following = attempt.following
        while following is not None:
            # Its message is not needed any more; what comes after it may still be right.
            if chain and first_nodes(chain[-1]) == {(following.row.node_id, following.row.generation)}:
                chain.pop()
            else:
                chain.clear()
            following = self._run_in_place(runtime, following, chain, ahead)
        if attempt.failure is not None:
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
        """Run a step that was claimed with the record of the one before it; return the next such."""
        step = registry.require_step(claimed.row.name)
        with ahead.telling(claimed) as told:
            try:
                carries = first_nodes(chain[-1]) if chain else frozenset()
                attempt = self._attempt(runtime, step, claimed, carries, ahead, chain)
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
        self, runtime: Runtime, step: Step[..., Any], claimed: Claimed,
        carries: frozenset[tuple[NodeId, int]], ahead: RunAhead, chain: list[Any],
    ) -> Attempt:  # fmt: skip
        """Run a claimed step, record how it ended, and do what follows from the record."""
        failure: Failure | None = None
        try:
            value = _execute(runtime, step, claimed)
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


# -- running the function ---------------------------------------------------------------------------


def _execute(runtime: Runtime, step: Step[..., Any], claimed: Claimed) -> Any:
    context = StepContext(
        claimed.run_id, claimed.workflow, claimed.row.node_id, step.name, claimed.row.attempt,
        step.options.max_retries + 1, f"{claimed.run_id}/{claimed.row.node_id}/{step.name}",
        claimed.row.started_at or datetime.now(UTC), runtime,
    )  # fmt: skip
    if claimed.error is not None:
        raise claimed.error
    if step.is_async:
        return _execute_async(runtime, step, claimed, context)
    return _execute_sync(step, claimed, context)


def _execute_async(
    runtime: Runtime, step: Step[..., Any], claimed: Claimed, context: StepContext
) -> Any:
    timeout = step.options.timeout

    async def run() -> Any:
        with _around(context):
            limit = asyncio.timeout(None if timeout is None else timeout.total_seconds())
            try:
                async with limit:
                    return await step.function(*claimed.args, **claimed.kwargs)
            except TimeoutError as error:
                if limit.expired() and timeout is not None:
                    raise StepTimeoutError(step.name, timeout.total_seconds()) from error
                raise
            except asyncio.CancelledError:
                if runtime.is_stopping:
                    raise StoppedError from None
                raise RuntimeError("the step cancelled itself") from None  # said nowhere else
            except BaseException as error:
                if isinstance(error, Exception):
                    raise
                # Through a task, SystemExit would end the loop, and with it every step of this process.
                raise _as_exception(error) from error

    try:
        return runtime.run_step(run)
    except asyncio.CancelledError:
        raise StoppedError from None


def _execute_sync(step: Step[..., Any], claimed: Claimed, context: StepContext) -> Any:
    timeout = step.options.timeout
    future: Future[Any] = Future()

    def run() -> None:
        try:
            with _around(context):
                future.set_result(_result(step, step.function(*claimed.args, **claimed.kwargs)))
        except BaseException as error:  # noqa: BLE001  # handed over to the waiting thread
            future.set_exception(_as_exception(error))

    if timeout is None:
        run()
        return future.result()
    # A thread cannot be interrupted: at the timeout the attempt is given up, and the fence keeps the late
    # result out.
    threading.Thread(
        target=copy_context().run, args=(run,), name=f"ckworkflow-step-{step.name}", daemon=True
    ).start()
    try:
        return future.result(timeout.total_seconds())
    except TimeoutError as error:
        if future.done():  # the step's own error, or it has ended just now
            return future.result()
        raise StepTimeoutError(step.name, timeout.total_seconds()) from error


def _result(step: Step[..., Any], value: Any) -> Any:
    """A plain function that gives a coroutine (a decorator between @step and an `async def`) is refused."""
    if inspect.iscoroutine(value):
        value.close()
        raise FatalError(
            f"step {step.name} is not an `async def` but returned a coroutine: a decorator under @step hides "
            f"the function. Give that decorator an `async def` wrapper, or put it over @step."
        )
    return value


def _as_exception(error: BaseException) -> Exception:
    """A step may not stop its worker: `SystemExit` and its like are errors like any other."""
    if isinstance(error, Exception):
        return error
    what = f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"raised {error!r}"
    return RuntimeError(f"the step {what}")


@contextmanager
def _around(context: StepContext) -> Iterator[None]:
    token = current_step.set(context)
    try:
        with ExitStack() as stack:
            for integration in integrations.installed():
                stack.enter_context(integration.step(context))
            yield
    finally:
        current_step.reset(token)


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
