"""Replays: the body of a run that has ended is told its stored history again, from the first line."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ckworkflow import client, codec
from ckworkflow.engine import advance as advancing
from ckworkflow.engine import failures
from ckworkflow.engine.events import News, in_order, outcome_of
from ckworkflow.engine.resolve import resolve_tree
from ckworkflow.errors import CkWorkflowError
from ckworkflow.model import NodeStatus, RunId
from ckworkflow.store import events, nodes, runs

if TYPE_CHECKING:
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction


def replayed_end(run_id: str) -> dict[str, Any]:
    """How the run ends now: its status, and what it returns or the line that says what it raised.

    A record that ended the run was told to no body: this one is told it last.
    """
    engine, run_id = client._engine(RunId(run_id)), RunId(run_id)

    def read(tx: Transaction) -> tuple[RunRow, list[NodeRow]]:
        run = runs.lock_run(tx, run_id, engine.database).get()
        rows = nodes.load_life(tx, run_id, run.life).get()
        untold = [row for row in rows if row.status is NodeStatus.COMPLETED and row.delivered is None]
        return run, in_order(untold, *events.load_begun(tx, run_id))

    run, untold = engine.database.transact(read)
    assert run.status.is_final
    news = [] if run.status == "cancelled" else [outcome_of(row, run.body_time) for row in untold]
    snapshot = advancing._Snapshot(
        epoch=run.epoch, news=News(untold, len(news), run.body_time, run.signals, False, {}),
        workflow=run.workflow, source_hash=run.source_hash, created_at=run.created_at,
        cancel_delivered=run.cancel_delivered, life=run.life, delivered=run.delivered,
        last_surprise=run.last_surprise or 0, spins=0, has_hooks=run.has_hooks, held=None,
    )  # fmt: skip
    try:
        told = advancing._replay(engine, run_id, snapshot, news, len(news), 0)
    except CkWorkflowError as error:
        return {"status": "not replayed", "says": str(error)}
    try:
        end = told.trace.end
        if end is None:
            return {"status": "running", "says": None}
        if end.error is not None:
            is_cancelled = isinstance(end.error, asyncio.CancelledError)
            says = failures.one_line(failures.dumps(end.error))
            return {"status": "cancelled" if is_cancelled else "failed", "says": says}
        tree = engine.database.read(lambda tx: resolve_tree(tx, run_id, end.result))
        return {"status": "completed", "says": codec.dumps(tree)}
    finally:
        told.tracer.close()
