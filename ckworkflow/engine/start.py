"""Starting a run: trace, one transaction, publish."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.definition import Workflow, check_main
from ckworkflow.engine import failures
from ckworkflow.errors import NotAWorkflowError
from ckworkflow.model import RunId, RunStatus
from ckworkflow.plan import build_plan
from ckworkflow.store import plans, runs
from ckworkflow.store.database import Transaction
from ckworkflow.tracing import Tracer

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ckworkflow.engine.core import Engine
    from ckworkflow.plan import Piece
    from ckworkflow.tracing import Trace

logger = logging.getLogger(__name__)


def start_run(
    engine: Engine, workflow: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> RunId:
    """Commit a new run and publish its first steps.

    Raises:
        NotAWorkflowError: `workflow` is none.
        MainModuleError: It lives in `__main__`.
        TypeError: The arguments do not fit its signature.
        UnserializableValueError: An argument cannot be stored.
        DatabaseUnavailableError: Nothing was started.
        SchemaVersionError: This code may not use the database.
    """
    if not isinstance(workflow, Workflow):
        raise NotAWorkflowError(workflow)
    check_main(workflow)
    workflow.bind(args, dict(kwargs))
    tree: dict[str, Any] = {
        "args": [codec.encode(arg, path=f"args[{index}]") for index, arg in enumerate(args)],
        "kwargs": codec.encode(dict(kwargs), path="kwargs"),
    }
    engine.ensure_schema()
    run_id = RunId(uuid.uuid4().hex)
    started_at = engine.database.read(engine.database.now)
    tracer = Tracer(run_id, make_body(workflow, tree), started_at=started_at)
    try:
        trace: Trace | BaseException = tracer.resume()
    except Exception as error:  # noqa: BLE001  # whatever a body raises is a failed run, not a failed start
        trace = error
    try:
        pieces, wake_at = engine.database.transact(
            lambda tx: _commit(engine, tx, run_id, workflow, tree, trace, started_at)
        )
    except BaseException:
        tracer.close()
        raise
    if wake_at is None:
        tracer.close()
        engine.notify()
    else:
        engine.bodies.keep(run_id, 1, tracer)
        engine.wake_at(wake_at)
    logger.info("run started", extra={"run_id": run_id, "workflow": workflow.name})
    engine.publish(run_id, pieces)
    return run_id


def make_body(workflow: Workflow[Any, Any], tree: Any) -> Callable[[], Any]:
    """Return what makes the coroutine of a run's body, with arguments decoded anew."""

    def body() -> Any:
        args = [codec.decode(arg) for arg in tree["args"]]
        return workflow.body.function(*args, **codec.decode(tree["kwargs"]))

    return body


def end_text(trace: Trace) -> str | None:
    """Return how a body ended, as the run keeps it; `None` while it has not."""
    if trace.end is None:
        return None
    if trace.end.error is not None:
        return codec.dumps({"error": failures.to_data(trace.end.error)})
    return codec.dumps({"result": trace.end.result})


def _commit(
    engine: Engine, tx: Transaction, run_id: RunId, workflow: Workflow[Any, Any], tree: Any,
    trace: Trace | BaseException, started_at: datetime,
) -> tuple[list[Piece], datetime | None]:  # fmt: skip
    """Write the run; return what to publish, and when to look at it again (never: it has ended)."""
    runs.insert_run(
        tx, run_id, workflow=workflow.name, source_hash=workflow.source_hash, input_=codec.dumps(tree),
        now=started_at, wake_at=started_at + engine.settings.redispatch_after,
    )  # fmt: skip
    run = runs.lock_run(tx, run_id, engine.database)
    if isinstance(trace, BaseException):
        engine.finish(tx, run, output=None, error=failures.dumps(trace))
        return [], None
    end = end_text(trace)
    if end is not None and trace.end is not None and not trace.end.after:
        runs.update_run(tx, run_id, started_at=run.now)
        engine.end_run(tx, run, end)
        return [], None
    followup = plans.apply_plan(tx, run, build_plan(trace), trace.nodes, epoch=1)
    pieces, carried = engine.cut(tx, run, followup)
    has_news = followup.wakes_body or followup.ends_run
    values: dict[str, Any] = {"plan": end, "epoch": 1, "signals": int(has_news)}
    if not followup.ready:
        values.update(status=RunStatus.RUNNING, started_at=run.now)  # it sleeps: that is running
    wake_at = engine.schedule(tx, run, followup, carried, **values)
    if has_news:
        # Sleeps that have ended already. Workers run bodies on: the caller of start is not to wait for it.
        wake_at = run.now
        runs.update_run(tx, run_id, wake_at=wake_at)
    return pieces, wake_at
