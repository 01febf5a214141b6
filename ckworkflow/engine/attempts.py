"""Attempts: recording how a step that was claimed has ended.

The record is one transaction: the outcome, the counters of what follows, the run's end if this was it,
and the time at which the run must be looked at again. Only after its commit is anything published. A
worker that dies before it runs the step again; one that dies after it has left everything that is
needed in SQL.

**Run-ahead**: a worker that records a step may claim the next one in the same transaction, and, where it
keeps the body and this was all that the body waited for, make the continuation in it too. So a durable
step costs one commit and no message. What is claimed so is a claim like any other.

Not here: running the step's function, and for how long a worker runs ahead (`ckworkflow.worker.steps.task`); what an error
means (`ckworkflow.engine.judging`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.definition import Step
from ckworkflow.engine import failures, holding, judging
from ckworkflow.engine.advance import Foreseen, foresee
from ckworkflow.engine.answer import Answer, MayRun
from ckworkflow.engine.called import step_of
from ckworkflow.engine.claims import Claimed, claim_next, with_arguments
from ckworkflow.engine.judging import RELEASED, Failure, FailureAction
from ckworkflow.engine.resolve import resolve_known
from ckworkflow.errors import DatabaseUnavailableError, RefusedValueError, UnreadableValueError
from ckworkflow.model import AttemptOutcome, NodeId, NodeRef, NodeStatus
from ckworkflow.store import claims, nodes, records, runs, windows
from ckworkflow.store.expectations import ExpectationError
from ckworkflow.store.records import Fired, Followup, Suspended
from ckworkflow.store.transaction import Transaction
from ckworkflow.store.writer import LAST, Work, finish

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Asked
    from ckworkflow.store.writer import Done, Works

FAULT_DELAY = timedelta(seconds=5)

KeepTrying = Callable[[Callable[[], Answer]], Answer]
"""Calls something until the database can be reached, and returns what it returned."""


def judge(
    engine: Engine, claimed: Claimed, error: BaseException, *, now: Callable[[], datetime]
) -> Failure:
    """Decide what an error that a step raised means, as the step and the app wish it; see `judging.judge`."""
    wish = step_of(claimed.row).options.discord_errors
    if wish is None:
        wish = engine.settings.discord_errors
    return judging.judge(error, now=now, discord_errors=wish)


def record(
    engine: Engine, claimed: Claimed, value: object, failure: Failure | None, *,
    carries: frozenset[NodeRef], may_run: MayRun | None, keep_trying: KeepTrying,
) -> tuple[Failure | None, Answer]:  # fmt: skip
    """Record what a step has returned, or failed with; give what was recorded as its failure, if that was one.

    An outcome that cannot be stored is recorded as a failure: each further attempt would meet the same.

    Args:
        engine: The engine.
        claimed: What `claim` gave.
        value: The step's result, if it did not fail.
        failure: How it failed.
        carries: The nodes that Celery would publish next by itself.
        may_run: Which steps this process would run next, in place; `None`: none.
        keep_trying: Makes a record, however long the database is down.

    Raises:
        DatabaseUnavailableError: The caller has given up waiting for the database.
    """

    def fail(failure: Failure) -> Answer:
        step = step_of(claimed.row)
        return record_failure(engine, claimed, failure, step=step, carries=carries)

    def recorded_or_failure(record: Callable[[], Answer]) -> Answer | Failure:
        try:
            return keep_trying(record)
        except DatabaseUnavailableError:  # the worker stops, and has waited long enough
            raise
        except Exception as error:  # noqa: BLE001  # the outcome's fault
            return judging.unrecordable(error)

    if failure is None:
        found = recorded_or_failure(
            lambda: record_success(engine, claimed, value, carries=carries, may_run=may_run)
        )
        if isinstance(found, Answer):
            return None, found
        failure = found
    found = recorded_or_failure(partial(fail, failure))
    if isinstance(found, Answer):
        return failure, found
    return found, keep_trying(partial(fail, found))


def record_success(
    engine: Engine, claimed: Claimed, value: object, *, carries: frozenset[NodeRef],
    may_run: MayRun | None = None, lost: Callable[[], object] | None = None,
) -> Answer:  # fmt: skip
    """Record a result.

    Args:
        engine: The engine.
        claimed: What `claim` gave.
        value: The step's result.
        carries: The nodes that Celery would publish next by itself.
        may_run: Which steps this process would run next, in place; `None`: none.
        lost: Where this thread may be lost to a body: told if it is, and then nothing is recorded (`Budget.run_here`).

    Raises:
        UnserializableValueError: The result cannot be stored: the attempt has failed, and nothing is recorded yet.
        DatabaseUnavailableError: Nothing is known to be recorded; call it again.
    """
    tree = codec.encode(value, path="result")
    output = codec.pack(tree)
    foreseen = foresee(engine, claimed.run_id, claimed.workflow, claimed.row.node_id, tree, lost)
    try:
        recorded = _record_ahead(engine, claimed, output, carries, may_run, foreseen)
    except BaseException as error:
        is_guess = isinstance(error, ExpectationError)
        if foreseen is not None:
            foreseen.close()
        # Perhaps it is a value of the continuation, and then no fault of this step; what cannot be rebuilt here waits
        # for another deploy.
        is_foreseen = foreseen is not None and isinstance(
            error, RefusedValueError | UnreadableValueError
        )
        if not (is_guess or is_foreseen):
            raise
        foreseen = None
        recorded = engine.database.transact_run(
            claimed.run_id, lambda tx: _record(engine, tx, claimed, output, None, carries, may_run)
        )
    recorded = recorded.decoded(engine, claimed.run_id, claimed.workflow)
    _note_record(engine, claimed, recorded)
    if foreseen is not None:
        foreseen.keep(engine, claimed.run_id)
    elif not recorded.is_refused:
        engine.bodies.note(claimed.run_id, claimed.row.node_id, tree)
    return recorded


def _record_ahead(
    engine: Engine, claimed: Claimed, output: str, carries: frozenset[NodeRef],
    may_run: MayRun | None, foreseen: Foreseen | None,
) -> Answer:  # fmt: skip
    """Record a result together with what most likely follows it.

    Raises:
        ExpectationError: Something else follows. Nothing is recorded.
    """
    try:
        recorded = _record_at_once(engine, claimed, output, may_run, foreseen)
    except ExpectationError:  # perhaps only the time has changed at which the run is looked at
        recorded = None
    if recorded is not None:
        return recorded
    return engine.database.transact_run(
        claimed.run_id,
        lambda tx: _record(engine, tx, claimed, output, None, carries, may_run, foreseen, is_ahead=True),
    )


def submit_success(
    engine: Engine, claimed: Claimed, value: object, done: Done[Answer], *,
    carries: frozenset[NodeRef], may_run: MayRun,
) -> bool:  # fmt: skip
    """Hand in the record of a result that is followed by one step, and return at once.

    Args:
        engine: The engine.
        claimed: What `claim` gave.
        value: The step's result.
        done: Gets the outcome. If that raises, nothing is known to be recorded: call `record_success`.
        carries: The nodes that Celery would publish next by itself.
        may_run: Which steps this process would run next, in place.

    Returns:
        Whether the record was handed in; `False` if something else than one step may come next, and nothing was done.

    Raises:
        UnserializableValueError: The result cannot be stored: the attempt has failed, and nothing is recorded yet.
    """
    targets = nodes.load_targets(claimed.row.next)
    if len(targets) != 1 or not nodes.is_node(targets[0]):
        return False
    tree = codec.encode(value, path="result")
    output = codec.pack(tree)
    taking = _taking(engine, claimed, output, may_run)
    work: Work[Any] = lambda tx: _record(  # noqa: E731
        engine, tx, claimed, output, None, carries, may_run, is_ahead=True
    )
    if taking is not None:
        work = taking.work

    def end(outcome: Callable[[], Any]) -> Answer:
        recorded: Answer = outcome() if taking is None else taking.recorded(outcome())
        if not recorded.is_refused:
            engine.bodies.note(claimed.run_id, claimed.row.node_id, tree)
        return _note_record(engine, claimed, recorded)

    engine.database.submit_run(claimed.run_id, work, lambda outcome: done(lambda: end(outcome)))
    return True


def _note_record(engine: Engine, claimed: Claimed, recorded: Answer) -> Answer:
    engine.active.discard((claimed.run_id, claimed.row.node_id))
    if recorded.here is not None:
        engine.active.add((claimed.run_id, recorded.here.row.node_id))
    return recorded


def record_failure(
    engine: Engine, claimed: Claimed, failure: Failure, *, step: Step[..., Any] | None,
    carries: frozenset[NodeRef],
) -> Answer:  # fmt: skip
    """Record a failed attempt, for good or until the next one.

    Raises:
        DatabaseUnavailableError: Nothing is known to be recorded; call it again.
    """
    try:
        return _record_failure(engine, claimed, failure, step=step, carries=carries)
    except RefusedValueError as error:  # what the step's error says: this stands for it
        told = replace(failure, data=failures.to_data(RefusedValueError(error.reason)))  # a short one
        return _record_failure(engine, claimed, told, step=step, carries=carries)


def _record_failure(
    engine: Engine, claimed: Claimed, failure: Failure, *, step: Step[..., Any] | None,
    carries: frozenset[NodeRef],
) -> Answer:  # fmt: skip
    data = failure.data
    if failure.action is FailureAction.RELEASE:
        return _end(
            engine,
            claimed,
            lambda tx: _suspend(
                engine, tx, claimed, failure, failure.delay or FAULT_DELAY, AttemptOutcome.RELEASED
            ),
        )
    if failure.action is FailureAction.HOLD:
        data, pause, is_again = holding.next_step_hold(claimed.row, data)
        held = replace(failure, data=data)
        recorded = _end(
            engine,
            claimed,
            # To say the same again tells nothing new, and the rows would be many.
            lambda tx: _suspend(
                engine, tx, claimed, held, pause, None if is_again else AttemptOutcome.HELD
            ),
        )
        holding.tell_step(claimed.run_id, claimed.row, data, is_again=is_again)
        return recorded
    if failure.action is FailureAction.RETRY and step is not None:
        attempts = claimed.counted_attempt
        if not failure.counts or attempts <= step.options.max_retries:
            delay = failure.delay_for(step.options, max(1, attempts))
            return _end(
                engine,
                claimed,
                lambda tx: _suspend(engine, tx, claimed, failure, delay, AttemptOutcome.RETRIED),
            )
        data = failures.exhausted(claimed.row.name, attempts, data)
    elif failure.action is FailureAction.HOPELESS:
        data = failures.hopeless(claimed.row.name, data)
    error = codec.dumps(data)
    return _end(engine, claimed, lambda tx: _record(engine, tx, claimed, None, error, carries))


def release(engine: Engine, claimed: Claimed) -> Answer:
    """Give a step back at once and at no cost: this worker is stopping."""
    return _end(
        engine,
        claimed,
        lambda tx: _suspend(engine, tx, claimed, RELEASED, timedelta(), AttemptOutcome.RELEASED),
    )


def ending(engine: Engine, tx: Transaction, claimed: Claimed, error: str) -> Works[Answer]:
    """Record, in a transaction that has locked the run, that an attempt has failed for good."""
    return _record(engine, tx, claimed, None, error, frozenset())


def _end(engine: Engine, claimed: Claimed, work: Work[Answer]) -> Answer:
    recorded = engine.database.transact_run(claimed.run_id, lambda tx: finish(work, tx))
    return _note_record(engine, claimed, recorded)


def _record_at_once(
    engine: Engine, claimed: Claimed, output: str, may_run: MayRun | None, foreseen: Foreseen | None
) -> Answer | None:
    """Record a result in one round trip, where this process knows what follows; `None`: the normal path is taken.

    Raises:
        ExpectationError: The run is not as it was left, and nothing is recorded.
    """
    if may_run is None or not engine.database.can_expect:
        return None
    if foreseen is not None and foreseen.run is not None:
        run = foreseen.run._replace(now=engine.database.about_now())
        return engine.database.transact_run(
            claimed.run_id,
            lambda tx: _commit_foreseen(engine, tx, run, claimed, output, foreseen, may_run),
        )
    taking = _taking(engine, claimed, output, may_run) if foreseen is None else None
    if taking is None:
        return None
    return taking.recorded(engine.database.transact_run(claimed.run_id, taking.work))


def _commit_foreseen(
    engine: Engine, tx: Transaction, run: RunRow, claimed: Claimed, output: str, foreseen: Foreseen,
    may_run: MayRun,
) -> Answer:  # fmt: skip
    runs.expect_run(tx, run)
    records.expect_end(
        tx, run.run_id, claimed.row, output=output, at=run.now, place=foreseen.place_of_last
    )
    return foreseen.commit(engine, tx, run, may_run)


@dataclass(frozen=True, slots=True)
class _Taking:
    """A result that is recorded in one round trip, with the step after it."""

    work: Callable[[Transaction], Works[NodeRow]]
    recorded: Callable[[NodeRow], Answer]


def _taking(engine: Engine, claimed: Claimed, output: str, may_run: MayRun) -> _Taking | None:
    """Record a result and take the step after it in place; `None` if that step or its arguments are not at hand."""
    run_id, row, after = claimed.run_id, claimed.row, claimed.row.after
    if after is None or not engine.database.can_expect or not may_run(after.name):
        return None
    value = resolve_known(codec.loads(after.args), {row.node_id: output})
    if value is None:
        return None

    def work(tx: Transaction) -> Works[NodeRow]:
        now = engine.database.about_now()
        runs.lock_run(tx, run_id, engine.database)
        records.expect_end(tx, run_id, row, output=output, at=now)
        (node_id,) = nodes.load_targets(row.next)
        taking = claims.expect_take(
            tx, run_id, NodeId(node_id), generation=after.generation, owner=engine.owner, at=now
        )
        yield LAST
        return taking.get()

    def recorded(taken: NodeRow) -> Answer:
        args, kwargs = tuple(value["args"]), value["kwargs"]
        return Answer(here=Claimed(run_id, claimed.workflow, taken, args, kwargs, opens=claimed.opens))

    return _Taking(work, recorded)


def _record(
    engine: Engine, tx: Transaction, claimed: Claimed, output: str | None, error: str | None,
    carries: frozenset[NodeRef], may_run: MayRun | None = None, foreseen: Foreseen | None = None,
    *, is_ahead: bool = False,
) -> Works[Answer]:  # fmt: skip
    """Record how an attempt has ended, and what that makes ready.

    With `is_ahead` what most likely follows is asked for in the same round trip, before the record is known to stand.

    Raises:
        ExpectationError: Something else follows than that, or than was foreseen. Nothing of the transaction stands.
    """
    run_id, row, now = claimed.run_id, claimed.row, engine.database.about_now()
    locking = runs.lock_run(tx, run_id, engine.database)
    ending = records.end_attempt(
        tx, run_id, row, output=output, error=error, at=now,
        place=foreseen.place_of_last if foreseen else None,
    )  # fmt: skip
    ahead = _Ahead()
    if is_ahead and not foreseen:
        ahead = _ask_ahead(engine, tx, claimed, may_run, now)
    yield None
    run, targets = locking.get(), ending.get()
    if foreseen is not None and not foreseen.holds(run):
        raise ExpectationError
    if ahead.after is not None and (targets != ahead.after or run.status.is_final):
        raise ExpectationError
    if targets is None or run.status.is_final:
        return Answer(is_refused=True)
    if foreseen is not None:
        return foreseen.commit(engine, tx, run, may_run)
    followup, following = Followup(wakes_body=output is None), None
    known = {} if output is None else {row.node_id: output}
    taken = None if ahead.taking is None else ahead.taking.get()
    if taken is not None:
        following = _run_taken(tx, run, taken, followup, may_run, known, opens=claimed.opens)
    elif output is not None:
        yield from records.feeding(
            tx, run, targets, base=run.now, followup=followup, counted=ahead.counted
        )
    if taken is None and may_run is not None and not followup.ends_run:
        following = claim_next(
            engine, tx, run, followup, may_run, known, has_held=claimed.opens, held=ahead.held
        )
    return _finish_record(engine, tx, run, followup, following, carries, known)


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What a record has asked for ahead.

    Attributes:
        after: What the node is expected to feed; `None`: nothing was asked for.
        taking: The step after it, which is running now.
        counted: What came of counting it in a join.
        held: The first step of its wide group that is held back.
    """

    after: tuple[str, ...] | None = None
    taking: Asked[NodeRow | None] | None = None
    counted: Asked[Fired | None] | None = None
    held: Asked[NodeRow | None] | None = None


