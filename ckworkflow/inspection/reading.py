"""Reading: runs in the database, as `ckworkflow.inspection` shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ckworkflow import codec
from ckworkflow.engine import failures, holding, queues
from ckworkflow.errors import RunNotFoundError
from ckworkflow.inspection.failure import Failure
from ckworkflow.inspection.run import OpenHook, RunDetails, RunSummary, StepDetails
from ckworkflow.model import AWAITS_CHILD, NodeId, NodeKind, NodeStatus, RunStatus, StepInfo, child_id
from ckworkflow.store import hooks, nodes, processes, runs

if TYPE_CHECKING:
    from datetime import datetime

    from ckworkflow.engine.core import Engine
    from ckworkflow.model import RunId
    from ckworkflow.store.hooks import HookRow
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.store.runs import RunRecord
    from ckworkflow.store.transaction import Transaction

__all__ = ["find_run_ids", "read_details", "read_status", "read_steps", "read_summaries"]


def read_status(engine: Engine, run_id: RunId) -> RunStatus:
    """Return the state of a run.

    Raises:
        RunNotFoundError: No run has this id.
    """
    return engine.database.read(lambda tx: _status(tx, run_id))


def read_steps(engine: Engine, run_id: RunId) -> list[StepInfo]:
    """Return the steps and sleeps of a run in its present life, those to come included, in the order of the body.

    Raises:
        RunNotFoundError: No run has this id.
    """

    def read(tx: Transaction) -> list[NodeRow]:
        return nodes.load_life(tx, run_id, runs.read_run(tx, run_id).life).get()

    return [_info(run_id, row) for row in _in_order(engine.database.read(read))]


def read_summaries(
    engine: Engine, *, status: RunStatus | None = None, workflow: str | None = None, limit: int
) -> list[RunSummary]:
    """Return how the newest runs stand, the newest first.

    Args:
        engine: The engine.
        status: Only runs in this state.
        workflow: Only runs of the workflow with this full name.
        limit: How many, at most.
    """

    def read(tx: Transaction) -> tuple[datetime, list[tuple[RunRecord, list[NodeRow], list[HookRow]]]]:
        now = engine.database.now(tx)
        records = runs.list_runs(tx, status=status, workflow=workflow, limit=limit)
        return now, [
            (record, _live_rows(tx, record), _open_hooks(tx, record, now)) for record in records
        ]

    now, found = engine.database.read(read)
    return [_summary(record, live, hooks, now) for record, live, hooks in found]


def read_details(engine: Engine, run_id: RunId, *, queue_of: Callable[[str], str | None]) -> RunDetails:
    """Return all that is known of a run.

    Args:
        engine: The engine.
        run_id: The run.
        queue_of: Tells to which queue a step goes; `None` where it cannot be told.

    Raises:
        RunNotFoundError: No run has this id.
    """

    def read(tx: Transaction) -> _Found:
        now = engine.database.now(tx)
        record = runs.with_parts(tx, runs.read_run(tx, run_id))
        rows = nodes.with_parts(tx, run_id, nodes.load_life(tx, run_id, record.life).get())
        waiting = () if record.status.is_final else _waiting(rows, now)
        unconsumed = queues.unconsumed(engine, tx, waiting, queue_of)
        return _Found(
            record, rows, _open_hooks(tx, record, now), now, processes.has_live_worker(tx, now=now), unconsumed
        )  # fmt: skip

    found = engine.database.read(read)
    record = found.record
    return RunDetails(
        _summary(
            record, [row for row in found.rows if row.status in nodes.LIVE], found.hooks, found.now
        ),
        input=codec.loads(record.input),
        return_value=None if record.output is None else codec.loads(record.output),
        steps=tuple(_details(run_id, row) for row in _in_order(found.rows)),
        is_worker_alive=found.is_worker_alive,
        unconsumed_queues={queue: tuple(steps) for queue, steps in found.unconsumed.items()},
        read_at=found.now,
    )


class _Found(NamedTuple):
    """What `read_details` has found: it is decoded when the transaction has ended."""

    record: RunRecord
    rows: list[NodeRow]
    hooks: list[HookRow]
    now: datetime
    is_worker_alive: bool
    unconsumed: dict[str, list[str]]


def find_run_ids(engine: Engine, beginning: str, *, limit: int) -> list[RunId]:
    """Return the ids of runs that begin with a text, in order, at most `limit` of them."""
    return engine.database.read(lambda tx: runs.find_run_ids(tx, beginning, limit=limit))


def _status(tx: Transaction, run_id: RunId) -> RunStatus:
    status = runs.read_status(tx, run_id)
    if status is None:
        raise RunNotFoundError(run_id)
    return status


def _live_rows(tx: Transaction, record: RunRecord) -> list[NodeRow]:
    if record.status.is_final:
        return []
    return nodes.load_nodes(tx, record.run_id, statuses=nodes.LIVE).get()


def _open_hooks(tx: Transaction, record: RunRecord, now: datetime) -> list[HookRow]:
    return hooks.open_hooks(tx, record.run_id, now=now) if record.has_hooks else []


def _summary(
    record: RunRecord, live: list[NodeRow], open_hooks: list[HookRow], now: datetime
) -> RunSummary:
    """Say how a run stands; `live` are its live nodes."""
    is_final = record.status.is_final
    return RunSummary(
        record.run_id,
        record.workflow,
        record.status,
        sleeping_until=_sleeping_until(live, now) if record.status is RunStatus.RUNNING else None,
        open_hooks=tuple(
            OpenHook(row.node_id, row.name, codec.loads(row.metadata), row.created_at, row.expires_at)
            for row in open_hooks
        ),
        is_idle=not is_final and not any(map(_is_busy, live)),
        held_body=None if is_final else holding.read(record.held),
        held_steps=() if is_final else tuple(holding.held_steps(live)),
        failure=_failure(record.error),
        cancel_requested_at=record.cancel_requested_at,
        cancel_reason=record.cancel_reason,
        terminate_at=record.terminate_at,
        life=record.life,
        wake_at=record.wake_at,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
    )


def _in_order(rows: list[NodeRow]) -> list[NodeRow]:
    """Put what a body has asked of its children behind what its task has done before: it is written before the plan it comes with."""
    plan = [row for row in rows if row.kind is not NodeKind.CANCEL]
    behind = _behind(rows, {row.node_id: at for at, row in enumerate(plan)})
    following: dict[int, list[NodeRow]] = {}
    seen = asked = -1
    for row in rows:
        if row.kind is NodeKind.CANCEL:
            # The first thing of its task comes behind what was asked before, and behind what was planned in time before.
            own = behind[row.node_id]
            asked = max(asked, seen) if own is None else own
            following.setdefault(asked, []).append(row)
        else:
            seen += 1
    found = following.get(-1, [])
    for at, row in enumerate(plan):
        found += [row, *following.get(at, ())]
    return found


def _behind(rows: list[NodeRow], order: dict[NodeId, int]) -> dict[NodeId, int | None]:
    """By request, where the row is that its task has come to last before; in the order of the plan."""
    found: dict[NodeId, int | None] = {}
    last: dict[str, int] = {}
    for row in sorted(rows, key=_place):
        path, _ = _place(row)
        if row.node_id in order:
            last[path] = max(order[row.node_id], last.get(path, -1))
        else:
            found[row.node_id] = last.get(path)
    return found


def _place(row: NodeRow) -> tuple[str, int]:
    path, _, number = row.node_id.rpartition(":")
    return path, int(number)


def _details(run_id: RunId, row: NodeRow) -> StepDetails:
    result = None if row.output is None else codec.loads(row.output)
    return StepDetails(_info(run_id, row), result, _failure(row.error))


def _info(run_id: RunId, row: NodeRow) -> StepInfo:
    return StepInfo(
        row.node_id, row.kind, row.name, row.status, row.attempt, row.due_at, row.started_at,
        row.finished_at, failures.one_line(row.error), row.cancelled_at,
        _child_of(run_id, row) if row.kind is NodeKind.CHILD else None,
    )  # fmt: skip


def _child_of(run_id: RunId, row: NodeRow) -> RunId:
    if not row.args.startswith(AWAITS_CHILD):
        return child_id(run_id, row.node_id)
    args: Any = codec.loads(row.args)
    return child_id(run_id, NodeId(args["child"]))


def _failure(stored: str | None) -> Failure | None:
    return None if stored is None else Failure(stored)


def _sleeping_until(live: Iterable[NodeRow], now: datetime) -> datetime | None:
    """Return when the first of a run's sleeps ends, if it does nothing but sleep."""
    rows = list(live)
    if any(map(_is_busy, rows)):
        return None
    ends = [
        row.due_at
        for row in rows
        if row.kind is NodeKind.SLEEP and row.status is NodeStatus.RUNNING and row.due_at is not None
    ]
    return min((end for end in ends if end > now), default=None)


def _is_busy(row: NodeRow) -> bool:
    """Whether a live node is a step that runs, or could."""
    return row.kind is NodeKind.STEP and (row.status is NodeStatus.RUNNING or not row.unmet)


def _waiting(rows: Iterable[NodeRow], now: datetime) -> list[str]:
    """Return the names of the steps that a worker could run now."""
    return [
        row.name
        for row in rows
        if row.kind is NodeKind.STEP
        and row.status is NodeStatus.PLANNED
        and not row.unmet
        and (row.due_at is None or row.due_at <= now)
    ]
