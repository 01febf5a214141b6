"""Runs: their rows, their leases, and when they must be looked at again."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import sqlalchemy as sa

from ckworkflow.errors import RunNotFoundError
from ckworkflow.model import CANCEL, Ending, NodeId, RunId, RunStatus
from ckworkflow.store import large
from ckworkflow.store.expectations import expecting
from ckworkflow.store.tables import nodes, runs
from ckworkflow.store.transaction import Asked, Prepared, Row, Rows
from ckworkflow.store.verdicts import ConstraintError

if TYPE_CHECKING:
    from ckworkflow.store.database import Database
    from ckworkflow.store.transaction import Transaction

LIVE = (RunStatus.PENDING, RunStatus.RUNNING)


ONLY_STEPS_HELD = '{"steps":true}'
"""What `held` says of a run of which steps are or were held, and not the body (`ckworkflow.engine.holding`)."""


class RunRow(NamedTuple):
    """A run as the engine needs it in every transaction: its columns between its id and `now`, the database's time."""

    run_id: RunId
    status: RunStatus
    workflow: str
    source_hash: str
    plan: str | None
    wake_at: datetime | None
    signals: int
    seen: int
    delivered: int
    dispatches: int
    epoch: int
    created_at: datetime
    started_at: datetime | None
    spins: int
    spins_since: int | None
    held: str | None
    told_at: datetime | None
    last_surprise: int | None
    cancel_requested_at: datetime | None
    cancel_delivered: int | None
    terminate_at: datetime | None
    untold_payloads: int | None
    parent: RunId | None
    has_notes: bool
    life: int
    now: datetime

    @property
    def has_hooks(self) -> bool:
        """Whether its body has ever made a hook."""
        return self.untold_payloads is not None

    @property
    def body_time(self) -> datetime:
        """The time as far as the body has been told."""
        return self.told_at or self.created_at

    @property
    def has_unread_events(self) -> bool:
        """Whether there may be something that the body has not been told of."""
        return self.signals != self.seen or self.has_untold_request

    @property
    def has_untold_request(self) -> bool:
        """Whether the run is to be cancelled, and its body has not been told so."""
        return self.cancel_requested_at is not None and self.cancel_delivered is None

    @property
    def is_child(self) -> bool:
        """Whether the body of another run has started it."""
        return self.parent is not None

    def look_at(self, at: datetime) -> datetime:
        """The time to look at the run that was to be looked at then: in time to terminate it."""
        return at if self.terminate_at is None else min(at, self.terminate_at)

    @property
    def is_to_be_told(self) -> bool:
        """Whether its body is to be told of something first, before a sleep of the run ends.

        What is told late is then told in the order in which it happened. A body that is held keeps nothing waiting.
        """
        return self.has_unread_events and self.held in (None, ONLY_STEPS_HELD)


