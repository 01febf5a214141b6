"""Attempts: claim a step, and record how it ended.

The record is one transaction: the outcome, the counters of what follows, the run's end if this was it,
and the time at which the run must be looked at again. Only after its commit is anything published. A
worker that dies before it runs the step again; one that dies after it has left everything that is
needed in SQL.

**Run-ahead**: a worker that records a step may claim the next one in the same transaction, and, where it
keeps the body and this was all that the body waited for, make the continuation in it too. So a durable
step costs one commit and no message. What is claimed so is a claim like any other.

Not here: running the step's function, and for how long a worker runs ahead (`ckworkflow.worker.task`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.definition import Step
from ckworkflow.duration import parse_wait
from ckworkflow.engine import failures
from ckworkflow.engine.advance import Foreseen, MayRun, foresee
from ckworkflow.engine.recovery import beat
from ckworkflow.engine.resolve import resolve_value
from ckworkflow.errors import (
    FatalError,
    HookContextError,
    InvalidDurationError,
    MissingTokenError,
    NotAWorkflowError,
    RetryableError,
    RunNotFoundError,
    UnreadableValueError,
    UnserializableValueError,
    WorkflowCallError,
)
from ckworkflow.integration import Verdict, installed
from ckworkflow.model import NodeId, NodeKind, NodeStatus, RunId, RunStatus
from ckworkflow.plan import Chain, Task
from ckworkflow.store import nodes, records, runs
from ckworkflow.store.nodes import NodeRow
from ckworkflow.store.records import Followup
from ckworkflow.store.transaction import Transaction
from ckworkflow.store.writer import Work, finish
from ckworkflow.tracing import UnresolvableError

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.plan import Piece
    from ckworkflow.store.runs import RunRow

logger = logging.getLogger(__name__)

LEAST_RETRY = timedelta(seconds=1)
FAULT_DELAY = timedelta(seconds=5)
SUSPECT_LOSSES = 3
"""Of steps that have lost so many workers, one runs at a time: then a death tells which of them kills."""
SUSPECT_WAIT = timedelta(seconds=2)
_HOPELESS = (
    HookContextError, InvalidDurationError, MissingTokenError, NotAWorkflowError, UnserializableValueError,
    WorkflowCallError,
)  # fmt: skip
"""Errors of ours that every attempt would meet again: what they name must be changed first."""


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

    @property
    def counted_attempt(self) -> int:
        """Which of the step's attempts this is, without those that cost nothing."""
        return self.row.attempt - self.row.free_attempts


@dataclass(frozen=True, slots=True)
class Early:
    """The message came before its time; `wait` is what is left."""

    wait: timedelta


