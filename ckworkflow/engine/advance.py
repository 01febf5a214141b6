"""Continuations: replay, trace on, commit, publish - in place, without a message.

At most one process advances a run: it holds the run's lease, and its epoch fences the commit. Whoever
records something that the body may wait for raises `signals`; the lease is given back only if `signals`
is still what was seen when the outcomes were read. So no wake-up is lost, and no process has to wait.

A continuation is **foreseen** where this process keeps the body and is about to record the last of what it
waits for: the body is told before the record is written, and all of it is one transaction, without a
lease. It stands only if the run is as the body left it (`epoch` and `signals`); if not, the body is thrown
away and the normal path is taken.

Crash windows: before the commit nothing has happened but a lease, which the clock takes back when its
owner is gone; after it, what was not published the clock publishes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.definition import registry
from ckworkflow.engine import failures, holding, lives
from ckworkflow.engine.answer import Answer, MayRun, carry_out
from ckworkflow.engine.bodies import Body
from ckworkflow.engine.budget import BodyStoppedError
from ckworkflow.engine.children import leave_to_children
from ckworkflow.engine.events import Event, News, is_surprise, outcome_of, read_news
from ckworkflow.engine.start import choose_plain, idle_life, make_body
from ckworkflow.engine.traces import known_here, known_nodes, write_trace
from ckworkflow.errors import (
    BodyAwaitError,
    BodyStuckError,
    BodyTimeoutError,
    DatabaseUnavailableError,
    HistoryTooLongError,
    HookConflictError,
    NotAwaitedError,
    RefusedValueError,
    ReplayDivergenceError,
    UnreadableValueError,
)
from ckworkflow.model import Ending, Json, NodeId, RunId, RunStatus
from ckworkflow.store import events, hooks, nodes, notes, plans, records, runs
from ckworkflow.store.expectations import ExpectationError
from ckworkflow.store.records import Followup
from ckworkflow.store.runs import RunRow
from ckworkflow.store.transaction import Transaction
from ckworkflow.tracing import Outcome, Payload, ReplayNeededError, Tracer

if TYPE_CHECKING:
    from ckworkflow.engine.claims import Claimed
    from ckworkflow.engine.core import Engine
    from ckworkflow.tracing import Trace

logger = logging.getLogger(__name__)

TRIES = 3
"""Continuations in a row in which a body may compute or block for too long; then its run fails."""
TRY_DELAY = timedelta(seconds=5)
"""After the first of them; after each further one as much longer. The machine may have been to blame."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What a continuation works from, read in one transaction that took the lease."""

    epoch: int
    news: News
    workflow: str
    source_hash: str
    created_at: datetime
    cancel_delivered: int | None
    """As which of them it has been told that the run is to be cancelled."""
    life: int
    """Which of the lives of the run it is in."""
    delivered: int
    """How many events the body has been told before in this life."""
    last_surprise: int
    """The number of the last of them that was told as a surprise."""
    spins: int
    """How many continuations there are with this one since the body was told something."""
    has_hooks: bool
    """Whether the body has ever made a hook."""
    held: holding.Hold | None
    """The hold that has just ended."""

    @property
    def events(self) -> int:
        """How many events are recorded for the body, told or not."""
        return self.delivered + len(self.news.events)

    def deliver(self, tx: Transaction, run: RunRow) -> int:
        """Number the news; return the last number."""
        return events.deliver(tx, run, [row.node_id for row in self.news.events], at=self.news.told_at)


_DONE = Answer()
_ENDED = Answer(has_ended=True)
_AGAIN = Answer(must_advance=True)


def advance(engine: Engine, run_id: RunId, *, may_run: MayRun | None = None) -> Claimed | None:
    """Tell the body of a run what is new, as long as something is; do nothing if another process does.

    Returns:
        A step that was claimed with what was written, for the caller to run; only with `may_run`.
    """
    here: Claimed | None = None
    try:
        while True:
            # Nobody acts on it before the commit of the continuation, which lasts.
            snapshot = engine.database.transact_run(
                run_id, lambda tx: _begin(engine, tx, run_id), is_lasting=False
            )
            if isinstance(snapshot, holding.Hold):
                holding.tell(run_id, snapshot)
                return here
            if snapshot is None:
                return here
            engine.advancing[run_id] = time.monotonic()
            try:
                answer = _continue(engine, run_id, snapshot, may_run if here is None else None)
            finally:
                engine.advancing.pop(run_id, None)
            if answer.here is not None:
                here = answer.here
                engine.active.add((run_id, here.row.node_id))
            if not answer.must_advance:
                return here
    except BaseException:
        if here is not None:  # nobody hears of it: the heartbeat frees it
            engine.active.discard((run_id, here.row.node_id))
        raise


