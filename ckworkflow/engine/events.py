"""Events: what the body of a run is told, in which order, and at what time.

An event is a node that is recorded: a step that has ended, a sleep whose time has come, a hook that is closed; or what was sent to a
hook; or a request to cancel the run. Whoever continues the body reads all that is
new, and takes with it every sleep that is due by then, so that nothing that was noticed late is told late. The order is
fixed once, here; a replay follows the numbers that it was given.

Where the body has run ahead of a success, a step that comes after it may have begun: then that success is told before all others,
so that the body comes to what has begun. The others are told in the order in which they happened: a sleep at the time at
which it was due, a step when it ended, a payload when it was sent, a request when it was made.

Not here: telling the body (`ckworkflow.engine.advance`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ckworkflow import codec
from ckworkflow.definition.options import OnCancel
from ckworkflow.engine import failures
from ckworkflow.engine.called import find_step
from ckworkflow.model import CANCEL, TIMER, NodeId, NodeKind, NodeStatus
from ckworkflow.store import events, hooks, nodes, records, runs
from ckworkflow.store.hooks import PayloadRow
from ckworkflow.store.nodes import NodeRow
from ckworkflow.store.records import Followup
from ckworkflow.store.runs import Request
from ckworkflow.tracing import Outcome, Payload

if TYPE_CHECKING:
    from collections.abc import Collection

    from ckworkflow.engine.core import Engine
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction

__all__ = ["Event", "News", "is_surprise", "outcome_of", "read_news"]


Happened = NodeRow | PayloadRow
Event = Happened | Request


class News(NamedTuple):
    """What a body is to be told in one continuation.

    Attributes:
        events: In order.
        strict: So many of them are told strictly: up to the last surprise.
        told_at: The time that it is told; never earlier than what it was told before.
        signals: The run's `signals` with all of this read.
        has_taken_due: Whether sleeps were ended for it.
        running: The steps that run, and whether a cancelled await waits until they have ended.
    """

    events: Sequence[Event]
    strict: int
    told_at: datetime
    signals: int
    has_taken_due: bool
    running: Mapping[NodeId, bool]

    @property
    def stoppable(self) -> Sequence[NodeId]:
        """The steps that run, and whose end a cancelled await waits for."""
        return [node_id for node_id, is_waited_for in self.running.items() if is_waited_for]

    @property
    def has_request(self) -> bool:
        """Whether the body is to be told that the run is to be cancelled."""
        return any(event.node_id == CANCEL for event in self.events)


_NO_JOINS: Mapping[str, Sequence[str]] = MappingProxyType({})
_NEVER = datetime.min.replace(tzinfo=UTC)


def read_news(engine: Engine, tx: Transaction, run: RunRow) -> News:
    """Read what the body of a locked run is to be told, and put what is planned out of reach if that holds a surprise."""
    taken = _take_due(engine, tx, run)
    recorded, begun = events.load_news(tx, run.run_id)
    happened: Sequence[Happened] = recorded
    if run.untold_payloads:
        happened = [*recorded, *hooks.load_untold(tx, run.run_id)]
    if len(happened) > 1:
        happened = in_order(happened, *events.load_begun(tx, run.run_id))
    rows: Sequence[Event] = happened
    request = runs.read_request(tx, run.run_id) if run.has_untold_request else None
    if request is not None:
        rows = with_request(happened, request)
    strict = max((place for place, row in enumerate(rows, 1) if is_surprise(row)), default=0)
    if strict:
        events.withhold(tx, run.run_id)
    told_at = max(run.now, run.body_time) if rows else run.body_time
    running = {row.node_id: _is_waited_for(row) for row in begun}
    has_taken = taken is not None
    return News(rows, strict, told_at, run.signals if taken is None else taken, has_taken, running)


def _is_waited_for(row: NodeRow) -> bool:
    """Whether the cancelled await of a step that runs waits until it has ended."""
    step = find_step(row)
    return step is None or step.on_cancel is OnCancel.WAIT


def _take_due(engine: Engine, tx: Transaction, run: RunRow) -> int | None:
    """Record the sleeps whose time has come; return the run's `signals` with that, or `None` if there are none."""
    followup = Followup()
    records.settle_sleeps(tx, run, followup)
    wakes = followup.wakes_body or followup.ends_run
    if not (followup.ready or followup.asleep or wakes):
        return None
    # What may begin now the commit of the continuation publishes.
    engine.schedule(tx, run, followup, signals=run.signals + int(wakes))
    return run.signals + int(wakes)