@dataclass(frozen=True, slots=True)
class Dropped:
    """The message says nothing (any more): it is done, owned, changed or of a run that has ended."""

    reason: str
    wakes_body: bool = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a worker does after a record.

    Attributes:
        keeps_chain: Celery's own continuation (the rest of the chain, the chord's body) is what comes next.
        pieces: What to publish besides.
        wakes_body: The body must go on.
        has_ended: The run has.
        retry_in: When the attempt is to be repeated by a message; `None`: not by one.
        next: A step that was claimed with the record: this process runs it now.
    """

    keeps_chain: bool = False
    pieces: Sequence[Piece] = ()
    wakes_body: bool = False
    has_ended: bool = False
    retry_in: timedelta | None = None
    next: Claimed | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """What is to happen after an error.

    Attributes:
        action: `fatal`, `hopeless` (as fatal, but the step has not said so: the body sees a `FatalError` with
            this as its cause), `retry`, or `release` (the worker is to blame).
        data: The error as data.
        delay: For a retry: how long, or `None` for the step's own delay.
        counts: Whether the attempt is one of the step's.
    """

    action: str
    data: Mapping[str, Any] = field(default_factory=dict)
    delay: timedelta | None = None
    counts: bool = True


RELEASED = Failure("release", {"type": "ckworkflow:Released", "message": "the worker stopped"})

# -- claim ----------------------------------------------------------------------------------------


def claim(
    engine: Engine, run_id: RunId, node_id: NodeId, generation: int, *, step: str, opens: bool = False
) -> Claimed | Early | Dropped:
    """Take a node for this process, if its time has come and nobody else has it.

    With `opens` the message was one of a window: another of those held back is to be published.
    """
    if engine.pulse.is_older_than(engine.settings.silence / 2):
        # Stopped for a while, perhaps taken for dead: who owns something must be known to live.
        beat(engine, role="worker")
    try:
        claimed = engine.database.transact_run(
            run_id,
            lambda tx: _claim(engine, tx, run_id, node_id, generation, step, opens=opens),
            # A claim that a power cut undoes was a worker's that the power cut has ended, too.
            is_lasting=False,
        )
    except RunNotFoundError:
        return Dropped("the run is gone")  # the message came after its retention
    if isinstance(claimed, Claimed):
        engine.active.add((run_id, node_id))
    return claimed


def _claim(
    engine: Engine, tx: Transaction, run_id: RunId, node_id: NodeId, generation: int, step: str, *,
    opens: bool,
) -> Generator[None, None, Claimed | Early | Dropped]:  # fmt: skip
    locking, loading = runs.ask_lock(tx, run_id, engine.database), nodes.ask_node(tx, run_id, node_id)
    yield
    run, row = runs.locked_run(locking, run_id, engine.database), nodes.loaded_node(loading)
    if run.status.is_final:
        return Dropped("the run has ended")
    if row is not None and row.unmet:
        early = _settle(engine, tx, run, row)
        if early is not None:
            return early
        row = nodes.load_node(tx, run_id, node_id)
    if row is None or (row.generation, row.name) != (generation, step):
        return Dropped("the plan has changed")
    if row.status is not NodeStatus.PLANNED:
        return Dropped(f"the node is {row.status}")
    if row.unmet:
        return Dropped("the node waits for others")
    if (early := _early(tx, run, row)) is not None:
        return early
    error = None
    try:
        value = resolve_value(tx, run_id, codec.loads(row.args))
    except UnreadableValueError as unreadable:
        # An attempt like any other: a worker of another deploy may take the next.
        value, error = {"args": (), "kwargs": {}}, unreadable
    except UnresolvableError:
        # Only the body can evaluate an argument: it goes on with the real values, and Python's error (if it
        # is one) arises there.
        engine.schedule(tx, run, Followup(wakes_body=True), signals=run.signals + 1)
        return Dropped("an argument needs the body", wakes_body=True)
    claimed = records.begin_attempt(tx, run, row, owner=engine.owner)
    begun: dict[str, Any] = {}
    if run.status is RunStatus.PENDING:
        begun = {"status": RunStatus.RUNNING, "started_at": run.now}
    engine.schedule(tx, run, Followup(), **begun)
    pieces: Sequence[Piece] = ()
    if opens and (held := records.first_held(tx, run_id)) is not None:
        records.release(tx, run_id, held)
        pieces = [Chain((Task(held.node_id, held.name, held.generation, opens=True),))]
    return Claimed(
        run_id, run.workflow, claimed, tuple(value["args"]), value["kwargs"], error, opens, pieces
    )


def _early(tx: Transaction, run: RunRow, row: NodeRow) -> Early | None:
    """How long a node that waits for no other must wait still."""
    if row.due_at is not None and row.due_at > run.now:
        return Early(row.due_at - run.now)
    if row.losses >= SUSPECT_LOSSES and nodes.is_suspect_running(tx, losses=SUSPECT_LOSSES):
        return Early(SUSPECT_WAIT)
    return None


def _settle(engine: Engine, tx: Transaction, run: RunRow, row: NodeRow) -> Early | None:
    """End the sleeps that this node waits for, or say how long they still take."""
    followup = Followup()
    records.settle_sleeps(tx, run, followup)
    if followup.ready or followup.asleep or followup.wakes_body or followup.ends_run:
        # The message's own node is among these; others the clock publishes when nobody else has.
        wakes_body = followup.wakes_body or followup.ends_run
        engine.schedule(tx, run, followup, signals=run.signals + int(wakes_body))
    if row.node_id in followup.ready:
        return None
    for sleeping in nodes.load_nodes(tx, run.run_id, statuses=[NodeStatus.RUNNING]):
        if sleeping.kind is NodeKind.SLEEP and row.node_id in nodes.load_targets(sleeping.next):
            return Early((sleeping.due_at or run.now) - run.now)
    return None


# -- record ---------------------------------------------------------------------------------------


def record_success(
    engine: Engine, claimed: Claimed, value: object, *, carries: frozenset[tuple[NodeId, int]],
    may_run: MayRun | None = None,
) -> Recorded:  # fmt: skip
    """Record a result.

    Args:
        engine: The engine.
        claimed: What `claim` gave.
        value: The step's result.
        carries: The nodes (with their generation) that Celery would publish next by itself.
        may_run: Which steps this process would run next, in place; `None`: none.

    Raises:
        UnserializableValueError: The result cannot be stored: the attempt has failed, and nothing is recorded yet.
    """
    tree = codec.encode(value, path="result")
    output = codec.dumps(tree)
    foreseen = foresee(engine, claimed.run_id, claimed.row.node_id, tree)
    try:
        recorded = engine.database.transact_run(
            claimed.run_id,
            lambda tx: _record(engine, tx, claimed, output, None, carries, may_run, foreseen),
        )
    except BaseException:
        if foreseen is not None:
            foreseen.close()
        raise
    _note_record(engine, claimed, recorded)
    if foreseen is not None:
        foreseen.keep(engine, claimed.run_id)
    else:
        engine.bodies.note(claimed.run_id, claimed.row.node_id, tree)
    return recorded


def _note_record(engine: Engine, claimed: Claimed, recorded: Recorded) -> Recorded:
    engine.active.discard((claimed.run_id, claimed.row.node_id))
    if recorded.next is not None:
        engine.active.add((claimed.run_id, recorded.next.row.node_id))
    return recorded


def record_failure(
    engine: Engine, claimed: Claimed, failure: Failure, *, step: Step[..., Any] | None,
    carries: frozenset[tuple[NodeId, int]],
) -> Recorded:  # fmt: skip
    """Record a failed attempt: for good, or until the next one."""
    data = failure.data
    if failure.action == "release":
        return _end(
            engine,
            claimed,
            lambda tx: _suspend(engine, tx, claimed, failure, failure.delay or FAULT_DELAY, "released"),
        )
    if failure.action == "retry" and step is not None:
        attempts = claimed.counted_attempt
        if not failure.counts or attempts <= step.options.max_retries:
            delay = failure.delay
            if delay is None:
                delay = step.options.delay_after(max(1, attempts))
            return _end(
                engine, claimed, lambda tx: _suspend(engine, tx, claimed, failure, delay, "retried")
            )
        data = failures.exhausted(claimed.row.name, attempts, data)
    elif failure.action == "hopeless":
        data = failures.hopeless(claimed.row.name, data)
    error = codec.dumps(data)
    return _end(engine, claimed, lambda tx: _record(engine, tx, claimed, None, error, carries))


def release(engine: Engine, claimed: Claimed) -> Recorded:
    """Give a step back at once and at no cost: this worker is stopping."""
    return _end(
        engine, claimed, lambda tx: _suspend(engine, tx, claimed, RELEASED, timedelta(), "released")
    )


def _end(engine: Engine, claimed: Claimed, work: Work[Recorded]) -> Recorded:
    recorded = engine.database.transact_run(claimed.run_id, lambda tx: finish(work, tx))
    return _note_record(engine, claimed, recorded)


def _record(
    engine: Engine, tx: Transaction, claimed: Claimed, output: str | None, error: str | None,
    carries: frozenset[tuple[NodeId, int]], may_run: MayRun | None = None, foreseen: Foreseen | None = None,
) -> Generator[None, None, Recorded]:  # fmt: skip
    run_id, row, now = claimed.run_id, claimed.row, engine.database.about_now()
    locking = runs.ask_lock(tx, run_id, engine.database)
    ending = records.ask_end(
        tx, run_id, row, output=output, error=error, at=now,
        place=foreseen.place_of_last if foreseen else None,
    )  # fmt: skip
    # What follows in a chain is asked for in the same breath: it is most likely right.
    after = nodes.load_targets(row.next)
    taking = None
    if (
        may_run
        and output is not None
        and not foreseen
        and nodes.is_one_node(after)
        and may_run(row.name)
    ):
        taking = records.ask_take(tx, run_id, NodeId(after[0]), owner=engine.owner, at=now)
    yield
    run = runs.locked_run(locking, run_id, engine.database)
    targets = records.ended(ending, tx, run, row, error=error)
    taken = records.taken(taking)
    if taken is not None and (targets != after or run.status.is_final):
        records.give_back(tx, run_id, taken, unmet=1)
        taken = None
    is_foreseen = foreseen is not None and foreseen.holds(run)
    if foreseen is not None and not is_foreseen and targets is not None:
        nodes.update_node(tx, run_id, row.node_id, delivered=None, delivered_at=None)
    if targets is None or run.status.is_final:
        return Recorded()
    if foreseen is not None and is_foreseen:
        committed = foreseen.commit(engine, tx, run, may_run)
        return Recorded(
            pieces=committed.pieces, wakes_body=not committed.is_released, has_ended=committed.is_final,
            next=begun(run.run_id, run.workflow, committed.begun) if committed.begun else None,
        )  # fmt: skip
    followup, following = Followup(), None
    known = {} if output is None else {row.node_id: output}
    if output is None:
        followup.wakes_body = True
    elif taken is None:
        yield from records.feeding(tx, run, targets, base=run.now, followup=followup)
    elif may_run is not None and may_run(taken.name):
        following = _claimed(tx, run, taken, known, opens=claimed.opens)
    if taken is not None and following is None:
        given = records.give_back(tx, run_id, taken, unmet=0)
        followup.ready.append(given.node_id)
        followup.rows[given.node_id] = given
    elif following is None and may_run is not None and not followup.ends_run:
        following = _claim_next(engine, tx, run, followup, may_run, known, has_held=claimed.opens)
    return _finish_record(engine, tx, run, followup, following, carries, known)


def _finish_record(
    engine: Engine, tx: Transaction, run: RunRow, followup: Followup, following: Claimed | None,
    carries: frozenset[tuple[NodeId, int]], known: Mapping[NodeId, str],
) -> Recorded:  # fmt: skip
    """End a transaction that recorded something: the run's end, what to publish, when to look again."""
    if followup.ends_run:
        if engine.end_run(tx, run, known=known):
            return Recorded(has_ended=True)
        followup.wakes_body = True
    keeps_chain, asleep = (False, set()) if following else _carried(tx, run, followup, carries)
    rest = followup
    if keeps_chain:
        covered = {node_id for node_id, _ in carries}
        rest = Followup(
            ready=[node_id for node_id in followup.ready if node_id not in covered],
            rows=followup.rows,
            asleep={node_id: due for node_id, due in followup.asleep.items() if node_id not in asleep},
        )
        records.mark_carried(tx, run.run_id, asleep)
    # A run that gives up its slot may be long. What follows is taken in place again, or published by its own record.
    pieces, carried = engine.cut(tx, run, rest, has_tail=False)
    values: dict[str, Any] = {"signals": run.signals + 1} if followup.wakes_body else {}
    wake_at = engine.schedule(tx, run, followup, carried | asleep, **values)
    engine.wake_at(wake_at)
    return Recorded(keeps_chain, pieces, followup.wakes_body, next=following)


