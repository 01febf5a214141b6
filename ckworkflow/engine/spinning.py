"""The watchdog: a body that is continued again and again and told of nothing new is held.

A continuation counts itself in the row of its run, with the lease that it takes. So each one counts, in any process,
before or after a restart, and also one that never comes to its commit. The count belongs to a number of events that
the body had been told (`delivered`, which nothing but telling changes). When the body has been told more, the count begins
anew: to tell an event costs no write for this.

Invariant: between two events that a body is told, at most `SPIN_LIMIT` continuations are begun. Then the run is
held: its body is not continued until

- an event is recorded that was not there when it was held, or
- `SPIN_HOLD` is over, or
- a worker starts with another body of the workflow, or another version of ckworkflow (`retry_held`).

What the plan of a held run says already goes on: steps run, sleeps end.

Not counted are two continuations that are no sign of a spin. One that this worker cannot make waits for another deploy
(`advance.STRANGER_DELAY`). One that a dropped claim has fenced gives its count back (`runs.demand_replay`): many
messages of a wide group may be dropped for one reason before the first replay is committed.

Crash windows: the count is committed with the lease, and the hold is one transaction. A process that dies after that one
leaves no line in its log; the sentence is in the row.
"""

from __future__ import annotations

import importlib.metadata
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ckworkflow import codec
from ckworkflow.definition import registry
from ckworkflow.errors import RunNotFoundError
from ckworkflow.store import nodes, runs

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.model import RunId
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction

__all__ = ["SPIN_HOLD", "SPIN_LIMIT", "Hold", "count", "hold", "read", "rest", "retry_held", "tell"]

logger = logging.getLogger(__name__)

SPIN_LIMIT = 50
"""Continuations in a row that tell the body of nothing new."""
SPIN_HOLD = timedelta(days=1)
"""How long a run that spins is held before its body is continued again."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Why the body of a run is not continued, and for how long.

    Attributes:
        reason: For a person: what happened, and what to do.
        until: When the body is continued again.
        events: How many events were recorded for the body by then, told or not.
        code: What the body was when it spun.
    """

    reason: str
    until: datetime
    events: int
    code: str

    def lasts(self, run: RunRow, events: int) -> bool:
        """Whether the body must still not be continued."""
        return run.now < self.until and events <= self.events


def read(text: str | None) -> Hold | None:
    """Read the column `held` of a run."""
    return None if text is None else Hold(**codec.decode(codec.loads(text)))


def count(run: RunRow) -> int:
    """How many continuations in a row there are with the one that is about to begin."""
    is_new = run.held is not None or run.spins_since != run.delivered
    return 1 if is_new else run.spins + 1


def hold(tx: Transaction, run: RunRow, events: int) -> Hold:
    """Hold a locked run."""
    until = run.now + SPIN_HOLD
    reason = (
        f"Its body was continued {SPIN_LIMIT} times in a row and told of nothing new, so it is held until "
        f"{until:%Y-%m-%d %H:%M:%S} UTC. This is a bug of ckworkflow, unless the body ends its worker each time: please "
        f"report it with the body's source. It goes on at that time, or as soon as a step or sleep of the run ends. To try "
        f"it earlier, start a worker with a changed body or with another version of ckworkflow."
    )
    held = Hold(reason, until, events, _code(run.workflow))
    text = codec.dumps(
        codec.encode(
            {"reason": reason, "until": until, "events": events, "code": held.code}, path="held"
        )
    )
    runs.update_run(
        tx, run.run_id, held=text, wake_at=_look_at(tx, run, held), lease_owner=None, lease_until=None
    )
    return held


def rest(tx: Transaction, run: RunRow, held: Hold) -> None:
    """Let a run rest that is held already: something has asked for its body."""
    wake_at = _look_at(tx, run, held)
    if run.wake_at is None or run.wake_at < wake_at:
        runs.update_run(tx, run.run_id, wake_at=wake_at)


def tell(run_id: RunId, held: Hold) -> None:
    """Log that a run is held; once for each hold, after its commit."""
    logger.error("run %s is held: %s", run_id, held.reason, extra={"run_id": run_id})


def retry_held(engine: Engine) -> None:
    """Let go of runs that are held for what their body was under other code than this worker's."""
    for run_id, workflow, text in engine.database.read(runs.held_runs):
        held = read(text)
        if workflow not in registry.workflows or held is None or held.code == _code(workflow):
            continue

        def let_go(tx: Transaction, run_id: RunId = run_id, text: str = text) -> bool:
            run = runs.lock_run(tx, run_id, engine.database)
            if run.held != text or run.status.is_final:
                return False
            runs.update_run(tx, run_id, held=None, spins=0, spins_since=None, wake_at=run.now)
            return True

        try:
            is_free = engine.database.transact(let_go)
        except RunNotFoundError:
            continue
        if is_free:
            logger.info("run no longer held: its code has changed", extra={"run_id": run_id})


def _look_at(tx: Transaction, run: RunRow, held: Hold) -> datetime:
    """When the clock must look at a held run: at its end, or earlier where a sleep ends or a step is due again."""
    rows = nodes.load_nodes(tx, run.run_id, statuses=nodes.LIVE)
    return min([held.until, *(row.due_at for row in rows if row.due_at and row.due_at > run.now)])


def _code(workflow: str) -> str:
    """What tells one deploy of a body from another."""
    known = registry.workflows.get(workflow)
    body = "" if known is None else known.source_hash
    return f"{importlib.metadata.version('ckworkflow')} {body}"
