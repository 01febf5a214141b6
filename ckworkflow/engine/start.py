"""Starting a run: trace, one transaction, publish."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.definition import Workflow, check_main, registry
from ckworkflow.engine import budget, failures
from ckworkflow.engine.answer import Answer, carry_out
from ckworkflow.engine.bodies import Body
from ckworkflow.engine.children import leave_notes, new_run, write_children
from ckworkflow.engine.core import NEXT_LIFE
from ckworkflow.engine.hooks import write_hooks
from ckworkflow.engine.resolve import has_references
from ckworkflow.errors import (
    BodyStuckError,
    BodyTimeoutError,
    MainModuleError,
    NotAWorkflowError,
    RunExistsError,
)
from ckworkflow.model import Ending, NodeKind, RunId, RunStatus
from ckworkflow.plan import build_plan
from ckworkflow.store import hooks, plans, runs
from ckworkflow.store.transaction import Transaction
from ckworkflow.tracing import ReplayNeededError, Trace, Tracer

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from ckworkflow.background import Lost
    from ckworkflow.engine.core import Engine

logger = logging.getLogger(__name__)


def start_run(
    engine: Engine, workflow: object, args: tuple[Any, ...], kwargs: Mapping[str, Any],
    lost: Lost[RunId] | None = None, *, run_id: RunId | None = None,
) -> RunId:  # fmt: skip
    """Commit a new run and publish its first steps.

    Args:
        engine: The engine.
        workflow: What `@workflow` made.
        args: Its arguments.
        kwargs: As `args`.
        lost: Where this thread may be lost to the body: told if it is, and the run is started by what is done in its place
            (`Budget.run_here`).
        run_id: Its id; a run that has it already is the one that was to be started. `None`: a new one.

    Raises:
        NotAWorkflowError: `workflow` is none.
        MainModuleError: It, or one of its first steps, lives in `__main__`.
        TypeError: The arguments do not fit its signature.
        UnserializableValueError: An argument cannot be stored.
        DatabaseUnavailableError: Nothing was started.
        SchemaVersionError: This code may not use the database.
    """
    tree = encode_input(workflow, args, kwargs)
    assert isinstance(workflow, Workflow)
    engine.ensure_schema()
    run_id = run_id or RunId(uuid.uuid4().hex)
    started_at = engine.database.about_now()

    def body() -> Tracer:
        return Tracer(run_id, make_body(workflow, tree), workflow=workflow.name, started_at=started_at)

    beginning = _Beginning(run_id, workflow, tree, body(), started_at)
    try:
        trace = _first_trace(engine, beginning, lost)
    except ReplayNeededError as error:  # a task of the body cancels the body, which has run ahead of it
        beginning.tracer.close()
        beginning = replace(beginning, tracer=body(), strict=error.strict)
        trace = _first_trace(engine, beginning, lost)
    return _commit_run(engine, beginning, trace)


def encode_input(workflow: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments of a run that is to be started, and return them encoded.

    Raises:
        NotAWorkflowError: `workflow` is none.
        MainModuleError: It lives in `__main__`.
        TypeError: The arguments do not fit its signature.
        UnserializableValueError: An argument cannot be stored.
    """
    if not isinstance(workflow, Workflow):
        raise NotAWorkflowError(workflow)
    check_main(workflow)
    workflow.bind(args, dict(kwargs))
    return {
        "args": [codec.encode(arg, path=f"args[{index}]") for index, arg in enumerate(args)],
        "kwargs": codec.encode(dict(kwargs), path="kwargs"),
    }


@dataclass(frozen=True, slots=True)
class _Beginning:
    """A run that is not in the database yet.

    Attributes:
        run_id: Its id.
        workflow: Its workflow.
        tree: Its arguments, encoded.
        tracer: Its body.
        started_at: When it was started.
        strict: So many events are to be told strictly; 1: the body does not run ahead before it is told anything.
    """

    run_id: RunId
    workflow: Workflow[Any, Any]
    tree: Any
    tracer: Tracer
    started_at: datetime
    strict: int = 0


