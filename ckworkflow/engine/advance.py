"""Continuations: replay, trace on, commit, publish - in place, without a message.

At most one process advances a run: it holds the run's lease, and its epoch fences the commit. Whoever
records something that the body may wait for raises `signals`; the lease is given back only if `signals`
is still what was seen when the outcomes were read. So no wake-up is lost, and nobody need wait.

Crash windows: before the commit nothing has happened but a lease, which the clock takes back when its
owner is gone; after it, what was not published the clock publishes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.definition import registry
from ckworkflow.engine import failures
from ckworkflow.engine.start import end_text, make_body
from ckworkflow.errors import (
    BodyAwaitError,
    ReplayDivergenceError,
    UnreadableValueError,
    WorkflowNotRegisteredError,
)
from ckworkflow.model import NodeStatus, RunId, RunStatus
from ckworkflow.plan import build_plan
from ckworkflow.store import nodes, plans, runs
from ckworkflow.store.database import Transaction
from ckworkflow.tracing import Known, Outcome, ReplayNeededError, Tracer

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.plan import Piece
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.tracing import Trace

logger = logging.getLogger(__name__)

STRANGER_DELAY = timedelta(seconds=10)
"""How long a run waits for another worker when this one does not know its workflow."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What a continuation works from, read in one transaction that took the lease."""

    epoch: int
    signals: int
    at: datetime
    workflow: str
    source_hash: str
    created_at: datetime
    news: list[NodeRow]


@dataclass(frozen=True, slots=True)
class _Committed:
    pieces: Sequence[Piece]
    is_released: bool
    is_final: bool


def advance(engine: Engine, run_id: RunId) -> None:
    """Tell the body of a run what is new, as long as something is; do nothing if another process does."""
    while True:
        snapshot = engine.database.transact(lambda tx: _begin(engine, tx, run_id))
        if snapshot is None:
            return
        if _continue(engine, run_id, snapshot):
            return


def _continue(engine: Engine, run_id: RunId, snapshot: _Snapshot) -> bool:
    """Make one continuation; `False` when there is more to look at."""
    tracer: Tracer | None = None
    try:
        tracer, trace = _trace(engine, run_id, snapshot)
    except (UnreadableValueError, WorkflowNotRegisteredError):
        # Not the run's fault: a worker of another deploy may know the workflow, and the classes of its values.
        logger.exception("run cannot go on in this worker", extra={"run_id": run_id})
        wait = STRANGER_DELAY
        engine.database.transact(lambda tx: _release(engine, tx, run_id, snapshot, wait=wait))
        return True
    except (ReplayDivergenceError, BodyAwaitError) as error:
        text = failures.dumps(error)
        engine.database.transact(lambda tx: _fail(engine, tx, run_id, snapshot, text))
        engine.notify()
        return True
    try:
        committed = engine.database.transact(lambda tx: _commit(engine, tx, run_id, snapshot, trace))
    except plans.StalePlanError:
        tracer.close()
        engine.database.transact(lambda tx: _release(engine, tx, run_id, snapshot))
        return False
    except BaseException:
        tracer.close()
        raise
    if committed is None:  # another process has taken the lease: it goes on from SQL
        tracer.close()
        return True
    if committed.is_final:
        tracer.close()
        engine.notify()
        return True
    engine.bodies.keep(run_id, snapshot.epoch, tracer)
    engine.publish(run_id, committed.pieces)
    return committed.is_released


def _begin(engine: Engine, tx: Transaction, run_id: RunId) -> _Snapshot | None:
    run = runs.lock_run(tx, run_id, engine.database)
    if run.status.is_final or run.signals == run.seen:
        return None
    epoch = runs.acquire_lease(tx, run, owner=engine.owner, ttl=engine.settings.lease)
    if epoch is None:
        return None
    news = nodes.load_news(tx, run_id)
    return _Snapshot(epoch, run.signals, run.now, run.workflow, run.source_hash, run.created_at, news)


