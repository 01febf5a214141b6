"""Lives: a run whose body returns `continue_as_new(...)` ends one life and begins the next, in one transaction.

The run stays: its id, its children, those who wait for it. Its history begins anew: the events of a life have the numbers 1, 2, 3, …, and a replay
reads the present life alone. The number of the life begins every place in the body, so nothing that is derived from a place comes twice.

The body of the next life runs up to its first wait before the transaction, which then writes the end of the one and the first segment of the other.
A hook of the old life is closed there, and one with the same token made, so the token is never free in between; what was sent to it, and not taken,
goes over to the next life, and so does a request to cancel the run that came too late for the body that had ended. Both are told as news.

Crash windows: before the commit nothing has happened, and the old life is continued again; after it the new life goes on from SQL, and what is
left of the old one is out of the way. It is deleted by whoever made the new life, or, if that dies, with the next life, or with the run.

Not here: what is put away, carried over and deleted (`ckworkflow.store.lives`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.definition import registry
from ckworkflow.engine.answer import Answer
from ckworkflow.engine.children import leave_notes, write_children
from ckworkflow.engine.start import idle_life, make_body
from ckworkflow.engine.traces import known_here, known_nodes, write_trace
from ckworkflow.engine.wording import counted
from ckworkflow.errors import DatabaseUnavailableError, RunNotFoundError
from ckworkflow.model import Json, NodeId, RunId
from ckworkflow.store import events, hooks, large, nodes, plans, runs
from ckworkflow.store import lives as rows
from ckworkflow.tracing import ClosedHook, HookChanges, MadeHook, ReplayNeededError, Trace, Tracer

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction

__all__ = ["Life", "begin", "delete_old", "write"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Life:
    """The next life of a run, which is not in the database yet.

    Attributes:
        number: Its number.
        args: Its arguments, encoded.
        began_at: When it began: the time of the body that ended for it.
        source_hash: Of its body's source.
        secret: From what the tokens of its hooks are derived; `None`: none has been yet.
        tracer: Its body.
        trace: What that came to.
        strict: So many events are to be told strictly; 1: the body does not run ahead before it is told anything.
    """

    number: int
    args: Json
    began_at: datetime
    source_hash: str
    secret: str | None
    tracer: Tracer
    trace: Trace
    strict: int


def begin(engine: Engine, run_id: RunId, workflow_name: str, ended: Tracer, end: Trace) -> Life:
    """Run the body of the next life up to its first wait.

    Args:
        engine: The engine.
        run_id: The run.
        workflow_name: Its workflow.
        ended: The body of the present life.
        end: What that came to.

    Raises:
        BodyStuckError: It ends at once for a life after it.
        Exception: As in a continuation.
    """
    assert end.end is not None
    # Not the time of what has come since: it is the same if this life is begun again.
    at = end.end.at
    assert at is not None
    workflow = registry.require_workflow(workflow_name)
    number, secret = ended.life + 1, ended.hooks.secret
    # None, but for hooks that could not be made when this life was begun before.
    known = known_nodes(
        engine.database.read(
            lambda tx: nodes.with_parts(tx, run_id, nodes.load_life(tx, run_id, number).get())
        )
    )
    next_life = end.end.next_life

    def body() -> Tracer:
        return Tracer(
            run_id, make_body(workflow, next_life), workflow=workflow_name, started_at=at, known=known, secret=secret,
            life=number,
        )  # fmt: skip

    try:
        strict, tracer = 0, body()
        trace = _first_trace(engine, workflow_name, tracer)
    except ReplayNeededError as error:  # a task of the body cancels the body, which has run ahead of it
        strict, tracer = error.strict, body()
        trace = _first_trace(engine, workflow_name, tracer, strict=strict)
    if trace.begins_life:
        tracer.close()
        raise idle_life()
    return Life(number, next_life, at, workflow.source_hash, secret, tracer, trace, strict)


def _first_trace(engine: Engine, workflow: str, tracer: Tracer, *, strict: int = 0) -> Trace:
    try:
        return known_here(engine.budget.run(tracer, workflow, partial(tracer.resume, strict=strict)))
    except BaseException:
        tracer.close()
        raise


def write(
    engine: Engine, tx: Transaction, run: RunRow, trace: Trace, life: Life, *, delivered: int, seen: int,
    values: dict[str, Any], choose: plans.Choose | None, running: Mapping[NodeId, bool],
    orphans: Collection[NodeId],
) -> Answer:  # fmt: skip
    """Write the end of one life and the beginning of the next.

    Args:
        engine: The engine.
        tx: A transaction that has locked the run, and of it alone if either life makes or closes hooks.
        run: The run.
        trace: What the body of the life that ends came to.
        life: The next one.
        delivered: How many events that body has got.
        seen: The run's `signals` when its news was read.
        values: Columns of the run to write with it.
        choose: Asked about new steps that may begin; the first that it accepts is claimed for this process.
        running: The steps that ran when the news was read.
        orphans: The children that are to be cancelled with it.

    Raises:
        TokenTakenError: A hook cannot be made. Commit nothing.
        StalePlanError: A step has begun since the news was read that the body has let go of. Commit nothing.
    """
    assert trace.end is not None
    if trace.let_go:
        plans.refuse_begun(tx, run, trace.let_go, running)
    stops = rows.put_away(tx, run)
    children = write_children(tx, run, trace, told=delivered)
    if leave_notes(tx, run, trace, told=delivered, orphans=orphans):
        values["has_notes"] = True
        engine.owes_notes(run.run_id)
    carried, left = _write_hooks(tx, run, trace, life, told=delivered, values=values)
    input_ = codec.pack(life.args)
    large.keep(tx, run.run_id, [input_], life=life.number)
    values |= {
        "life": life.number, "life_began_at": life.began_at, "input": input_, "source_hash": life.source_hash,
        "plan": None, "delivered": 0, "told_at": life.began_at, "last_surprise": life.strict or None, "spins": 0, "spins_since": None,
    }  # fmt: skip
    is_told_later = run.cancel_requested_at is not None and trace.end.leaves_request
    if is_told_later:
        values |= {"cancel_delivered": None, "cancel_delivered_at": None}
        choose = None  # no step begins before that is told
    elif run.cancel_requested_at is not None:
        values |= _outlived(run)
    if carried or is_told_later:
        values["signals"] = run.signals + 1  # that is news
    run = runs.with_values(run, values)
    # Its hooks are written.
    beginning = replace(life.trace, hooks=HookChanges((), life.trace.hooks.taken, values.get("secret")))
    answer = write_trace(
        engine, tx, run, life.tracer, beginning, seen=seen, values=values, is_new=True, choose=choose
    )
    if is_told_later:
        events.withhold(tx, run.run_id)
        answer = replace(answer, pieces=())
    _log(run, life, delivered, left)
    return replace(answer, stops=answer.stops or stops, children=(*children, *answer.children))


def delete_old(engine: Engine, run_id: RunId) -> None:
    """Delete what is left of the lives before the present one, a little at a time."""

    def work(tx: Transaction) -> int:
        run = runs.lock_run(tx, run_id, engine.database).get()
        return rows.delete_old(tx, run)

    try:
        while engine.database.transact(work) >= rows.MOST_ROWS:
            pass
    except RunNotFoundError:
        return
    except DatabaseUnavailableError as error:
        logger.warning(
            "run %s: what is left of its life before is deleted later: %s",
            run_id,
            error,
            extra={"run_id": run_id},
        )
    except Exception:  # the next life is committed, and goes on all the same
        logger.exception(
            "run %s: what is left of its life before cannot be deleted; its next life tries again",
            run_id,
            extra={"run_id": run_id},
        )


_IN_A_LIFE_BEFORE = 0
"""What `cancel_delivered` says of a request that the body was told of in a life before: it is no event of this one."""


def _outlived(run: RunRow) -> dict[str, Any]:
    """What is left of a request that a life has outlived: nothing, so that the run can be cancelled anew, but for the time of its `grace`."""
    if run.terminate_at is not None:
        return {"cancel_delivered": _IN_A_LIFE_BEFORE, "cancel_delivered_at": None}
    return dict.fromkeys(
        ("cancel_requested_at", "cancel_reason", "cancel_delivered", "cancel_delivered_at")
    )


def _write_hooks(
    tx: Transaction, run: RunRow, trace: Trace, life: Life, *, told: int, values: dict[str, Any]
) -> tuple[int, int]:
    """Write what both bodies have done with their hooks; return how many payloads go over, and how many are left over."""
    of_both = trace.hooks.changes, life.trace.hooks.changes
    made = [change for change in of_both[0] if isinstance(change, MadeHook)]
    # The last life closes all that it has left open; after that the next one makes its own.
    closed = (*rows.closings(tx, run), *(ClosedHook(hook.node_id, hook.key) for hook in made))
    changes = (*of_both[0], *closed, *of_both[1])
    if changes:
        positions = {
            run.life: plans.first_position(run.epoch, told),
            life.number: plans.first_position(run.epoch, 0),
        }
        hooks.change(tx, run, changes, positions=positions)
    if trace.hooks.taken:
        hooks.take(tx, run.run_id, trace.hooks.taken)
    if (secret := life.trace.hooks.secret or life.secret) is not None:
        values["secret"] = secret
    if not run.has_hooks and not life.trace.hooks.makes_hooks and not made:
        return 0, 0
    keys = {change.key for change in (*closed, *of_both[1])}
    carried, left = rows.carry_payloads(tx, run, keys, life=life.number)
    values["untold_payloads"] = carried
    return carried, left


def _log(run: RunRow, life: Life, delivered: int, left: int) -> None:
    left_over = (
        f"; {counted(left, 'payload')} that it has not taken can be taken no more" if left else ""
    )
    logger.info(
        "run %s (%s) begins life %d after %s%s", run.run_id, run.workflow, life.number, counted(delivered, "event"), left_over,
        extra={"run_id": run.run_id},
    )  # fmt: skip
