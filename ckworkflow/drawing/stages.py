"""Stages: what of a plan is published at the start, and what later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from ckworkflow.model import NodeId, NodeKind
from ckworkflow.plan import Chain, Chord, Group, Piece, Plan, Task, cut_pieces

__all__ = ["cut_stages", "in_words", "tasks_of"]

_MOST_WORDS: Final = 6


def cut_stages(plan: Plan, horizon: timedelta) -> Iterator[tuple[tuple[NodeId, ...], list[Piece]]]:
    """Give the pieces of a plan in turn, as if every step succeeded and every sleep passed.

    Args:
        plan: The plan of a first segment.
        horizon: Sleeps longer than this are left to SQL.

    Returns:
        For each time at which something is published: the nodes whose end makes it due, and the pieces.
    """
    before = _predecessors(plan)
    left = plan
    while left.nodes:
        ready = left.ready()
        pieces = cut_pieces(left, ready, horizon=horizon)
        if pieces:
            # What a piece begins after: its ready nodes may be sleeps that travel as its countdown.
            yield tuple(dict.fromkeys(node_id for start in ready for node_id in before[start])), pieces
        done = {task.node_id for piece in pieces for task in tasks_of(piece)}
        done |= {node_id for node_id in ready if left.nodes[node_id].kind is NodeKind.SLEEP}
        left = _without(left, done | _sleeps_before(left, before, done))


def tasks_of(piece: Piece | Task) -> Iterator[Task]:
    """Give the steps of a piece."""
    if isinstance(piece, Task):
        yield piece
        return
    for member in piece.items if isinstance(piece, Chain) else piece.members:
        yield from tasks_of(member)
    if isinstance(piece, Chord):
        yield from tasks_of(piece.body)


def in_words(piece: Piece | Task) -> str:
    """Say what a piece is: its steps in turn, and what runs side by side as a group or a chord of so many."""
    if isinstance(piece, Task):
        return piece.name.rpartition(".")[2]
    if isinstance(piece, Chain):
        parts = [in_words(item) for item in piece.items]
        if len(parts) > _MOST_WORDS:
            parts[_MOST_WORDS - 2 : -1] = [f"{len(parts) - _MOST_WORDS + 1} more"]
        return ", then ".join(parts)
    if isinstance(piece, Group):
        return f"group of {len(piece.members)}"
    return f"chord of {len(piece.members)}, then {in_words(piece.body)}"


def _predecessors(plan: Plan) -> dict[NodeId, list[NodeId]]:
    """Say for each node what it comes after, joins seen through."""
    before: dict[NodeId, list[NodeId]] = {node_id: [] for node_id in plan.nodes}
    for node in plan.nodes.values():
        for target in node.next:
            join = plan.joins.get(target)
            for node_id in (NodeId(target),) if join is None else join.next:
                before[node_id].append(node.node_id)
    return before


def _sleeps_before(
    plan: Plan, before: Mapping[NodeId, Sequence[NodeId]], done: set[NodeId]
) -> set[NodeId]:
    """Return the sleeps that the pieces carry as countdowns."""
    found: set[NodeId] = set()
    ahead = list(done)
    while ahead:
        for node_id in before[ahead.pop()]:
            node = plan.nodes.get(node_id)
            if node is not None and node.kind is NodeKind.SLEEP and node_id not in found:
                found.add(node_id)
                ahead.append(node_id)
    return found


def _without(plan: Plan, done: set[NodeId]) -> Plan:
    """Return what is left of a plan once these nodes are recorded."""
    joins = {}
    for join in plan.joins.values():
        members = join.members - done
        if members:
            joins[join.join_id] = replace(join, members=members, remaining=len(members))
    nodes = {node_id: node for node_id, node in plan.nodes.items() if node_id not in done}
    waiting = {target for node in nodes.values() for target in node.next}
    waiting |= {target for join in joins.values() for target in join.next}
    return Plan(
        {node_id: replace(node, unmet=int(node_id in waiting)) for node_id, node in nodes.items()}, joins
    )
