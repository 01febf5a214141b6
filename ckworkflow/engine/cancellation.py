"""Cancellation: a run is asked to end, or ended.

A request is one transaction. It puts all that is planned out of reach, retries too: **from its commit on, no step begins that was
planned before it.** The body is told like of any other event: its task is cancelled at the await at which it really stands, and
what it still waits for then (its clean-up, other tasks) is planned anew. A step that runs is told to stop by the commit of that
continuation. What comes out of the body decides how the run ends.

To terminate a run ends it without its body, and without waiting for anything.

Crash windows: before the commit of a request nothing has happened; after it the run's `wake_at` has come, and a clock has the body go on.
A step that its process could not be told of is found by that process itself (`told_to_stop`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ckworkflow.definition import registry
from ckworkflow.definition.options import OnCancel
from ckworkflow.engine import failures
from ckworkflow.engine.advance import go_on_here
from ckworkflow.engine.answer import Answer
from ckworkflow.engine.called import with_options_of
from ckworkflow.engine.children import leave_to_children
from ckworkflow.errors import RunNotFoundError, RunTerminatedError
from ckworkflow.model import Ending, NodeId, RunId, RunStatus
from ckworkflow.store import events, hooks, nodes, runs

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction

__all__ = ["cancel", "cancel_all", "end_now", "told_to_stop"]

logger = logging.getLogger(__name__)

TOGETHER = 100
"""Runs whose ids are read at once."""


def cancel(engine: Engine, run_id: RunId, *, reason: str | None, grace: timedelta | None) -> bool:
    """Ask a run to end; return whether it had not ended.

    Args:
        engine: The engine.
        run_id: The run.
        reason: Why; of a run that was asked before, the first reason stays.
        grace: When it is terminated, from now; never later than an earlier request has it. `None`: it has all the time that it needs.

    Raises:
        RunNotFoundError: No run has this id.
        RefusedValueError: The database refuses the reason.
        DatabaseUnavailableError: The database cannot be reached; nobody knows whether the run was asked.
    """

    def work(tx: Transaction) -> tuple[Answer, str] | None:
        run = runs.lock_run(tx, run_id, engine.database).get()
        if run.status.is_final:
            return None
        return _request(engine, tx, run, reason, grace), run.workflow

    return _carry_out(engine, run_id, engine.database.transact(work))  # alone: it may close hooks


def terminate(engine: Engine, run_id: RunId, *, reason: str | None) -> bool:
    """End a run now, without its body; return whether it had not ended.

    Raises:
        CkWorkflowError: As `cancel`.
    """

    def work(tx: Transaction) -> tuple[Answer, str] | None:
        run = runs.lock_run(tx, run_id, engine.database).get()
        return None if run.status.is_final else (end_now(engine, tx, run, reason), run.workflow)

    return _carry_out(engine, run_id, engine.database.transact(work))


def cancel_all(
    engine: Engine, *, workflow: str, created_before: datetime | None, reason: str | None, grace: timedelta | None
) -> int:  # fmt: skip
    """Ask live runs of a workflow to end, each in a transaction of its own; return how many there were.

    Args:
        engine: The engine.
        workflow: The full name of the workflow.
        created_before: Only those that were started before.
        reason: As for `cancel`.
        grace: As for `cancel`.

    Raises:
        CkWorkflowError: As `cancel`. Those before were asked.
    """
    count, last = 0, None
    while True:
        found = engine.database.read(
            lambda tx, after=last: runs.live_runs(  # type: ignore[misc]  # bound now
                tx, workflow=workflow, created_before=created_before, after=after, limit=TOGETHER
            )
        )
        if not found:
            return count
        last = found[-1]
        for run_id in found:
            try:
                count += cancel(engine, run_id, reason=reason, grace=grace)
            except RunNotFoundError:  # deleted meanwhile
                continue


def end_now(engine: Engine, tx: Transaction, run: RunRow, reason: str | None = None) -> Answer:
    """End a locked run as cancelled, whatever its body and its steps do.

    Args:
        engine: The engine.
        tx: A transaction that has locked the run.
        run: The run.
        reason: Why; `None` where an earlier request has said it.
    """
    values: dict[str, object] = {}
    if run.cancel_requested_at is None:
        values["cancel_requested_at"] = run.now
    if reason is not None:
        values["cancel_reason"] = reason
    error = None
    if run.status is not RunStatus.PENDING:  # else there is nothing to clean up
        error = failures.dumps(RunTerminatedError(run.run_id))
    run = leave_to_children(tx, run, reason)
    values["has_notes"] = run.has_notes
    engine.finish(tx, run, Ending(RunStatus.CANCELLED, error=error), **values)
    return Answer(has_ended=True)


def told_to_stop(engine: Engine) -> Collection[tuple[RunId, NodeId]]:
    """The steps that this process runs and that are to stop, but for those that are left alone (`on_cancel="leave"`)."""
    if not engine.active:
        return []
    owned = engine.database.read(lambda tx: nodes.told_to_stop(tx, engine.owner))
    return [
        (run_id, node_id)
        for run_id, node_id, name, args in owned
        if (step := registry.steps.get(name)) is None
        or with_options_of(step, args).on_cancel is not OnCancel.LEAVE
    ]


def _request(
    engine: Engine, tx: Transaction, run: RunRow, reason: str | None, grace: timedelta | None
) -> Answer:
    if run.status is RunStatus.PENDING:  # nothing has begun, and no body knows of anything
        return end_now(engine, tx, run, reason)
    terminate_at = None if grace is None else run.now + grace
    if terminate_at is not None and run.terminate_at is not None:
        terminate_at = min(terminate_at, run.terminate_at)
    values: dict[str, object] = {} if terminate_at is None else {"terminate_at": terminate_at}
    if run.cancel_requested_at is not None:  # the body hears of one, and its clean-up is not disturbed
        if terminate_at is not None:
            wake_at = min(terminate_at, run.wake_at or terminate_at)
            runs.update_run(tx, run.run_id, wake_at=wake_at, **values)
            engine.wake_at(wake_at)
        return Answer()
    events.withhold(tx, run.run_id)
    # After all that is recorded: that has happened before.
    recorded_at = events.last_recorded(tx, run.run_id)
    received_at = hooks.last_received(tx, run.run_id) if run.untold_payloads else None
    requested_at = max(at for at in (run.now, run.body_time, recorded_at, received_at) if at is not None)
    runs.update_run(
        tx, run.run_id, cancel_requested_at=requested_at, cancel_reason=reason, signals=run.signals + 1, wake_at=run.now,
        spins=0, spins_since=None,  # what it is told now is new, and may be what ends its turning in circles
        **values,
    )  # fmt: skip
    return Answer(must_advance=True)


def _carry_out(engine: Engine, run_id: RunId, found: tuple[Answer, str] | None) -> bool:
    """Do what follows from a request."""
    if found is None:
        return False
    answer, workflow = found
    if answer.must_advance:
        logger.info(
            "run %s (%s) was asked to end",
            run_id,
            workflow,
            extra={"run_id": run_id, "workflow": workflow},
        )
    go_on_here(engine, run_id, workflow, answer)
    return True
