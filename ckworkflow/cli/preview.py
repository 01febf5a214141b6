"""A preview: what starting a workflow would do, found out by tracing it and doing nothing else.

No step runs, nothing is stored, and neither the database nor the broker is asked. The body itself runs as
far as `start` would run it.

Not here: how a preview is shown (`plan`, `mermaid`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

from ckworkflow import codec
from ckworkflow.background import SpareThreads
from ckworkflow.canvas import build
from ckworkflow.cli.boundaries import Boundary, boundaries_of, reachable, tell
from ckworkflow.definition import check_main
from ckworkflow.engine.budget import START, Budget
from ckworkflow.engine.start import make_body
from ckworkflow.model import NodeId, NodeKind, RunId
from ckworkflow.plan import Chain, Chord, Group, Piece, Plan, Task, build_plan, cut_pieces
from ckworkflow.tracing import Trace, TracedNode, Tracer, Wait

if TYPE_CHECKING:
    from celery import Celery

    from ckworkflow.definition import Workflow
    from ckworkflow.model import Json

__all__ = ["RUN_ID", "Canvas", "Preview", "Stage", "name_result", "preview"]

RUN_ID = RunId("RUN")
"""Stands in the canvas for the id that a run would have."""

_MOST_WORDS = 6


@dataclass(frozen=True, slots=True)
class Canvas:
    """One piece of the plan as Celery shows it.

    Attributes:
        text: The `repr` of the chain, group or chord.
        words: The same for people: `chord of 3, then send_welcome_message`.
        tasks: What is in it; a task says how long Celery holds it back.
    """

    text: str
    words: str
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """What is published at one time.

    Attributes:
        after: The nodes whose end makes it due; none for what is published at the start.
        canvases: Independent pieces.
    """

    after: tuple[NodeId, ...]
    canvases: tuple[Canvas, ...]


@dataclass(frozen=True, slots=True)
class Preview:
    """See the module.

    Attributes:
        workflow: The workflow.
        args: Its arguments, encoded.
        trace: Its first segment: as far as the body comes before any step has run.
        stages: The canvases of that segment, in the order of their publishing.
        boundaries: Every boundary of the body and of what it inlines, the body's own first.
        stops: Why the segment ends, for each task of the body that waits.
        inlined: The workflows that the body may inline.
    """

    workflow: Workflow[..., object]
    args: Mapping[str, Json]
    trace: Trace
    stages: tuple[Stage, ...]
    boundaries: tuple[Boundary, ...]
    stops: Mapping[Wait, str]
    inlined: tuple[Workflow[..., object], ...]

    @property
    def nodes(self) -> Mapping[NodeId, TracedNode]:
        """The nodes of the segment by id."""
        return {node.node_id: node for node in self.trace.nodes}


def preview(
    app: Celery,
    workflow: Workflow[..., object],
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    horizon: timedelta,
) -> Preview:
    """Trace the first segment of a workflow.

    Args:
        app: Builds the canvases.
        workflow: What to trace.
        args: As for `start`.
        kwargs: As for `start`.
        horizon: Sleeps longer than this are left to SQL.

    Raises:
        MainModuleError: No worker could find the workflow.
        UnserializableValueError: An argument cannot be stored.
        BodyAwaitError: The body awaits something that is not durable.
        BodyTimeoutError: The body computes or blocks for too long.
    """
    check_main(workflow)
    tree: dict[str, Json] = {
        "args": [codec.encode(arg, path=f"args[{index}]") for index, arg in enumerate(args)],
        "kwargs": {key: codec.encode(arg, path=key) for key, arg in kwargs.items()},
    }
    tracer = Tracer(
        RUN_ID, make_body(workflow, tree), workflow=workflow.name, started_at=datetime.now(UTC)
    )
    try:
        trace = Budget(SpareThreads()).run(tracer, workflow.name, tracer.resume, START)
    finally:
        tracer.close()
    workflows = reachable(workflow)
    boundaries = [boundary for one in workflows for boundary in boundaries_of(one)]
    return Preview(
        workflow,
        tree,
        trace,
        tuple(_stages(app, build_plan(trace), horizon)),
        tuple(boundaries),
        {wait: tell(wait, boundaries) for wait in trace.waits},
        tuple(workflows[1:]),
    )


def name_result(reference: Json) -> _Result:
    """Return what stands for the result of a node where a value is shown: `<0:1>.id`."""
    node_id, path = cast("tuple[str, list[tuple[str, str | int]]]", reference)
    return _Result(f"<{node_id}>" + "".join(_part(kind, key) for kind, key in path))


class _Result:
    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _part(kind: str, key: str | int) -> str:
    return f".{key}" if kind == "attr" else f"[{key!r}]"


# -- what is published when ---------------------------------------------------------------------------


def _stages(app: Celery, plan: Plan, horizon: timedelta) -> Iterator[Stage]:
    """Give the canvases in turn, as if every step succeeded and every sleep passed."""
    before = _predecessors(plan)
    left = plan
    while left.nodes:
        ready = left.ready()
        pieces = cut_pieces(left, ready, horizon=horizon)
        tasks = [tuple(_tasks(piece)) for piece in pieces]
        if pieces:
            # What a piece begins after: its ready nodes may be sleeps that travel as its countdown.
            yield Stage(
                tuple(dict.fromkeys(node_id for start in ready for node_id in before[start])),
                tuple(
                    Canvas(repr(build(app, RUN_ID, piece)), in_words(piece), held)
                    for piece, held in zip(pieces, tasks, strict=True)
                ),
            )
        done = {task.node_id for held in tasks for task in held}
        done |= {node_id for node_id in ready if left.nodes[node_id].kind is NodeKind.SLEEP}
        left = _without(left, done | _sleeps_before(left, before, done))


def _tasks(piece: Piece | Task) -> Iterator[Task]:
    if isinstance(piece, Task):
        yield piece
        return
    for member in piece.items if isinstance(piece, Chain) else piece.members:
        yield from _tasks(member)
    if isinstance(piece, Chord):
        yield from _tasks(piece.body)


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
