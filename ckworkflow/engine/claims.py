"""Claims: a process takes a step, to run it.

By the message that names it, or with the transaction that made it ready: the record of the one before it, the end
of a sleep. What is claimed so needs no message, and is a claim like any other.

Not here: how a step ends (`ckworkflow.engine.attempts`), what runs it (`ckworkflow.worker`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.engine.liveness import heartbeat
from ckworkflow.engine.resolve import resolve_value
from ckworkflow.engine.suspects import SUSPECT_LOSSES, probation
from ckworkflow.errors import RunNotFoundError, UnreadableValueError
from ckworkflow.model import NodeId, NodeKind, NodeStatus, RunId, RunStatus
from ckworkflow.plan import Chain, Task
from ckworkflow.store import claims, large, nodes, records, runs, windows
from ckworkflow.store.nodes import NodeRow
from ckworkflow.store.records import Followup
from ckworkflow.store.transaction import Asked, Transaction
from ckworkflow.store.writer import LAST
from ckworkflow.tracing import UnresolvableError

if TYPE_CHECKING:
    from ckworkflow.engine.answer import MayRun
    from ckworkflow.engine.core import Engine
    from ckworkflow.plan import Piece
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.writer import Works


@dataclass(frozen=True, slots=True)
class Claimed:
    """A step that this process may run now; with `error`, its arguments cannot be rebuilt and it has failed."""

    run_id: RunId
    workflow: str
    row: NodeRow
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    error: UnreadableValueError | None = None
    opens: bool = False
    """It is of a wide group, of which others may be held back."""
    pieces: Sequence[Piece] = ()
    """What is to be published, now that there is room for it."""
    beside: Claimed | None = None
    """Another step that was claimed with it, for another slot of this process."""

    @property
    def counted_attempt(self) -> int:
        """The number of this attempt among those that count against `max_retries`."""
        return self.row.attempt - self.row.free_attempts


@dataclass(frozen=True, slots=True)
class Early:
    """The message came before its time; `wait` is what is left."""

    wait: timedelta


@dataclass(frozen=True, slots=True)
class Dropped:
    """The message has no effect: its step is done, owned or changed, or its run has ended."""

    reason: str
    wakes_body: bool = False


def claim(
    engine: Engine, run_id: RunId, node_id: NodeId, generation: int, *, step: str, opens: bool = False,
    wakes: bool = False, may_begin: MayRun | None = None,
) -> Claimed | Early | Dropped:  # fmt: skip
    """Take a node for this process, if its time has come and nobody else has it.

    Args:
        engine: The engine.
        run_id: The run.
        node_id: The node that the message names.
        generation: The generation that the message names.
        step: The name of the step that the message names.
        opens: Whether the message was one of a window, so that another step of those held back is to begin.
        wakes: Whether the message had a time, so that the step may wait for a sleep.
        may_begin: Whether that other step may begin in this process; otherwise it is published.
    """
    if engine.last_heartbeat.is_older_than(engine.settings.silence / 2):
        # Stopped for a while, perhaps taken for dead: who owns something must be known to live.
        heartbeat(engine)
    try:
        claimed: Claimed | Early | Dropped | None = None
        if not opens and engine.database.can_expect:
            claimed = _claim_at_once(engine, run_id, node_id, generation, step, wakes=wakes)
        if claimed is None:
            claimed = engine.database.transact_run(
                run_id,
                lambda tx: _claim(
                    engine, tx, run_id, node_id, generation, step, opens=opens, may_begin=may_begin
                ),
                # A claim that a power cut undoes was a worker's that the power cut has ended, too.
                is_lasting=False,
            )
    except RunNotFoundError:
        return Dropped("the run is gone")  # the message came after its retention
    if isinstance(claimed, Claimed):
        engine.active.add((run_id, node_id))
        if claimed.beside is not None:
            engine.active.add((run_id, claimed.beside.row.node_id))
        if claimed.row.losses >= SUSPECT_LOSSES:
            engine.suspects.confirm((run_id, node_id))
    return claimed


def offer_turns(engine: Engine) -> None:
    """Publish the suspects whose turn has come in this process; called by its clock."""
    for run_id, task in engine.suspects.take_turns(engine.active):
        engine.publish(run_id, [Chain((task,))])


def _claim_at_once(
    engine: Engine, run_id: RunId, node_id: NodeId, generation: int, step: str, *, wakes: bool
) -> Claimed | None:
    """Take a node that waits for nothing, or for a sleep whose time has come, in one round trip.

    `None` if there is more to find out.

    On a server: in a file to find it out costs less than a statement that need not.
    """

    def work(tx: Transaction) -> Works[tuple[str, NodeRow] | None]:
        now = engine.database.about_now()
        locking = runs.lock_run(tx, run_id, engine.database)
        asked = [
            ask(tx, run_id, node_id, generation=generation, name=step, owner=engine.owner, at=now)
            for ask in ([claims.claim, claims.wake] if wakes else [claims.claim])
        ]
        runs.begin_run(tx, run_id, node_id, owner=engine.owner, at=now)
        yield LAST
        run, rows = locking.get(), [claiming.get() for claiming in asked]
        return next(((run.workflow, row) for row in rows if row is not None), None)

    taken = engine.database.transact_run(run_id, work)
    return None if taken is None else begun(run_id, *taken)


def _claim(
    engine: Engine, tx: Transaction, run_id: RunId, node_id: NodeId, generation: int, step: str, *,
    opens: bool, may_begin: MayRun | None,
) -> Works[Claimed | Early | Dropped]:  # fmt: skip
    locking, loading = runs.lock_run(tx, run_id, engine.database), nodes.load_node(tx, run_id, node_id)
    holding = windows.first_held(tx, run_id) if opens else None
    yield None
    run, row = locking.get(), loading.get()
    if row is not None and row.unmet and not run.status.is_final:
        if (early := _settle(engine, tx, run, row)) is not None:
            return early
        row = nodes.load_node(tx, run_id, node_id).get()
    if run.status.is_final:
        return Dropped("the run has ended")
    if row is None or (row.generation, row.name) != (generation, step):
        return Dropped("the plan has changed")
    if row.status is not NodeStatus.PLANNED:
        return Dropped(f"the node is {row.status}")
    if row.unmet:
        return Dropped("the node waits for others")
    if (later := _later(engine, tx, run, row, opens=opens)) is not None:
        return later
    error = None
    try:
        value = resolve_value(tx, run_id, codec.loads(large.whole(tx, run_id, row.args)))
    except UnreadableValueError as unreadable:
        # An attempt like any other: a worker of another deploy may take the next.
        value, error = {"args": (), "kwargs": {}}, unreadable
    except UnresolvableError:
        # Only the body can evaluate an argument: it goes on with the real values, and Python's error (if it
        # is one) arises there. Every body that is kept has run past that await: to resume one would plan the same
        # node again, for ever. It must be replayed.
        runs.demand_replay(tx, run)
        engine.schedule(tx, run, Followup(wakes_body=True), signals=run.signals + 1)
        return Dropped("an argument needs the body", wakes_body=True)
    row = claims.begin_attempt(tx, run, row, owner=engine.owner)
    begun: dict[str, Any] = {}
    if run.status is RunStatus.PENDING:
        begun = {"status": RunStatus.RUNNING, "started_at": run.now}
    engine.schedule(tx, run, Followup(), **begun)
    claimed = Claimed(run_id, run.workflow, row, tuple(value["args"]), value["kwargs"], error, opens)
    if holding is None or (held := holding.get()) is None:
        return claimed
    return _open(engine, tx, run, claimed, held, may_begin)


def _open(
    engine: Engine, tx: Transaction, run: RunRow, claimed: Claimed, held: NodeRow, may_begin: MayRun | None
) -> Claimed:  # fmt: skip
    """Let a step begin that was held back, beside the one that was claimed."""
    if held.node_id == claimed.row.node_id:  # it was held back itself when it was published
        another = windows.first_held(tx, run.run_id).get()
        return claimed if another is None else _open(engine, tx, run, claimed, another, may_begin)
    beside = None
    if may_begin is not None and may_begin(held.name):
        beside = with_arguments(tx, run, held, {}, opens=True)
    if beside is not None:
        row = claims.begin_attempt(tx, run, held, owner=engine.owner)
        return replace(claimed, beside=replace(beside, row=row))
    windows.release(tx, run.run_id, held)
    piece = Chain((Task(held.node_id, held.name, held.generation, opens=True, attempts=held.attempt),))
    return replace(claimed, pieces=[piece])


def _later(
    engine: Engine, tx: Transaction, run: RunRow, row: NodeRow, *, opens: bool
) -> Early | Dropped | None:
    """Say why a node that waits for no other must still wait; `None`: it may begin."""
    if row.due_at is not None and row.due_at > run.now:
        return Early(row.due_at - run.now)
    if row.losses >= SUSPECT_LOSSES:
        task = Task(row.node_id, row.name, row.generation, opens=opens)
        trial = probation(tx, run.run_id, row.node_id)
        if not engine.suspects.admit((run.run_id, row.node_id), task, row.losses, trial, engine.active):
            return Dropped("others go first that have lost workers, too; its turn comes")
    return None


def _settle(engine: Engine, tx: Transaction, run: RunRow, row: NodeRow) -> Early | Dropped | None:
    """End the sleeps that this node waits for, or say why they go on."""
    followup = Followup()
    if not run.is_to_be_told:
        records.settle_sleeps(tx, run, followup)
    if followup.ready or followup.asleep or followup.wakes_body or followup.ends_run:
        # The message's own node is among these; others the clock publishes when nobody else has.
        wakes_body = followup.wakes_body or followup.ends_run
        engine.schedule(tx, run, followup, signals=run.signals + int(wakes_body))
    if row.node_id in followup.ready:
        return None
    for sleeping in nodes.load_nodes(tx, run.run_id, statuses=[NodeStatus.RUNNING]).get():
        if sleeping.kind is NodeKind.SLEEP and row.node_id in nodes.load_targets(sleeping.next):
            wait = (sleeping.due_at or run.now) - run.now
            if wait <= timedelta():
                # Its continuation publishes the step again, or lets the clock do it.
                return Dropped("the body is to be told of something first", wakes_body=True)
            return Early(wait)
    return None


def with_arguments(
    tx: Transaction, run: RunRow, row: NodeRow, known: Mapping[NodeId, str], *, opens: bool
) -> Claimed | None:
    """Return a step with its arguments; `None` if they cannot be rebuilt: a message then finds the same, and deals with it."""
    try:
        args = large.whole(tx, run.run_id, row.args)
        value = resolve_value(tx, run.run_id, codec.loads(args), known)
    except (UnreadableValueError, UnresolvableError):
        return None
    return Claimed(run.run_id, run.workflow, row, tuple(value["args"]), value["kwargs"], opens=opens)


def claim_next(
    engine: Engine, tx: Transaction, run: RunRow, followup: Followup, may_run: MayRun,
    known: Mapping[NodeId, str], *, has_held: bool, held: Asked[NodeRow | None] | None = None,
) -> Claimed | None:  # fmt: skip
    """Claim one of the steps that have become ready, or one of a wide group that is held back (`windows.first_held`)."""
    row = next((row for row in followup.rows.values() if _is_free(row, run) and may_run(row.name)), None)
    is_held = row is None and has_held and not followup.ready and not followup.wakes_body
    if is_held:
        row = (held or windows.first_held(tx, run.run_id)).get()
        if row is None or not (_is_free(row, run) and may_run(row.name)):
            return None  # it stays held: the claim of this step's message has opened the next already
    found = None if row is None else with_arguments(tx, run, row, known, opens=has_held)
    if row is None or found is None:
        return None
    if not is_held:
        followup.ready.remove(row.node_id)
    return replace(found, row=claims.begin_attempt(tx, run, row, owner=engine.owner))


def _is_free(row: NodeRow, run: RunRow) -> bool:
    """Whether a ready step may be taken at once; one that has cost a process its life needs a message."""
    is_due = row.due_at is None or row.due_at <= run.now
    return row.kind is NodeKind.STEP and is_due and not row.losses


def begun(run_id: RunId, workflow: str, row: NodeRow) -> Claimed:
    """Return a claimed step whose arguments refer to no results, with its arguments decoded."""
    try:
        value = codec.decode(codec.loads(row.args))
    except UnreadableValueError as unreadable:
        # An attempt like any other: a worker of another deploy may take the next.
        return Claimed(run_id, workflow, row, (), {}, unreadable)
    return Claimed(run_id, workflow, row, tuple(value["args"]), value["kwargs"])