_SLEEP, _STEP, _PAYLOAD, _CLOSE = range(4)
"""Of what happened at the same time: the order in which the body is told."""
_RANKS: Mapping[NodeKind, int] = {NodeKind.SLEEP: _SLEEP, NodeKind.CLOSE: _CLOSE}


def happened_at(row: Happened) -> datetime:
    """When something happened: of a sleep, when it was due."""
    if isinstance(row, PayloadRow):
        return row.received_at
    return (row.due_at if row.kind is NodeKind.SLEEP else None) or row.finished_at or _NEVER


def in_order(
    rows: Collection[Happened], begun: Collection[str], fired: Mapping[str, Sequence[str]] = _NO_JOINS
) -> list[Happened]:
    """Put events in the order in which the body is told.

    Args:
        rows: The recorded nodes, and the payloads.
        begun: The nodes that have begun.
        fired: The joins that have let nodes begin, with these.
    """

    def following(row: Happened) -> list[str]:
        """The nodes after a success that have begun."""
        if isinstance(row, PayloadRow) or row.status is not NodeStatus.COMPLETED:
            return []
        targets = nodes.load_targets(row.next)
        after = [each for target in targets for each in fired.get(target, (target,))]
        return [each for each in after if each in begun]

    def place(row: Happened) -> tuple[object, ...]:
        if isinstance(row, PayloadRow):
            return 1, row.received_at, _PAYLOAD, row.number
        if following(row):
            return 0, row.finished_at or _NEVER, happened_at(row), row.position, row.node_id
        return 1, happened_at(row), _RANKS.get(row.kind, _STEP), row.position, row.node_id

    found = sorted(rows, key=place)
    # Times are estimates of several processes: what has let something begin is told before it.
    before: dict[str, list[Happened]] = {}
    for row in found:
        for each in following(row):
            before.setdefault(each, []).append(row)
    ordered: dict[NodeId, Happened] = {}
    stack = found[::-1]
    while stack:
        row = stack.pop()
        first = [each for each in before.pop(row.node_id, ()) if each.node_id not in ordered]
        if first:
            stack += [row, *reversed(first)]
        else:
            ordered.setdefault(row.node_id, row)
    return list(ordered.values())


def with_request(rows: Sequence[Happened], request: Request) -> list[Event]:
    """Put a request among events that are in order: behind what has happened by then, and what something has begun after."""
    after = [place for place, row in enumerate(rows, 1) if happened_at(row) <= request.requested_at]
    place = max(after, default=0)
    return [*rows[:place], request, *rows[place:]]


def is_surprise(row: Event) -> bool:
    """Whether an event may change the way of tasks that have run ahead, by itself."""
    if not isinstance(row, NodeRow):
        return True
    if row.status is NodeStatus.FAILED or row.cancelled_at is not None:
        return not row.fails_as_value
    return row.kind is NodeKind.SLEEP and row.name == TIMER


def outcome_of(row: Event, at: datetime) -> Outcome | Payload:
    """Return an event as the body is told of it.

    Args:
        row: The event.
        at: The time that the body is told.

    Raises:
        UnreadableValueError: Its error cannot be rebuilt here.
    """
    if isinstance(row, Request):
        error = asyncio.CancelledError() if row.reason is None else asyncio.CancelledError(row.reason)
        return Outcome(CANCEL, None, error, at)
    if isinstance(row, PayloadRow):
        return Payload(row.number, row.key, codec.loads(row.body), at, row.is_taken)
    if row.cancelled_at is not None:  # whatever it gave
        return Outcome(NodeId(row.node_id), None, asyncio.CancelledError(), at)
    if row.status is NodeStatus.COMPLETED:
        return Outcome(row.node_id, codec.loads(row.output or "null"), None, at)
    return Outcome(NodeId(row.node_id), None, failures.loads(row.error or '"unknown"'), at)
