"""Starting runs and asking for them, from a bot command or any other code.

`start` and `Run` are for async code, `start_sync` and `SyncRun` for the rest; both stand on the same
functions. Nothing of it blocks the caller's loop: a few threads of our own do the work. Those of the default
executor may be full of something else, and a body could keep one for good.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from ckworkflow import inspection, tracing
from ckworkflow.background import Lost, OffLoop
from ckworkflow.engine import outcomes
from ckworkflow.engine.installation import current
from ckworkflow.engine.start import start_run
from ckworkflow.errors import HookContextError, RunNotFoundError
from ckworkflow.model import RunId
from ckworkflow.store.schema import NoRunsYetError

if TYPE_CHECKING:
    from ckworkflow.definition import Workflow
    from ckworkflow.engine.core import Engine
    from ckworkflow.model import RunStatus, StepInfo

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_threads = OffLoop(8, "ckworkflow-client")


async def start(workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Run[R]:
    """Start a run of a workflow and return once it is committed.

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
        DatabaseUnavailableError: The database cannot be reached or cannot do its work; nothing was started.
        SchemaVersionError: The database's schema does not fit this ckworkflow.
    """
    _refuse_in_body("start")
    run_id = await _threads.run_body(lambda lost: _start(workflow, args, kwargs, lost))
    return Run(run_id)


def start_sync(workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> SyncRun[R]:
    """Do what `start` does, from sync code; blocks until the run is committed.

    Raises:
        CkWorkflowError: As `start`.
    """
    _refuse_in_body("start_sync")
    return SyncRun(_start(workflow, args, kwargs))


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


class Run(Generic[R]):
    """One execution of a workflow.

    Attributes:
        run_id: Its id, opaque text.
    """

    def __init__(self, run_id: RunId) -> None:
        self.run_id = run_id

    def __repr__(self) -> str:
        return f"<Run {self.run_id}>"

    async def status(self) -> RunStatus:
        """Return the state of the run.

        Raises:
            RunNotFoundError: It was deleted.
        """
        return await _threads.run(lambda: _status(self.run_id))

    async def exists(self) -> bool:
        """Return whether the run is in the database."""
        return await _threads.run(lambda: _exists(self.run_id))

    async def return_value(self, timeout: float | None = None) -> R:  # noqa: ASYNC109  # its error names the run
        """Wait for the end of the run and return what its body returned.

        Args:
            timeout: Seconds to wait, from this call; `None` waits as long as it takes. A run that has ended is told
                whatever the timeout.

        Raises:
            RunFailedError: It failed; `__cause__` is the body's error.
            ReturnValueTimeoutError: It was still going; it goes on.
            RunNotFoundError: It was deleted.
        """
        return cast("R", await outcomes.wait_on_loop(lambda: _engine(self.run_id), self.run_id, timeout))

    async def steps(self) -> list[StepInfo]:
        """Return the steps and sleeps of the run, those to come included, in the order of the body."""
        return await _threads.run(lambda: _steps(self.run_id))


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

    def steps(self) -> list[StepInfo]:
        """As `Run.steps`."""
        return _steps(self.run_id)


# -- the core of both forms -------------------------------------------------------------------------


def _refuse_in_body(function: str) -> None:
    """Refuse what a body must not do: it may run again, and would start another run each time."""
    if tracing.current() is not None:
        instead = (
            "Await the workflow itself (`await other(...)`), which makes it a part of this run, or call it in a @step."
            if function.startswith("start")
            else "Call it in a @step and await that."
        )
        raise HookContextError(
            function, f"this is the body of a workflow, which may be run again. {instead}"
        )


def _start(
    workflow: object, args: tuple[Any, ...], kwargs: dict[str, Any], lost: Lost[RunId] | None = None
) -> RunId:
    engine = current().engine
    run_id = start_run(engine, workflow, args, kwargs, lost)
    engine.worker_look.after_start(engine, run_id)
    return run_id


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