def _ask_ahead(
    engine: Engine, tx: Transaction, claimed: Claimed, may_run: MayRun | None, now: datetime
) -> _Ahead:
    run_id, after = claimed.run_id, nodes.load_targets(claimed.row.next)
    if len(after) != 1:
        return _Ahead()
    if not nodes.is_node(after[0]):
        counted = records.count(tx, run_id, after[0])
        held = windows.first_held(tx, run_id) if claimed.opens and may_run else None
        return _Ahead(after, counted=counted, held=held)
    if may_run is None or not may_run(claimed.row.name):
        return _Ahead()
    taking = claims.take(tx, run_id, NodeId(after[0]), owner=engine.owner, at=now)
    return _Ahead(after, taking)


def _run_taken(
    tx: Transaction, run: RunRow, taken: NodeRow, followup: Followup, may_run: MayRun | None,
    known: Mapping[NodeId, str], *, opens: bool,
) -> Claimed | None:  # fmt: skip
    """Run a step that was taken in place; if it may not run here, it becomes ready like any other."""
    if may_run is not None and may_run(taken.name):
        following = with_arguments(tx, run, taken, known, opens=opens)
        if following is not None:
            return following
    given = claims.give_back(tx, run.run_id, taken)
    followup.ready.append(given.node_id)
    followup.rows[given.node_id] = given
    return None