def _commit_run(engine: Engine, beginning: _Beginning, trace: Trace | Exception | None) -> RunId:
    run_id, workflow, tracer = beginning.run_id, beginning.workflow, beginning.tracer
    host = engine.host
    choose = choose_plain(host.may_run if host.runs_steps else None)
    try:
        answer = _write(engine, beginning, trace, choose)
    except hooks.TokenTakenError:  # its first continuation tells the body
        tracer.close()
        return _commit_run(engine, beginning, None)
    except BaseException as error:
        tracer.close()
        if isinstance(error, Exception) and runs.was_inserted(error, engine.database, run_id):
            _check_same(engine, beginning)
            engine.wake_at(engine.database.about_now())
            _log_start(run_id, workflow.name)
            return run_id
        raise
    _log_start(run_id, workflow.name)
    if answer.has_ended:
        tracer.close()
    carry_out(engine, run_id, answer)
    here = answer.decoded(engine, run_id, workflow.name).here
    if here is not None:
        host.run(here)
    return run_id


def _check_same(engine: Engine, beginning: _Beginning) -> None:
    """Check that a run which is there already is the one that was to be started.

    Raises:
        RunExistsError: It is another one.
    """
    found = engine.database.read(lambda tx: runs.with_parts(tx, runs.read_run(tx, beginning.run_id)))
    # As texts: to Python, `True` and `1` are equal.
    if (found.workflow, codec.dumps(codec.loads(found.input))) != (
        beginning.workflow.name,
        codec.dumps(beginning.tree),
    ):
        raise RunExistsError(beginning.run_id, found.workflow)


def _write(
    engine: Engine, beginning: _Beginning, trace: Trace | Exception | None, choose: plans.Choose | None
) -> Answer:
    work = lambda tx: _commit(engine, tx, beginning, trace, choose)  # noqa: E731
    if isinstance(trace, Trace) and trace.hooks.changes:  # written alone: hooks are rows that runs share
        return engine.database.transact(work)
    return engine.database.transact_run(beginning.run_id, work)


def _first_trace(
    engine: Engine, beginning: _Beginning, lost: Lost[RunId] | None
) -> Trace | Exception | None:
    """Run a body to its first wait; return what it raised, or `None` if it takes longer than a caller should wait, or there is no thread for it.

    Raises:
        MainModuleError: It calls a step that no worker would find. The body is closed.
        LostThreadError: It took this thread; `lost` is told.
        ReplayNeededError: It has to be run once more, strictly.
    """
    run_id, tracer, name = beginning.run_id, beginning.tracer, beginning.workflow.name
    resume = partial(tracer.resume, strict=beginning.strict)
    try:
        if lost is None:
            trace = engine.budget.run(tracer, name, resume, budget.START)
        else:
            rest = partial(_commit_untraced, engine, beginning)
            trace = engine.budget.run_here(tracer, name, resume, partial(lost, rest), budget.START)
    except ReplayNeededError:
        raise
    except BodyTimeoutError as error:
        logger.warning("run %s: %s A worker tries it again.", run_id, error, extra={"run_id": run_id})
        return None
    except budget.BodyStoppedError:
        logger.warning(
            "run %s: the system gives this process no thread for its body. A worker begins it.", run_id,
            extra={"run_id": run_id},
        )  # fmt: skip
        tracer.close()
        return None
    except Exception as error:  # noqa: BLE001  # whatever a body raises is a failed run, not a failed start
        return error
    if trace.begins_life:
        tracer.close()
        return idle_life()
    try:
        for step in {node.name for node in trace.nodes if node.kind is NodeKind.STEP}:
            check_main(registry.require_step(step))
    except MainModuleError:
        tracer.close()
        raise
    return trace


def _commit_untraced(engine: Engine, beginning: _Beginning) -> RunId:
    run_id = beginning.run_id
    logger.warning(
        "run %s: its body did not come back. A worker tries it again.", run_id, extra={"run_id": run_id}
    )
    return _commit_run(engine, beginning, None)


def _log_start(run_id: RunId, workflow: str) -> None:
    logger.info("run %s (%s) started", run_id, workflow, extra={"run_id": run_id, "workflow": workflow})


def make_body(workflow: Workflow[Any, Any], tree: Any) -> Callable[[], Any]:
    """Return what makes the coroutine of a run's body, with arguments decoded anew."""

    def body() -> Any:
        args, kwargs = [codec.decode(arg) for arg in tree["args"]], codec.decode(tree["kwargs"])
        try:
            return workflow.body.function(*args, **kwargs)
        except TypeError:  # no line of it has run: a call of an `async def` only makes its coroutine
            workflow.check_stored(args, kwargs)
            raise

    return body


