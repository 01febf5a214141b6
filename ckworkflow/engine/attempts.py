"""Attempts: claim a step, and record how it ended.

The record is one transaction: the outcome, the counters of what follows, the run's end if this was it,
and the time at which the run must be looked at again. Only after its commit is anything published. A
worker that dies before it runs the step again; one that dies after it has left everything that is
needed in SQL.

Not here: running the step's function (`ckworkflow.worker.task`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.definition import Step
from ckworkflow.duration import parse_wait
from ckworkflow.engine import failures
from ckworkflow.engine.resolve import resolve_value
from ckworkflow.errors import (
    FatalError,
    HookContextError,
    InvalidDurationError,
    MissingTokenError,
    NotAWorkflowError,
    RetryableError,
    UnreadableValueError,
    UnserializableValueError,
    WorkflowCallError,
)
from ckworkflow.integration import Verdict, installed
from ckworkflow.model import NodeId, NodeKind, NodeStatus, RunId, RunStatus
from ckworkflow.store import nodes, records, runs
from ckworkflow.store.database import Transaction
from ckworkflow.store.nodes import NodeRow
from ckworkflow.store.records import Followup
from ckworkflow.tracing import UnresolvableError

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.plan import Piece
    from ckworkflow.store.runs import RunRow

logger = logging.getLogger(__name__)

LEAST_RETRY = timedelta(seconds=1)
FAULT_DELAY = timedelta(seconds=5)
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
    """

    keeps_chain: bool = False
    pieces: Sequence[Piece] = ()
    wakes_body: bool = False
    has_ended: bool = False
    retry_in: timedelta | None = None


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


# -- claim ----------------------------------------------------------------------------------------


def claim(
    engine: Engine, run_id: RunId, node_id: NodeId, generation: int, *, step: str
) -> Claimed | Early | Dropped:
    """Take a node for this process, if its time has come and nobody else has it."""
    return engine.database.transact(lambda tx: _claim(engine, tx, run_id, node_id, generation, step))


def _claim(
    engine: Engine, tx: Transaction, run_id: RunId, node_id: NodeId, generation: int, step: str
) -> Claimed | Early | Dropped:
    run = runs.lock_run(tx, run_id, engine.database)
    if run.status.is_final:
        return Dropped("the run has ended")
    row = nodes.load_node(tx, run_id, node_id)
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
    if row.due_at is not None and row.due_at > run.now:
        return Early(row.due_at - run.now)
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
    return Claimed(run_id, run.workflow, claimed, tuple(value["args"]), value["kwargs"], error)


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
    engine: Engine, claimed: Claimed, value: object, *, carries: frozenset[tuple[NodeId, int]]
) -> Recorded:
    """Record a result.

    Args:
        engine: The engine.
        claimed: What `claim` gave.
        value: The step's result.
        carries: The nodes (with their generation) that Celery would publish next by itself.

    Raises:
        UnserializableValueError: The result cannot be stored: the attempt has failed, and nothing is recorded yet.
    """
    output = codec.dumps(codec.encode(value, path="result"))
    return engine.database.transact(lambda tx: _record(engine, tx, claimed, output, None, carries))


def record_failure(
    engine: Engine, claimed: Claimed, failure: Failure, *, step: Step[..., Any] | None,
    carries: frozenset[tuple[NodeId, int]],
) -> Recorded:  # fmt: skip
    """Record a failed attempt: for good, or until the next one."""
    data = failure.data
    if failure.action == "release":
        return engine.database.transact(
            lambda tx: _suspend(engine, tx, claimed, failure, failure.delay or FAULT_DELAY, "released")
        )
    if failure.action == "retry" and step is not None:
        attempts = claimed.counted_attempt
        if not failure.counts or attempts <= step.options.max_retries:
            delay = failure.delay
            if delay is None:
                delay = step.options.delay_after(max(1, attempts))
            return engine.database.transact(
                lambda tx: _suspend(engine, tx, claimed, failure, delay, "retried")
            )
        data = failures.exhausted(claimed.row.name, attempts, data)
    elif failure.action == "hopeless":
        data = failures.hopeless(claimed.row.name, data)
    error = codec.dumps(data)
    return engine.database.transact(lambda tx: _record(engine, tx, claimed, None, error, carries))


def release(engine: Engine, claimed: Claimed) -> Recorded:
    """Give a step back at once and at no cost: this worker is stopping."""
    failure = Failure("release", {"type": "ckworkflow:Released", "message": "the worker stopped"})
    return engine.database.transact(
        lambda tx: _suspend(engine, tx, claimed, failure, timedelta(), "released")
    )


def _record(
    engine: Engine, tx: Transaction, claimed: Claimed, output: str | None, error: str | None,
    carries: frozenset[tuple[NodeId, int]],
) -> Recorded:  # fmt: skip
    run = runs.lock_run(tx, claimed.run_id, engine.database)
    row = nodes.load_node(tx, claimed.run_id, claimed.row.node_id)
    status = records.end_attempt(tx, run, claimed.row, output=output, error=error)
    if status is not NodeStatus.RUNNING or row is None or run.status.is_final:
        return Recorded()
    followup = Followup()
    if error is None:
        records.feed(tx, run, nodes.load_targets(row.next), base=run.now, followup=followup)
    else:
        followup.wakes_body = True
    return finish_record(engine, tx, run, followup, carries)


def finish_record(
    engine: Engine,
    tx: Transaction,
    run: RunRow,
    followup: Followup,
    carries: frozenset[tuple[NodeId, int]],
) -> Recorded:
    """End a transaction that recorded something: the run's end, what to publish, when to look again."""
    if followup.ends_run:
        if engine.end_run(tx, run):
            return Recorded(has_ended=True)
        followup.wakes_body = True
    keeps_chain, asleep = _carried(tx, run, followup, carries)
    rest = followup
    if keeps_chain:
        covered = {node_id for node_id, _ in carries}
        rest = Followup(
            ready=[node_id for node_id in followup.ready if node_id not in covered],
            asleep={node_id: due for node_id, due in followup.asleep.items() if node_id not in asleep},
        )
        records.mark_carried(tx, run.run_id, asleep)
    pieces, carried = engine.cut(tx, run, rest)
    for join_id in followup.joined:
        if not keeps_chain:  # else Celery's chord fires it, in `fire`
            records.fire_join(tx, run.run_id, join_id, from_state="open", to_state="fired")
    wake_at = engine.schedule(
        tx, run, followup, carried | asleep, signals=run.signals + int(followup.wakes_body)
    )
    engine.wake_at(wake_at)
    return Recorded(keeps_chain, pieces, followup.wakes_body)


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


def fire(engine: Engine, run_id: RunId, node_id: NodeId) -> bool:
    """Whether Celery may publish the body of the chord that a recorded node is a member of.

    Of several that ask, and of a join that is not complete, at most one is told so.
    """

    def move(tx: Transaction) -> bool:
        run = runs.lock_run(tx, run_id, engine.database)
        row = nodes.load_node(tx, run_id, node_id)
        if run.status.is_final or row is None:
            return False
        joins = [target for target in nodes.load_targets(row.next) if target.startswith("j:")]
        return any(
            records.fire_join(tx, run_id, join_id, from_state="open", to_state="fired")
            for join_id in joins
        )

    return engine.database.transact(move)


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