def finish_record(engine: Engine, tx: Transaction, run: RunRow, followup: Followup) -> Answer:
    """End a transaction that recorded something else than an attempt: the end of a child, say."""
    return _finish_record(engine, tx, run, followup, None, frozenset(), {})


def _finish_record(
    engine: Engine, tx: Transaction, run: RunRow, followup: Followup, following: Claimed | None,
    carries: frozenset[NodeRef], known: Mapping[NodeId, str],
) -> Answer:  # fmt: skip
    """End a transaction that recorded something: the run's end, what to publish, when to look again."""
    if followup.ends_run:
        if engine.try_to_end(tx, run, known=known):
            return Answer(has_ended=True)
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
    return Answer(pieces, must_advance=followup.wakes_body, here=following, keeps_chain=keeps_chain)


def _carried(
    tx: Transaction, run: RunRow, followup: Followup, carries: frozenset[NodeRef]
) -> tuple[bool, set[NodeId]]:
    """Whether what Celery would publish next is right, and which sleeps its countdown ends."""
    if not carries:
        return False, set()
    asleep: set[NodeId] = set()
    waking: set[str] = set()
    for node_id in followup.asleep:
        row = nodes.load_node(tx, run.run_id, node_id).get()
        following = nodes.load_targets(row.next) if row is not None else []
        if any(carried in following for carried, _ in carries):
            asleep.add(node_id)
            waking.update(following)
    for node_id, generation in carries:
        row = nodes.load_node(tx, run.run_id, node_id).get()
        if row is None or row.generation != generation or row.status is not NodeStatus.PLANNED:
            return False, set()
        if node_id not in followup.ready and node_id not in waking:
            return False, set()
    return True, asleep