def go_on(
    engine: Engine, run_id: RunId, answer: Answer, *, may_run: MayRun | None = None
) -> Claimed | None:
    """Carry an answer out and let the body go on if it must; return a step for the caller to run."""
    carry_out(engine, run_id, answer)
    if not answer.must_advance:
        return answer.here
    found = advance(engine, run_id, may_run=None if answer.here else may_run)
    return answer.here or found


def go_on_here(engine: Engine, run_id: RunId, workflow: str, answer: Answer) -> None:
    """Do what follows from a commit about a run that nobody may be looking at now: its body goes on here, if this process knows it.

    If not, or if the database cannot be reached by now, a clock has it go on.
    """
    if answer.must_advance and workflow not in registry.workflows:
        engine.wake_at(engine.database.about_now())
        return
    try:
        go_on(engine, run_id, answer)
    except DatabaseUnavailableError as error:
        logger.warning("run %s: its body is told later: %s", run_id, error, extra={"run_id": run_id})


def _continue(engine: Engine, run_id: RunId, snapshot: _Snapshot, may_run: MayRun | None) -> Answer:
    """Make one continuation."""
    try:
        told = _with_next_life(engine, run_id, snapshot, _trace(engine, run_id, snapshot))
    except holding.BODY_CAUSES as error:
        return _leave(engine, run_id, snapshot, error)
    except BodyStoppedError:
        engine.database.transact(lambda tx: _release(engine, tx, run_id, snapshot, wait=timedelta()))
        return _DONE
    except BodyTimeoutError as error:
        _time_out(engine, run_id, snapshot, error)
        return _DONE
    except (BodyAwaitError, BodyStuckError, HistoryTooLongError, NotAwaitedError) as error:
        text = failures.dumps(error)
        engine.database.transact(lambda tx: _fail(engine, tx, run_id, snapshot, text))
        carry_out(engine, run_id, _ENDED)
        return _DONE
    return _write(engine, run_id, snapshot, told, may_run)


def _write(
    engine: Engine, run_id: RunId, snapshot: _Snapshot, told: _Told, may_run: MayRun | None
) -> Answer:
    """Commit a continuation, and do what follows."""
    tracer = told.last_tracer
    work = partial(_commit, engine, run_id=run_id, snapshot=snapshot, told=told, may_run=may_run)
    try:
        if told.changes_hooks or (snapshot.has_hooks and told.trace.end is not None):
            # Rows that runs share are written alone.
            answer = engine.database.transact(work)
        else:
            answer = engine.database.transact_run(run_id, work)
    except hooks.TokenTakenError as taken:
        tracer.close()
        return _refuse(engine, run_id, snapshot, told, taken)
    except plans.StalePlanError:
        tracer.close()
        engine.database.transact(lambda tx: _release(engine, tx, run_id, snapshot, withholds=True))
        return _AGAIN
    except RefusedValueError as error:
        tracer.close()
        text = failures.dumps(error)
        engine.database.transact(lambda tx: _fail(engine, tx, run_id, snapshot, text))
        carry_out(engine, run_id, _ENDED)
        return _DONE
    except UnreadableValueError as error:
        tracer.close()
        return _leave(engine, run_id, snapshot, error)
    except BaseException:
        tracer.close()
        raise
    if answer.body is None:  # it has ended; or another process has taken the lease, and goes on from SQL
        tracer.close()
    carry_out(engine, run_id, answer)
    is_committed = answer is not _DONE
    answer = answer.decoded(engine, run_id, snapshot.workflow)
    if (
        told.life is not None and is_committed
    ):  # last: it may take long, and a step that was claimed counts as running by now
        lives.delete_old(engine, run_id)
    return answer


def _with_next_life(engine: Engine, run_id: RunId, snapshot: _Snapshot, told: _Told) -> _Told:
    """Begin the body of the next life, if that of the present one has ended for it, which is closed then.

    Raises:
        BodyStuckError: A life has ended without an event.
        Exception: As a continuation.
    """
    if not told.trace.begins_life:
        return told
    told.tracer.close()
    if not snapshot.events:
        raise idle_life()
    return replace(told, life=lives.begin(engine, run_id, snapshot.workflow, told.tracer, told.trace))