def _claimed(
    tx: Transaction, run: RunRow, row: NodeRow, known: Mapping[NodeId, str], *, opens: bool
) -> Claimed | None:
    """A step with its arguments; `None`: as a message finds it, so that there is one place that deals with it."""
    try:
        value = resolve_value(tx, run.run_id, codec.loads(row.args), known)
    except (UnreadableValueError, UnresolvableError):
        return None
    return Claimed(run.run_id, run.workflow, row, tuple(value["args"]), value["kwargs"], opens=opens)


def _claim_next(
    engine: Engine, tx: Transaction, run: RunRow, followup: Followup, may_run: MayRun,
    known: Mapping[NodeId, str], *, has_held: bool,
) -> Claimed | None:  # fmt: skip
    """Claim one of the steps that a record has made ready, or one of a wide group that is held back."""
    row = next((row for row in followup.rows.values() if _is_fresh(row) and may_run(row.name)), None)
    is_held = row is None and has_held and not followup.ready and not followup.wakes_body
    if is_held:
        row = records.first_held(tx, run.run_id)
        if row is None or not (_is_fresh(row) and may_run(row.name)):
            return None  # it stays held: the claim of this step's message has opened the next already
    found = None if row is None else _claimed(tx, run, row, known, opens=has_held)
    if row is None or found is None:
        return None
    if is_held:
        records.release(tx, run.run_id, row)
    else:
        followup.ready.remove(row.node_id)
    return replace(found, row=records.begin_attempt(tx, run, row, owner=engine.owner))


