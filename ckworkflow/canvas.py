"""Canvas: pieces of a plan as Celery chains, groups and chords, and their publishing.

A message names its run, node and generation and carries nothing else: arguments, results and tokens stay
in SQL. The id of a Celery task says the same (`ckw:<run>:<node>:<generation>`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from celery import chain, chord, group
from kombu.exceptions import OperationalError

from ckworkflow.definition import registry
from ckworkflow.model import NodeId, RunId
from ckworkflow.plan import Chain, Chord, Piece, Task

if TYPE_CHECKING:
    from celery import Celery
    from celery.canvas import Signature

logger = logging.getLogger(__name__)

PREFIX = "ckw"


def task_id(run_id: RunId, node_id: NodeId, generation: int) -> str:
    """Return the id of the Celery task of a node."""
    return f"{PREFIX}:{run_id}:{node_id}:{generation}"


def parse_task_id(text: str | None) -> tuple[RunId, NodeId, int] | None:
    """Return run, node and generation of a task id; `None` when it is not one of ours."""
    prefix, _, rest = (text or "").partition(":")
    run_id, _, rest = rest.partition(":")
    node_id, _, generation = rest.rpartition(":")
    if prefix != PREFIX or not run_id or ":" not in node_id or not generation.isdigit():
        return None
    return RunId(run_id), NodeId(node_id), int(generation)


def publish(app: Celery, run_id: RunId, pieces: Sequence[Piece]) -> bool:
    """Publish pieces.

    Returns:
        `False` when the broker did not take all of them.
    """
    try:
        for piece in pieces:
            build(app, run_id, piece).apply_async(root_id=run_id)
    except (OperationalError, OSError) as error:
        # The run is in SQL and has a wake_at: a broker that is down costs time and nothing else.
        logger.warning(
            "broker unreachable: %s", error, extra={"run_id": run_id, "error": type(error).__name__}
        )
        return False
    return True


def build(app: Celery, run_id: RunId, piece: Piece | Task) -> Signature:
    """Build the Celery canvas of a piece."""
    if isinstance(piece, Task):
        return _signature(app, run_id, piece)
    if isinstance(piece, Chain):
        items = [build(app, run_id, item) for item in piece.items]
        return items[0] if len(items) == 1 else chain(*items, app=app)
    members = [build(app, run_id, member) for member in piece.members]
    if isinstance(piece, Chord):
        return chord(members, build(app, run_id, piece.body), app=app)
    return group(members, app=app)


def _signature(app: Celery, run_id: RunId, task: Task) -> Signature:
    options: dict[str, Any] = {"task_id": task_id(run_id, task.node_id, task.generation)}
    step = registry.steps.get(task.name)
    if step is not None:
        options.update(
            (name, value)
            for name, value in (("queue", step.options.queue), ("priority", step.options.priority))
            if value is not None
        )
    if task.until is not None:
        options["eta"] = task.until
    elif task.delay:
        options["countdown"] = task.delay.total_seconds()
    args = (run_id, task.node_id, task.generation, *((True,) if task.opens else ()))
    return app.signature(task.name, args=args, immutable=True, **options)


def first_nodes(signature: Mapping[str, Any] | None) -> frozenset[tuple[NodeId, int]]:
    """Return the nodes, with their generation, that a serialized signature begins with."""
    if not signature:
        return frozenset()
    kind = signature.get("subtask_type")
    if kind == "chain":
        return first_nodes(signature["kwargs"]["tasks"][0])
    if kind == "group":
        return _union(signature["kwargs"]["tasks"])
    if kind == "chord":
        header = signature["kwargs"]["header"]
        return first_nodes(header) if isinstance(header, Mapping) else _union(header)
    found = parse_task_id(signature.get("options", {}).get("task_id"))
    return frozenset() if found is None else frozenset({(found[1], found[2])})


def _union(signatures: Iterable[Mapping[str, Any]]) -> frozenset[tuple[NodeId, int]]:
    return frozenset(node for signature in signatures for node in first_nodes(signature))