def with_values(run: RunRow, values: Mapping[str, Any]) -> RunRow:
    """Return a run as it is once these columns are written."""
    return run._replace(**{name: value for name, value in values.items() if name in RunRow._fields})


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as a reader sees it."""

    run_id: RunId
    workflow: str
    status: RunStatus
    input: str
    output: str | None
    error: str | None
    wake_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    held: str | None
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    terminate_at: datetime | None
    life: int
    has_hooks: bool


def insert_run(
    tx: Transaction,
    row: RunRow,
    *,
    input_: str,
    wake_at: datetime | None,
    plan: str | None = None,
    **values: object,
) -> None:
    """Add a run; `values` are other columns than those that every run begins with."""
    tx.execute(
        _INSERT_RUN,
        {
            "id": row.run_id, "workflow": row.workflow, "source_hash": row.source_hash, "status": row.status,
            "input": input_, "wake_at": wake_at, "epoch": row.epoch, "created_at": row.created_at,
            "parent": row.parent, "plan": plan,
            **{
                name: values.pop(name, None)
                for name in ("output", "error", "started_at", "finished_at", "parent_node")
            },
            "signals": values.pop("signals", 0),
        },
    )  # fmt: skip
    assert not values, f"columns of a new run: {values}"
    large.keep(tx, row.run_id, [input_, plan], life=row.life)


def was_inserted(error: Exception, database: Database, run_id: RunId) -> bool:
    """Whether inserting a run failed because it is there already: an earlier attempt succeeded, and its answer was lost.

    Nobody knows then what that attempt was to publish, so the run is looked at now.
    """
    if not isinstance(error, ConstraintError):
        return False

    def look(tx: Transaction) -> bool:
        status = read_status(tx, run_id)
        if status is not None:
            wake_runs(tx, [run_id], now=database.now(tx))
        return status is not None

    return database.transact(look)


def lock_run(tx: Transaction, run_id: RunId, database: Database) -> Asked[RunRow]:
    """Lock a run until the transaction ends: the first lock of every transaction on it.

    What is asked for next is done under the lock. `get` raises `RunNotFoundError` if no run has this id.
    """

    def read(rows: Rows) -> RunRow:
        row = rows.one_or_none()
        if row is None:
            raise RunNotFoundError(run_id)
        count = len(_LOCKED)
        now = database.note_now(row[count]) if database.has_server_clock else database.about_now()
        return _locked(run_id, row[:count], now)

    # A server's time comes with the row: one round trip.
    statement = _LOCK_RUN_AND_TIME if database.has_server_clock else _LOCK_RUN
    return Asked(tx.execute(statement, {"b_run": run_id}), read)


def expect_run(tx: Transaction, run: RunRow) -> None:
    """Lock a run that is expected to be as given."""
    tx.execute(
        _EXPECTED_RUN,
        {
            "b_run": run.run_id, "b_status": run.status, "b_wake_at": run.wake_at, "b_signals": run.signals,
            "b_delivered": run.delivered, "b_epoch": run.epoch,
        },
    )  # fmt: skip


def begin_run(tx: Transaction, run_id: RunId, node_id: NodeId, *, owner: str, at: datetime) -> None:
    """Note that a run has begun, if a process has just claimed a node of it and it had not begun before."""
    tx.execute(_BEGIN_RUN, {"b_run": run_id, "b_node": node_id, "b_owner": owner, "v_at": at})


def _locked(run_id: RunId, values: Row, now: datetime) -> RunRow:
    status, *others = values
    return RunRow._make((run_id, RunStatus(status), *others, now))


_LOCKED = tuple(runs.c[name] for name in RunRow._fields[1:-1])
_HERE = runs.c.id == sa.bindparam("b_run")
_LOCK_RUN = Prepared(sa.select(*_LOCKED).where(_HERE).with_for_update())
_LOCK_RUN_AND_TIME = Prepared(
    sa.select(*_LOCKED, sa.func.clock_timestamp(type_=sa.TIMESTAMP(timezone=True)))
    .where(_HERE)
    .with_for_update()
)
_EXPECTED_RUN = expecting(
    sa.select(runs.c.id)
    .where(
        _HERE,
        runs.c.status == sa.bindparam("b_status"),
        runs.c.wake_at == sa.bindparam("b_wake_at", type_=runs.c.wake_at.type),
        runs.c.signals == sa.bindparam("b_signals"),
        runs.c.delivered == sa.bindparam("b_delivered"),
        runs.c.epoch == sa.bindparam("b_epoch"),
    )
    .with_for_update()
)
_BEGIN_RUN = Prepared(
    sa.update(runs)
    .where(
        _HERE,
        runs.c.status == RunStatus.PENDING,
        sa.exists().where(
            nodes.c.run_id == runs.c.id,
            nodes.c.node_id == sa.bindparam("b_node"),
            sa.func.coalesce(nodes.c.owner, "") == sa.bindparam("b_owner"),
        ),
    )
    .values(status=RunStatus.RUNNING, started_at=sa.bindparam("v_at"))
)
_INSERT_RUN = Prepared(
    sa.insert(runs).values(
        {
            name: sa.bindparam(name)
            for name in (
                "id", "workflow", "source_hash", "status", "input", "wake_at", "epoch", "created_at", "output",
                "error", "plan", "started_at", "finished_at", "signals", "parent", "parent_node",
            )
        }
    )
)  # fmt: skip


def read_run(tx: Transaction, run_id: RunId) -> RunRecord:
    """Read a run for a person or a caller; without the parts of its values (`with_parts`).

    Raises:
        RunNotFoundError: No run has this id.
    """
    row = tx.execute(_READ_RUN, {"b_run": run_id}).one_or_none()
    if row is None:
        raise RunNotFoundError(run_id)
    return _record(row)


def list_runs(
    tx: Transaction, *, status: RunStatus | None = None, workflow: str | None = None, limit: int = 50
) -> list[RunRecord]:
    """Read the newest runs first."""
    query = sa.select(*_RECORD).order_by(runs.c.created_at.desc(), runs.c.id).limit(limit)
    if status is not None:
        query = query.where(runs.c.status == status)
    if workflow is not None:
        query = query.where(runs.c.workflow == workflow)
    return [_record(row) for row in tx.execute(query)]


_RECORD = (
    runs.c.id, runs.c.workflow, runs.c.status, runs.c.input, runs.c.output, runs.c.error, runs.c.wake_at,
    runs.c.created_at, runs.c.started_at, runs.c.finished_at, runs.c.held,
    runs.c.cancel_requested_at, runs.c.cancel_reason, runs.c.terminate_at, runs.c.life, runs.c.untold_payloads.is_not(None),
)  # fmt: skip


_READ_RUN = Prepared(sa.select(*_RECORD).where(_HERE))


def read_ending(tx: Transaction, run_id: RunId) -> RunRecord:
    """Read a run for whoever waits for its end; only of one that has ended, all of its values.

    Raises:
        RunNotFoundError: No run has this id.
    """
    record = read_run(tx, run_id)
    return with_parts(tx, record) if record.status.is_final else record


def with_parts(tx: Transaction, record: RunRecord) -> RunRecord:
    """Return a run with all of its arguments and its result, however large."""
    input_ = large.whole(tx, record.run_id, record.input)
    output = None if record.output is None else large.whole(tx, record.run_id, record.output)
    return replace(record, input=input_, output=output)


def _record(row: Row) -> RunRecord:
    return RunRecord(RunId(row[0]), row[1], RunStatus(row[2]), *row[3:])


_STATUS = Prepared(sa.select(runs.c.status).where(_HERE))


def read_status(tx: Transaction, run_id: RunId) -> RunStatus | None:
    """Read the status alone; `None` when no run has this id."""
    row = tx.execute(_STATUS, {"b_run": run_id}).one_or_none()
    return None if row is None else RunStatus(row[0])


def live_of(tx: Transaction, run_ids: Sequence[RunId]) -> list[RunId]:
    """Return those of these runs that have not ended."""
    if len(run_ids) <= FEW:
        found = [(run_id, read_status(tx, run_id)) for run_id in run_ids]
        return [run_id for run_id, status in found if status is not None and not status.is_final]
    rows = tx.execute(_LIVE_OF, {"b_runs": list(run_ids)})
    return [RunId(row[0]) for row in rows]


FEW = 3
"""Up to so many are asked for one by one: a list in a query is made anew each time."""
_LIVE_OF = sa.select(runs.c.id).where(
    runs.c.id.in_(sa.bindparam("b_runs", expanding=True)), runs.c.status.in_(LIVE)
)


class Input(NamedTuple):
    """With what the body of a run begins in its present life.

    Attributes:
        args: Its arguments, encoded.
        secret: From what the tokens of its hooks are derived; `None`: none is.
        began_at: When the life began, if it is not the first.
    """

    args: str
    secret: str | None
    began_at: datetime | None


def read_input(tx: Transaction, run_id: RunId) -> Input:
    """Read with what the body of a run begins.

    Raises:
        RunNotFoundError: No run has this id.
    """
    row = tx.execute(_INPUT, {"b_run": run_id}).one_or_none()
    if row is None:
        raise RunNotFoundError(run_id)
    found = Input._make(row)
    return found._replace(args=large.whole(tx, run_id, found.args))


_INPUT = Prepared(sa.select(runs.c.input, runs.c.secret, runs.c.life_began_at).where(_HERE))


def update_run(tx: Transaction, run_id: RunId, **values: object) -> None:
    """Write some columns of a locked run."""
    tx.execute(
        _update(tuple(values)), {"b_run": run_id} | {f"v_{name}": values[name] for name in values}
    )


@functools.cache
def _update(names: tuple[str, ...]) -> Prepared:
    # Made once for each set of columns: to build a statement costs more than to run it.
    return Prepared(
        sa.update(runs).where(_HERE).values({name: sa.bindparam(f"v_{name}") for name in names})
    )


def find_run_ids(tx: Transaction, beginning: str, *, limit: int) -> list[RunId]:
    """Return the ids that begin with a prefix, in order, at most `limit` of them."""
    found = tx.execute(
        sa.select(runs.c.id).where(runs.c.id.startswith(beginning, autoescape=True))
        .order_by(runs.c.id).limit(limit)
    )  # fmt: skip
    return [RunId(run_id) for (run_id,) in found]


def finish_run(tx: Transaction, run: RunRow, ending: Ending, **values: object) -> None:
    """Write the final state of a locked run, and perhaps other columns of it."""
    ended: dict[str, object] = {"wake_at": None, **values}
    large.keep(tx, run.run_id, [ending.output], life=run.life)
    update_run(
        tx, run.run_id, status=ending.status, output=ending.output, error=ending.error, finished_at=run.now,
        lease_owner=None, lease_until=None, **ended,
    )  # fmt: skip


class Request(NamedTuple):
    """A request to cancel a run.

    Attributes:
        requested_at: When it was made.
        reason: Why, in the words of who made it.
        delivered: As which event the body was told; `None`: it has not been told.
        delivered_at: The time that it was told.
    """

    requested_at: datetime
    reason: str | None
    delivered: int | None
    delivered_at: datetime | None

    @property
    def node_id(self) -> NodeId:
        """What stands for it among the nodes."""
        return CANCEL


def read_request(tx: Transaction, run_id: RunId) -> Request | None:
    """Read the request to cancel a run; `None` if nobody has made one."""
    row = tx.execute(_REQUEST, {"b_run": run_id}).one_or_none()
    return None if row is None else Request._make(row)


_REQUEST = Prepared(
    sa.select(
        runs.c.cancel_requested_at,
        runs.c.cancel_reason,
        runs.c.cancel_delivered,
        runs.c.cancel_delivered_at,
    ).where(_HERE, runs.c.cancel_requested_at.is_not(None))
)


def live_runs(
    tx: Transaction,
    *,
    workflow: str,
    created_before: datetime | None,
    after: RunId | None,
    limit: int,
) -> list[RunId]:
    """The ids of live runs of a workflow, in order, from the one after another on."""
    is_chosen = sa.and_(runs.c.wake_at.is_not(None), runs.c.workflow == workflow)
    query = sa.select(runs.c.id).where(is_chosen).order_by(runs.c.id).limit(limit)
    if created_before is not None:
        query = query.where(runs.c.created_at < created_before)
    if after is not None:
        query = query.where(runs.c.id > after)
    return [RunId(row[0]) for row in tx.execute(query)]


def acquire_lease(
    tx: Transaction, row: RunRow, *, owner: str, ttl: timedelta, spins: int = 0, held: str | None = None
) -> int | None:
    """Take the right to advance a locked run; its body is no longer held then.

    Args:
        tx: A transaction that has locked the run.
        row: The run.
        owner: This process.
        ttl: Life of the lease.
        spins: How many continuations there are with this one since the body was told something.
        held: What is still to be said of the run's holds.

    Returns:
        The epoch of the lease, which fences every write under it; `None` while another process has it.
    """
    taken = tx.execute(
        _ACQUIRE,
        {
            "b_run": row.run_id, "b_now": row.now, "v_owner": owner, "v_until": row.now + ttl, "v_spins": spins,
            "v_held": held,
        },
    ).one_or_none()  # fmt: skip
    return None if taken is None else int(taken[0])


_ACQUIRE = Prepared(
    sa.update(runs)
    .where(
        _HERE,
        sa.or_(
            runs.c.lease_owner.is_(None),
            runs.c.lease_until <= sa.bindparam("b_now", type_=runs.c.lease_until.type),
        ),
    )
    .values(
        lease_owner=sa.bindparam("v_owner"), lease_until=sa.bindparam("v_until"), epoch=runs.c.epoch + 1,
        spins=sa.bindparam("v_spins"), spins_since=runs.c.delivered, held=sa.bindparam("v_held"),
    )
    .returning(runs.c.epoch)
)  # fmt: skip


def renew_leases(tx: Transaction, run_ids: Sequence[RunId], *, owner: str, until: datetime) -> None:
    """Renew the leases that this process still has on these runs; waits for no lock."""
    mine = (
        sa.select(runs.c.id)
        .where(runs.c.id.in_(run_ids), runs.c.lease_owner == owner)
        .with_for_update(skip_locked=True)
    )
    tx.execute(sa.update(runs).where(runs.c.id.in_(mine)).values(lease_until=until))


def demand_replay(tx: Transaction, row: RunRow) -> None:
    """Make the next continuation of a locked run replay its body, whether it is kept or under a lease.

    One that is under way is fenced, and gives back that it was counted.
    """
    tx.execute(_DEMAND_REPLAY, {"b_run": row.run_id, "b_now": row.now})


_DEMAND_REPLAY = Prepared(
    sa.update(runs)
    .where(_HERE)
    .values(
        epoch=runs.c.epoch + 1,
        spins=sa.case(
            (
                sa.and_(
                    runs.c.lease_owner.is_not(None),
                    runs.c.lease_until > sa.bindparam("b_now", type_=runs.c.lease_until.type),
                    runs.c.spins > 0,
                ),
                runs.c.spins - 1,
            ),
            else_=runs.c.spins,
        ),
        lease_owner=None,
        lease_until=None,
    )
)


def release_leases(tx: Transaction, owner: str) -> None:
    """Free the runs that a dead process was advancing."""
    tx.execute(
        sa.update(runs).where(runs.c.lease_owner == owner).values(lease_owner=None, lease_until=None)
    )


def held_runs(tx: Transaction) -> list[tuple[RunId, str, str]]:
    """The live runs that are held: id, workflow, and why."""
    query = sa.select(runs.c.id, runs.c.workflow, runs.c.held).where(
        runs.c.wake_at.is_not(None), runs.c.held.is_not(None)
    )
    return [(RunId(row[0]), row[1], row[2]) for row in tx.execute(query)]


def lock_due_runs(tx: Transaction, database: Database, *, limit: int) -> list[RunRow]:
    """Lock runs whose time has come, the longest overdue first, except those that another transaction has locked."""
    now = database.about_now()
    return [_locked(RunId(row[0]), row[1:], now) for row in _lock_due(tx, now, limit)]


def postpone_due_runs(
    tx: Transaction, database: Database, *, until: timedelta, limit: int
) -> list[RunId]:
    """Keep runs whose time has come from all other clocks for a while."""
    now = database.about_now()
    due = [RunId(row[0]) for row in _lock_due(tx, now, limit)]
    for run_id in due:
        update_run(tx, run_id, wake_at=now + until)
    return due


def _lock_due(tx: Transaction, now: datetime, limit: int) -> Rows:
    return tx.execute(_LOCK_DUE, {"b_now": now, "b_limit": limit})


_LOCK_DUE = Prepared(
    sa.select(runs.c.id, *_LOCKED)
    .where(runs.c.wake_at <= sa.bindparam("b_now", type_=runs.c.wake_at.type))
    .order_by(runs.c.wake_at)
    .limit(sa.bindparam("b_limit", type_=sa.Integer))
    .with_for_update(skip_locked=True)
)


def next_wake_at(tx: Transaction, database: Database) -> tuple[datetime, datetime | None]:
    """Return the database's time, and when the first live run must be looked at."""
    if not database.has_server_clock:
        ((first,),) = tx.execute(_NEXT_WAKE).all()
        return database.about_now(), first
    ((now, first),) = tx.execute(_TIME_AND_NEXT_WAKE).all()
    return database.note_now(now), first


_FIRST = sa.select(sa.func.min(runs.c.wake_at, type_=runs.c.wake_at.type)).scalar_subquery()
_NEXT_WAKE = Prepared(sa.select(_FIRST))
_TIME_AND_NEXT_WAKE = Prepared(
    sa.select(sa.func.clock_timestamp(type_=sa.TIMESTAMP(timezone=True)), _FIRST)
)


def wake_soon(tx: Transaction, *, now: datetime, within: timedelta) -> None:
    """Look now at every run that was to be looked at within a short time (after a process died).

    Each counts as looked at once already: what is not claimed may never have been published.
    """
    tx.execute(
        sa.update(runs)
        .where(runs.c.wake_at > now, runs.c.wake_at <= now + within)
        .values(wake_at=now, dispatches=sa.case((runs.c.dispatches < 1, 1), else_=runs.c.dispatches))
    )


def wake_runs(tx: Transaction, run_ids: Sequence[RunId], *, now: datetime) -> None:
    """Look at these live runs now."""
    if run_ids:
        tx.execute(
            sa.update(runs)
            .where(runs.c.id.in_(run_ids), runs.c.wake_at.is_not(None))
            .values(wake_at=now)
        )
