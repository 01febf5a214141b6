"""Recovery: what the clock does with a run whose time has come, and with processes that have died.

One path for everything: sleeps that end, retries with long delays, lost messages, a publish that failed,
a worker that died. It looks at SQL, works out what should be in flight, and publishes that again; doing it
once too often is harmless, because a claim takes a node once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.engine import failures
from ckworkflow.engine.advance import advance
from ckworkflow.engine.identity import is_gone, this_process
from ckworkflow.errors import DatabaseUnavailableError, FatalError, RunNotFoundError
from ckworkflow.model import NodeId, NodeKind, NodeStatus, RunId
from ckworkflow.store import nodes, processes, records, runs
from ckworkflow.store.processes import ProcessRow
from ckworkflow.store.records import Followup
from ckworkflow.store.transaction import Transaction

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.plan import Piece
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.store.runs import RunRow

logger = logging.getLogger(__name__)

BATCH = 100
TOGETHER = 25
"""Runs that are recovered in one transaction."""
LONGEST_GAP = 3
"""Beats of a process that may fail without its having been away."""
PATIENT_LOOKS = 3
"""So often a worker that is full finds a message late without publishing it again; see `_patience`."""
HOLD = timedelta(seconds=10)
"""For how long a clock keeps a run that it has taken from others; it may die meanwhile."""


def tick(engine: Engine) -> timedelta | None:
    """Recover every run whose time has come.

    Returns:
        How long until the next one's comes, by the database's clock; `None` when no run is live.
    """
    while True:
        # A read first: a clock with nothing to do takes no lock.
        now, next_at = engine.database.read(lambda tx: (engine.database.now(tx), runs.next_wake_at(tx)))
        if next_at is None or next_at > now:
            return None if next_at is None else next_at - now
        due = engine.database.transact(
            lambda tx: runs.take_due_runs(tx, now=engine.database.now(tx), hold=HOLD, limit=BATCH)
        )
        for at in range(0, len(due), TOGETHER):
            _recover_each(engine, due[at : at + TOGETHER])


def _recover_each(engine: Engine, run_ids: Sequence[RunId]) -> None:
    """Recover runs in one transaction; if one of them fails, each by itself."""
    try:
        recover(engine, *run_ids)
    except DatabaseUnavailableError:
        raise
    except Exception as error:
        # One run must not hold up the others; it is looked at again after `HOLD`.
        if len(run_ids) > 1:
            for run_id in run_ids:
                _recover_each(engine, [run_id])
        elif not isinstance(error, RunNotFoundError):  # deleted meanwhile
            logger.exception("run not recovered", extra={"run_id": run_ids[0]})


def recover(engine: Engine, *run_ids: RunId) -> None:
    """Bring the messages in flight of runs to what SQL says they should be."""
    # Sorted: two clocks that lock several runs must not wait for each other.
    found = engine.database.transact(
        lambda tx: [(run_id, *_recover(engine, tx, run_id)) for run_id in sorted(run_ids)]
    )
    for run_id, pieces, _, has_ended in found:
        if has_ended:
            engine.notify(run_id)
        engine.publish(run_id, pieces)
    # Side by side: they wait for the database, and share its commits.
    engine.spread(
        lambda run_id: advance(engine, run_id),
        [run_id for run_id, _, must_advance, _ in found if must_advance],
    )


def _recover(engine: Engine, tx: Transaction, run_id: RunId) -> tuple[list[Piece], bool, bool]:
    run = runs.lock_run(tx, run_id, engine.database)
    if run.status.is_final:
        return [], False, False
    followup = Followup()
    records.settle_sleeps(tx, run, followup)
    if followup.ends_run:
        if engine.end_run(tx, run):
            return [], False, True
        followup.wakes_body = True
    rows = nodes.load_nodes(tx, run_id, statuses=nodes.LIVE)
    ready = [row.node_id for row in rows if _is_ready(row, run)]
    asleep = {
        row.node_id: row.due_at
        for row in rows
        if row.kind is NodeKind.SLEEP and row.due_at is not None and row.status is NodeStatus.RUNNING
    }
    # Sleeps that some message carries already are left to it; the clock comes second.
    fresh = {row.node_id for row in rows if not row.is_carried and row.node_id in asleep}
    held = {row.node_id for row in rows if row.is_held}
    # What is held back waits for those that are published, unless there are none.
    publish = [node_id for node_id in ready if node_id not in held] or ready
    if run.dispatches < _patience(engine, rows):
        late = {row.node_id for row in rows if row.due_at is None} - set(followup.ready)
        publish = [node_id for node_id in publish if node_id not in late]
    pieces, carried = engine.cut(
        tx, run, Followup(ready=publish, asleep={node_id: asleep[node_id] for node_id in fresh}),
        nodes.load_plan(tx, run_id, rows) if publish or fresh else None, opens=bool(held),
    )  # fmt: skip
    signals = run.signals + (1 if followup.wakes_body else 0)
    must_advance = signals > run.seen
    dispatches = run.dispatches + 1 if ready else 0
    carried |= {row.node_id for row in rows if row.is_carried}
    wake_at = _wake_at(engine, run, rows, ready, carried, dispatches, must_advance=must_advance)
    runs.update_run(tx, run_id, wake_at=wake_at, signals=signals, dispatches=dispatches)
    engine.wake_at(wake_at)
    if publish and run.dispatches:
        logger.info(
            "published again", extra={"run_id": run_id, "nodes": publish, "times": run.dispatches}
        )
    return pieces, must_advance, False


def _patience(engine: Engine, rows: Sequence[NodeRow]) -> int:
    """How often a message that was published and not claimed may be found late before it is published again.

    A worker that has no slot free sees why it is late: it is in the queue, and copies make that longer. Where
    other steps of the run are running, messages do arrive.
    """
    if engine.is_saturated():
        return PATIENT_LOOKS
    return (
        1 if any(row.kind is NodeKind.STEP and row.status is NodeStatus.RUNNING for row in rows) else 0
    )


def _is_ready(row: NodeRow, run: RunRow) -> bool:
    return (
        row.status is NodeStatus.PLANNED
        and row.unmet == 0
        and row.kind is NodeKind.STEP
        and (row.due_at is None or row.due_at <= run.now)
    )


def _wake_at(
    engine: Engine, run: RunRow, rows: list[NodeRow], ready: list[NodeId], carried: set[NodeId],
    dispatches: int, *, must_advance: bool,
) -> datetime:  # fmt: skip
    settings = engine.settings
    again = settings.look_again_after
    if ready:
        again = engine.redispatch_after(dispatches)  # each look publishes
    times = [run.now + again]
    if must_advance:
        times.append(run.now + settings.redispatch_after)
    for row in rows:
        if row.due_at is not None and row.due_at > run.now:
            is_held = row.node_id in carried
            times.append(row.due_at + (settings.redispatch_after if is_held else timedelta()))
    sleeping = [row for row in rows if row.due_at is not None and row.due_at > run.now]
    if sleeping and len(sleeping) == len([row for row in rows if row.unmet == 0]) and not must_advance:
        return min(times[1:])  # nothing but sleeps: a year from now is soon enough
    return min(times)


# -- processes ------------------------------------------------------------------------------------


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
    at a time (`attempts.SUSPECT_LOSSES`), so that the one is told from the others.
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
            dispatches=0,
        )
