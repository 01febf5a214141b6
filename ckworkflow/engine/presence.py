"""Presence: which processes live, and what becomes of what the others owned.

Each has a row that it renews (`beat`). Who is dead is buried by the clocks of all others: at once on the same host,
elsewhere when its row has lapsed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.engine import failures
from ckworkflow.engine.identity import is_gone, this_process
from ckworkflow.errors import FatalError
from ckworkflow.model import NodeId, NodeStatus, RunId
from ckworkflow.store import nodes, processes, records, runs
from ckworkflow.store.processes import ProcessRow
from ckworkflow.store.transaction import Transaction

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine

logger = logging.getLogger(__name__)

LONGEST_GAP = 3
"""Beats of a process that may fail without its having been away."""
HOLD = timedelta(seconds=10)
"""For how long a clock keeps runs that it has taken from others; it may die meanwhile."""


def beat(engine: Engine, *, role: str) -> None:
    """Renew this process's row."""
    here = this_process()

    def renew(tx: Transaction) -> None:
        now = engine.database.now(tx)
        row = ProcessRow(
            here.process_id, role, here.host, here.boot_id, here.pid, here.pid_started,
            now + engine.settings.silence,
        )  # fmt: skip
        processes.renew_process(tx, row, now=now)

    engine.database.transact(renew)
    engine.pulse.beat(longest_gap=LONGEST_GAP * engine.settings.heartbeat)


def release_orphans(engine: Engine, suspects: frozenset[tuple[RunId, NodeId]]) -> frozenset[Any]:
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
    found = frozenset(owned) - frozenset(engine.active)
    for run_id, node_id in sorted(found & suspects):
        logger.warning("step owned but not run", extra={"run_id": run_id, "node_id": node_id})
        engine.database.transact(
            lambda tx, run_id=run_id, node_id=node_id: _free(engine, tx, run_id, owner, only=node_id)  # type: ignore[misc]  # bound now
        )
    return found - suspects


def leave(engine: Engine) -> None:
    """Forget this process, which has given back all it owned."""
    owner = engine.owner
    engine.database.transact(lambda tx: processes.remove_process(tx, owner))


def bury_dead(engine: Engine) -> None:
    """Free what dead processes owned: at once on this host, elsewhere when their row has lapsed."""
    now, known, strangers = engine.database.read(
        lambda tx: (
            engine.database.now(tx), processes.list_processes(tx), processes.list_strangers(tx),
        )
    )  # fmt: skip
    # Whoever was silent because the database was away must have had the time to speak again: as much as this
    # process has had without a gap.
    may_go_by_time = not (
        engine.pulse.is_younger_than(engine.settings.silence)
        or engine.pulse.is_older_than(LONGEST_GAP * engine.settings.heartbeat)
    )
    for row in [*known, *_lasting(engine, strangers, now)]:
        gone = is_gone(row.host, row.boot_id, row.pid, row.pid_started)
        has_lapsed = may_go_by_time and row.alive_until < now
        if row.process_id == engine.owner or not (gone or has_lapsed):
            continue
        engine.database.end_sessions(row.process_id)  # or its locks would be waited for
        owned, worst = engine.database.read(
            lambda tx, row=row: (  # type: ignore[misc]  # bound now
                processes.owned_runs(tx, row.process_id), nodes.most_losses(tx, row.process_id),
            )
        )  # fmt: skip
        logger.warning("process is dead", extra={"process_id": row.process_id, "runs": len(owned)})
        # One that was only silent may go on while it is buried: what it has claimed since is its own.
        until = None if gone else now
        for run_id in owned:
            engine.database.transact(
                lambda tx, run_id=run_id, row=row, worst=worst, until=until: _free(  # type: ignore[misc]  # bound now
                    engine, tx, run_id, row.process_id, worst=worst, until=until
                )
            )

        def forget(tx: Transaction, row: ProcessRow = row, until: datetime | None = until) -> None:
            at = engine.database.now(tx)
            runs.release_leases(tx, row.process_id)
            processes.remove_process(tx, row.process_id, until=until)
            # What it was about to publish, or its clock had taken, is looked at now and not in a moment.
            runs.wake_soon(tx, now=at, within=HOLD + engine.settings.redispatch_after)

        engine.database.transact(forget)
        for run_id in engine.database.read(nodes.carried_runs):
            engine.database.transact(lambda tx, run_id=run_id: _recall(engine, tx, run_id))  # type: ignore[misc]  # bound now


def _lasting(engine: Engine, strangers: Iterable[str], now: datetime) -> list[ProcessRow]:
    """Owners without a row that have been there for as long as a silence that is taken for death.

    They were buried, went on, claimed something before their next beat, and have died.
    """
    engine.strangers = {owner: engine.strangers.get(owner, now) for owner in strangers}
    return [
        ProcessRow(owner, "worker", "", "", 0, "", seen_at)
        for owner, seen_at in engine.strangers.items()
        if now - seen_at >= engine.settings.silence
    ]


def _recall(engine: Engine, tx: Transaction, run_id: RunId) -> None:
    """Take back that messages end the sleeps of a run: the dead process may have held them."""
    run = runs.lock_run(tx, run_id, engine.database)
    if not run.status.is_final:
        records.recall_carried(tx, run_id)
        runs.update_run(tx, run_id, wake_at=run.now)


def _free(
    engine: Engine, tx: Transaction, run_id: RunId, process_id: str, *, only: NodeId | None = None,
    worst: int = 0, until: datetime | None = None,
) -> None:  # fmt: skip
    """Take back what a process owned in a run; with `until`, only what it had claimed by then.

    Of all that ran in it, only the steps that have lost the most processes so far (`worst`) are charged with
    another: if one of them kills its workers, the others are its victims. After some losses such steps run one
    at a time (`claims.SUSPECT_LOSSES`), so that the one is told from the others.
    """
    run = runs.lock_run(tx, run_id, engine.database)
    signals = run.signals
    for row in nodes.load_nodes(tx, run_id, statuses=[NodeStatus.RUNNING, NodeStatus.ABANDONED]):
        if row.owner != process_id or only not in (None, row.node_id):
            continue
        if (run_id, row.node_id) in engine.active:
            continue  # of this process, and claimed anew meanwhile
        if until is not None and row.started_at is not None and row.started_at > until:
            continue
        is_charged = row.losses >= worst
        if is_charged and row.losses + 1 >= engine.settings.loss_limit:
            error = FatalError(
                f"step {row.name} lost its worker {row.losses + 1} times, so it is not tried again. "
                f"A step that is killed with its process usually needs more memory than there is.",
                kind="worker_lost",
            )
            records.end_attempt(tx, run, row, output=None, error=failures.dumps(error))
            signals += 1
        else:
            lost = codec.dumps(
                {"type": "ckworkflow:WorkerLost", "message": f"process {process_id} lost it"}
            )
            records.suspend_attempt(
                tx,
                run,
                row,
                outcome="lost",
                due_at=run.now,
                error=lost,
                is_free=True,
                is_loss=is_charged,
            )
    if not run.status.is_final:
        runs.update_run(
            tx,
            run_id,
            wake_at=run.now,
            signals=signals,
            lease_owner=None,
            lease_until=None,
            dispatches=1,  # nothing that the dead process was to publish is waited for
        )
