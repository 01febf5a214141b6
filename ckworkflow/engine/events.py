"""Events: what the body of a run is told, in which order, and at what time.

An event is a node that is recorded: a step that has ended, a sleep whose time has come. Whoever continues the body reads all that is
new, and takes with it every sleep that is due by then, so that nothing that was noticed late is told late. The order is
fixed once, here; a replay follows the numbers that it was given.

Where the body has run ahead of a success, a step that comes after it may have begun: then that success is told before all others,
so that the body comes to what has begun. The others are told in the order in which they happened: a sleep at the time at
which it was due, a step when it ended.

Not here: telling the body (`ckworkflow.engine.advance`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from ckworkflow import codec
from ckworkflow.engine import failures
from ckworkflow.model import TIMER, NodeId, NodeKind, NodeStatus
from ckworkflow.store import events, nodes, records
from ckworkflow.store.records import Followup
from ckworkflow.tracing import Outcome

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ckworkflow.engine.core import Engine
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction

__all__ = ["News", "is_surprise", "outcome_of", "read_news"]


class News(NamedTuple):
    """What a body is to be told in one continuation.

    Attributes:
        rows: The nodes, in order.
        strict: So many of them are told strictly: up to the last surprise.
        told_at: The time that it is told; never earlier than what it was told before.
        signals: The run's `signals` with all of this read.
    """

    rows: Sequence[NodeRow]
    strict: int
    told_at: datetime
    signals: int


_NEVER = datetime.min.replace(tzinfo=UTC)


def read_news(engine: Engine, tx: Transaction, run: RunRow) -> News:
    """Read what the body of a locked run is to be told, and put what is planned out of reach if that holds a surprise."""
    signals = _take_due(engine, tx, run)
    rows = events.load_news(tx, run.run_id)
    if len(rows) > 1:
        rows = in_order(rows, events.load_begun(tx, run.run_id))
    strict = max((place for place, row in enumerate(rows, 1) if is_surprise(row)), default=0)
    if strict:
        events.withhold(tx, run.run_id)
    return News(rows, strict, max(run.now, run.body_time), signals)


def _take_due(engine: Engine, tx: Transaction, run: RunRow) -> int:
    """Record the sleeps whose time has come; return the run's `signals` with that."""
    followup = Followup()
    records.settle_sleeps(tx, run, followup)
    signals = run.signals + int(followup.wakes_body or followup.ends_run)
    if followup.ready or followup.asleep or signals > run.signals:
        # What may begin now the commit of the continuation publishes.
        engine.schedule(tx, run, followup, signals=signals)
    return signals


def in_order(rows: Collection[NodeRow], begun: Collection[str]) -> list[NodeRow]:
    """Put events in the order in which the body is told.

    Args:
        rows: The recorded nodes.
        begun: The nodes that have begun, and the joins that have let one of them begin.
    """

    def place(row: NodeRow) -> tuple[object, ...]:
        is_sleep = row.kind is NodeKind.SLEEP
        finished_at = row.finished_at or _NEVER
        if row.status is NodeStatus.COMPLETED and any(
            target in begun for target in nodes.load_targets(row.next)
        ):
            return 0, finished_at, row.due_at if is_sleep else finished_at, row.position, row.node_id
        happened_at = (row.due_at if is_sleep else None) or finished_at
        return 1, happened_at, not is_sleep, row.position, row.node_id

    return sorted(rows, key=place)


def is_surprise(row: NodeRow) -> bool:
    """Whether an event may change the way of tasks that have run ahead, by itself."""
    if row.status is NodeStatus.FAILED:
        return not row.fails_as_value
    return row.kind is NodeKind.SLEEP and row.name == TIMER


def outcome_of(row: NodeRow, at: datetime) -> Outcome:
    """Return an event as the body is told of it.

    Args:
        row: The recorded node.
        at: The time that the body is told.

    Raises:
        UnreadableValueError: Its error cannot be rebuilt here.
    """
    if row.status is NodeStatus.COMPLETED:
        return Outcome(row.node_id, codec.loads(row.output or "null"), None, at)
    return Outcome(NodeId(row.node_id), None, failures.loads(row.error or '"unknown"'), at)