def _suspend(
    engine: Engine, tx: Transaction, claimed: Claimed, failure: Failure, delay: timedelta,
    outcome: AttemptOutcome | None,
) -> Answer:  # fmt: skip
    run = runs.lock_run(tx, claimed.run_id, engine.database).get()
    due_at = run.now + delay
    is_free = failure.action in (FailureAction.RELEASE, FailureAction.HOLD) or not failure.counts
    error = codec.dumps(failure.data)
    is_carried = failure.action is FailureAction.RETRY and delay <= engine.settings.horizon
    suspended = records.suspend_attempt(
        tx, run, claimed.row, outcome=outcome, due_at=due_at, error=error, is_free=is_free,
        is_carried=is_carried,
    )  # fmt: skip
    if suspended is Suspended.REFUSED:
        return Answer(is_refused=True)
    if run.status.is_final:
        return Answer()
    if suspended is Suspended.ENDED:
        return _finish_record(engine, tx, run, Followup(wakes_body=True), None, frozenset(), {})
    wake_at = due_at + (engine.settings.redispatch_after if is_carried else timedelta())
    marks = holding.mark_steps(run) if failure.action is FailureAction.HOLD else {}
    engine.schedule(tx, run, Followup(asleep={claimed.row.node_id: wake_at}), **marks)
    engine.wake_at(wake_at)
    return Answer(retry_in=delay if is_carried else None)
