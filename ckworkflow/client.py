"""Starting runs and asking for them, from a bot command or any other code.

`start` and `Run` are for async code, `start_sync` and `SyncRun` for the rest; both stand on the same
functions. Nothing of it blocks the caller's loop: a few threads of our own do the work. Those of the default
executor may be full of something else, and a body could keep one for good.
"""

from __future__ import annotations

import logging
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Never, ParamSpec, TypeVar, cast

from ckworkflow import codec, inspection, tracing
from ckworkflow.background import Lost, OffLoop
from ckworkflow.context import current_step
from ckworkflow.definition import Workflow, registry
from ckworkflow.duration import parse_span
from ckworkflow.engine import cancellation, outcomes
from ckworkflow.engine.installation import current
from ckworkflow.engine.start import encode_input, start_run
from ckworkflow.errors import HookContextError, RunNotFoundError
from ckworkflow.foreign import show
from ckworkflow.model import NodeId, RunId
from ckworkflow.scrub import scrub_head
from ckworkflow.store.schema import NoRunsYetError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import timedelta
    from types import FrameType

    from ckworkflow.engine.core import Engine
    from ckworkflow.model import RunStatus, StepInfo
    from ckworkflow.tracing import Tracer

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

REASON_LIMIT = 1_000
"""Characters of a reason that are kept."""
_threads = OffLoop(8, "ckworkflow-client")


def start(workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Run[R]]:
    """Start a run of a workflow and return once it is committed.

    In the body of a workflow it starts a *child*, with the commit of the continuation: `await run.return_value()` and `await run.cancel()`
    work there, durably, and if the body is told that it is to be cancelled, so is the child. In a step it starts a run of its own, once
    however often the attempt is repeated.

    Works with the broker down: the run is in SQL, and is published when the broker is back. Never blocks
    the running loop.

    Args:
        workflow: What `@workflow` made.
        *args: Its arguments, as its signature has them.
        **kwargs: As `args`.

    Raises:
        NotAWorkflowError: `workflow` is something else.
        MainModuleError: It is defined in the script that was started, where no worker finds it.
        TypeError: The arguments do not fit the signature.
        UnserializableValueError: An argument cannot be stored; names its path.
        RefusedValueError: The database refuses an argument, since it is too large.
        RunExistsError: An earlier attempt of the step that calls this has started something else here.
        DatabaseUnavailableError: The database cannot be reached or cannot do its work; nothing was started.
        SchemaVersionError: The database's schema does not fit this ckworkflow.
    """
    tracer = tracing.current()
    if tracer is not None:
        return _starting_child(tracer, workflow, args, kwargs, frame=sys._getframe(1))  # noqa: SLF001  # where the body calls
    return _starting(workflow, args, kwargs)


