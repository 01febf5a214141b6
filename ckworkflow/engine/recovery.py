"""Recovery: what the clock does with a run whose time has come.

One path for everything: sleeps that end, retries with long delays, lost messages, a publish that failed,
a worker that died. It looks at SQL, works out what should be in flight, and publishes that again; doing it
once too often is harmless, because a claim takes a node once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ckworkflow.engine.advance import advance
from ckworkflow.engine.answer import Answer, carry_out
from ckworkflow.engine.cancellation import end_now, terminate
from ckworkflow.engine.claims import claim_next
from ckworkflow.engine.core import LOOK_DAILY
from ckworkflow.engine.host import one_by_one
from ckworkflow.engine.liveness import HOLD
from ckworkflow.engine.wording import listed
from ckworkflow.errors import DatabaseUnavailableError, RunNotFoundError
from ckworkflow.model import NodeId, NodeKind, NodeStatus, RunId, RunStatus
from ckworkflow.store import nodes, records, runs
from ckworkflow.store.records import Followup
from ckworkflow.store.transaction import Transaction
from ckworkflow.store.verdicts import ConstraintError
from ckworkflow.store.writer import finish, together

if TYPE_CHECKING:
    from ckworkflow.engine.claims import Claimed
    from ckworkflow.engine.core import Engine
    from ckworkflow.engine.host import Host, Spread
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.writer import Works

logger = logging.getLogger(__name__)

TOGETHER = 25
"""Runs that are recovered in one transaction."""
TURNS_WHILE_FULL = 3
"""Turns of the back-off that a worker without a free slot lets pass; see `_redispatch_backoff`."""
LOCKED_WAIT = timedelta(milliseconds=10)
"""Until the next look, where others have locked all that is due."""


def tick(engine: Engine, *, spread: Spread = one_by_one) -> timedelta | None:
    """Recover every run whose time has come.

    Args:
        engine: The engine.
        spread: How the bodies of some of them go on; a worker has threads for them.

    Returns:
        How long until the next one's comes, by the database's clock; `None` when no run is live.
    """
    while True:
        # A read first: a clock with nothing to do takes no lock.
        now, next_at = engine.database.read(lambda tx: runs.next_wake_at(tx, engine.database))
        if next_at is None or next_at > now:
            return None if next_at is None else next_at - now
        if not _recover_due(engine, spread):
            return LOCKED_WAIT


def _recover_due(engine: Engine, spread: Spread) -> int:
    """Recover the runs that are longest overdue, in one transaction; return how many."""
    host = engine.host

    def work(tx: Transaction) -> list[tuple[RunRow, Answer]]:
        due = runs.lock_due_runs(tx, engine.database, limit=TOGETHER)
        return together(
            tx, [(run.run_id, lambda tx, run=run: _recover(engine, tx, run, host)) for run in due]
        )

    try:
        found = engine.database.transact(work)
    except Exception as error:
        if _is_outage(error):
            raise
        return _recover_apart(engine)
    _follow(engine, found, host, spread)
    return len(found)


def _recover_apart(engine: Engine) -> int:
    """Recover runs one by one, so that one that fails does not hold up the others."""
    due = engine.database.transact(
        lambda tx: runs.postpone_due_runs(tx, engine.database, until=HOLD, limit=TOGETHER)
    )
    for run_id in due:
        try:
            recover(engine, run_id)
        except RunNotFoundError:  # deleted meanwhile
            continue
        except Exception as error:
            if _is_outage(error):
                raise
            # It is looked at again after `HOLD`.
            logger.exception(
                "run %s not recovered; it is looked at again", run_id, extra={"run_id": run_id}
            )
    return len(due)


def _is_outage(error: Exception) -> bool:
    """Whether the database is to blame; any other error is reported with its run."""
    return isinstance(error, DatabaseUnavailableError) and not isinstance(error, ConstraintError)


def recover(engine: Engine, run_id: RunId) -> None:
    """Bring what is in flight for a run in line with SQL.

    Raises:
        RunNotFoundError: No run has this id.
    """
    host = engine.host

    def work(tx: Transaction) -> Works[tuple[RunRow, Answer]]:
        return _recover(engine, tx, runs.lock_run(tx, run_id, engine.database).get(), host)

    _follow(engine, [engine.database.transact(lambda tx: finish(work, tx))], host, one_by_one)


def _follow(engine: Engine, found: Sequence[tuple[RunRow, Answer]], host: Host, spread: Spread) -> None:
    """Do what follows from the commit."""
    for run, answer in found:
        if run.has_notes:
            engine.owes_notes(run.run_id)
        if answer.here is not None:
            host.run(answer.here)
        if answer.must_terminate:
            terminate(engine, run.run_id, reason=None)
        carry_out(engine, run.run_id, answer)

    def go_on(run: RunRow) -> None:
        here = advance(engine, run.run_id, may_run=host.may_run if host.runs_steps else None)
        if here is not None:
            host.run(here)

    spread(go_on, [run for run, answer in found if answer.must_advance])


def _recover(engine: Engine, tx: Transaction, run: RunRow, host: Host) -> Works[tuple[RunRow, Answer]]:
    if run.status.is_final:
        _look_again(engine, tx, run)
        return run, Answer()
    run_id, followup = run.run_id, Followup()
    if run.terminate_at is not None and run.terminate_at <= run.now:
        return run, _terminate(engine, tx, run)
    if run.is_to_be_told:  # first: what else there is to do its continuation does
        wake_at = run.look_at(run.now + engine.settings.redispatch_after)
        runs.update_run(tx, run_id, wake_at=wake_at)
        engine.wake_at(wake_at)
        return run, Answer(must_advance=True)
    yield from records.settling(tx, run, followup)
    if followup.ends_run:
        if engine.try_to_end(tx, run):
            return run, Answer(has_ended=True)
        followup.wakes_body = True
    asking = nodes.load_nodes(tx, run_id, statuses=nodes.LIVE)
    yield None
    rows = asking.get()
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
    if run.dispatches < _redispatch_backoff(engine, rows):
        late = {row.node_id for row in rows if row.due_at is None} - set(followup.ready)
        publish = [node_id for node_id in publish if node_id not in late]
    wanted = set(publish)
    published = {row.node_id: row for row in rows if row.node_id in wanted}
    here: Claimed | None = None
    if host.runs_steps and publish:
        # One: the others of this run are for whoever is free.
        takeable = Followup(publish, published)
        here = claim_next(engine, tx, run, takeable, host.may_run, {}, has_held=bool(held))
        if here is not None:
            ready = [node_id for node_id in ready if node_id != here.row.node_id]
    pieces, carried = engine.cut(
        tx, run, Followup(publish, published, {node_id: asleep[node_id] for node_id in fresh}),
        nodes.load_plan(tx, run_id, rows) if publish or fresh else None, opens=bool(held),
    )  # fmt: skip
    must_advance = followup.wakes_body or run.has_unread_events
    carried |= {row.node_id for row in rows if row.is_carried}
    values: dict[str, Any] = {"dispatches": run.dispatches + 1 if ready else 0}
    if followup.wakes_body:
        values["signals"] = run.signals + 1
    if here is not None and run.status is RunStatus.PENDING:
        values.update(status=RunStatus.RUNNING, started_at=run.now)
    wake_at = _wake_at(engine, run, rows, ready, carried, must_advance=must_advance)
    runs.update_run(tx, run_id, wake_at=wake_at, **values)
    engine.wake_at(wake_at)
    unclaimed: list[str] = []
    if publish and run.dispatches:
        names = {row.node_id: row.name for row in rows}
        unclaimed = [names[node_id] for node_id in publish]
        steps = listed([f"{names[each]} ({each})" for each in publish])
        logger.info(
            "run %s (%s): published again, time %d, since no worker has begun it: %s",
            run_id, run.workflow, run.dispatches, steps, extra={"run_id": run_id},
        )  # fmt: skip
    return run, Answer(pieces, must_advance=must_advance, here=here, unclaimed=unclaimed)


def _terminate(engine: Engine, tx: Transaction, run: RunRow) -> Answer:
    """Terminate a run; one that has hooks afterwards, in a transaction of its own, since they are rows that runs share."""
    if not run.has_hooks:
        return end_now(engine, tx, run)
    runs.update_run(tx, run.run_id, wake_at=run.now + engine.settings.redispatch_after)
    return Answer(must_terminate=True)


def _look_again(engine: Engine, tx: Transaction, run: RunRow) -> None:
    """Have an ended run looked at again that has something to tell: ever later, as long as nobody can be told."""
    if run.has_notes:
        wake_at = run.now + engine.redispatch_after(run.dispatches)
        runs.update_run(tx, run.run_id, wake_at=wake_at, dispatches=run.dispatches + 1)
        engine.wake_at(wake_at)


def _redispatch_backoff(engine: Engine, rows: Sequence[NodeRow]) -> int:
    """How many turns a message that was published and not claimed may be late before it is published again.

    It is in the queue, most likely, and copies would make that longer: so a worker sees it that has no slot free, or to
    which messages come that have taken as long. Where other steps of the run are running, messages do arrive.
    """
    turns = engine.redispatches_within(engine.message_latency.recent() * 2)
    if engine.host.is_full:
        return max(turns, TURNS_WHILE_FULL)
    if any(row.kind is NodeKind.STEP and row.status is NodeStatus.RUNNING for row in rows):
        return max(turns, 1)
    return turns


def _is_ready(row: NodeRow, run: RunRow) -> bool:
    return (
        row.status is NodeStatus.PLANNED
        and row.unmet == 0
        and row.kind is NodeKind.STEP
        and (row.due_at is None or row.due_at <= run.now)
    )


def _wake_at(
    engine: Engine, run: RunRow, rows: list[NodeRow], ready: list[NodeId], carried: set[NodeId], *,
    must_advance: bool,
) -> datetime:  # fmt: skip
    settings = engine.settings
    again = settings.look_again_after
    if ready:
        again = engine.redispatch_after(run.dispatches)  # each look publishes
    times = [run.now + again]
    if run.terminate_at is not None:
        times.append(run.terminate_at)
    if (
        must_advance or run.has_notes
    ):  # soon: if this process dies before it does that, whoever buries it looks at once
        times.append(run.now + settings.redispatch_after)
    for row in rows:
        if row.due_at is not None and row.due_at > run.now:
            is_held = row.node_id in carried
            times.append(row.due_at + (settings.redispatch_after if is_held else timedelta()))
    sleeping = [row for row in rows if row.due_at is not None and row.due_at > run.now]
    children = [row for row in rows if row.kind is NodeKind.CHILD]
    waiting = len(sleeping) + len(children)
    only_waits = waiting == len([row for row in rows if row.unmet == 0]) and not must_advance
    if only_waits and not run.has_notes and (waiting or run.has_hooks):
        # Nothing but sleeps, and what comes by itself: a year from now is soon enough.
        return min(times[1:], default=run.now + LOOK_DAILY)
    return min(times)