def _leave(engine: Engine, run_id: RunId, snapshot: _Snapshot, error: BaseException) -> Answer:
    """Hold a run that this worker's code cannot continue: the run is not to blame, and another deploy may be able to.

    One whose body was to be told that the run is to be cancelled, and takes another path than it did, ends instead.
    """
    if isinstance(error, ReplayDivergenceError):
        text = failures.dumps(error)
        if engine.database.transact(lambda tx: _cancel(engine, tx, run_id, snapshot, text)):
            carry_out(engine, run_id, _ENDED)
            return _DONE
    held = engine.database.transact(lambda tx: _hold(engine, tx, run_id, snapshot, error))
    if held is not None:
        holding.tell(run_id, held, error)
    return _DONE


def _begin(engine: Engine, tx: Transaction, run_id: RunId) -> _Snapshot | holding.Hold | None:
    """Take the lease, and read what the body is to be told; `None`: nothing, or not now, or not by this process."""
    run = runs.lock_run(tx, run_id, engine.database).get()
    if run.status.is_final or not run.has_unread_events:
        return None
    held = holding.read(run.held)
    if held is not None and held.lasts(run, _count_events(tx, run)):
        holding.rest(tx, run, held)
        return None
    spins = holding.count(run)
    epoch = runs.acquire_lease(
        tx, run, owner=engine.owner, ttl=engine.settings.lease, spins=spins,
        held=holding.without_body(run.held),
    )  # fmt: skip
    if epoch is None:
        return None
    if spins > holding.SPIN_LIMIT:
        return _hold_others_not(
            tx, run, lambda: holding.hold_spin(tx, run, _count_events(tx, run)), is_taken=False
        )
    return _Snapshot(
        epoch, read_news(engine, tx, run), run.workflow, run.source_hash, run.created_at, run.cancel_delivered, run.life,
        run.delivered, run.last_surprise or 0, spins, run.has_hooks, held,
    )  # fmt: skip


def _count_events(tx: Transaction, run: RunRow) -> int:
    recorded, _ = events.load_news(tx, run.run_id)
    return run.delivered + len(recorded) + (run.untold_payloads or 0) + int(run.has_untold_request)


@dataclass(frozen=True, slots=True)
class _Told:
    """A body that has been told the news.

    Attributes:
        tracer: The body.
        trace: What it came to.
        strict: So many of the news were told strictly: up to the last surprise.
        life: The next life of the run, for which it has ended.
    """

    tracer: Tracer
    trace: Trace
    strict: int
    life: lives.Life | None = None

    @property
    def last_tracer(self) -> Tracer:
        """The body that goes on: this one, or that of the next life."""
        return self.tracer if self.life is None else self.life.tracer

    @property
    def changes_hooks(self) -> bool:
        """Whether it, or the next life, has made or closed hooks."""
        of_next = self.life is not None and bool(self.life.trace.hooks.changes)
        return of_next or bool(self.trace.hooks.changes)

    @property
    def met(self) -> frozenset[NodeId]:
        """The nodes that it has come to and has not been told of."""
        return self.trace.let_go.union(node.node_id for node in self.trace.nodes)


def _trace(engine: Engine, run_id: RunId, snapshot: _Snapshot) -> _Told:
    news, strict = snapshot.news, snapshot.news.strict
    outcomes = [outcome_of(row, news.told_at) for row in news.events]
    kept = engine.bodies.take(run_id, snapshot.epoch - 1)
    if kept is not None:
        try:
            return _Told(kept, known_here(_resume(engine, snapshot, kept, outcomes, strict)), strict)
        except ReplayNeededError as error:
            strict, outruns = error.strict, kept.outruns + int(not kept.has_ended)
            kept.close()
            return _replay(engine, run_id, snapshot, outcomes, strict, outruns)
        except BaseException:
            kept.close()
            raise
    return _replay(engine, run_id, snapshot, outcomes, strict, 0)


