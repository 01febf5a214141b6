"""Starting runs and asking for them, from a bot command or any other code.

`start` and `Run` are for async code, `start_sync` and `SyncRun` for the rest; both stand on the same
functions. Nothing of it blocks the caller's loop: a small executor of our own does the work, since the
default one may be full of something else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from ckworkflow import codec
from ckworkflow.engine import failures
from ckworkflow.engine.installation import current
from ckworkflow.engine.start import start_run
from ckworkflow.errors import ReturnValueTimeoutError, RunFailedError
from ckworkflow.model import RunId, RunStatus, StepInfo
from ckworkflow.store import nodes, processes, runs

if TYPE_CHECKING:
    from ckworkflow.definition import Workflow
    from ckworkflow.engine.core import Engine
    from ckworkflow.store.runs import RunRecord

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

LOOK_SECONDS = 1.0
"""How often who waits looks itself: whether its caller has gone, and whether a worker is alive."""
NO_WORKER_SECONDS = 5.0

_executor = ThreadPoolExecutor(8, thread_name_prefix="ckworkflow-client")
_waiters = ThreadPoolExecutor(64, thread_name_prefix="ckworkflow-wait")
"""Waiting is apart from starting: 64 long waits must not hold up a start."""


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
        DatabaseUnavailableError: The database cannot be reached; nothing was started.
        SchemaVersionError: The database's schema does not fit this ckworkflow.
    """
    run_id = await _off_loop(_executor, lambda: _start(workflow, args, kwargs))
    return Run(run_id)


def start_sync(workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> SyncRun[R]:
    """Do what `start` does, from sync code; blocks until the run is committed.

    Raises:
        CkWorkflowError: As `start`.
    """
    return SyncRun(_start(workflow, args, kwargs))


async def get_run(run_id: str) -> Run[Any]:
    """Return a run that exists.

    Raises:
        RunNotFoundError: No run has this id.
    """
    await _off_loop(_executor, lambda: _record(RunId(run_id)))
    return Run(RunId(run_id))


def get_run_sync(run_id: str) -> SyncRun[Any]:
    """Do what `get_run` does, from sync code.

    Raises:
        RunNotFoundError: No run has this id.
    """
    _record(RunId(run_id))
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
        return (await _off_loop(_executor, lambda: _record(self.run_id))).status

    async def exists(self) -> bool:
        """Return whether the run is in the database."""
        return await _off_loop(_executor, lambda: _exists(self.run_id))

    async def return_value(self, timeout: float | None = None) -> R:  # noqa: ASYNC109  # its error names the run
        """Wait for the end of the run and return what its body returned.

        Args:
            timeout: Seconds to wait; `None` waits as long as it takes.

        Raises:
            RunFailedError: It failed; `__cause__` is the body's error.
            ReturnValueTimeoutError: It was still going; it goes on.
            RunNotFoundError: It was deleted.
        """
        stop = _Stop()
        try:
            value = await _off_loop(_waiters, lambda: _return_value(self.run_id, timeout, stop))
        finally:
            stop.is_set = True  # a cancelled caller must not leave its thread waiting for days
        return cast("R", value)

    async def steps(self) -> list[StepInfo]:
        """Return the steps and sleeps of the run, those to come included, in the order of the body."""
        return await _off_loop(_executor, lambda: _steps(self.run_id))


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
        return _record(self.run_id).status

    def exists(self) -> bool:
        """As `Run.exists`."""
        return _exists(self.run_id)

    def return_value(self, timeout: float | None = None) -> R:
        """As `Run.return_value`."""
        return cast("R", _return_value(self.run_id, timeout, _Stop()))

    def steps(self) -> list[StepInfo]:
        """As `Run.steps`."""
        return _steps(self.run_id)


# -- the core of both forms -------------------------------------------------------------------------


class _Stop:
    is_set = False


def _start(workflow: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RunId:
    return start_run(current().engine, workflow, args, kwargs)


def _engine() -> Engine:
    engine = current().engine
    engine.ensure_schema()
    return engine


def _record(run_id: RunId) -> RunRecord:
    return _engine().database.read(lambda tx: runs.read_run(tx, run_id))


def _exists(run_id: RunId) -> bool:
    return _engine().database.read(lambda tx: runs.read_status(tx, run_id)) is not None


def _steps(run_id: RunId) -> list[StepInfo]:
    rows = _engine().database.read(
        lambda tx: (runs.read_run(tx, run_id), nodes.load_nodes(tx, run_id))[1]
    )
    return [
        StepInfo(
            row.node_id, row.kind, row.name, row.status, row.attempt, row.due_at, row.started_at,
            row.finished_at, failures.one_line(row.error),
        )
        for row in rows
    ]  # fmt: skip


def _return_value(run_id: RunId, timeout: float | None, stop: _Stop) -> Any:
    engine = _engine()
    began = time.monotonic()
    is_warned = False
    with engine.watch.waiting(run_id) as ended:
        while not stop.is_set:
            looked_at = time.monotonic()
            record = engine.database.read(lambda tx: runs.read_run(tx, run_id))
            if record.status.is_final:
                return _outcome(record)
            now = time.monotonic()
            waited = now - began
            if timeout is not None and waited >= timeout:
                raise ReturnValueTimeoutError(run_id, timeout, is_worker_alive=_is_worker_alive(engine))
            if waited >= NO_WORKER_SECONDS and not is_warned:
                is_warned = True
                if not _is_worker_alive(engine):
                    logger.warning(
                        "run %s waits: no worker is alive. Run `celery -A ckworkflow worker`, or load the bot "
                        "extension.",
                        run_id,
                    )
            looks_in = [engine.watch.next_look(waited, now - looked_at) or LOOK_SECONDS]
            if timeout is not None:
                looks_in.append(timeout - waited)
            if not is_warned:
                looks_in.append(NO_WORKER_SECONDS - waited)
            if ended.wait(max(min(looks_in), 0)):
                ended.clear()
    return None


def _outcome(record: RunRecord) -> Any:
    if record.status is RunStatus.COMPLETED:
        return codec.decode(codec.loads(record.output or "null"))
    error = RunFailedError(
        record.run_id, record.workflow, failures.one_line(record.error) or "cancelled"
    )
    raise error from (failures.loads(record.error) if record.error else None)


def _is_worker_alive(engine: Engine) -> bool:
    return engine.database.read(lambda tx: processes.has_live_worker(tx, now=engine.database.now(tx)))


async def _off_loop(executor: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    context = copy_context()
    return await asyncio.get_running_loop().run_in_executor(executor, lambda: context.run(call))
