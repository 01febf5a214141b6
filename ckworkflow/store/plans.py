"""Plans: bringing the rows of a run to what a trace says is left to do."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ckworkflow import codec
from ckworkflow.model import TIMER, Json, NodeId, NodeKind, NodeStatus, life_of
from ckworkflow.plan import WINDOW, JoinKind, Plan, PlanNode
from ckworkflow.store import large
from ckworkflow.store.events import OUT_OF_REACH, restore
from ckworkflow.store.nodes import (
    HERE,
    After,
    delete_planned,
    is_node,
    load_targets,
    new_row,
    update_node,
)
from ckworkflow.store.records import Followup, JoinRows, make_ready, recall_carried, sleep_end
from ckworkflow.store.tables import joins, nodes
from ckworkflow.store.transaction import Prepared

if TYPE_CHECKING:
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction
    from ckworkflow.tracing import TracedNode


_POSITIONS = 1_000_000
"""Room for the nodes of one continuation, so that `position` sorts by continuation, then by trace.

Of one continuation and the next, the number of leases grows or that of the events that the body was told: their sum numbers them."""


def first_position(epoch: int, told: int) -> int:
    """The `position` of the first node that a continuation plans.

    Args:
        epoch: Of its lease.
        told: How many events the body has got with it.
    """
    return (epoch + told) * _POSITIONS


class StalePlanError(Exception):
    """A node was claimed between the trace and its commit in another shape: trace again."""


@dataclass(frozen=True, slots=True)
class _Stored:
    status: NodeStatus
    kind: str
    name: str
    args: str
    generation: int
    unmet: int
    next: str
    attempt: int
    owner: str | None
    output: str | None
    finished_at: datetime | None
    due_at: datetime | None
    fails_as_value: bool
    cancelled_at: datetime | None
    is_carried: bool

    @property
    def runs(self) -> bool:
        """Whether it is a step that runs, and is not to stop."""
        is_running_step = (self.status, self.kind) == (NodeStatus.RUNNING, NodeKind.STEP)
        return is_running_step and self.cancelled_at is None

    @property
    def has_begun(self) -> bool:
        """Whether it has, and may still end."""
        return self.status is not NodeStatus.ABANDONED and (
            self.status is not NodeStatus.PLANNED or self.attempt > 0
        )

    @property
    def is_timer(self) -> bool:
        """Whether nobody awaits it."""
        return (self.kind, self.name) == (NodeKind.SLEEP, TIMER)

    @property
    def ended_at(self) -> datetime | None:
        """When what comes after it may begin."""
        return self.due_at if self.kind == NodeKind.SLEEP and self.due_at else self.finished_at

    def revived(self) -> NodeStatus:
        """The status of an abandoned node that the body wants after all."""
        if self.finished_at is not None:
            return NodeStatus.FAILED if self.output is None else NodeStatus.COMPLETED
        has_begun = self.owner is not None or self.kind in (NodeKind.SLEEP, NodeKind.CHILD)
        return NodeStatus.RUNNING if has_begun else NodeStatus.PLANNED


_NONE: Mapping[NodeId, datetime] = MappingProxyType({})
Values = dict[str, Any]
"""Columns of a row, by their names."""

Choose = Callable[[str, Json], bool]
"""Whether this process runs a step, of a name and with arguments, at once; see `apply_plan`."""


def apply_plan(
    tx: Transaction, run: RunRow, plan: Plan, traced: Iterable[TracedNode], *, epoch: int,
    told_at: datetime, told: int = 0, is_new: bool = False, choose: Choose | None = None, owner: str = "",
    old_joins: JoinRows | None = None, let_go: Container[NodeId] = (), stopping: Container[NodeId] = (),
    running: Container[NodeId] | None = None, timers: Mapping[NodeId, datetime] = _NONE,
) -> Followup:  # fmt: skip
    """Insert, change and drop planned nodes so that they are those of the plan.

    Nodes that did not change keep their generation, so that messages in flight stay valid; new and
    changed ones take the epoch of the lease, which no earlier message can name.

    Args:
        tx: A transaction that has locked the run.
        run: The run.
        plan: What the trace left to do.
        traced: Its nodes.
        epoch: Of the lease.
        told_at: The time that the body has been told: what it makes counts from there.
        told: How many events the body has got with this continuation.
        is_new: Whether the run has no nodes but those whose results the body has got, that it has let go of, and timers.
        choose: Asked about new steps that may begin; the first that it accepts is claimed for `owner`, and reported
            as `Followup.begun`.
        owner: This process.
        old_joins: The joins that the run has, where that is known.
        let_go: The nodes that the body has come to and wants no longer.
        stopping: The steps that the body waits for only so that they end.
        running: The steps that ran when the trace was made.
        timers: With `is_new`, the timers that the run has, with their ends.

    Raises:
        StalePlanError: The nodes in the database are not those that the trace was made from. Commit nothing.
    """
    stored = {} if is_new else _within_reach(tx, run, _load(tx, run))
    _revive(tx, run, plan, stored)
    followup = Followup()
    unmet, remaining, after_at = _count_unmet(plan, stored)
    inserts: list[Values] = []
    updates: list[Values] = []
    ready: dict[datetime, list[NodeId]] = {}
    """What may begin, by the time from which a sleep among it counts."""
    traced, first = list(traced), first_position(epoch, told)
    encoded = {node.node_id: codec.pack(node.args) for node in traced}
    for index, node in enumerate(traced):
        if node.node_id in timers:
            continue
        planned, args = plan.nodes[node.node_id], encoded[node.node_id]
        row = _in_place(tx, run, node, stored.get(node.node_id))
        following = codec.dumps(list(planned.next))
        if row is None:
            insert = _insert(run, node, first + index, epoch, args, following)
            insert["unmet"] = unmet[node.node_id]
            inserts.append(insert)
            base = after_at.get(node.node_id, told_at)
            after = _after(plan, planned, encoded, epoch) if is_new else None
            if insert["unmet"] or _begin(run, insert, node.args, base, followup, choose, owner, after):
                continue
            ready.setdefault(base, []).append(node.node_id)  # a sleep that ends at once
            continue
        update = _change(row, node, args, following, unmet[node.node_id], epoch)
        if node.node_id in stopping and row.cancelled_at is None:
            if not row.runs:
                raise StalePlanError  # it has ended meanwhile, or been given back
            followup.stops.append(node.node_id)
        if update is not None:
            updates.append({"b_run": run.run_id, "b_node": node.node_id, **update})
        if unmet[node.node_id] == 0 and row.status is NodeStatus.PLANNED:
            ready.setdefault(after_at.get(node.node_id, told_at), []).append(node.node_id)
    dropped = [node_id for node_id in stored if node_id not in plan.nodes]
    large.keep(tx, run.run_id, [each["args"] for each in (*inserts, *updates)], life=run.life)
    _write(tx, inserts, updates)
    _recall_void(tx, run, stored, updates, dropped)
    _note_sleeps(run, plan, stored, timers, followup)
    _drop_timers(tx, run, [node_id for node_id in timers if node_id not in plan.nodes])
    followup.stops += _let_go(stored, [node_id for node_id in dropped if node_id in let_go], running)
    _drop(tx, run, dropped)
    _stop(tx, run, followup.stops)
    followup.is_all = all(node_id in let_go or not stored[node_id].has_begun for node_id in dropped)
    followup.join_rows = _replace_joins(tx, run, plan, remaining, old_joins)
    followup.wakes_body = any(
        join.kind is JoinKind.WAIT and remaining[join.join_id] == 0 for join in plan.joins.values()
    )
    followup.ends_run = "end" in plan.joins and remaining["end"] == 0
    for base, node_ids in ready.items():
        make_ready(tx, run, node_ids, base=base, followup=followup)
    return followup


def refuse_begun(
    tx: Transaction, run: RunRow, let_go: Iterable[NodeId], running: Container[NodeId]
) -> None:
    """Check that no step has begun since the trace was made of those that a body has let go of which has ended.

    Raises:
        StalePlanError: One has: its end may have to be waited for.
    """
    stored = _load(tx, run)
    _let_go(stored, [node_id for node_id in let_go if node_id in stored], running)


def _let_go(
    stored: Mapping[NodeId, _Stored], node_ids: Iterable[NodeId], running: Container[NodeId] | None
) -> list[NodeId]:
    """Return those of the steps that the body has let go of that run, and are to stop.

    Raises:
        StalePlanError: One has begun since the trace was made, which may have to wait for its end.
    """
    begun = [node_id for node_id in node_ids if stored[node_id].runs]
    if running is not None and any(node_id not in running for node_id in begun):
        raise StalePlanError
    return begun


def _recall_void(
    tx: Transaction, run: RunRow, stored: dict[NodeId, _Stored], updates: Iterable[Values],
    dropped: Iterable[NodeId],
) -> None:  # fmt: skip
    """Take back that messages end sleeps whose messages name what is planned otherwise now: the clock ends them in time."""
    changed = {each["b_node"]: each for each in updates}
    void = {
        node_id for node_id, each in changed.items() if each["generation"] != stored[node_id].generation
    }
    void.update(dropped)
    recalled = [
        node_id
        for node_id, row in stored.items()
        if row.is_carried
        and row.kind == NodeKind.SLEEP
        and (
            not void.isdisjoint(load_targets(row.next))
            or (node_id in changed and changed[node_id]["next"] != row.next)
        )
    ]
    if recalled:
        recall_carried(tx, run.run_id, recalled)
        stored.update({node_id: replace(stored[node_id], is_carried=False) for node_id in recalled})


def _note_sleeps(
    run: RunRow, plan: Plan, stored: Mapping[NodeId, _Stored], timers: Mapping[NodeId, datetime],
    followup: Followup,
) -> None:  # fmt: skip
    """Note the timers that the run had and keeps, and whether a sleep is due."""
    asleep = {
        node_id: row.due_at
        for node_id, row in stored.items()
        if row.kind == NodeKind.SLEEP and row.status is NodeStatus.RUNNING and row.due_at is not None
    }
    for node_id, due_at in asleep.items():
        if node_id in plan.nodes:
            is_carried = followup.still_asleep.get(due_at, True) and stored[node_id].is_carried
            followup.still_asleep[due_at] = is_carried
    followup.is_overdue = any(due_at <= run.now for due_at in asleep.values())
    had = {node_id: due_at for node_id, due_at in asleep.items() if stored[node_id].is_timer}
    followup.timers |= {
        node_id: due_at for node_id, due_at in {**had, **timers}.items() if node_id in plan.nodes
    }


def refuse_unmet(tx: Transaction, run: RunRow, met: Container[NodeId]) -> None:
    """Check that a body which was told of a surprise has met whatever has begun.

    Raises:
        StalePlanError: Something has begun meanwhile that the body would not have begun.
    """
    for node_id, row in _load(tx, run).items():
        if row.has_begun and node_id not in met:
            raise StalePlanError


def _after(plan: Plan, planned: PlanNode, args: Mapping[NodeId, str], epoch: int) -> After | None:
    """The only step that a new node feeds, if it is new, too."""
    if len(planned.next) != 1 or not is_node(planned.next[0]):
        return None
    after = plan.nodes.get(NodeId(planned.next[0]))
    if after is None or after.kind is not NodeKind.STEP:
        return None
    return After(after.name, epoch, args[after.node_id])


def _insert(
    run: RunRow, node: TracedNode, position: int, epoch: int, args: str, following: str
) -> Values:
    return {
        "run_id": run.run_id, "node_id": node.node_id, "life": life_of(node.node_id), "position": position, "kind": node.kind,
        "name": node.name, "line": node.line, "generation": epoch, "args": args,
        "status": NodeStatus.PLANNED, "unmet": 0, "next": following, "attempt": 0, "owner": None,
        "due_at": None, "is_held": False, "fails_as_value": node.fails_as_value, "created_at": run.now, "started_at": None,
    }  # fmt: skip


def _begin(
    run: RunRow,
    insert: Values,
    args: Json,
    base: datetime,
    followup: Followup,
    choose: Choose | None,
    owner: str,
    after: After | None,
) -> bool:
    """Begin a new node that waits for nothing; `False` if more than its own row must be written for that."""
    if insert["kind"] is NodeKind.CLOSE:
        return False  # it ends at once
    if insert["kind"] is NodeKind.CHILD:
        insert.update(status=NodeStatus.RUNNING, started_at=run.now)
        return True
    if insert["kind"] is NodeKind.SLEEP:
        due_at = sleep_end(args, base)
        if due_at <= run.now:
            return False
        insert.update(status=NodeStatus.RUNNING, due_at=due_at, started_at=base)
        followup.asleep[insert["node_id"]] = due_at
        if insert["name"] == TIMER:
            followup.timers[insert["node_id"]] = due_at
        return True
    is_begun = followup.begun is None and choose is not None and choose(insert["name"], args)
    if is_begun:
        insert.update(status=NodeStatus.RUNNING, attempt=1, owner=owner, started_at=run.now)
    else:
        insert["is_held"] = len(followup.ready) >= WINDOW  # as it will be cut
    row = new_row(insert)._replace(after=after)
    if is_begun:
        followup.begun = row
    else:
        followup.ready.append(row.node_id)
        followup.rows[row.node_id] = row
    return True


def _in_place(tx: Transaction, run: RunRow, node: TracedNode, row: _Stored | None) -> _Stored | None:
    """Return the stored node in the place of one; a child is made anew, in place of what the body had only planned there.

    Raises:
        StalePlanError: That has begun.
    """
    if row is None or node.kind is not NodeKind.CHILD or row.status is not NodeStatus.PLANNED:
        return row
    if row.attempt:
        raise StalePlanError
    tx.execute_many(_DELETE, [{"b_run": run.run_id, "b_node": node.node_id}])
    return None


def insert_let_go(tx: Transaction, run: RunRow, node: TracedNode, *, position: int) -> None:
    """Add a node that has begun, and that the body has let go of in the same breath."""
    insert = _insert(run, node, position, run.epoch, args := codec.pack(node.args), "[]")
    large.keep(tx, run.run_id, [args], life=run.life)
    insert.update(status=NodeStatus.ABANDONED, started_at=run.now)
    delete_planned(tx, run.run_id, node.node_id)
    tx.execute_many(_INSERT_NODES, [insert])


def _load(tx: Transaction, run: RunRow) -> dict[NodeId, _Stored]:
    rows = tx.execute(_STORED, {"b_run": run.run_id})
    return {NodeId(row[0]): _Stored(NodeStatus(row[1]), *row[2:]) for row in rows}


_STORED = Prepared(sa.select(
    nodes.c.node_id, nodes.c.status, nodes.c.kind, nodes.c.name, nodes.c.args, nodes.c.generation,
    nodes.c.unmet, nodes.c.next, nodes.c.attempt, nodes.c.owner, nodes.c.output, nodes.c.finished_at,
    nodes.c.due_at, nodes.c.fails_as_value, nodes.c.cancelled_at, nodes.c.is_carried,
).where(nodes.c.run_id == sa.bindparam("b_run"), nodes.c.delivered.is_(None)))  # fmt: skip


def _within_reach(tx: Transaction, run: RunRow, stored: dict[NodeId, _Stored]) -> dict[NodeId, _Stored]:
    """Take back that nodes are out of reach, all at once: most of them have not changed."""
    if all(row.unmet < OUT_OF_REACH for row in stored.values()):
        return stored
    restore(tx, run.run_id)
    return {node_id: replace(row, unmet=row.unmet % OUT_OF_REACH) for node_id, row in stored.items()}


def _revive(tx: Transaction, run: RunRow, plan: Plan, stored: dict[NodeId, _Stored]) -> None:
    """Take back abandoned nodes: a replay can stop short of a node that an earlier trace had reached."""
    for node_id, row in stored.items():
        if row.status is NodeStatus.ABANDONED and node_id in plan.nodes:
            stored[node_id] = replace(row, status=row.revived(), cancelled_at=None)
            update_node(tx, run.run_id, node_id, status=row.revived(), cancelled_at=None)


def _count_unmet(
    plan: Plan, stored: dict[NodeId, _Stored]
) -> tuple[dict[NodeId, int], dict[str, int], dict[NodeId, datetime]]:
    """Return the counters of the plan, less what was recorded after the trace had been read, and since when that lets others begin."""
    completed = {
        node_id: row.ended_at for node_id, row in stored.items() if row.status is NodeStatus.COMPLETED
    }
    after_at: dict[NodeId, datetime] = {}
    unmet = {node_id: node.unmet for node_id, node in plan.nodes.items()}
    remaining = {
        join_id: join.remaining - len(join.members & completed.keys())
        for join_id, join in plan.joins.items()
    }
    for node_id in completed.keys() & plan.nodes.keys():
        for target in plan.nodes[node_id].next:
            if target in unmet:
                unmet[NodeId(target)] = 0
                if (ended_at := completed[node_id]) is not None:
                    after_at[NodeId(target)] = ended_at
    for join_id, join in plan.joins.items():
        if remaining[join_id] == 0:
            unmet.update(dict.fromkeys(join.next, 0))
            last = max(filter(None, (completed.get(each) for each in join.members)), default=None)
            after_at.update(dict.fromkeys(join.next, last) if last is not None else {})
    return unmet, remaining, after_at


def _change(
    row: _Stored, node: TracedNode, args: str, following: str, unmet: int, epoch: int
) -> Values | None:
    is_same = (row.kind, row.name, row.args) == (node.kind, node.name, args)
    fed = (row.next, row.fails_as_value)
    if row.status is not NodeStatus.PLANNED:
        if (row.kind, row.name) != (node.kind, node.name):
            raise StalePlanError
        if fed == (following, node.fails_as_value):
            return None
        return _values(row, following=following, fails_as_value=node.fails_as_value)
    if is_same and (*fed, row.unmet) == (following, node.fails_as_value, unmet):
        return None
    if not is_same and row.attempt and (row.kind, row.name) != (node.kind, node.name):
        raise StalePlanError
    return {
        "kind": node.kind, "name": node.name, "args": row.args if row.attempt else args, "next": following,
        "unmet": unmet, "generation": row.generation if is_same else epoch, "fails_as_value": node.fails_as_value,
    }  # fmt: skip


def _values(row: _Stored, *, following: str, fails_as_value: bool) -> Values:
    return {
        "kind": row.kind, "name": row.name, "args": row.args, "next": following, "unmet": row.unmet,
        "generation": row.generation, "fails_as_value": fails_as_value,
    }  # fmt: skip


_NEW = (
    "run_id", "node_id", "life", "position", "kind", "name", "line", "generation", "args", "status", "unmet", "next",
    "attempt", "owner", "due_at", "is_held", "fails_as_value", "created_at", "started_at",
)  # fmt: skip
_INSERT_NODES = Prepared(sa.insert(nodes).values({name: sa.bindparam(name) for name in _NEW}))
_UPDATE_NODES = Prepared(
    sa.update(nodes)
    .where(HERE)
    .values(
        {
            name: sa.bindparam(name)
            for name in ("kind", "name", "args", "next", "unmet", "generation", "fails_as_value")
        }
    )
)
_DELETE_JOINS = Prepared(sa.delete(joins).where(joins.c.run_id == sa.bindparam("b_run")))
_INSERT_JOINS = Prepared(sa.insert(joins).values({c.name: sa.bindparam(c.name) for c in joins.columns}))


def _write(tx: Transaction, inserts: list[Values], updates: list[Values]) -> None:
    if inserts:
        tx.execute_many(_INSERT_NODES, inserts)
    if updates:
        tx.execute_many(_UPDATE_NODES, updates)


_NEVER_BEGUN = sa.and_(nodes.c.status == NodeStatus.PLANNED, nodes.c.attempt == 0)
# One that is no longer wanted leaves nothing: a loop may make many.
_TIMER = sa.and_(nodes.c.kind == NodeKind.SLEEP, nodes.c.name == TIMER)


def _drop(tx: Transaction, run: RunRow, node_ids: list[NodeId]) -> None:
    """Drop the nodes that the body no longer wants: planned ones go, running steps feed nothing."""
    if not node_ids:
        return
    here = sa.and_(nodes.c.run_id == run.run_id, nodes.c.node_id.in_(node_ids))
    tx.execute(sa.delete(nodes).where(here, sa.or_(_NEVER_BEGUN, _TIMER)))
    tx.execute(
        sa.update(nodes)
        .where(here, nodes.c.status.in_((NodeStatus.PLANNED, NodeStatus.RUNNING)))
        .values(status=NodeStatus.ABANDONED, next="[]")
    )


def _stop(tx: Transaction, run: RunRow, node_ids: Sequence[NodeId]) -> None:
    """Have steps stop that run."""
    if node_ids:
        tx.execute_many(
            _STOP, [{"b_run": run.run_id, "b_node": node_id, "v_at": run.now} for node_id in node_ids]
        )


_STOP = Prepared(sa.update(nodes).where(HERE).values(cancelled_at=sa.bindparam("v_at")))


def _drop_timers(tx: Transaction, run: RunRow, node_ids: Sequence[NodeId]) -> None:
    if node_ids:
        tx.execute_many(_DELETE, [{"b_run": run.run_id, "b_node": node_id} for node_id in node_ids])


_DELETE = Prepared(sa.delete(nodes).where(HERE))


def abandon_rest(tx: Transaction, run: RunRow) -> None:
    """Drop, at the end of a run, what has not begun; what still runs is to stop, and feeds nothing."""
    here = {"b_run": run.run_id}
    tx.execute(_DELETE_PLANNED, here)
    tx.execute(_ABANDON, {**here, "v_at": run.now})
    tx.execute(_DELETE_JOINS, here)


_DELETE_PLANNED = Prepared(
    sa.delete(nodes).where(
        nodes.c.run_id == sa.bindparam("b_run"),
        sa.or_(_NEVER_BEGUN, sa.and_(_TIMER, nodes.c.status == NodeStatus.RUNNING)),
    )
)
_ABANDON = Prepared(
    sa.update(nodes)
    .where(
        nodes.c.run_id == sa.bindparam("b_run"),
        sa.or_(nodes.c.status == NodeStatus.PLANNED, nodes.c.status == NodeStatus.RUNNING),
    )
    .values(
        status=NodeStatus.ABANDONED,
        next="[]",
        cancelled_at=sa.func.coalesce(
            nodes.c.cancelled_at,
            sa.case((nodes.c.owner.is_not(None), sa.bindparam("v_at", type_=nodes.c.cancelled_at.type))),
        ),
    )
)


def _replace_joins(
    tx: Transaction, run: RunRow, plan: Plan, remaining: dict[str, int], old: JoinRows | None
) -> JoinRows:
    rows: JoinRows = [
        {
            "run_id": run.run_id, "join_id": join.join_id, "kind": join.kind,
            "remaining": remaining[join.join_id], "state": "open", "next": codec.dumps(list(join.next)),
            "line": join.line, "reason": join.reason,
        }
        for join in plan.joins.values()
    ]  # fmt: skip
    if rows == old:
        return rows
    if old is None or old:
        tx.execute(_DELETE_JOINS, {"b_run": run.run_id})
    if rows:
        tx.execute_many(_INSERT_JOINS, rows)
    return rows