def _is_fresh(row: NodeRow) -> bool:
    return row.kind is NodeKind.STEP and row.due_at is None and row.attempt == 0


def begun(run_id: RunId, workflow: str, row: NodeRow) -> Claimed:
    """What was claimed with the plan that named it; its arguments refer to nothing."""
    value = codec.decode(codec.loads(row.args))
    return Claimed(run_id, workflow, row, tuple(value["args"]), value["kwargs"])


def _carried(
    tx: Transaction, run: RunRow, followup: Followup, carries: frozenset[tuple[NodeId, int]]
) -> tuple[bool, set[NodeId]]:
    """Whether what Celery would publish next is right, and which sleeps its countdown ends."""
    if not carries:
        return False, set()
    asleep: set[NodeId] = set()
    waking: set[str] = set()
    for node_id in followup.asleep:
        row = nodes.load_node(tx, run.run_id, node_id)
        following = nodes.load_targets(row.next) if row is not None else []
        if any(carried in following for carried, _ in carries):
            asleep.add(node_id)
            waking.update(following)
    for node_id, generation in carries:
        row = nodes.load_node(tx, run.run_id, node_id)
        if row is None or row.generation != generation or row.status is not NodeStatus.PLANNED:
            return False, set()
        if node_id not in followup.ready and node_id not in waking:
            return False, set()
    return True, asleep


