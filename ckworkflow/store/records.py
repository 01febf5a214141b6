"""Records: how a node has ended, and what that makes ready.

All functions work inside one transaction that has locked the run (`runs.lock_run`). A record is fenced
by owner, attempt and generation: a worker that lost its node writes nothing.

Not here: how a node gets its owner (`claims`).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import sqlalchemy as sa

from ckworkflow import codec
from ckworkflow.model import (
    AttemptOutcome,
    Ending,
    NodeId,
    NodeKind,
    NodeStatus,
    RunId,
    life_of,
    waits_for_child,
)
from ckworkflow.plan import JoinKind, sleep_delay, sleep_until
from ckworkflow.store import hooks, large
from ckworkflow.store.events import OUT_OF_REACH
from ckworkflow.store.expectations import expecting
from ckworkflow.store.nodes import (
    COLUMNS,
    HERE,
    NodeRow,
    add_attempt,
    is_node,
    load_node,
    load_targets,
    node_rows,
    update_node,
)
from ckworkflow.store.tables import joins, nodes
from ckworkflow.store.transaction import Asked, Prepared, Rows

if TYPE_CHECKING:
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction
    from ckworkflow.store.writer import Works


class JoinRow(TypedDict):
    """A join as it is stored."""

    run_id: RunId
    join_id: str
    kind: JoinKind
    remaining: int
    state: str
    next: str
    line: int
    reason: str


JoinRows = list[JoinRow]
"""The joins of a run, as they are stored."""


@dataclass(slots=True)
class Followup:
    """What a record made possible.

    Attributes:
        ready: Steps that may begin now.
        rows: Their rows, where they are at hand.
        asleep: Sleeps that have begun, with their ends.
        still_asleep: The ends of sleeps that had begun before, and whether a message brings them, where a plan was written.
        timers: The timers of the plan that was written, with their ends.
        wakes_body: A boundary was reached: the body can go on.
        ends_run: The body had ended and this was the last of what it awaited.
        is_overdue: A sleep is due that nobody has ended yet.
        begun: A step that was claimed in the same breath.
        stops: The steps that run and are to stop from now on.
        join_rows: The joins as they are now, where a plan was written.
        is_all: Nothing is left of the run beside the plan that was written.
    """

    ready: list[NodeId] = field(default_factory=list)
    rows: dict[NodeId, NodeRow] = field(default_factory=dict)
    asleep: dict[NodeId, datetime] = field(default_factory=dict)
    still_asleep: dict[datetime, bool] = field(default_factory=dict)
    timers: dict[NodeId, datetime] = field(default_factory=dict)
    wakes_body: bool = False
    ends_run: bool = False
    is_overdue: bool = False
    begun: NodeRow | None = None
    stops: list[NodeId] = field(default_factory=list)
    join_rows: JoinRows | None = None
    is_all: bool = False


_END_UPDATE = (
    sa.update(nodes)
    .where(
        HERE,
        # Not as the index of owners has it: PostgreSQL would read all that this one has had for one row.
        sa.func.coalesce(nodes.c.owner, "") == sa.bindparam("b_owner"),
        nodes.c.attempt == sa.bindparam("b_attempt"),
        nodes.c.generation == sa.bindparam("b_generation"),
        sa.or_(nodes.c.status == NodeStatus.RUNNING, nodes.c.status == NodeStatus.ABANDONED),
    )
    .values(
        owner=None,
        output=sa.bindparam("v_output"),
        error=sa.bindparam("v_error"),
        finished_at=sa.bindparam("v_now"),
        delivered=sa.bindparam("v_delivered"),
        delivered_at=sa.bindparam("v_delivered_at"),
        status=sa.case(
            (nodes.c.status == NodeStatus.ABANDONED, sa.literal(NodeStatus.ABANDONED)),
            else_=sa.bindparam("v_status"),
        ),
    )
)
_END = Prepared(_END_UPDATE.returning(nodes.c.status, nodes.c.next))
_EXPECTED_END = expecting(
    _END_UPDATE.where(
        nodes.c.status == NodeStatus.RUNNING, nodes.c.next == sa.bindparam("b_next")
    ).returning(nodes.c.status)
)


def end_attempt(
    tx: Transaction, run_id: RunId, claimed: NodeRow, *, output: str | None, error: str | None, at: datetime,
    place: tuple[int, datetime] | None = None, outcome: AttemptOutcome = AttemptOutcome.FAILED,
) -> Asked[tuple[str, ...] | None]:  # fmt: skip
    """Write the outcome of an attempt; the answer is the targets that it feeds.

    The answer is `None` when it feeds nothing: the node was abandoned, or it belongs to another owner by now, and then
    nothing was written.

    Args:
        tx: A transaction that has asked for the lock of the run.
        run_id: The run.
        claimed: The attempt.
        output: Its result; `None` if it failed.
        error: Its error; `None` if it did not fail.
        at: When it ended.
        place: The number and the time under which the body gets it, where that is foreseen.
        outcome: What is said of the attempt, if it failed.
    """

    def read(rows: Rows) -> tuple[str, ...] | None:
        row = rows.one_or_none()
        if row is None:
            return None
        if error is not None:  # of one that gave a result the node itself tells all
            add_attempt(tx, run_id, claimed, outcome=outcome, error=error, now=at)
        return None if row[0] == NodeStatus.ABANDONED else load_targets(row[1])

    delivered, delivered_at = place or (None, None)
    large.keep(tx, run_id, [output], life=life_of(claimed.node_id))
    rows = tx.execute(
        _END,
        {
            "b_run": run_id, "b_node": claimed.node_id, "b_owner": claimed.owner,
            "b_attempt": claimed.attempt, "b_generation": claimed.generation,
            "v_output": output, "v_error": error, "v_now": at,
            "v_delivered": delivered, "v_delivered_at": delivered_at,
            "v_status": NodeStatus.FAILED if output is None else NodeStatus.COMPLETED,
        },
    )  # fmt: skip
    return Asked(rows, read)


def expect_end(
    tx: Transaction, run_id: RunId, claimed: NodeRow, *, output: str, at: datetime,
    place: tuple[int, datetime] | None = None,
) -> None:  # fmt: skip
    """Write the result of an attempt that is expected to belong to its owner still, as `end_attempt` does."""
    delivered, delivered_at = place or (None, None)
    large.keep(tx, run_id, [output], life=life_of(claimed.node_id))
    tx.execute(
        _EXPECTED_END,
        {
            "b_run": run_id, "b_node": claimed.node_id, "b_owner": claimed.owner, "b_next": claimed.next,
            "b_attempt": claimed.attempt, "b_generation": claimed.generation, "v_output": output, "v_error": None, "v_now": at,
            "v_delivered": delivered, "v_delivered_at": delivered_at, "v_status": NodeStatus.COMPLETED,
        },
    )  # fmt: skip


def suspend_attempt(
    tx: Transaction, run: RunRow, claimed: NodeRow, *, outcome: AttemptOutcome | None, due_at: datetime,
    error: str | None, is_free: bool, losses: int | None = None, is_carried: bool = False,
) -> Suspended:  # fmt: skip
    """End an attempt without an outcome: the node may be claimed again at `due_at`.

    A step that is to stop has no further attempt: it has ended, and its body waits for that.

    `is_carried` says that a message with a countdown brings the next attempt, so that the clock comes second;
    `losses` is how many lost processes the node is charged with from now on.
    Without an `outcome` no attempt is recorded.
    """
    row = _owned(tx, run.run_id, claimed)
    if row is None:
        return Suspended.REFUSED
    status = row.status
    if status is NodeStatus.RUNNING and row.cancelled_at is not None:
        end_attempt(
            tx, run.run_id, claimed, output=None, error=error or "null", at=run.now, outcome=AttemptOutcome.CANCELLED
        ).get()  # fmt: skip
        return Suspended.ENDED
    update_node(
        tx, run.run_id, claimed.node_id, owner=None, error=error, due_at=due_at, is_carried=is_carried,
        status=NodeStatus.PLANNED if status is NodeStatus.RUNNING else status,
        free_attempts=claimed.free_attempts + (1 if is_free else 0),
        losses=claimed.losses if losses is None else losses,
        # No attempt begins before the body has heard that its run is to be cancelled.
        unmet=OUT_OF_REACH if run.has_untold_request else row.unmet,
    )  # fmt: skip
    if outcome is not None:
        add_attempt(tx, run.run_id, claimed, outcome=outcome, error=error, now=run.now)
    return Suspended.AGAIN


class Suspended(enum.Enum):
    """What has come of an attempt that was suspended.

    `AGAIN`: there may be another one. `ENDED`: the step was to stop, and has; its body is to hear of it. `REFUSED`: the node is not
    its owner's any more, and nothing was written.
    """

    AGAIN = enum.auto()
    ENDED = enum.auto()
    REFUSED = enum.auto()


def _owned(tx: Transaction, run_id: RunId, claimed: NodeRow) -> NodeRow | None:
    row = load_node(tx, run_id, claimed.node_id).get()
    if row is None or _claim_of(row) != _claim_of(claimed):
        return None
    return row if row.status in (NodeStatus.RUNNING, NodeStatus.ABANDONED) else None


def _claim_of(row: NodeRow) -> tuple[str | None, int, int]:
    """What a claim has given a node, and its owner must still have of it to write."""
    return row.owner, row.attempt, row.generation


def feeding(
    tx: Transaction, run: RunRow, targets: Iterable[str], *, base: datetime, followup: Followup,
    counted: Asked[Fired | None] | None = None,
) -> Works[None]:  # fmt: skip
    """Count a record in what comes after it; yields where rows are about to be read.

    Args:
        tx: A transaction that has locked the run.
        run: The run.
        targets: The `next` of the recorded node.
        base: When it was recorded, from which a sleep after it counts.
        followup: Gets what that makes possible.
        counted: What `count` gave, where the only target is a join.
    """
    node_ids: list[str] = []
    counting: list[Asked[Fired | None]] = []
    if counted is not None:
        counting, targets = [counted], ()
    for target in targets:
        if is_node(target):
            node_ids.append(target)
        else:
            counting.append(count(tx, run.run_id, target))
    beginning = _ask_ready(tx, run, node_ids)
    if counted is None and (counting or beginning):
        yield None
    joined: list[str] = []
    for asked in counting:
        fired = asked.get()
        if fired is None:
            continue
        followup.wakes_body |= fired.kind is JoinKind.WAIT
        followup.ends_run |= fired.kind is JoinKind.END
        if fired.kind is JoinKind.CHORD:
            joined.extend(fired.next)
    if joined:
        beginning.extend(_ask_ready(tx, run, joined))
        yield None
    _begin(tx, run, beginning, base=base, followup=followup)


class Fired(NamedTuple):
    """A join that has nothing left to wait for.

    Attributes:
        kind: What it was for.
        next: What it feeds.
    """

    kind: JoinKind
    next: tuple[str, ...]


def count(tx: Transaction, run_id: RunId, join_id: str) -> Asked[Fired | None]:
    """Count a record in a join, perhaps before it is known to stand: if it does not, the transaction is undone.

    The answer is the join if this was the last record that it waited for, and `None` otherwise.
    """
    return Asked(tx.execute(_COUNT, {"b_run": run_id, "b_join": join_id}), _fired)


def _fired(rows: Rows) -> Fired | None:
    row = rows.one_or_none()
    return None if row is None or row[0] != 0 else Fired(JoinKind(row[1]), load_targets(row[2]))


_COUNT = Prepared(
    sa.update(joins)
    .where(joins.c.run_id == sa.bindparam("b_run"), joins.c.join_id == sa.bindparam("b_join"))
    .values(
        remaining=joins.c.remaining - 1,
        state=sa.case((joins.c.remaining == 1, sa.literal("fired")), else_=sa.literal("open")),
    )
    .returning(joins.c.remaining, joins.c.kind, joins.c.next)
)
_MAKE_READY = (
    sa.update(nodes)
    .where(nodes.c.status == NodeStatus.PLANNED)
    # What is out of reach stays so.
    .values(unmet=sa.case((nodes.c.unmet >= OUT_OF_REACH, OUT_OF_REACH), else_=0))
    .returning(*COLUMNS)
)
_MAKE_ONE_READY = Prepared(_MAKE_READY.where(HERE))


def make_ready(
    tx: Transaction, run: RunRow, node_ids: Sequence[str], *, base: datetime, followup: Followup
) -> None:
    """Let nodes begin: steps become ready, sleeps begin (and end, when their time has passed)."""
    _begin(tx, run, _ask_ready(tx, run, node_ids), base=base, followup=followup)


def _ask_ready(tx: Transaction, run: RunRow, node_ids: Sequence[str]) -> list[Asked[list[NodeRow]]]:
    if not node_ids:
        return []
    if len(node_ids) == 1:
        rows = tx.execute(_MAKE_ONE_READY, {"b_run": run.run_id, "b_node": node_ids[0]})
    else:
        here = sa.and_(nodes.c.run_id == run.run_id, nodes.c.node_id.in_(node_ids))
        rows = Rows(tx.execute(_MAKE_READY.where(here)).all())
    return [Asked(rows, node_rows)]


def _begin(
    tx: Transaction, run: RunRow, beginning: Sequence[Asked[list[NodeRow]]], *, base: datetime,
    followup: Followup,
) -> None:  # fmt: skip
    rows = [row for asked in beginning for row in asked.get() if not row.unmet]
    for row in sorted(rows, key=lambda row: row.position):
        if row.kind is NodeKind.CLOSE:
            _finish_close(tx, run, row, followup)
            continue
        if row.kind is not NodeKind.SLEEP:
            followup.ready.append(row.node_id)
            followup.rows[row.node_id] = row
            continue
        due_at = sleep_end(codec.loads(row.args), base)
        if due_at <= run.now:
            finish_sleep(
                tx,
                run,
                row.node_id,
                load_targets(row.next),
                due_at=due_at,
                began=base,
                followup=followup,
            )
        else:
            update_node(
                tx, run.run_id, row.node_id, status=NodeStatus.RUNNING, due_at=due_at, started_at=base,
                is_carried=False,
            )  # fmt: skip
            followup.asleep[row.node_id] = due_at


def finish_child(
    tx: Transaction, run: RunRow, place: NodeId, ending: Ending, error: str | None, followup: Followup
) -> bool:
    """Record that a run has ended which a run has started; return whether that is news to its body.

    Args:
        tx: A transaction that has locked the run that has started the other.
        run: That run.
        place: Where it has.
        ending: How the other has ended.
        error: What the body gets, if it has not completed.
        followup: Gets what that makes possible.
    """
    rows = [load_node(tx, run.run_id, place).get()]
    if life_of(place) < run.life:
        here = {"b_run": run.run_id, "b_life": run.life, "b_args": codec.dumps(waits_for_child(place))}
        rows += node_rows(tx.execute(_AWAITING, here))
    found = [_finish_child(tx, run, row, ending, error, followup) for row in rows if row is not None]
    return any(found)


_AWAITING = Prepared(
    sa.select(*COLUMNS).where(
        nodes.c.run_id == sa.bindparam("b_run"),
        nodes.c.delivered.is_(None),  # so it is; said for the index of these
        nodes.c.kind == NodeKind.CHILD,
        nodes.c.life == sa.bindparam("b_life"),
        nodes.c.args == sa.bindparam("b_args"),
    )
)


def _finish_child(
    tx: Transaction, run: RunRow, row: NodeRow, ending: Ending, error: str | None, followup: Followup
) -> bool:
    if row.kind is not NodeKind.CHILD or row.finished_at is not None:
        return False
    at = max(run.now, run.body_time)
    status = NodeStatus.COMPLETED if error is None else NodeStatus.FAILED
    if row.status is NodeStatus.ABANDONED:
        status = row.status
    output = ending.output if error is None else None
    large.keep(tx, run.run_id, [output], life=run.life)
    update_node(tx, run.run_id, row.node_id, status=status, output=output, error=error, finished_at=at)
    if row.status is NodeStatus.ABANDONED:
        return False
    if error is not None:
        followup.wakes_body = True
    else:  # as of a step: the body is woken if it waits for this, and told of it with the next event if not
        for _ in feeding(tx, run, load_targets(row.next), base=run.now, followup=followup):
            pass
    return True


def _finish_close(tx: Transaction, run: RunRow, row: NodeRow, followup: Followup) -> None:
    """Record that a hook is closed: after all that it has accepted."""
    last = hooks.last_received(tx, run.run_id) if run.untold_payloads else None
    at = run.now if last is None else max(run.now, last)
    update_node(
        tx,
        run.run_id,
        row.node_id,
        status=NodeStatus.COMPLETED,
        output="null",
        started_at=at,
        finished_at=at,
    )
    for _ in feeding(tx, run, load_targets(row.next), base=run.now, followup=followup):
        pass


def release_withheld(tx: Transaction, run: RunRow, followup: Followup) -> None:
    """Let what `events.withhold` has put out of reach begin again: the body is not told now."""
    released = Asked(tx.execute(_RELEASE_WITHHELD, {"b_run": run.run_id}), node_rows)
    _begin(tx, run, [released], base=run.now, followup=followup)


_RELEASE_WITHHELD = Prepared(
    sa.update(nodes)
    .where(
        nodes.c.run_id == sa.bindparam("b_run"),
        nodes.c.delivered.is_(None),  # so it is; said for the index of these
        nodes.c.status == NodeStatus.PLANNED,
        nodes.c.unmet >= OUT_OF_REACH,
    )
    .values(unmet=nodes.c.unmet - OUT_OF_REACH)
    .returning(*COLUMNS)
)


def sleep_end(args: object, base: datetime) -> datetime:
    """When a sleep that begins at `base` ends."""
    return sleep_until(args) or base + (sleep_delay(args) or timedelta())


def finish_sleep(
    tx: Transaction, run: RunRow, node_id: NodeId, following: Sequence[str], *, due_at: datetime,
    began: datetime | None, followup: Followup,
) -> None:  # fmt: skip
    """Record a sleep whose end has come; see `finishing_sleep`."""
    finishing = finishing_sleep(
        tx, run, node_id, following, due_at=due_at, began=began, followup=followup
    )
    for _ in finishing:
        pass


def finishing_sleep(
    tx: Transaction, run: RunRow, node_id: NodeId, following: Sequence[str], *, due_at: datetime,
    began: datetime | None, followup: Followup,
) -> Works[None]:  # fmt: skip
    """Record a sleep whose end has come; what follows counts from that end, not from now.

    Yields where rows are about to be read.
    """
    update_node(
        tx, run.run_id, node_id, status=NodeStatus.COMPLETED, output="null", started_at=began, due_at=due_at,
        finished_at=run.now,
    )  # fmt: skip
    base = min(max(due_at, began or due_at), run.now)
    yield from feeding(tx, run, following, base=base, followup=followup)


def settle_sleeps(tx: Transaction, run: RunRow, followup: Followup) -> None:
    """Record every sleep of the run whose end has come; see `settling`."""
    for _ in settling(tx, run, followup):
        pass


def settling(tx: Transaction, run: RunRow, followup: Followup) -> Works[None]:
    """Record every sleep of the run whose end has come; yields where rows are about to be read."""
    asked = tx.execute(_ENDED_SLEEPS, {"b_run": run.run_id, "b_now": run.now})
    yield None
    for node_id, following, due_at, began in asked:
        yield from finishing_sleep(
            tx, run, node_id, load_targets(following), due_at=due_at, began=began, followup=followup
        )


_ENDED_SLEEPS = Prepared(
    sa.select(nodes.c.node_id, nodes.c.next, nodes.c.due_at, nodes.c.started_at)
    .where(
        nodes.c.run_id == sa.bindparam("b_run"),
        nodes.c.delivered.is_(None),  # so it is; said for the index of these
        nodes.c.kind == NodeKind.SLEEP,
        nodes.c.status == NodeStatus.RUNNING,
        nodes.c.due_at <= sa.bindparam("b_now", type_=nodes.c.due_at.type),
    )
    .order_by(nodes.c.due_at, nodes.c.position)
)


def mark_carried(tx: Transaction, run_id: RunId, node_ids: Iterable[NodeId]) -> None:
    """Note that a message with a countdown ends these sleeps, so that the clock comes second."""
    ids = list(node_ids)
    if ids:
        tx.execute(
            sa.update(nodes)
            .where(nodes.c.run_id == run_id, nodes.c.node_id.in_(ids))
            .values(is_carried=True)
        )


def recall_carried(tx: Transaction, run_id: RunId, node_ids: Collection[NodeId] | None = None) -> None:
    """Note that no message can be relied on to end the sleeps of a run, or these of them."""
    carried = [nodes.c.run_id == run_id, nodes.c.is_carried, nodes.c.status == NodeStatus.RUNNING]
    if node_ids is not None:
        carried.append(nodes.c.node_id.in_(node_ids))
    tx.execute(sa.update(nodes).where(*carried).values(is_carried=False))