def idle_life() -> BodyStuckError:
    """The error of a life of a run that ends for the next one, and has had no event."""
    return BodyStuckError("begins its next life again and again, and waits for nothing in between")


def choose_plain(may_run: Callable[[str], bool] | None) -> plans.Choose | None:
    """Choose steps whose arguments are at hand; references to results are resolved by a claim."""
    if may_run is None:
        return None
    return lambda name, args: not has_references(args) and may_run(name)


def end_text(trace: Trace) -> str | None:
    """Return how a body ended, as the run keeps it; `None` while it has not."""
    if trace.end is None:
        return None
    if trace.end.error is not None:
        how = "cancelled" if isinstance(trace.end.error, asyncio.CancelledError) else "error"
        return codec.pack({how: failures.to_data(trace.end.error)})
    if trace.ends_life:
        return codec.dumps({NEXT_LIFE: True})
    return codec.pack({"result": trace.end.result})


def _commit(
    engine: Engine, tx: Transaction, beginning: _Beginning, trace: Trace | Exception | None,
    choose: plans.Choose | None,
) -> Answer:  # fmt: skip
    """Write the run."""
    run_id, workflow = beginning.run_id, beginning.workflow
    now = engine.database.about_now()
    wake_at = now + engine.settings.redispatch_after
    run = new_run(run_id, workflow.name, now)._replace(
        source_hash=workflow.source_hash, created_at=beginning.started_at, wake_at=wake_at
    )
    input_ = codec.pack(beginning.tree)
    if isinstance(trace, Exception):
        runs.insert_run(tx, run, input_=input_, wake_at=wake_at)
        engine.finish(tx, run, Ending(RunStatus.FAILED, error=failures.dumps(trace)))
        return Answer(has_ended=True)
    if trace is None:
        # Nothing is known of it yet: the first continuation begins the body.
        runs.insert_run(tx, run, input_=input_, wake_at=now, signals=1)
        engine.wake_at(now)
        return Answer()
    end = end_text(trace)
    values: dict[str, Any] = {}
    if end is not None and trace.end is not None and not trace.end.after:
        runs.insert_run(tx, run, input_=input_, wake_at=wake_at, started_at=now)
        run = write_hooks(tx, run, trace, values, told=0)
        children = write_children(tx, run, trace, told=0)
        if leave_notes(tx, run, trace, told=0, orphans=()):
            run = run._replace(has_notes=True)
            runs.update_run(tx, run_id, has_notes=True)
        if values:
            runs.update_run(tx, run_id, **values)
        engine.end_run(tx, run, end)
        return Answer(has_ended=True, children=children)
    plan = build_plan(trace)
    runs.insert_run(tx, run, input_=input_, wake_at=wake_at, plan=end)
    run = write_hooks(tx, run, trace, values, told=0)
    followup = plans.apply_plan(
        tx, run, plan, trace.nodes, epoch=1, told_at=run.body_time, is_new=True, old_joins=[],
        owner=engine.owner, choose=choose,
    )  # fmt: skip
    children = write_children(tx, run, trace, told=0, planned=plan.nodes)
    if leave_notes(tx, run, trace, told=0, orphans=()):
        values["has_notes"] = True
        engine.owes_notes(run_id)
    pieces, carried = engine.cut(tx, run, followup, plan.of_generation(1))
    has_news = followup.wakes_body or followup.ends_run
    if beginning.strict:
        values["last_surprise"] = beginning.strict  # each replay begins so
    if not followup.ready:
        values.update(status=RunStatus.RUNNING, started_at=now)  # it sleeps, or its first step has begun
    if has_news:
        values.update(signals=1)
    run = run._replace(wake_at=None) if values or followup.asleep else run
    wake_at = engine.schedule(
        tx, run, followup, carried, is_all=True, has_children=bool(children), **values
    )
    if has_news:
        # Sleeps that have ended already. Workers run bodies on: the caller of start is not to wait for it.
        wake_at = now
        runs.update_run(tx, run_id, wake_at=wake_at)
    values["wake_at"] = wake_at
    body = Body(
        beginning.tracer, 1, int(has_news), 0, run.body_time, set(plan.nodes) - followup.timers.keys(),
        followup.timers, followup.join_rows, runs.with_values(run, values),
    )  # fmt: skip
    engine.wake_at(wake_at)
    return Answer(pieces, taken=followup.begun, body=body, children=children)
