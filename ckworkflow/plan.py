"""The plan: the nodes that a run still has before it, their joins, and the series-parallel view of them.

The truth is a graph with counters: every node says what its record makes ready (`next`) and how many
records it waits for (`unmet`, 0 or 1: what waits for several waits for a *join*, which counts). Pieces of
that graph that look like chains, groups and chords are cut out here, bounded in size; `canvas` turns
them into Celery's.

Pure: no SQL, no Celery, no clock.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ckworkflow.model import NodeId, NodeKind

if TYPE_CHECKING:
    from ckworkflow.tracing import Trace

CHAIN_LIMIT = 50
"""Steps of one chain in a message: every hop carries the rest."""
WINDOW = 100
"""Steps that are published at once, of those that may begin together; the others are held back."""
FORK_LIMIT = 100
"""Members of a fork within a chain, and (members x steps after them) of a chord: each header message
carries the chord's body."""


class JoinKind(enum.StrEnum):
    """What a join is for: nodes that come after it, a body that waits, or the end of the run."""

    CHORD = "chord"
    WAIT = "wait"
    END = "end"


@dataclass(frozen=True, slots=True)
class Join:
    """A counter that several nodes decrement.

    Attributes:
        join_id: `j:<first node after it>`, `w:<task path>` or `end`.
        kind: What it is for.
        members: The nodes that it waits for, when known.
        remaining: How many of them are not recorded yet.
        next: The nodes that it makes ready.
        line: For a wait, where the body stands.
        reason: For a wait, why, in words.
    """

    join_id: str
    kind: JoinKind
    members: frozenset[NodeId]
    remaining: int
    next: tuple[NodeId, ...] = ()
    line: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PlanNode:
    """A node as the plan sees it.

    Attributes:
        next: What its record makes ready: node ids and join ids.
        unmet: 0 when it may begin, 1 while it waits for a node or a join.
        generation: Which edition of the node messages must name; 0 until stored.
        delay: Of a sleep: its length, or what is left of it.
        until: Of a sleep until a time: that time.
        attempts: Of a step: its tries so far.
    """

    node_id: NodeId
    kind: NodeKind
    name: str
    next: tuple[str, ...]
    unmet: int
    generation: int = 0
    delay: timedelta | None = None
    until: datetime | None = None
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Nodes and joins of a run, by id, in the order of the trace."""

    nodes: Mapping[NodeId, PlanNode]
    joins: Mapping[str, Join]

    def ready(self) -> tuple[NodeId, ...]:
        """Return the nodes that wait for nothing."""
        return tuple(node.node_id for node in self.nodes.values() if node.unmet == 0)

    def of_generation(self, generation: int) -> Plan:
        """Return the plan as it is stored when all of its nodes are new."""
        return Plan(
            {
                node.node_id: PlanNode(
                    node.node_id, node.kind, node.name, node.next, node.unmet, generation, node.delay, node.until
                )
                for node in self.nodes.values()
            },
            self.joins,
        )  # fmt: skip


def build_plan(trace: Trace) -> Plan:
    """Give the nodes of a trace their joins and counters."""
    joins: dict[frozenset[NodeId], Join] = {}
    following: dict[str, list[str]] = {node.node_id: [] for node in trace.nodes}
    for node in trace.nodes:
        after = frozenset(node_id for node_id in node.after if node_id in following)
        if len(after) == 1:
            following[next(iter(after))].append(node.node_id)
        elif after:
            join = joins.get(after) or Join(f"j:{node.node_id}", JoinKind.CHORD, after, len(after))
            joins[after] = replace(join, next=(*join.next, node.node_id))
    every = list(joins.values())
    for wait in trace.waits:
        members = frozenset(node_id for node_id in wait.nodes if node_id in following)
        every.append(
            Join(
                f"w:{wait.path}",
                JoinKind.WAIT,
                members,
                # Nobody counts a payload: it tells the body by itself.
                len(members) + int(wait.is_for_payload),
                line=wait.line,
                reason=wait.reason,
            )
        )
    if trace.end is not None and trace.end.after:
        every.append(Join("end", JoinKind.END, trace.end.after, len(trace.end.after)))
    for join in every:
        for member in sorted(join.members):
            following[member].append(join.join_id)
    return Plan(
        {
            node.node_id: PlanNode(
                node.node_id,
                node.kind,
                node.name,
                tuple(following[node.node_id]),
                1 if any(node_id in following for node_id in node.after) else 0,
                delay=sleep_delay(node.args),
                until=sleep_until(node.args),
            )
            for node in trace.nodes
        },
        {join.join_id: join for join in every},
    )


def sleep_delay(args: object) -> timedelta | None:
    """Return the length of a sleep from its stored arguments."""
    seconds = args.get("seconds") if isinstance(args, Mapping) else None
    return timedelta(seconds=float(seconds)) if isinstance(seconds, int | float) else None


def sleep_until(args: object) -> datetime | None:
    """Return the end of a sleep until a time from its stored arguments."""
    until = args.get("until") if isinstance(args, Mapping) else None
    return datetime.fromisoformat(until) if isinstance(until, str) else None


# -- the series-parallel view ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """One step; `delay` and `until` come from the sleeps right before it.

    `opens`: it is one of a window of a wide group, and whoever claims it publishes one of those held back.
    `attempts`: its tries so far, Celery's `retries`.
    """

    node_id: NodeId
    name: str
    generation: int
    delay: timedelta | None = None
    until: datetime | None = None
    opens: bool = False
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps one after the other; the last item may be a fork."""

    items: tuple[Task | Group | Chord, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Chains side by side; nothing in this piece comes after them."""

    members: tuple[Chain, ...]


@dataclass(frozen=True, slots=True)
class Chord:
    """Chains side by side, and what runs once all of them are recorded."""

    members: tuple[Chain, ...]
    body: Chain


Piece = Chain | Group | Chord


def cut_pieces(
    plan: Plan, ready: Iterable[NodeId], *, horizon: timedelta, opens: bool = False
) -> list[Piece]:
    """Cut the pieces that begin at nodes which may begin now (or sleep already).

    Args:
        plan: Nodes not yet recorded.
        ready: Where to begin. Of a sleep among them, `delay` is what is left of it.
        horizon: Sleeps longer than this end a piece: SQL alone carries them.
        opens: These are a window: others that are ready are held back.

    Returns:
        Independent pieces; every step that is ready is in exactly one.
    """
    cutter = _Cutter(plan, horizon)
    starts = list(ready)
    branches = [(start, *cutter.chain(start, CHAIN_LIMIT)) for start in starts]
    by_join: dict[str | None, list[Chain]] = {}
    for _, chain, join_id in branches:
        if chain.items:
            by_join.setdefault(join_id, []).append(_opening(chain) if opens else chain)
    pieces: list[Piece] = []
    for join_id, chains in by_join.items():
        joined = cutter.join(join_id, chains, limit=CHAIN_LIMIT)
        pieces.append(joined or (Group(tuple(chains)) if len(chains) > 1 else chains[0]))
    return pieces


class _Cutter:
    def __init__(self, plan: Plan, horizon: timedelta) -> None:
        self._plan, self._horizon = plan, horizon

    def chain(self, start: NodeId, limit: int) -> tuple[Chain, str | None]:
        """Follow the graph from a node: the chain, and the join that it leads to."""
        items: list[Task | Group | Chord] = []
        delay: timedelta | None = None
        until: datetime | None = None
        at: NodeId | None = start
        while at is not None and len(items) < limit:
            node = self._plan.nodes[at]
            if node.kind is NodeKind.SLEEP:
                if node.until is not None and node.delay is None:
                    return Chain(tuple(items)), None  # how long it is only a clock knows
                delay = (delay or timedelta()) + (node.delay or timedelta())
                until = node.until
                if delay > self._horizon:
                    return Chain(tuple(items)), None
                if len(node.next) > 1:
                    return Chain(
                        tuple(items)
                    ), None  # nobody who waits for it waits for another's message
            else:
                task = Task(
                    node.node_id, node.name, node.generation, delay, until, attempts=node.attempts
                )
                items.append(task)
                delay = until = None
            targets = self._targets(node)
            if len(targets) == 1 and targets[0] in self._plan.nodes:
                at = NodeId(targets[0])
                continue
            at = None
            if len(targets) == 1:
                return Chain(tuple(items)), (targets[0] if delay is None else None)
            if targets and items and delay is None and len(targets) <= FORK_LIMIT:
                fork = self._fork([NodeId(target) for target in targets], limit - len(items))
                items.extend([fork] if fork else [])
        return Chain(tuple(items)), None

    def join(self, join_id: str | None, chains: list[Chain], *, limit: int) -> Group | Chord | None:
        """Put chains that lead to one join side by side, with what follows it if they are all of it."""
        join = self._plan.joins.get(join_id or "")
        if join is None or len(chains) < 2:  # noqa: PLR2004  # a group of one is a chain
            return None
        bounded = max(1, min(limit, FORK_LIMIT // len(chains)))
        if join.remaining == len(chains) and len(join.next) == 1:
            body, _ = self.chain(join.next[0], bounded)
            if body.items:
                return Chord(tuple(chains), body)
        return Group(tuple(chains))

    def _fork(self, starts: list[NodeId], limit: int) -> Group | Chord | None:
        if any(start not in self._plan.nodes for start in starts):
            return None
        branches = [self.chain(start, min(limit, CHAIN_LIMIT // 5)) for start in starts]
        joins = {join_id for _, join_id in branches}
        if any(not chain.items or not _is_flat(chain) for chain, _ in branches):
            return None
        if len(joins) == 1:
            piece = self.join(next(iter(joins)), [chain for chain, _ in branches], limit=limit)
            if piece is not None:
                return piece
        return Group(tuple(chain for chain, _ in branches))

    def _targets(self, node: PlanNode) -> list[str]:
        """What follows a node, without the joins that nothing follows."""
        return [
            target
            for target in node.next
            if target in self._plan.nodes
            or (target in self._plan.joins and self._plan.joins[target].kind is JoinKind.CHORD)
        ]


def _opening(chain: Chain) -> Chain:
    first, *rest = chain.items
    return Chain((replace(first, opens=True), *rest)) if isinstance(first, Task) else chain


def _is_flat(chain: Chain) -> bool:
    return all(isinstance(item, Task) for item in chain.items)
