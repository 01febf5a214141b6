"""Liveness: each process renews a row, and the clocks of the surviving ones reap the dead: what they owned becomes free.

Not here: which of them are dead (`ckworkflow.engine.detector`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ckworkflow import codec
from ckworkflow.engine import failures
from ckworkflow.engine.detector import Dead, Sign
from ckworkflow.engine.identity import Identity, this_process
from ckworkflow.engine.judging import RELEASED
from ckworkflow.engine.suspects import losses_after, lost_error
from ckworkflow.engine.wording import counted, listed
from ckworkflow.errors import FatalError
from ckworkflow.model import AttemptOutcome, NodeId, NodeStatus, ProcessRole, RunId
from ckworkflow.store import nodes, processes, records, runs
from ckworkflow.store.processes import Claim, ProcessRow
from ckworkflow.store.records import Suspended
from ckworkflow.store.transaction import Transaction

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.store.runs import RunRow

logger = logging.getLogger(__name__)

HOLD = timedelta(seconds=10)
"""For how long a clock keeps runs that it has taken from others; it may die meanwhile."""


def heartbeat(engine: Engine) -> None:
    """Renew the row of this process, a worker's."""
    here = this_process()

    def renew(tx: Transaction) -> None:
        now = engine.database.now(tx)
        row = ProcessRow(
            process_id=here.process_id, role=ProcessRole.WORKER, host=here.host, boot_id=here.boot_id, pid=here.pid,
            pid_started=here.pid_started, alive_until=now + engine.settings.silence, queues=engine.queues,
        )  # fmt: skip
        processes.renew_process(tx, row, now=now)

    engine.database.transact(renew)
    engine.last_heartbeat.note()


def renew_leases(engine: Engine) -> None:
    """Renew the leases of the runs whose bodies go on here, however long they take."""
    since = time.monotonic() - engine.settings.heartbeat.total_seconds()
    lasting = [run_id for run_id, began in engine.advancing.copy().items() if began < since]
    if lasting:
        engine.database.transact(
            lambda tx: runs.renew_leases(
                tx, lasting, owner=engine.owner, until=engine.database.now(tx) + engine.settings.lease
            )
        )


Orphans = frozenset[tuple[RunId, NodeId, int]]
"""Nodes that this process owns in SQL, each with its attempt, and does not run."""


def release_orphans(engine: Engine, suspects: Orphans) -> Orphans:
    """Free what this process owns and does not run: a claim whose commit was not answered, for example.

    Args:
        engine: The engine.
        suspects: What this returned the last time. Only what was found twice is freed: a claim is known in SQL
            a moment before it is known here.

    Returns:
        What to give it the next time.
    """
    owner = engine.owner
    owned = engine.database.read(lambda tx: nodes.owned_nodes(tx, owner))
    found = frozenset(claim for claim in owned if claim[:2] not in engine.active)
    for run_id, node_id, attempt in sorted(found & suspects):
        logger.warning(
            "step %s of run %s is owned by this process, which does not run it: it is free again",
            node_id,
            run_id,
            extra={"run_id": run_id, "node_id": node_id},
        )

        def free(tx: Transaction, run_id: RunId = run_id, claim: Claim = (node_id, attempt)) -> None:
            run = runs.lock_run(tx, run_id, engine.database).get()
            _free(engine, tx, run, owner, {claim}, is_lost=False)

        engine.database.transact(free)
    return found - suspects


def leave(engine: Engine) -> None:
    """Give back what this process still owns, then forget it: without its row nobody would know whose that was."""
    owner = engine.owner
    for run_id in engine.database.read(lambda tx: processes.owned_runs(tx, owner)):
        engine.database.transact(lambda tx, run_id=run_id: _give_back(engine, tx, run_id))  # type: ignore[misc]  # bound now

    def forget(tx: Transaction) -> None:
        runs.release_leases(tx, owner)
        processes.remove_process(tx, owner)

    engine.database.transact(forget)


def _give_back(engine: Engine, tx: Transaction, run_id: RunId) -> None:
    """Release what this process owns in a run, at no cost: it leaves, and nothing was lost."""
    run = runs.lock_run(tx, run_id, engine.database).get()
    signals = run.signals
    for row in nodes.load_nodes(tx, run_id, statuses=[NodeStatus.RUNNING, NodeStatus.ABANDONED]).get():
        if row.owner == engine.owner:
            suspended = records.suspend_attempt(
                tx, run, row, outcome=AttemptOutcome.RELEASED, due_at=run.now, is_free=True,
                error=codec.dumps(RELEASED.data),
            )  # fmt: skip
            signals += int(suspended is Suspended.ENDED)
    if not run.status.is_final:
        runs.update_run(tx, run_id, wake_at=run.now, signals=signals)