def _suspend(
    engine: Engine, tx: Transaction, claimed: Claimed, failure: Failure, delay: timedelta, outcome: str
) -> Recorded:
    run = runs.lock_run(tx, claimed.run_id, engine.database)
    due_at = run.now + delay
    is_free = failure.action == "release" or not failure.counts
    error = codec.dumps(failure.data)
    is_carried = failure.action == "retry" and delay <= engine.settings.horizon
    if not records.suspend_attempt(
        tx, run, claimed.row, outcome=outcome, due_at=due_at, error=error, is_free=is_free,
        is_carried=is_carried,
    ):  # fmt: skip
        return Recorded()
    if run.status.is_final:
        return Recorded()
    wake_at = due_at + (engine.settings.redispatch_after if is_carried else timedelta())
    engine.schedule(tx, run, Followup(asleep={claimed.row.node_id: wake_at}))
    engine.wake_at(wake_at)
    return Recorded(retry_in=delay if is_carried else None)


# -- judging --------------------------------------------------------------------------------------


def judge(error: BaseException, *, now: Callable[[], datetime]) -> Failure:
    """Decide what an error that a step raised means.

    The step's own word comes first (`FatalError`, `RetryableError`), then what no attempt can help, then the
    integrations (the Discord policy), then the default: try again after the step's own delay.
    """
    data = failures.to_data(error)
    if isinstance(error, FatalError):
        return Failure("fatal", data)
    if isinstance(error, _HOPELESS):
        return Failure("hopeless", data)
    if isinstance(error, RetryableError):
        try:
            delay = _delay(error, now)
        except InvalidDurationError as invalid:
            return Failure("hopeless", failures.to_data(invalid))
        return Failure("retry", data, delay)
    for integration in installed():
        try:
            verdict = integration.judge(error)
        except Exception:
            logger.exception("integration failed to judge", extra={"integration": integration.name})
            continue
        if verdict is not None:
            return _follow(verdict, data)
    return Failure("retry", data)


def _delay(error: RetryableError, now: Callable[[], datetime]) -> timedelta:
    if error.retry_after is None:
        return LEAST_RETRY
    wait = parse_wait(error.retry_after)
    if isinstance(wait, datetime):
        wait = wait - now()
    return max(wait, LEAST_RETRY)


def _follow(verdict: Verdict, data: dict[str, Any]) -> Failure:
    told = {**data, "kind": verdict.kind}
    for name in ("code", "status"):
        if getattr(verdict, name) is not None:
            told[name] = getattr(verdict, name)
    if verdict.details:
        told["details"] = dict(verdict.details)
    if verdict.action == "fatal":
        fatal = failures.to_data(FatalError(verdict.message, code=verdict.code, kind=verdict.kind,
                                            status=verdict.status, details=verdict.details))  # fmt: skip
        fatal.pop("traceback", None)
        return Failure("fatal", {**fatal, "cause": told})
    action = "release" if verdict.action == "fault" else "retry"
    return Failure(action, told, verdict.retry_after, verdict.counts)
