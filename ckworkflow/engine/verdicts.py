"""Verdicts: a step is ended by something other than its own code: a hard time limit, a revoke.

The verdict is recorded before the step is stopped. What the process that runs the step still says of the attempt is
fenced by that, whatever it is and however that process ends.

Not here: who passes them (`ckworkflow.worker.steps.request`, `.revokes`), processes that have died by themselves
(`ckworkflow.engine.liveness`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ckworkflow.engine import attempts, failures, judging
from ckworkflow.engine.advance import go_on
from ckworkflow.engine.called import find_step
from ckworkflow.engine.claims import Claimed
from ckworkflow.engine.identity import this_process
from ckworkflow.errors import FatalError, RunNotFoundError
from ckworkflow.model import NodeId, NodeKind, NodeStatus, RunId, RunStatus
from ckworkflow.plan import Chain, Task
from ckworkflow.store import claims, nodes, processes, runs
from ckworkflow.store.events import OUT_OF_REACH
from ckworkflow.store.processes import ProcessRow
from ckworkflow.store.transaction import Transaction
from ckworkflow.store.writer import finish

if TYPE_CHECKING:
    from ckworkflow.engine.answer import Answer
    from ckworkflow.engine.core import Engine


def end_owned(engine: Engine, *, pid: int, error: Callable[[str], BaseException]) -> None:
    """End what a process of this host runs as a failed attempt.

    Args:
        engine: The engine.
        pid: The process.
        error: Makes the error of a step, given its name.
    """
    for claimed in engine.database.read(lambda tx: _owned_by(tx, pid)):
        name = claimed.row.name
        step = find_step(claimed.row)
        failure = judging.judge(error(name), now=engine.database.about_now)
        if step is not None and failure.action is judging.FailureAction.RETRY:
            # The process lives for another moment: two attempts must not run at once.
            delay = step.options.delay_after(max(1, claimed.counted_attempt))
            failure = replace(failure, delay=max(delay, judging.LEAST_RETRY))
        recorded = attempts.record_failure(engine, claimed, failure, step=step, carries=frozenset())
        _follow(engine, claimed, recorded)


def _owned_by(tx: Transaction, pid: int) -> Sequence[Claimed]:
    found = []
    for process in _here(tx, [pid]):
        for run_id, node_id, _ in nodes.owned_nodes(tx, process.process_id):
            row = nodes.load_node(tx, run_id, node_id).get()
            if row is not None:
                found.append(Claimed(run_id, runs.read_run(tx, run_id).workflow, row, (), {}))
    return found


def _here(tx: Transaction, pids: Collection[int]) -> list[ProcessRow]:
    """The rows of processes of this host."""
    here = this_process()
    return [
        row
        for row in processes.list_processes(tx)
        if (row.host, row.boot_id) == (here.host, here.boot_id) and row.pid in pids
    ]


def revoked(step: str) -> FatalError:
    """The error of a step that was revoked."""
    return FatalError(
        f"step {step} was revoked with Celery's `revoke` (the button of Flower), so it does not run (any more)",
        kind="revoked",
    )


def revoke(
    engine: Engine, run_id: RunId, node_id: NodeId, generation: int, *, pids: Collection[int]
) -> int | None:
    """End a step as failed: one that waits for nothing but its turn, or that one of some processes runs.

    Args:
        engine: The engine.
        run_id: The run.
        node_id: The node that the task id names.
        generation: The generation that the task id names.
        pids: Processes of this host whose steps may be ended even while they run.

    Returns:
        The pid of the process that runs the step and has to be stopped; `None`: nothing has to.
    """

    def work(tx: Transaction) -> tuple[Claimed, Answer, int | None] | None:
        run = runs.lock_run(tx, run_id, engine.database).get()
        row, pid = nodes.load_node(tx, run_id, node_id).get(), None
        if (
            run.status.is_final
            or row is None
            or row.generation != generation
            or row.kind != NodeKind.STEP
        ):
            return None
        if row.status is NodeStatus.PLANNED and row.unmet in (0, OUT_OF_REACH):
            row = claims.begin_attempt(tx, run, row, owner=engine.owner)
            if run.status is RunStatus.PENDING:
                runs.update_run(tx, run_id, status=RunStatus.RUNNING, started_at=run.now)
        else:
            pid = next((each.pid for each in _here(tx, pids) if each.process_id == row.owner), None)
            if row.status is not NodeStatus.RUNNING or pid is None:
                return None
        claimed = Claimed(run_id, run.workflow, row, (), {})
        error = failures.dumps(revoked(row.name))
        recorded = finish(lambda tx: attempts.ending(engine, tx, claimed, error), tx)
        return claimed, recorded, pid

    try:
        found = engine.database.transact_run(run_id, work)
    except RunNotFoundError:
        return None
    if found is None:
        return None
    claimed, recorded, pid = found
    _follow(engine, claimed, recorded)
    return pid


def _follow(engine: Engine, claimed: Claimed, recorded: Answer) -> None:
    run_id: RunId = claimed.run_id
    if recorded.retry_in is not None:
        row = claimed.row
        engine.publish(
            run_id, [Chain((Task(row.node_id, row.name, row.generation, recorded.retry_in),))]
        )
    go_on(engine, run_id, recorded)
