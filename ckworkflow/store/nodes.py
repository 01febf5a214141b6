"""Nodes: reading them, one by one or as the plan that is left."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import sqlalchemy as sa

from ckworkflow import codec
from ckworkflow.model import CALL_OPTIONS, AttemptOutcome, NodeId, NodeKind, NodeStatus, RunId, life_of
from ckworkflow.plan import Join, JoinKind, Plan, PlanNode, sleep_delay, sleep_until
from ckworkflow.store import large
from ckworkflow.store.tables import attempts, joins, nodes
from ckworkflow.store.transaction import Asked, Parameters, Prepared, Row, Rows

if TYPE_CHECKING:
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction

LIVE = (NodeStatus.PLANNED, NodeStatus.RUNNING)
RECORDED = (NodeStatus.COMPLETED, NodeStatus.FAILED)


class NodeRow(NamedTuple):
    """A node of a run."""

    node_id: NodeId
    position: int
    kind: NodeKind
    name: str
    line: int
    generation: int
    args: str
    status: NodeStatus
    unmet: int
    next: str
    attempt: int
    free_attempts: int
    losses: int
    owner: str | None
    is_carried: bool
    is_held: bool
    fails_as_value: bool
    due_at: datetime | None
    cancelled_at: datetime | None
    output: str | None
    error: str | None
    delivered: int | None
    delivered_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    after: After | None = None
    """The only step that it feeds, where that was read with it."""


@dataclass(frozen=True, slots=True)
class After:
    """A step that waits for another, as it was planned."""

    name: str
    generation: int
    args: str


COLUMNS: tuple[sa.Column[object], ...] = tuple(
    nodes.c[name] for name in NodeRow._fields if name != "after"
)
_MARK = "\x1f"  # in no name, and never as such in JSON
_after = nodes.alias("after")
AFTER = (
    sa.select(_after.c.name + _MARK + sa.cast(_after.c.generation, sa.Text) + _MARK + _after.c.args)
    .where(
        _after.c.run_id == nodes.c.run_id,
        _after.c.kind == NodeKind.STEP,
        # The one id in a list that names nothing else.
        _after.c.node_id == sa.func.replace(sa.func.replace(nodes.c.next, '["', ""), '"]', ""),
    )
    .scalar_subquery()
    .label("after")
)
"""What `NodeRow.after` is, beside `COLUMNS`; for servers: in a `RETURNING`, SQLite reads the whole table for it."""
ARGS_WITH_OPTIONS = sa.case((nodes.c.args.like(f'%"{CALL_OPTIONS}":%'), nodes.c.args))
"""The arguments of a call that may have options of its own; else NULL."""
HERE = sa.and_(nodes.c.run_id == sa.bindparam("b_run"), nodes.c.node_id == sa.bindparam("b_node"))
_LOAD_NODE = Prepared(sa.select(*COLUMNS).where(HERE))


def node_row(values: Row) -> NodeRow:
    """Make a row of the values of `COLUMNS`, and perhaps `AFTER`."""
    node_id, position, kind, name, line, generation, args, status, *rest = values
    if len(values) > len(COLUMNS) and rest[-1] is not None:
        its_name, its_generation, its_args = rest[-1].split(_MARK)
        rest[-1] = After(its_name, int(its_generation), its_args)
    return NodeRow(
        node_id, position, NodeKind(kind), name, line, generation, args, NodeStatus(status), *rest
    )


_NEW: Final = {"free_attempts": 0, "losses": 0, "is_carried": False}


def new_row(values: Parameters) -> NodeRow:
    """Make the row of a node that is about to be inserted with these values."""
    return NodeRow._make(map({**_NEW, **values}.get, NodeRow._fields))


@functools.lru_cache(maxsize=1024)  # a record reads the same one three times
def load_targets(text: str) -> tuple[str, ...]:
    """Read a `next` column: ids of nodes and joins."""
    targets = codec.loads(text)
    return tuple(str(target) for target in targets) if isinstance(targets, list) else ()


def is_node(target: str) -> bool:
    """Whether a part of a `next` column names a node, and not a join."""
    return ":" in target and not target.startswith(("j:", "w:"))


def load_nodes(
    tx: Transaction, run_id: RunId, *, statuses: Iterable[NodeStatus] | None = None
) -> Asked[list[NodeRow]]:
    """Ask for the nodes of a run, of all its lives, in the order of the trace."""
    query = _all_nodes(None if statuses is None else tuple(statuses))
    return Asked(tx.execute(query, {"b_run": run_id}), node_rows)


def load_life(tx: Transaction, run_id: RunId, life: int) -> Asked[list[NodeRow]]:
    """Ask for all nodes of one life of a run, in the order of the trace; without the parts of their values (`with_parts`)."""
    return Asked(tx.execute(_OF_LIFE, {"b_run": run_id, "b_life": life}), node_rows)


def with_parts(tx: Transaction, run_id: RunId, rows: Iterable[NodeRow]) -> list[NodeRow]:
    """Return nodes of a run with all of their arguments and results, however large."""
    return [_with_parts(tx, run_id, row) for row in rows]


def _with_parts(tx: Transaction, run_id: RunId, row: NodeRow) -> NodeRow:
    args = large.whole(tx, run_id, row.args)
    output = None if row.output is None else large.whole(tx, run_id, row.output)
    return row if args is row.args and output is row.output else row._replace(args=args, output=output)


def node_rows(rows: Rows) -> list[NodeRow]:
    """Read nodes of which `COLUMNS` were asked for."""
    return [node_row(row) for row in rows]


def one_node(rows: Rows) -> NodeRow | None:
    """Read one node of which `COLUMNS` were asked for; `None` if there is none."""
    row = rows.one_or_none()
    return None if row is None else node_row(row)


_ALL = sa.select(*COLUMNS).where(nodes.c.run_id == sa.bindparam("b_run")).order_by(nodes.c.position)
_OF_LIFE = Prepared(_ALL.where(nodes.c.life == sa.bindparam("b_life")))


@functools.cache
def _all_nodes(statuses: tuple[NodeStatus, ...] | None) -> Prepared:
    query = _ALL
    if statuses is not None:
        query = query.where(sa.or_(*[nodes.c.status == status for status in statuses]))
        if set(statuses) <= set(LIVE):
            # So it is; said for the index of these.
            query = query.where(nodes.c.delivered.is_(None))
    return Prepared(query)


def load_node(tx: Transaction, run_id: RunId, node_id: NodeId) -> Asked[NodeRow | None]:
    """Ask for one node."""
    return Asked(tx.execute(_LOAD_NODE, {"b_run": run_id, "b_node": node_id}), one_node)


def load_outputs(
    tx: Transaction, run_id: RunId, node_ids: Iterable[NodeId], known: Mapping[NodeId, str] | None = None
) -> dict[NodeId, str]:
    """Read the results of completed nodes, but for those that are known."""
    known = known or {}
    wanted = list(node_ids)
    if known.keys() & set(wanted):
        rest = load_outputs(tx, run_id, [node_id for node_id in wanted if node_id not in known])
        return {node_id: known[node_id] for node_id in wanted if node_id in known} | rest
    if len(wanted) <= FEW:
        found = [
            (node_id, tx.execute(_OUTPUT, {"b_run": run_id, "b_node": node_id}).one_or_none())
            for node_id in wanted
        ]
        return {node_id: large.whole(tx, run_id, row[0]) for node_id, row in found if row is not None}
    query = sa.select(nodes.c.node_id, nodes.c.output).where(
        nodes.c.run_id == run_id, nodes.c.node_id.in_(wanted), nodes.c.status == NodeStatus.COMPLETED
    )
    rows = tx.execute(query).all()
    return {NodeId(row[0]): large.whole(tx, run_id, row[1]) for row in rows}


FEW = 3
"""Up to so many are asked for one by one: a list in a query is made anew each time."""
_OUTPUT = Prepared(sa.select(nodes.c.output).where(HERE, nodes.c.status == NodeStatus.COMPLETED))


_JOINS = Prepared(
    sa.select(
        joins.c.join_id, joins.c.kind, joins.c.remaining, joins.c.next, joins.c.line, joins.c.reason
    ).where(joins.c.run_id == sa.bindparam("b_run"))
)


def load_plan(tx: Transaction, run_id: RunId, rows: Iterable[NodeRow] | None = None) -> Plan:
    """Read the plan that is left of a run; `rows` are its live nodes, where they are at hand."""
    live = load_nodes(tx, run_id, statuses=LIVE).get() if rows is None else rows
    plan_joins = {
        row[0]: Join(
            row[0],
            JoinKind(row[1]),
            frozenset(),
            row[2],
            tuple(NodeId(target) for target in load_targets(row[3])),
            row[4],
            row[5],
        )
        for row in tx.execute(_JOINS, {"b_run": run_id})
    }
    plan_nodes = {}
    for row in live:
        args = codec.loads(row.args) if row.kind is NodeKind.SLEEP else None
        plan_nodes[row.node_id] = PlanNode(
            row.node_id, row.kind, row.name, load_targets(row.next), row.unmet, row.generation,
            sleep_delay(args), sleep_until(args), row.attempt,
        )  # fmt: skip
    return Plan(plan_nodes, plan_joins)


def owned_nodes(tx: Transaction, owner: str) -> list[tuple[RunId, NodeId, int]]:
    """The nodes that a process owns, each with the attempt that it has begun."""
    query = sa.select(nodes.c.run_id, nodes.c.node_id, nodes.c.attempt).where(nodes.c.owner == owner)
    return [(RunId(row[0]), NodeId(row[1]), row[2]) for row in tx.execute(query)]


def told_to_stop(tx: Transaction, owner: str) -> list[tuple[RunId, NodeId, str, str | None]]:
    """The steps that a process runs and that are to stop: each with its name, and its arguments if options may be with them."""
    return [
        (RunId(row[0]), NodeId(row[1]), row[2], row[3])
        for row in tx.execute(_TOLD_TO_STOP, {"b_owner": owner})
    ]


_TOLD_TO_STOP = Prepared(
    sa.select(nodes.c.run_id, nodes.c.node_id, nodes.c.name, ARGS_WITH_OPTIONS).where(
        nodes.c.owner == sa.bindparam("b_owner"), nodes.c.cancelled_at.is_not(None)
    )
)


def lost_attempts(tx: Transaction, run_id: RunId, node_id: NodeId) -> list[tuple[timedelta, str | None]]:
    """The attempts of a node that ended with their process: how long each took until that was known, and its error."""
    query = sa.select(attempts.c.started_at, attempts.c.finished_at, attempts.c.error).where(
        attempts.c.run_id == run_id,
        attempts.c.node_id == node_id,
        attempts.c.outcome == AttemptOutcome.LOST,
        attempts.c.started_at.is_not(None),
    )
    return [(row[1] - row[0], row[2]) for row in tx.execute(query)]


def carried_runs(tx: Transaction) -> list[RunId]:
    """The runs that sleep until a message with a countdown ends it: those within the horizon."""
    query = sa.select(nodes.c.run_id).where(nodes.c.is_carried, nodes.c.status == NodeStatus.RUNNING)
    return [RunId(row[0]) for row in tx.execute(query.distinct())]


def update_node(tx: Transaction, run_id: RunId, node_id: NodeId, **values: object) -> None:
    """Write some columns of a node of a locked run."""
    tx.execute(
        _update(tuple(values)),
        {"b_run": run_id, "b_node": node_id} | {f"v_{name}": values[name] for name in values},
    )


@functools.cache
def _update(names: tuple[str, ...]) -> Prepared:
    return Prepared(
        sa.update(nodes).where(HERE).values({name: sa.bindparam(f"v_{name}") for name in names})
    )


def insert_done(
    tx: Transaction, run: RunRow, node_id: NodeId, *, kind: NodeKind, name: str, args: str, line: int, position: int,
    error: str | None = None, due_at: datetime | None = None,
) -> None:  # fmt: skip
    """Add a node that is complete, or has failed, with the commit of the continuation that makes it: no event, and without a number.

    It takes the place of a step that the body had planned there when it ran ahead, and that has never begun.
    """
    delete_planned(tx, run.run_id, node_id)
    large.keep(tx, run.run_id, [args], life=life_of(node_id))
    tx.execute(
        _INSERT_DONE,
        {
            "run_id": run.run_id, "node_id": node_id, "life": life_of(node_id), "position": position, "kind": kind, "name": name, "line": line,
            "generation": run.epoch, "args": args, "status": NodeStatus.COMPLETED if error is None else NodeStatus.FAILED,
            "unmet": 0, "next": "[]", "output": "null" if error is None else None, "error": error, "delivered": NO_EVENT,
            "delivered_at": run.body_time, "created_at": run.now, "started_at": run.now, "finished_at": run.now,
            "due_at": due_at,
        },
    )  # fmt: skip


def delete_planned(tx: Transaction, run_id: RunId, node_id: NodeId) -> None:
    """Delete a node that was planned and has never begun, if one is in this place."""
    tx.execute(_DELETE_PLANNED, {"b_run": run_id, "b_node": node_id})


NO_EVENT: Final = 0
"""What `delivered` says of such a node."""
_DELETE_PLANNED = Prepared(
    sa.delete(nodes).where(HERE, nodes.c.status == NodeStatus.PLANNED, nodes.c.attempt == 0)
)
_INSERT_DONE = Prepared(
    sa.insert(nodes).values(
        {
            name: sa.bindparam(name)
            for name in (
                "run_id", "node_id", "life", "position", "kind", "name", "line", "generation", "args", "status", "unmet",
                "next", "output", "error", "delivered", "delivered_at", "created_at", "started_at", "finished_at", "due_at",
            )
        }
    )
)  # fmt: skip


def add_attempt(
    tx: Transaction,
    run_id: RunId,
    row: NodeRow,
    *,
    outcome: AttemptOutcome,
    error: str | None,
    now: datetime,
) -> None:
    """Write how an attempt ended."""
    tx.execute(
        sa.insert(attempts).values(
            run_id=run_id, node_id=row.node_id, attempt=row.attempt, owner=row.owner, outcome=outcome,
            error=error, started_at=row.started_at, finished_at=now,
        )
    )  # fmt: skip