def start_sync(workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> SyncRun[R]:
    """Do what `start` does, from sync code; blocks until the run is committed.

    Raises:
        CkWorkflowError: As `start`.
    """
    _refuse_in_body("start_sync")
    return SyncRun(_start(workflow, args, kwargs, run_id=_id_in_step()))


def continue_as_new(*args: object, **kwargs: object) -> Never:
    """End this life of a run and begin its next one, with these arguments: a body that would go on for ever keeps its history short.

    Write `return continue_as_new(...)` in the body of the run itself. The run goes on as the same one: its id, its children and those who wait
    for its result stay. Its body begins again, with the new arguments and without a history. A hook that it makes at once under a token
    that it had is never missed, and has what was not taken.

    Args:
        *args: The arguments of the next life, as the signature of the workflow has them.
        **kwargs: As `args`.

    Returns:
        What the body must return, whatever type it is declared to return. (For mypy that is not `None`: declare `-> object`.)

    Raises:
        TypeError: The arguments do not fit the signature.
        UnserializableValueError: An argument cannot be stored; names its path.
        ContinueAsNewError: It is called in a workflow or task that the body awaits. Also what the run fails with if the body does not return
            what it gets.
        HookContextError: No body of a workflow is running.
    """
    tracer = tracing.current()
    if tracer is None:
        raise HookContextError(
            "continue_as_new",
            "only the body of a workflow can begin its next life; elsewhere, start() begins a run",
        )
    registry.require_workflow(tracer.workflow).bind(args, kwargs)
    found: Any = tracer.continue_as_new(args, kwargs, line=sys._getframe(1).f_lineno)  # noqa: SLF001  # where the body calls
    return found  # type: ignore[misc]  # to a type checker it fits every body: nothing comes of it but the next life


async def get_run(run_id: str) -> Run[Any]:
    """Return a run that exists.

    Raises:
        RunNotFoundError: No run has this id.
        RefusedValueError: None can have it: it has a NUL character, or half of a surrogate pair.
    """
    _refuse_in_body("get_run")
    await _threads.run(lambda: _status(RunId(run_id)))
    return Run(RunId(run_id))


def get_run_sync(run_id: str) -> SyncRun[Any]:
    """Do what `get_run` does, from sync code.

    Raises:
        RunNotFoundError: No run has this id.
    """
    _refuse_in_body("get_run_sync")
    _status(RunId(run_id))
    return SyncRun(RunId(run_id))


async def cancel_runs(
    workflow: Workflow[..., Any] | str, *, created_before: datetime | None = None,
    reason: str | None = None, grace: str | float | timedelta | None = None,
) -> int:  # fmt: skip
    """Ask all live runs of a workflow to end, one by one; return how many were asked.

    Runs that are started meanwhile may be left out.

    Args:
        workflow: What `@workflow` made, or its registered name, all of it.
        created_before: Only those that were started before, a time with a time zone.
        reason: As for `Run.cancel`.
        grace: As for `Run.cancel`.

    Raises:
        CkWorkflowError: As `Run.cancel`. Those before were asked.
        WorkflowNotRegisteredError: This process knows no workflow of that name, and it has no live run.
        TypeError: `workflow` is neither.
        ValueError: `created_before` has no time zone.
    """
    return await _threads.run(_cancelling_all("cancel_runs", workflow, created_before, reason, grace))


def cancel_runs_sync(
    workflow: Workflow[..., Any] | str, *, created_before: datetime | None = None,
    reason: str | None = None, grace: str | float | timedelta | None = None,
) -> int:  # fmt: skip
    """Do what `cancel_runs` does, from sync code.

    Raises:
        CkWorkflowError: As `cancel_runs`.
    """
    return _cancelling_all("cancel_runs_sync", workflow, created_before, reason, grace)()


class Place(NamedTuple):
    """Where a run was started by another.

    Attributes:
        node_id: The place in the body of the other.
        workflow: The registered name of its own workflow.
    """

    node_id: NodeId
    workflow: str


class Run(Generic[R]):
    """One execution of a workflow. It can be stored: as an argument, of a step or of the next life of the run that started it, and as a result.

    In the body of a workflow only `return_value` and `cancel` can be called, of a run that its own run has started.

    Attributes:
        run_id: Its id, opaque text.
    """

    def __init__(self, run_id: RunId, child: Place | None = None) -> None:
        self.run_id = run_id
        self._child = child

    def __repr__(self) -> str:
        return f"<Run {self.run_id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.run_id == other.run_id

    def __hash__(self) -> int:
        return hash(self.run_id)

    async def status(self) -> RunStatus:
        """Return the state of the run.

        Raises:
            RunNotFoundError: It was deleted.
            HookContextError: This is the body of a workflow.
        """
        _refuse_in_body("Run.status")
        return await _threads.run(lambda: _status(self.run_id))

    async def exists(self) -> bool:
        """Return whether the run is in the database.

        Raises:
            HookContextError: This is the body of a workflow.
        """
        _refuse_in_body("Run.exists")
        return await _threads.run(lambda: _exists(self.run_id))

    def return_value(self, timeout: float | None = None) -> Coroutine[Any, Any, R]:
        """Wait for the end of the run and return what its body returned.

        Args:
            timeout: Seconds to wait, from this call; `None` waits as long as it takes. A run that has ended is told
                whatever the timeout; in a body, if the body has been told of the end, which takes a moment where a life before has started the run.

        Raises:
            RunFailedError: It failed; `__cause__` is the body's error.
            RunCancelledError: It was cancelled.
            ReturnValueTimeoutError: It was still going; it goes on.
            RunNotFoundError: It was deleted.
            HookContextError: This is the body of a workflow, whose run has not started the other.
        """
        tracer = tracing.current()
        if tracer is not None:
            frame = sys._getframe(1)  # noqa: SLF001  # where the body calls
            return self._in_body(tracer, "Run.return_value").return_value(timeout, frame=frame)
        waiting = outcomes.wait_on_loop(lambda: _engine(self.run_id), self.run_id, timeout)
        return cast("Coroutine[Any, Any, R]", waiting)

    def cancel(
        self, *, reason: str | None = None, grace: str | float | timedelta | None = None
    ) -> Coroutine[Any, Any, bool]:
        """Ask the run to end, and return whether it was live; in a body, as far as this life of it has been told.

        Once this has returned, no step begins that was planned before. The body gets `asyncio.CancelledError` at the await where it
        stands; `finally`, `except` and `async with` run, durably, and what comes out decides how the run ends. A step that
        runs is told to stop (`@step(on_cancel=...)`). A run of which nothing has begun ends at once.

        A body is told once: a further call returns `True`, its reason is dropped, and the clean-up is not disturbed.

        Args:
            reason: Why, for `RunCancelledError` and the body's `CancelledError`.
            grace: When it is terminated, from now, if it has not ended by itself: as for `sleep`. `None`: it has all the
                time that it needs. Of several the earliest counts.

        Raises:
            RunNotFoundError: It was deleted.
            InvalidDurationError: `grace` is no duration.
            TypeError: `reason` is no text.
            RefusedValueError: The database refuses `reason`.
            DatabaseUnavailableError: The database cannot be reached; nobody knows whether the run was asked.
            HookContextError: This is the body of a workflow, whose run has not started the other.
        """
        tracer = tracing.current()
        if tracer is not None:
            child = self._in_body(tracer, "Run.cancel")
            span = None if grace is None else parse_span(grace)
            return child.cancel(_reason(reason), span, frame=sys._getframe(1))  # noqa: SLF001  # as above
        return self._ask_to_end(reason, grace)

    async def terminate(self, *, reason: str | None = None) -> bool:
        """End the run now as cancelled, without its body, and return whether it was live.

        No `finally` of the body runs. Steps that run are told to stop; nobody waits for them.

        Args:
            reason: Why, for `RunCancelledError`, in place of what an earlier `cancel` has said; `None` leaves that.

        Raises:
            CkWorkflowError: As `cancel`.
        """
        return await _threads.run(_terminating("Run.terminate", self.run_id, reason))

    async def steps(self) -> list[StepInfo]:
        """Return the steps and sleeps of the run, those to come included, in the order of the body.

        Raises:
            RunNotFoundError: It was deleted.
            HookContextError: This is the body of a workflow.
        """
        _refuse_in_body("Run.steps")
        return await _threads.run(lambda: _steps(self.run_id))

    async def _ask_to_end(self, reason: str | None, grace: str | float | timedelta | None) -> bool:
        return await _threads.run(_cancelling(self.run_id, reason, grace))

    def _in_body(self, tracer: Tracer, function: str) -> tracing.Child:
        """The run as a child of the body that runs here."""
        found = None if self._child is None else tracer.children.find(self.run_id, *self._child)
        if found is None:
            raise HookContextError(
                function,
                "this is the body of a workflow, and its run has not started that one. Call it in a @step and await that.",
            )
        return found


class SyncRun(Generic[R]):
    """One execution of a workflow, for sync code: the methods of `Run`, which block.

    Attributes:
        run_id: Its id, opaque text.
    """

    def __init__(self, run_id: RunId) -> None:
        self.run_id = run_id

    def __repr__(self) -> str:
        return f"<SyncRun {self.run_id}>"

    def status(self) -> RunStatus:
        """As `Run.status`."""
        return _status(self.run_id)

    def exists(self) -> bool:
        """As `Run.exists`."""
        return _exists(self.run_id)

    def return_value(self, timeout: float | None = None) -> R:
        """As `Run.return_value`."""
        return cast("R", outcomes.wait(_engine(self.run_id), self.run_id, timeout))

    def cancel(self, *, reason: str | None = None, grace: str | float | timedelta | None = None) -> bool:
        """As `Run.cancel`."""
        _refuse_in_body("SyncRun.cancel")
        return _cancelling(self.run_id, reason, grace)()

    def terminate(self, *, reason: str | None = None) -> bool:
        """As `Run.terminate`."""
        return _terminating("SyncRun.terminate", self.run_id, reason)()

    def steps(self) -> list[StepInfo]:
        """As `Run.steps`."""
        return _steps(self.run_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SyncRun) and self.run_id == other.run_id

    def __hash__(self) -> int:
        return hash(self.run_id)


# -- as values ----------------------------------------------------------------------------------------


def _to_json(run: Run[Any]) -> list[str]:
    return [run.run_id, *(run._child or ())]  # noqa: SLF001  # of the class above


def _from_json(found: list[str]) -> Run[Any]:
    run_id, *place = found
    return Run(RunId(run_id), Place(NodeId(place[0]), place[1]) if place else None)


codec.register_type(Run, name="ckworkflow.Run", to_json=_to_json, from_json=_from_json)
codec.register_type(
    SyncRun,
    name="ckworkflow.SyncRun",
    to_json=lambda run: run.run_id,
    from_json=lambda run_id: SyncRun(RunId(run_id)),
)


# -- the core of both forms -------------------------------------------------------------------------


def _refuse_in_body(function: str) -> None:
    """Refuse what a body must not do: it may run again, and would do it each time."""
    if tracing.current() is not None:
        raise _in_step(function)


def _in_step(function: str) -> HookContextError:
    instead = (
        "Use `await start(...)`." if function == "start_sync" else "Call it in a @step and await that."
    )
    return HookContextError(
        function, f"this is the body of a workflow, which may be run again. {instead}"
    )


def _start(
    workflow: object, args: tuple[Any, ...], kwargs: dict[str, Any], lost: Lost[RunId] | None = None,
    run_id: RunId | None = None,
) -> RunId:  # fmt: skip
    engine = current().engine
    found = start_run(engine, workflow, args, kwargs, lost, run_id=run_id)
    engine.worker_look.after_start(engine, found)
    return found


async def _starting(workflow: Workflow[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run[R]:
    run_id = _id_in_step()
    return Run(await _threads.run_body(lambda lost: _start(workflow, args, kwargs, lost, run_id)))


def _starting_child(
    tracer: Tracer, workflow: Workflow[..., R], args: tuple[Any, ...], kwargs: dict[str, Any], *,
    frame: FrameType,
) -> Coroutine[Any, Any, Run[R]]:  # fmt: skip
    tree = encode_input(workflow, args, kwargs)

    async def start() -> Run[R]:
        child = await tracer.children.start(workflow.name, tree, frame=frame)
        return Run(child.run_id, Place(child.place, child.workflow))

    return cast("Coroutine[Any, Any, Run[R]]", tracer.children.call(start, "start", frame))


def _id_in_step() -> RunId | None:
    """The id of a run that a step starts: the same for each attempt; `None`: no step runs here."""
    step = current_step.get(None)
    return None if step is None else step.next_run_id()


def _engine(run_id: RunId) -> Engine:
    """Return the engine for reading a run: where no run was ever started, that makes no database."""
    engine = current().engine
    try:
        engine.ensure_schema(creates=False)
    except NoRunsYetError as error:
        raise RunNotFoundError(run_id) from error
    return engine


def _status(run_id: RunId) -> RunStatus:
    return inspection.read_status(_engine(run_id), run_id)


def _exists(run_id: RunId) -> bool:
    try:
        _status(run_id)
    except RunNotFoundError:
        return False
    return True


def _steps(run_id: RunId) -> list[StepInfo]:
    return inspection.read_steps(_engine(run_id), run_id)


def _cancelling(
    run_id: RunId, reason: str | None, grace: str | float | timedelta | None
) -> Callable[[], bool]:
    """Check what `cancel` was given; return what asks the run."""
    reason, span = _reason(reason), None if grace is None else parse_span(grace)
    return lambda: cancellation.cancel(_engine(run_id), run_id, reason=reason, grace=span)


def _terminating(function: str, run_id: RunId, reason: str | None) -> Callable[[], bool]:
    _refuse_in_body(function)
    reason = _reason(reason)
    return lambda: cancellation.terminate(_engine(run_id), run_id, reason=reason)


def _cancelling_all(
    function: str, workflow: object, created_before: object, reason: str | None,
    grace: str | float | timedelta | None,
) -> Callable[[], int]:  # fmt: skip
    _refuse_in_body(function)
    if not isinstance(workflow, str | Workflow):
        msg = f"cancel_runs() needs a workflow, or its registered name, and got {show(workflow)}"
        raise TypeError(msg)
    if created_before is not None and not isinstance(created_before, datetime):
        msg = f"cancel_runs(created_before=...) needs a datetime, and got {show(created_before)}"
        raise TypeError(msg)
    if created_before is not None and created_before.utcoffset() is None:
        msg = "cancel_runs(created_before=...) needs a time with a time zone: datetime.now(UTC), say"
        raise ValueError(msg)
    name = workflow.name if isinstance(workflow, Workflow) else workflow
    reason, span = _reason(reason), None if grace is None else parse_span(grace)

    def cancel() -> int:
        try:
            engine = _engine(RunId(""))
        except RunNotFoundError:  # there is no database yet
            count = 0
        else:
            count = cancellation.cancel_all(
                engine, workflow=name, created_before=created_before, reason=reason, grace=span
            )
        if not count:
            registry.require_workflow(name)  # or a mistyped name would look like success
        return count

    return cancel


def _reason(reason: object) -> str | None:
    if not (reason is None or isinstance(reason, str)):
        msg = f"reason= must be text, and got {show(reason)}"
        raise TypeError(msg)
    return scrub_head(reason, REASON_LIMIT) if reason else None
