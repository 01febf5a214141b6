"""A preview as data for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckworkflow.drawing.nodes import node_words
from ckworkflow.drawing.tree import Fork, arrange
from ckworkflow.tracing import TracedNode, Wait

if TYPE_CHECKING:
    from ckworkflow.drawing.boundaries import Boundary
    from ckworkflow.drawing.preview import Preview
    from ckworkflow.plan import Task

__all__ = ["as_data"]


def as_data(found: Preview) -> dict[str, Any]:
    """Return a preview as mappings, lists and plain values; times are `datetime`."""
    workflow, end = found.workflow, found.trace.end
    return {
        "workflow": workflow.name,
        "file": workflow.site.file,
        "line": workflow.site.line,
        "input": found.args,
        "is_rewritten": workflow.body.rewritten,
        "why_not_rewritten": workflow.body.why_not,
        "tree": [_item(found, item) for item in arrange(found.trace).items],
        "nodes": [_node_data(node) for node in found.trace.nodes],
        "canvas": [
            {
                "after": stage.after,
                "pieces": [
                    {
                        "words": canvas.words,
                        "text": canvas.text,
                        "tasks": [_task_data(task) for task in canvas.tasks],
                    }
                    for canvas in stage.canvases
                ],
            }
            for stage in found.stages
        ],
        "stops": [
            {"task": wait.path, "line": wait.line, "why": why, "waits_for": sorted(wait.nodes)}
            for wait, why in found.stops.items()
        ],
        "boundaries": [_boundary_data(boundary) for boundary in found.boundaries],
        "inlined": [one.name for one in found.inlined],
        "end": None
        if end is None
        else {
            "result": end.result,
            "next_life": end.next_life,
            "error": None if end.error is None else f"{type(end.error).__name__}: {end.error}",
            "after": sorted(end.after),
        },
    }


def _item(found: Preview, item: TracedNode | Fork | Wait) -> dict[str, Any]:
    if isinstance(item, Fork):
        branches = [[_item(found, inner) for inner in branch.items] for branch in item.branches]
        return {"kind": "group", "branches": branches}
    if isinstance(item, Wait):
        return {"kind": "stop", "text": found.stops[item]}
    return {"kind": item.kind.value, "node_id": item.node_id, "text": node_words(item)}


def _node_data(node: TracedNode) -> dict[str, Any]:
    return {
        "node_id": node.node_id,
        "kind": node.kind.value,
        "name": node.name,
        "line": node.line,
        "args": node.args,
        "after": sorted(node.after),
    }


def _task_data(task: Task) -> dict[str, Any]:
    return {
        "node_id": task.node_id,
        "name": task.name,
        "countdown": None if task.delay is None else task.delay.total_seconds(),
        "eta": task.until,
    }


def _boundary_data(boundary: Boundary) -> dict[str, Any]:
    return {
        "workflow": boundary.workflow,
        "file": boundary.file,
        "line": boundary.line,
        "kind": boundary.kind,
        "code": boundary.code,
        "reason": boundary.reason,
        "sentence": boundary.sentence,
        "is_conditional": boundary.conditional,
    }