def _replay(
    engine: Engine, run_id: RunId, snapshot: _Snapshot, news: list[Outcome | Payload], strict: int,
    outruns: int,
) -> _Told:  # fmt: skip
    workflow = registry.require_workflow(snapshot.workflow)
    if snapshot.events > engine.settings.history_limit:
        raise HistoryTooLongError(run_id, snapshot.events, engine.settings.history_limit)
    rows, input_, request, payloads = engine.database.read(
        lambda tx: (
            nodes.with_parts(tx, run_id, nodes.load_life(tx, run_id, snapshot.life).get()),
            runs.read_input(tx, run_id),
            # Not if it was told in a life before.
            runs.read_request(tx, run_id) if snapshot.cancel_delivered else None,
            hooks.load_told(tx, run_id, snapshot.life) if snapshot.has_hooks else [],
        )
    )
    tree = codec.loads(input_.args)
    delivered: list[Event] = [
        row for row in rows if row.delivered
    ]  # 0: no event, but a hook that was made
    delivered += payloads
    if request is not None:
        delivered.append(request)
    delivered.sort(key=lambda event: event.delivered or 0)
    history = [outcome_of(event, event.delivered_at or snapshot.news.told_at) for event in delivered]
    before = len(history)
    surprises = [place for place, row in enumerate(delivered, 1) if is_surprise(row)]
    strict = before + strict if strict else max([snapshot.last_surprise, *surprises])
    known = known_nodes(rows)
    while True:
        tracer = Tracer(
            run_id,
            make_body(workflow, tree),
            workflow=snapshot.workflow,
            started_at=input_.began_at or snapshot.created_at,
            known=known,
            is_same_source=workflow.source_hash == snapshot.source_hash,
            outruns=outruns,
            secret=input_.secret,
            life=snapshot.life,
        )
        try:
            trace = known_here(_resume(engine, snapshot, tracer, [*history, *news], strict))
        except ReplayNeededError as error:  # of a success that another task was cancelled for
            tracer.close()
            strict, outruns = error.strict, outruns + 1
        except BaseException:
            tracer.close()
            raise
        else:
            return _Told(tracer, trace, max(0, strict - before))


def _resume(
    engine: Engine, snapshot: _Snapshot, tracer: Tracer, outcomes: list[Outcome | Payload], strict: int
) -> Trace:
    running = snapshot.news.stoppable
    return engine.budget.run(
        tracer, snapshot.workflow, lambda: tracer.resume(outcomes, strict=strict, running=running)
    )


def _commit(
    engine: Engine, tx: Transaction, *, run_id: RunId, snapshot: _Snapshot, told: _Told,
    may_run: MayRun | None,
) -> Answer:  # fmt: skip
    run, news = runs.lock_run(tx, run_id, engine.database).get(), snapshot.news
    if run.status.is_final or run.epoch != snapshot.epoch:
        return _DONE
    if run.has_untold_request and not news.has_request:
        raise plans.StalePlanError  # no step begins that was planned before a request
    delivered = snapshot.deliver(tx, run)
    if news.has_request:
        run = run._replace(cancel_delivered=delivered)
    orphans = told.trace.orphans
    if news.has_request:
        orphans |= notes.live_of_earlier(tx, run.run_id, run.life)
    else:  # they were told, but for those that are started only now
        orphans &= {node.node_id for node in told.trace.started}
    values: dict[str, Any] = {
        "delivered": delivered,
        "seen": news.signals,
        "told_at": news.told_at,
        "status": RunStatus.RUNNING,
        "started_at": run.started_at or run.now,
        # Also when there is more to look at: the next round takes the lease again, or someone else does.
        "lease_owner": None,
        "lease_until": None,
    }
    if told.strict:
        values["last_surprise"] = snapshot.delivered + told.strict
        if snapshot.spins <= TRIES:
            plans.refuse_unmet(tx, run, told.met)
    if told.life is not None:
        return lives.write(
            engine, tx, run, told.trace, told.life, delivered=delivered, seen=news.signals, values=values,
            choose=choose_plain(may_run), running=news.running, orphans=orphans,
        )  # fmt: skip
    return write_trace(
        engine, tx, run, told.tracer, told.trace, seen=news.signals, values=values,
        choose=choose_plain(may_run), running=news.running, orphans=orphans,
    )  # fmt: skip


# -- foreseen continuations -----------------------------------------------------------------------


def foresee(
    engine: Engine, run_id: RunId, workflow: str, node_id: NodeId, output: Json,
    lost: Callable[[], object] | None = None,
) -> Foreseen | None:  # fmt: skip
    """Run the body that waits for nothing but this node, as if the result were recorded already.

    Args:
        engine: The engine.
        run_id: The run.
        workflow: Its workflow's name.
        node_id: The node.
        output: Its result, encoded.
        lost: Where this thread may be lost to the body: told if it is (`Budget.run_here`).

    Returns:
        What is to be committed with the record; `None` when there is no such body here.
    """
    at = engine.database.about_now()
    body = engine.bodies.take_waiting_for(run_id, node_id, at=at)
    if body is None:
        return None
    body.recorded.append((node_id, output))
    at = max(at, body.told_at)
    try:
        outcomes = [Outcome(known, tree, None, at) for known, tree in body.recorded]
        resume = lambda: body.tracer.resume(outcomes)  # noqa: E731
        if lost is None:
            trace = engine.budget.run(body.tracer, workflow, resume)
        else:
            trace = engine.budget.run_here(body.tracer, workflow, resume, lost)
        trace = known_here(trace)
    except Exception:  # noqa: BLE001  # whatever it is, the normal path meets it again, and reports it
        body.tracer.close()
        return None
    if trace.hooks.changes or trace.ends_life:  # written by the normal path
        body.tracer.close()
        return None
    return Foreseen(body, trace, at)