def reap_dead(engine: Engine) -> None:
    """Free what dead processes owned; see `ckworkflow.engine.detector` for which are dead, and when."""
    silent = engine.detector.silent()
    # What the silent ones own is read before their rows: if one goes on now, what it claims next is its own, whatever
    # its row says until its next heartbeat.
    owned, rows, unknown = engine.database.read(
        lambda tx: (
            {process_id: processes.owned_runs(tx, process_id) for process_id in silent},
            processes.list_processes(tx),
            processes.list_unknown_owners(tx),
        )
    )
    marks = {row.process_id: row.alive_until for row in rows}
    signs = [
        Sign(Identity(row.process_id, row.host, row.boot_id, row.pid, row.pid_started), row.alive_until)
        for row in rows
        if row.process_id != engine.owner
    ]
    # Owners without a row: they were taken for dead, went on, claimed something before their next heartbeat, and died.
    signs += [Sign(Identity(owner, "", "", 0, ""), None) for owner in unknown if owner != engine.owner]
    for dead in engine.detector.look(signs):
        process_id = dead.process.process_id
        reap(engine, dead, marks.get(process_id), owned.get(process_id))


def reap(
    engine: Engine,
    dead: Dead,
    mark: datetime | None = None,
    owned: dict[RunId, frozenset[Claim]] | None = None,
) -> None:
    """Free what a dead process owned, unless it speaks meanwhile.

    Args:
        engine: The engine.
        dead: The process.
        mark: What it has last said; `None`: nothing.
        owned: What it owned when it was last seen to be silent; `None` of one that has certainly ended.
    """
    process_id = dead.process.process_id
    engine.database.end_sessions(process_id)  # or its locks would be waited for
    if owned is None:
        owned = engine.database.read(lambda tx: processes.owned_runs(tx, process_id))
    what = "it ran no step"
    if owned:
        what = f"what it ran of {counted(len(owned), 'run')} is run again: {listed(list(owned))}"
    logger.warning(
        "process %s is dead (%s); %s", process_id, dead.reason, what, extra={"process_id": process_id}
    )

    def has_spoken(tx: Transaction) -> bool:
        return processes.read_mark(tx, process_id) != mark

    for run_id, claims in owned.items():

        def free(tx: Transaction, run_id: RunId = run_id, claims: frozenset[Claim] = claims) -> bool:
            run = runs.lock_run(tx, run_id, engine.database).get()
            if has_spoken(tx):
                return False
            _free(engine, tx, run, process_id, claims)
            return True

        if not engine.database.transact(free):
            return

    def forget(tx: Transaction) -> None:
        if has_spoken(tx):
            return
        at = engine.database.now(tx)
        runs.release_leases(tx, process_id)
        processes.remove_process(tx, process_id)
        # What it was about to publish, or its clock had taken, is looked at now and not in a moment.
        runs.wake_soon(tx, now=at, within=HOLD + engine.settings.redispatch_after)

    engine.database.transact(forget)
    for run_id in engine.database.read(nodes.carried_runs):
        engine.database.transact(lambda tx, run_id=run_id: _recall(engine, tx, run_id))  # type: ignore[misc]  # bound now


def _recall(engine: Engine, tx: Transaction, run_id: RunId) -> None:
    """Take back that messages end the sleeps of a run: the dead process may have held them."""
    run = runs.lock_run(tx, run_id, engine.database).get()
    if not run.status.is_final:
        records.recall_carried(tx, run_id)
        runs.update_run(tx, run_id, wake_at=run.now)


def _free(
    engine: Engine, tx: Transaction, run: RunRow, process_id: str, claims: Collection[Claim], *,
    is_lost: bool = True,
) -> None:  # fmt: skip
    """Take back what a process had claimed in a locked run.

    If the process has died (`is_lost`), all that ran in it are charged with it, since any of them may have killed
    it; but those are cleared that had outlived what happened to them before (`ckworkflow.engine.suspects`).
    """
    signals = run.signals
    for row in nodes.load_nodes(
        tx, run.run_id, statuses=[NodeStatus.RUNNING, NodeStatus.ABANDONED]
    ).get():
        if row.owner != process_id or (row.node_id, row.attempt) not in claims:
            continue
        if (run.run_id, row.node_id) in engine.active:
            continue  # of this process, and claimed anew meanwhile
        losses = losses_after(tx, run, row) if is_lost else row.losses
        if losses > row.losses and losses >= engine.settings.loss_limit:
            error = FatalError(
                f"step {row.name} lost its worker {losses} times, so it is not tried again. "
                f"A step that is killed with its process usually needs more memory than there is.",
                kind="worker_lost",
            )
            error_text = failures.dumps(error)
            records.end_attempt(tx, run.run_id, row, output=None, error=error_text, at=run.now).get()
            signals += 1
        else:
            suspended = records.suspend_attempt(
                tx,
                run,
                row,
                outcome=AttemptOutcome.LOST,
                due_at=run.now,
                error=lost_error(process_id, is_cleared=losses <= row.losses),
                is_free=True,
                losses=losses,
            )
            signals += int(suspended is Suspended.ENDED)
    if not run.status.is_final:
        runs.update_run(
            tx,
            run.run_id,
            wake_at=run.now,
            signals=signals,
            lease_owner=None,
            lease_until=None,
            dispatches=1,  # nothing that the dead process was to publish is waited for
        )
