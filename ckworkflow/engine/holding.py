"""Holds: what a run waits for is no event of its own, so it rests, says why, and goes on once the cause is gone.

There are two causes.

**A deploy.** The code of this worker does not fit what the run has recorded: another order of steps, a workflow or step
that is missing, a value that cannot be rebuilt, arguments that no longer fit, a token or package that is not there. No
run pays for that with its life. Either its *body* is held (it cannot be replayed), or one of its *steps* (it cannot be run).
What is held is tried again after 5 seconds, then after twice as long each time up to 5 minutes, and whenever a worker starts
(`retry_held`). Nothing is counted against it: neither attempts nor continuations.

**A spin.** A body is continued again and again and told of nothing new. A continuation counts itself in the row of its run,
with the lease that it takes. So each one counts, in any process, before or after a restart, and also one that never
comes to its commit. The count belongs to a number of events that the body had been told (`delivered`, which nothing but
telling changes). When the body has been told more, the count begins anew: to tell an event costs no write for this.
Between two events that a body is told, at most `SPIN_LIMIT` continuations are begun. Then the body is held for
`SPIN_HOLD`, or until a worker starts with another body of the workflow, or another version of ckworkflow.

An event that is recorded ends the hold of a body in either case. What the plan of a held run says already goes on: steps
run, sleeps end.

Where it is: a held body in the column `held` of its run; a held step in its own row (`error`, and `due_at`, when it is tried
again), which a claim or a result overwrites. That a run has held steps, or had, is marked in `held` as well, for `retry_held`.

Not counted as a spin is a continuation that a dropped claim has fenced: it gives its count back (`runs.demand_replay`), for many
messages of a wide group may be dropped for one reason before the first replay is committed.

Crash windows: the count is committed with the lease, and a hold is one transaction. A process that dies after that one
leaves no line in its log; the sentence is in the row.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from ckworkflow import codec
from ckworkflow.definition import registry
from ckworkflow.engine import failures
from ckworkflow.errors import (
    ArgumentsChangedError,
    MissingTokenError,
    ReplayDivergenceError,
    RunNotFoundError,
    UnreadableValueError,
    WorkflowNotRegisteredError,
)
from ckworkflow.model import NodeStatus
from ckworkflow.store import nodes, runs
from ckworkflow.store.records import Followup

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckworkflow.engine.core import Engine
    from ckworkflow.model import NodeId, RunId
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction

__all__ = [
    "BODY_CAUSES",
    "SPIN_HOLD",
    "SPIN_LIMIT",
    "STEP_CAUSES",
    "Hold",
    "StepHold",
    "count",
    "held_step",
    "held_steps",
    "hold_deploy",
    "hold_spin",
    "hold_unknown_step",
    "mark_steps",
    "next_step_hold",
    "read",
    "rest",
    "retry_held",
    "tell",
    "tell_step",
    "why",
    "without_body",
]

logger = logging.getLogger(__name__)

SPIN_LIMIT = 50
"""Continuations in a row that tell the body of nothing new."""
SPIN_HOLD = timedelta(days=1)
"""How long a body that spins is held before it is continued again."""
FIRST_TRY = timedelta(seconds=5)
"""How long what a deploy has caused is held at first; twice as long each time, up to
`LONGEST_TRY`."""
LONGEST_TRY = timedelta(minutes=5)

BODY_CAUSES = (
    ReplayDivergenceError, UnreadableValueError, WorkflowNotRegisteredError, ArgumentsChangedError, ImportError,
)  # fmt: skip
"""What another deploy could mend, where a body is continued."""
STEP_CAUSES = (UnreadableValueError, ArgumentsChangedError, MissingTokenError, ImportError)
"""Likewise, where a step is run."""
_TRIES = "held"
"""The key of a step's error that says that it is held, and how often it was tried before."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Why the body of a run is not continued, and for how long.

    Attributes:
        reason: For a person: what happened, and what to do.
        until: When the body is continued again.
        events: How many events were recorded for the body by then, told or not.
        code: What the body was when it was held.
        kind: Its cause.
        tries: How often it was held before in a row for the same reason.
    """

    reason: str
    until: datetime
    events: int
    code: str
    kind: Literal["spin", "deploy"] = "spin"
    tries: int = 0

    def lasts(self, run: RunRow, events: int) -> bool:
        """Whether the body must still not be continued."""
        return run.now < self.until and events <= self.events


@dataclass(frozen=True, slots=True)
class StepHold:
    """Why a step is not run, and for how long.

    Attributes:
        node_id: The step's node.
        step: Its name.
        reason: For a person: what happened, and what to do.
        until: When it is tried again.
    """

    node_id: NodeId
    step: str
    reason: str
    until: datetime


# -- what a run's row says ----------------------------------------------------------------------------


def read(text: str | None) -> Hold | None:
    """Read of the column `held` of a run how its body is held."""
    data = _data(text)
    data.pop("steps", None)
    return Hold(**data) if data else None


def without_body(text: str | None) -> str | None:
    """What the column `held` says when the body is held no longer."""
    return _dump(None, has_steps=_has_steps(text))


def mark_steps(run: RunRow) -> dict[str, Any]:
    """The columns of a run that must change when one of its steps is held."""
    return {} if _has_steps(run.held) else {"held": _dump(read(run.held), has_steps=True)}


def _has_steps(text: str | None) -> bool:
    return bool(_data(text).get("steps"))


def _data(text: str | None) -> dict[str, Any]:
    data: dict[str, Any] = {} if text is None else codec.decode(codec.loads(text))
    return data


def _dump(hold: Hold | None, *, has_steps: bool) -> str | None:
    data = {} if hold is None else {name: getattr(hold, name) for name in Hold.__slots__}
    if has_steps:
        data["steps"] = True
    return codec.dumps(codec.encode(data, path="held")) if data else None


# -- bodies -------------------------------------------------------------------------------------------


def count(run: RunRow) -> int:
    """How many continuations in a row there are with the one that is about to begin."""
    is_new = read(run.held) is not None or run.spins_since != run.delivered
    return 1 if is_new else run.spins + 1


def hold_spin(tx: Transaction, run: RunRow, events: int) -> Hold:
    """Hold the body of a locked run that spins."""
    until = run.now + SPIN_HOLD
    reason = (
        f"Its body was continued {SPIN_LIMIT} times in a row and told of nothing new, so it is held until "
        f"{until:%Y-%m-%d %H:%M:%S} UTC. This is a bug of ckworkflow, unless the body ends its worker each time: please "
        f"report it with the body's source. It goes on at that time, or as soon as a step or sleep of the run ends. To try "
        f"it earlier, start a worker with a changed body or with another version of ckworkflow."
    )
    return _hold(tx, run, Hold(reason, until, events, _code(run.workflow)))


def hold_deploy(
    tx: Transaction, run: RunRow, events: int, error: BaseException, before: Hold | None
) -> Hold:
    """Hold the body of a locked run that this worker's code cannot continue.

    Args:
        tx: A transaction that has locked the run and holds its lease.
        run: The run.
        events: How many events are recorded for its body.
        error: What stood in the way, one of `BODY_CAUSES`.
        before: The hold that has just ended.
    """
    reason = _sentence(failures.to_data(error))
    is_same = before is not None and (before.kind, before.reason) == ("deploy", reason)
    tries = before.tries + 1 if before is not None and is_same else 0
    held = Hold(reason, run.now + _pause(tries), events, _code(run.workflow), "deploy", tries)
    # Such a continuation has continued nothing.
    return _hold(tx, run, held, spins=max(run.spins - 1, 0))


def _hold(tx: Transaction, run: RunRow, held: Hold, **values: Any) -> Hold:
    runs.update_run(
        tx, run.run_id, held=_dump(held, has_steps=_has_steps(run.held)), wake_at=_look_at(tx, run, held),
        lease_owner=None, lease_until=None, **values,
    )  # fmt: skip
    return held


def _pause(tries: int) -> timedelta:
    return min(FIRST_TRY * (1 << min(tries, 16)), LONGEST_TRY)


def rest(tx: Transaction, run: RunRow, held: Hold) -> None:
    """Let a run rest that is held already: something has asked for its body."""
    wake_at = _look_at(tx, run, held)
    if run.wake_at is None or run.wake_at < wake_at:
        runs.update_run(tx, run.run_id, wake_at=wake_at)


def tell(run_id: RunId, held: Hold, error: BaseException | None = None) -> None:
    """Log that a run is held, after the commit: once for each reason, and the tries in between at INFO."""
    level = logging.INFO if held.tries else logging.ERROR
    reason = held.reason if error is None else _public(failures.to_data(error), run_id)
    logger.log(
        level, "run %s is %sheld: %s", run_id, "still " if held.tries else "", reason,
        extra={"run_id": run_id},
    )  # fmt: skip


def _look_at(tx: Transaction, run: RunRow, held: Hold) -> datetime:
    """When the clock must look at a held run: at its end, or earlier where a sleep ends or a step is due again."""
    rows = nodes.load_nodes(tx, run.run_id, statuses=nodes.LIVE).get()
    return run.look_at(
        min([held.until, *(row.due_at for row in rows if row.due_at and row.due_at > run.now)])
    )


def _code(workflow: str) -> str:
    """What tells one deploy of a body from another."""
    known = registry.workflows.get(workflow)
    body = "" if known is None else known.source_hash
    return f"{importlib.metadata.version('ckworkflow')} {body}"


# -- steps --------------------------------------------------------------------------------------------


def next_step_hold(row: NodeRow, data: Mapping[str, Any]) -> tuple[dict[str, Any], timedelta, bool]:
    """What to write when a step cannot be run here.

    Args:
        row: The step, with the error of its attempt before.
        data: What stood in the way.

    Returns:
        The error to store with the step, how long it is held, and whether it was held for this reason before.
    """
    before = _error(row)
    is_same = _TRIES in before and before.get("message") == data.get("message")
    tries = before[_TRIES] + 1 if is_same else 0
    return {**data, _TRIES: tries}, _pause(tries), is_same


def held_step(row: NodeRow) -> StepHold | None:
    """How a step is held, or `None`: it is not."""
    if row.status is not NodeStatus.PLANNED or row.due_at is None:
        return None
    error = _error(row)
    if _TRIES not in error:
        return None
    return StepHold(row.node_id, row.name, _sentence(error), row.due_at)


def held_steps(rows: Iterable[NodeRow]) -> list[StepHold]:
    """The held steps among those of a run, in their order."""
    return [held for row in rows if (held := held_step(row)) is not None]


def _error(row: NodeRow) -> Mapping[str, Any]:
    data = None if row.error is None else codec.loads(row.error)
    return data if isinstance(data, dict) else {}


def _sentence(error: Mapping[str, Any]) -> str:
    """Say what stood in the way, and what to do."""
    message = " ".join(str(error.get("message", "")).split())
    kind = str(error.get("type", ""))
    if kind in ("builtins:ImportError", "builtins:ModuleNotFoundError"):
        return f"{kind.rpartition(':')[2]}: {message}. Install what is missing where the worker runs."
    return message


def _public(error: Mapping[str, Any], run_id: RunId) -> str:
    """The same for a log: why a value cannot be rebuilt may quote the value."""
    if str(error.get("type", "")).endswith(":UnreadableValueError"):
        return f"a stored {error.get('kind')} cannot be rebuilt; see `ckworkflow runs show {run_id}`"
    return _sentence(error)


def tell_step(run_id: RunId, row: NodeRow, data: Mapping[str, Any], *, is_again: bool) -> None:
    """Log that a step is held, after the commit; as `tell`."""
    logger.log(
        logging.INFO if is_again else logging.ERROR, "run %s is %sheld: step %s (%s) cannot run: %s", run_id,
        "still " if is_again else "", row.name, row.node_id, _public(data, run_id),
        extra={"run_id": run_id, "node_id": row.node_id, "step": row.name},
    )  # fmt: skip


def hold_unknown_step(
    engine: Engine, run_id: RunId, node_id: NodeId, generation: int, *, step: str
) -> None:
    """Hold a step whose message has come to a worker that does not know it.

    Raises:
        DatabaseUnavailableError: Nothing was written; the clock publishes the message again.
    """
    data = failures.to_data(WorkflowNotRegisteredError("step", step))
    data.pop("traceback", None)

    def hold(tx: Transaction) -> tuple[NodeRow, bool] | None:
        run = runs.lock_run(tx, run_id, engine.database).get()
        row = nodes.load_node(tx, run_id, node_id).get()
        if (
            run.status.is_final
            or row is None
            or (row.status, row.generation, row.unmet) != (NodeStatus.PLANNED, generation, 0)
            or (row.due_at is not None and row.due_at > run.now)
        ):
            return None
        error, pause, is_again = next_step_hold(row, data)
        due_at = run.now + pause
        nodes.update_node(tx, run_id, node_id, error=codec.dumps(error), due_at=due_at, is_carried=False)
        engine.schedule(tx, run, Followup(asleep={node_id: due_at}), **mark_steps(run))
        return row, is_again

    try:
        held = engine.database.transact_run(run_id, hold)
    except RunNotFoundError:
        return
    if held is not None:
        row, is_again = held
        tell_step(run_id, row, data, is_again=is_again)


# -- the ways out -------------------------------------------------------------------------------------


def why(tx: Transaction, run_id: RunId, text: str | None) -> str | None:
    """Say why a live run is held, or one of its steps; `None`: it is not. `text` is its column `held`."""
    held = read(text)
    if held is not None:
        return held.reason
    if not _has_steps(text):
        return None
    steps = held_steps(nodes.load_nodes(tx, run_id, statuses=[NodeStatus.PLANNED]).get())
    return f"step {steps[0].step} cannot run: {steps[0].reason}" if steps else None


def retry_held(engine: Engine) -> None:
    """Let go of what is held for a deploy, since this worker may be another one, and of spins under other code."""
    for run_id, workflow, text in engine.database.read(runs.held_runs):
        if not _may_let_go(read(text), workflow) and not _has_steps(text):
            continue
        try:
            is_free = engine.database.transact(
                lambda tx, run_id=run_id: _let_go(engine, tx, run_id)  # type: ignore[misc]  # bound now
            )
        except RunNotFoundError:
            continue
        if is_free:
            logger.info(
                "run %s is no longer held: a worker has started", run_id, extra={"run_id": run_id}
            )


def _may_let_go(held: Hold | None, workflow: str) -> bool:
    if held is None or workflow not in registry.workflows:
        return False
    return held.kind == "deploy" or held.code != _code(workflow)


def _let_go(engine: Engine, tx: Transaction, run_id: RunId) -> bool:
    run = runs.lock_run(tx, run_id, engine.database).get()
    if run.status.is_final:
        return False
    held, values = read(run.held), dict[str, Any]()
    if _may_let_go(held, run.workflow):
        held, values = None, {"spins": 0, "spins_since": None}
    planned = (
        nodes.load_nodes(tx, run_id, statuses=[NodeStatus.PLANNED]).get() if _has_steps(run.held) else []
    )
    steps = [row for row in planned if held_step(row) is not None and row.name in registry.steps]
    for row in steps:
        error = codec.dumps({**_error(row), _TRIES: 0})
        nodes.update_node(tx, run_id, row.node_id, due_at=run.now, error=error)
    if not values and not steps:
        return False
    has_steps = any(held_step(row) is not None for row in planned)
    runs.update_run(
        tx, run_id, held=_dump(held, has_steps=has_steps), wake_at=run.now, dispatches=0, **values
    )
    return True