class Foreseen:
    """A continuation that only waits for a record to be committed with."""

    def __init__(self, body: Body, trace: Trace, at: datetime) -> None:
        self._body, self._trace, self._at = body, trace, at
        self._answer: Answer | None = None

    def holds(self, run: RunRow) -> bool:
        """Whether the run is still as the body left it."""
        self._answer = None  # of an attempt of this transaction that was undone
        body = self._body
        return (run.epoch, run.signals, run.delivered) == (body.epoch, body.signals, body.delivered)

    @property
    def place_of_last(self) -> tuple[int, datetime]:
        """The number and time under which the record is delivered: the last thing that the body was told."""
        return self._body.delivered + len(self._body.recorded), self._at

    @property
    def run(self) -> RunRow | None:
        """The run as the body left it, if nothing may have changed since."""
        return self._body.run

    def commit(self, engine: Engine, tx: Transaction, run: RunRow, may_run: MayRun | None) -> Answer:
        """Write the trace, after the record; see `write_trace`.

        Raises:
            ExpectationError: The run ends, and has hooks: that is written alone.
        """
        if run.has_hooks and self._trace.end is not None:
            raise ExpectationError
        *before, _ = self._body.recorded
        number = events.deliver(tx, run, [node_id for node_id, _ in before], at=self._at) + 1
        self._answer = write_trace(
            engine, tx, run, self._body.tracer, self._trace, seen=run.signals, values={"delivered": number, "told_at": self._at},
            is_new=True, choose=choose_plain(may_run), old_joins=self._body.joins, timers=self._body.timers,
        )  # fmt: skip
        return replace(self._answer, body=None)  # kept by `keep`

    def keep(self, engine: Engine, run_id: RunId) -> None:
        """Keep the body, if all of it was committed and its run goes on."""
        if self._answer is not None and self._answer.body is not None:
            engine.bodies.keep(run_id, self._answer.body)
        else:
            self.close()

    def close(self) -> None:
        """Throw the body away."""
        self._body.tracer.close()


def _time_out(engine: Engine, run_id: RunId, snapshot: _Snapshot, error: BodyTimeoutError) -> None:
    """Try a body again that has computed or blocked for too long, or fail its run."""
    if snapshot.spins >= TRIES:
        text = failures.dumps(error)
        engine.database.transact(lambda tx: _fail(engine, tx, run_id, snapshot, text))
        carry_out(engine, run_id, _ENDED)
        return
    wait = TRY_DELAY * snapshot.spins
    logger.warning(
        "run %s: %s It is tried again in %g s (%d of %d).", run_id, error, wait.total_seconds(), snapshot.spins,
        TRIES, extra={"run_id": run_id},
    )  # fmt: skip
    engine.database.transact(
        lambda tx: _release(engine, tx, run_id, snapshot, wait=wait, is_counted=True)
    )


def _release(
    engine: Engine, tx: Transaction, run_id: RunId, snapshot: _Snapshot, *, wait: timedelta | None = None,
    is_counted: bool | None = None, withholds: bool = False,
) -> None:  # fmt: skip
    run = runs.lock_run(tx, run_id, engine.database).get()
    if run.epoch == snapshot.epoch and not run.status.is_final:
        # A body that its worker has stopped has continued nothing.
        is_counted = wait is None if is_counted is None else is_counted
        spins = run.spins if is_counted else run.spins - 1
        if withholds:
            # What has begun meanwhile is read again, and nothing else is to begin before that is told.
            events.withhold(tx, run_id)
        if wait is not None and not run.has_untold_request:  # the body is not told now
            records.release_withheld(tx, run, Followup())
        runs.update_run(
            tx, run_id, lease_owner=None, lease_until=None, spins=spins,
            wake_at=run.look_at(run.now + (wait or engine.settings.redispatch_after)),
        )  # fmt: skip


