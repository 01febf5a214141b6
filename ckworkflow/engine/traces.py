"""Traces: writing what a body came to, and reading what a replay must meet.

Not here: when a body goes on (`ckworkflow.engine.advance`), and its next life (`ckworkflow.engine.lives`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Container, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.engine import failures
from ckworkflow.engine.answer import Answer
from ckworkflow.engine.bodies import Body
from ckworkflow.engine.children import leave_notes, write_children
from ckworkflow.engine.hooks import write_hooks
from ckworkflow.engine.start import end_text
from ckworkflow.model import NodeId, NodeKind, NodeStatus
from ckworkflow.plan import build_plan
from ckworkflow.store import large, plans, runs
from ckworkflow.tracing import Known

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.store.records import JoinRows
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction
    from ckworkflow.tracing import Trace, Tracer

__all__ = ["known_here", "known_nodes", "write_trace"]

logger = logging.getLogger(__name__)


def known_nodes(rows: Iterable[NodeRow]) -> dict[NodeId, Known]:
    """What a replay must meet again, of the nodes that the database has."""
    return {
        row.node_id: Known(
            row.kind,
            row.name,
            codec.loads(row.args),
            row.delivered is not None,
            row.cancelled_at is not None and row.status is not NodeStatus.ABANDONED,
            failures.loads(row.error) if row.kind is NodeKind.HOOK and row.error is not None else None,
        )
        for row in rows
        if row.status is not NodeStatus.PLANNED or row.attempt
    }


def known_here(trace: Trace) -> Trace:
    """Return the trace of a body that found everything it imports.

    Raises:
        ImportError: It has ended because this worker lacks a package or module.
    """
    if trace.end is not None and isinstance(trace.end.error, ImportError):
        raise trace.end.error
    return trace


def write_trace(
    engine: Engine, tx: Transaction, run: RunRow, tracer: Tracer, trace: Trace, *, seen: int,
    values: dict[str, Any], is_new: bool = False, choose: plans.Choose | None = None,
    old_joins: JoinRows | None = None, timers: Mapping[NodeId, datetime] | None = None,
    running: Container[NodeId] | None = None, orphans: Collection[NodeId] = (),
) -> Answer:  # fmt: skip
    """Write what a body came to: its plan, or the end of its run.

    Args:
        engine: The engine.
        tx: A transaction that has locked the run.
        run: The run.
        tracer: The body.
        trace: What it came to.
        seen: The run's `signals` when its news was read.
        values: Columns of the run to write with it.
        is_new: Whether the run has no nodes but those whose results the body has got.
        choose: Asked about new steps that may begin; the first that it accepts is claimed for this process.
        old_joins: The joins that the run has, where that is known.
        timers: With `is_new`, its timers.
        running: The steps that ran when its news was read.
        orphans: The children that are to be cancelled with it.
    """
    end = end_text(trace)
    if end is not None:
        values["plan"] = end
        large.keep(tx, run.run_id, [end], life=run.life)
    delivered, told_at = values.get("delivered", run.delivered), values.get("told_at", run.body_time)
    _watch_history(engine, run, delivered)
    run = _write_beside(engine, tx, run, trace, values, told=delivered, orphans=orphans)
    is_over = trace.end is not None and not trace.end.after
    if is_over:
        if running is not None and trace.let_go:
            plans.refuse_begun(tx, run, trace.let_go, running)
        runs.update_run(tx, run.run_id, **values)
        if engine.end_run(tx, run, end):
            return Answer(has_ended=True, children=write_children(tx, run, trace, told=delivered))
    plan = build_plan(trace)
    followup = plans.apply_plan(
        tx, run, plan, trace.nodes, epoch=run.epoch, told_at=told_at, told=delivered, is_new=is_new, choose=choose,
        owner=engine.owner, old_joins=old_joins, let_go=trace.let_go, stopping=trace.stopping,
        running=running, timers=timers or {},
    )  # fmt: skip
    children = write_children(tx, run, trace, told=delivered, planned=plan.nodes)
    if followup.ends_run:
        runs.update_run(tx, run.run_id, **values)
        if engine.end_run(tx, run, end):
            return Answer(has_ended=True, children=children)
        followup.wakes_body = True
    followup.wakes_body |= is_over  # only the body can work out its result
    pieces, carried = engine.cut(tx, run, followup, plan.of_generation(run.epoch) if is_new else None)
    is_released = run.signals == seen and not followup.wakes_body
    signals = run.signals + int(followup.wakes_body)
    if followup.wakes_body:
        values["signals"] = signals
    wake_at = engine.schedule(
        tx, run, followup, carried, is_all=is_new, has_children=bool(children), **values
    )
    if followup.is_overdue:
        wake_at = run.now  # the clock ends it, which it did not while the body was told
        runs.update_run(tx, run.run_id, wake_at=wake_at)
    engine.wake_at(wake_at)
    body = Body(tracer, run.epoch, signals, delivered, told_at, set())
    if is_released and (followup.is_all or is_new) and not trace.stopping:
        body.waits_for, body.joins = set(plan.nodes) - followup.timers.keys(), followup.join_rows
        body.timers = followup.timers
        body.run = runs.with_values(run, {**values, "wake_at": wake_at})
    return Answer(
        pieces, must_advance=not is_released, taken=followup.begun, body=body, stops=bool(followup.stops),
        children=children,
    )  # fmt: skip


def _write_beside(
    engine: Engine, tx: Transaction, run: RunRow, trace: Trace, values: dict[str, Any], *, told: int,
    orphans: Collection[NodeId],
) -> RunRow:  # fmt: skip
    """Write what a body came to beside its plan, to its hooks and to its children; return the run with it."""
    run = write_hooks(tx, run, trace, values, told=told)
    if not leave_notes(tx, run, trace, told=told, orphans=orphans):
        return run
    values["has_notes"] = True
    engine.owes_notes(run.run_id)
    return run._replace(has_notes=True)


def _watch_history(engine: Engine, run: RunRow, delivered: int) -> None:
    """Say once of each life that it has had many events."""
    most = engine.settings.history_warning
    if run.delivered < most <= delivered:
        logger.warning(
            "run %s (%s) has had %d events, and each replay tells its body all of them; with more than %d it fails. Let the body return "
            "continue_as_new(...) now and then: the run goes on, and its history begins anew",
            run.run_id, run.workflow, delivered, engine.settings.history_limit, extra={"run_id": run.run_id},
        )  # fmt: skip