def _trace(engine: Engine, run_id: RunId, snapshot: _Snapshot) -> tuple[Tracer, Trace]:
    news = [_outcome(row, snapshot.at) for row in snapshot.news]
    kept = engine.bodies.take(run_id, snapshot.epoch - 1)
    if kept is not None:
        try:
            return kept, kept.resume(news)
        except ReplayNeededError:
            kept.close()
        except BaseException:
            kept.close()
            raise
    return _replay(engine, run_id, snapshot, news)


def _replay(
    engine: Engine, run_id: RunId, snapshot: _Snapshot, news: list[Outcome]
) -> tuple[Tracer, Trace]:
    workflow = registry.require_workflow(snapshot.workflow)
    rows, tree = engine.database.read(
        lambda tx: (nodes.load_nodes(tx, run_id), codec.loads(runs.read_input(tx, run_id)))
    )
    delivered = sorted(
        (row for row in rows if row.delivered is not None), key=lambda row: row.delivered or 0
    )
    history = [_outcome(row, row.delivered_at or snapshot.at) for row in delivered]
    known = {
        row.node_id: Known(row.kind, row.name, codec.loads(row.args), row.delivered is not None)
        for row in rows
        if row.status is not NodeStatus.PLANNED or row.attempt
    }
    tracer = Tracer(
        run_id,
        make_body(workflow, tree),
        started_at=snapshot.created_at,
        known=known,
        is_same_source=workflow.source_hash == snapshot.source_hash,
    )
    try:
        return tracer, tracer.resume([*history, *news])
    except BaseException:
        tracer.close()
        raise


def _outcome(row: NodeRow, at: datetime) -> Outcome:
    if row.status is NodeStatus.COMPLETED:
        return Outcome(row.node_id, codec.loads(row.output or "null"), None, at)
    return Outcome(row.node_id, None, failures.loads(row.error or '"unknown"'), at)


def _commit(
    engine: Engine, tx: Transaction, run_id: RunId, snapshot: _Snapshot, trace: Trace
) -> _Committed | None:
    run = runs.lock_run(tx, run_id, engine.database)
    if run.status.is_final or run.epoch != snapshot.epoch:
        return None
    number = nodes.deliver(tx, run, snapshot.news, at=snapshot.at)
    values: dict[str, Any] = {
        "delivered": number,
        "seen": snapshot.signals,
        "status": RunStatus.RUNNING,
        "started_at": run.started_at or run.now,
    }
    end = end_text(trace)
    if end is not None:
        values["plan"] = end
    if end is not None and trace.end is not None and not trace.end.after:
        runs.update_run(tx, run_id, **values)
        if engine.end_run(tx, run, end):
            return _Committed((), is_released=True, is_final=True)
    followup = plans.apply_plan(tx, run, build_plan(trace), trace.nodes, epoch=snapshot.epoch)
    if followup.ends_run:
        runs.update_run(tx, run_id, **values)
        if engine.end_run(tx, run, end):
            return _Committed((), is_released=True, is_final=True)
        followup.wakes_body = True
    pieces, carried = engine.cut(tx, run, followup)
    is_released = run.signals == snapshot.signals and not followup.wakes_body
    if followup.wakes_body:
        values["signals"] = run.signals + 1
    # Also when there is more to look at: the next round takes the lease again, or someone else does.
    values.update(lease_owner=None, lease_until=None)
    engine.wake_at(engine.schedule(tx, run, followup, carried, **values))
    return _Committed(pieces, is_released=is_released, is_final=False)


def _release(
    engine: Engine, tx: Transaction, run_id: RunId, snapshot: _Snapshot, *, wait: timedelta | None = None
) -> None:
    run = runs.lock_run(tx, run_id, engine.database)
    if run.epoch == snapshot.epoch and not run.status.is_final:
        runs.update_run(
            tx, run_id, lease_owner=None, lease_until=None,
            wake_at=run.now + (wait or engine.settings.redispatch_after),
        )  # fmt: skip


def _fail(engine: Engine, tx: Transaction, run_id: RunId, snapshot: _Snapshot, error: str) -> None:
    run = runs.lock_run(tx, run_id, engine.database)
    if run.epoch == snapshot.epoch and not run.status.is_final:
        nodes.deliver(tx, run, snapshot.news, at=snapshot.at)
        engine.finish(tx, run, output=None, error=error)