def _refuse(
    engine: Engine, run_id: RunId, snapshot: _Snapshot, told: _Told, taken: hooks.TokenTakenError
) -> Answer:
    work = partial(_refuse_hook, engine, run_id=run_id, snapshot=snapshot, told=told, taken=taken)
    try:
        engine.database.transact(work)
    except plans.StalePlanError:
        engine.database.transact(lambda tx: _release(engine, tx, run_id, snapshot, withholds=True))
    return _AGAIN


def _refuse_hook(
    engine: Engine, tx: Transaction, *, run_id: RunId, snapshot: _Snapshot, told: _Told,
    taken: hooks.TokenTakenError,
) -> None:  # fmt: skip
    """Write that a hook cannot be made, and give the lease back: the body is traced again, and told so.

    With it goes the order of the events that have led the body there: what is recorded meanwhile, and has happened before, is
    told after them.

    Raises:
        StalePlanError: Something has begun that the body has not met: the events are read again first.
    """
    run, news = runs.lock_run(tx, run_id, engine.database).get(), snapshot.news
    if run.epoch == snapshot.epoch and not run.status.is_final:
        values: dict[str, Any] = {"delivered": snapshot.deliver(tx, run)}
        if told.strict:
            plans.refuse_unmet(tx, run, told.met)
            values["last_surprise"] = snapshot.delivered + told.strict
        error = failures.dumps(HookConflictError(taken.holder))
        position = plans.first_position(run.epoch, run.delivered)
        hooks.refuse(tx, run, taken.made, error=error, position=position)
        if not run.has_hooks:
            values["untold_payloads"] = 0
        if news.has_request and (run := leave_to_children(tx, run, None)).has_notes:
            values["has_notes"] = True
            engine.owes_notes(run_id)
        runs.update_run(
            tx, run_id, seen=news.signals, signals=run.signals + 1, told_at=news.told_at, **values
        )  # fmt: skip
    # It has come further: that is no turning in circles.
    _release(engine, tx, run_id, snapshot, is_counted=False, withholds=True)


def _hold(
    engine: Engine, tx: Transaction, run_id: RunId, snapshot: _Snapshot, error: BaseException
) -> holding.Hold | None:
    run = runs.lock_run(tx, run_id, engine.database).get()
    if run.epoch != snapshot.epoch or run.status.is_final:
        return None
    held = _hold_others_not(
        tx, run, lambda: holding.hold_deploy(tx, run, snapshot.events, error, snapshot.held),
        is_taken=snapshot.news.has_taken_due,
    )  # fmt: skip
    engine.wake_at(held.until)
    return held


def _hold_others_not(
    tx: Transaction, run: RunRow, hold: Callable[[], holding.Hold], *, is_taken: bool
) -> holding.Hold:
    """Hold a body, and let all else of its run go on.

    Args:
        tx: A transaction that has locked the run.
        run: The run.
        hold: Holds the body.
        is_taken: Whether a sleep was ended so that the body could be told: what comes after it was not published yet.
    """
    followup = Followup()
    if not run.has_untold_request:
        records.release_withheld(tx, run, followup)
    held = hold()
    if followup.ready or followup.asleep or is_taken:
        runs.update_run(tx, run.run_id, wake_at=run.now)  # a clock looks at once
    return held


def _cancel(engine: Engine, tx: Transaction, run_id: RunId, snapshot: _Snapshot, error: str) -> bool:
    """End a run whose body cannot be told that it is to be cancelled; return whether it is."""
    run = runs.lock_run(tx, run_id, engine.database).get()
    if run.epoch != snapshot.epoch or run.status.is_final or not run.has_untold_request:
        return False
    delivered = snapshot.deliver(tx, run)
    run = leave_to_children(tx, run, None)
    ending = Ending(RunStatus.CANCELLED, error=error)
    engine.finish(tx, run, ending, has_notes=run.has_notes, delivered=delivered)
    return True


def _fail(engine: Engine, tx: Transaction, run_id: RunId, snapshot: _Snapshot, error: str) -> None:
    run = runs.lock_run(tx, run_id, engine.database).get()
    if run.epoch == snapshot.epoch and not run.status.is_final:
        delivered = snapshot.deliver(tx, run)
        if run.has_untold_request:
            run = leave_to_children(tx, run, None)
        ending = Ending(RunStatus.FAILED, error=error)
        engine.finish(tx, run, ending, has_notes=run.has_notes, delivered=delivered)
