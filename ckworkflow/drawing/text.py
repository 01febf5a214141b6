"""A preview as text for people."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from ckworkflow.drawing import words
from ckworkflow.drawing.nodes import length, name_result, node_words
from ckworkflow.drawing.preview import RUN_ID
from ckworkflow.drawing.tree import Branch, Fork, arrange
from ckworkflow.model import NodeKind
from ckworkflow.tracing import TracedNode, Wait

if TYPE_CHECKING:
    from ckworkflow.definition import Workflow
    from ckworkflow.drawing.preview import Preview, Stage
    from ckworkflow.plan import Task

__all__ = ["outline"]

_T = TypeVar("_T")
_Line: TypeAlias = tuple[str, str]

_CALL_WIDTH: Final = 70
_MOST_ITEMS: Final = 40
_MOST_STAGES: Final = 10
_MOST_NAMES: Final = 3


def outline(found: Preview) -> Iterator[str]:
    """Give the lines of the text: the tree of the body, its Celery canvas, and its boundaries."""
    workflow = found.workflow
    yield f"{words.call(workflow.name, found.args)}  {workflow.name} ({_where(workflow.site.file)}:{workflow.site.line})"
    yield from _set(list(_tree(found, arrange(found.trace), root=True)))
    yield ""
    yield from _canvas_text(found)
    yield ""
    yield from _boundary_text(found)


def _set(lines: Sequence[_Line]) -> Iterator[str]:
    """Put what stands beside the tree in a column of its own."""
    width = max((len(left) for left, right in lines if right), default=0)
    for left, right in lines:
        yield f"{left.ljust(width)}  {right}" if right else left


def _tree(found: Preview, branch: Branch, *, indent: str = "", root: bool = False) -> Iterator[_Line]:
    """Give the lines of a tree, each with what stands beside it."""
    items: list[TracedNode | Fork | Wait | str] = list(branch.items)
    if root and found.trace.end is not None:
        items.append(_end(found))
    for item, line, inner in _drawn(items, indent):
        if isinstance(item, Fork):
            yield line + "side by side", ""
            for member, member_line, member_inner in _drawn(item.branches, inner):
                yield from _member(found, member, member_line, member_inner)
        elif isinstance(item, TracedNode):
            yield _node_line(item, line)
        elif isinstance(item, Wait):
            yield line + f"stops at {found.stops[item]}", ""
        else:
            yield line + item, ""


def _member(found: Preview, member: Branch | str, line: str, indent: str) -> Iterator[_Line]:
    if isinstance(member, str):
        yield line + member, ""
    elif len(member.items) == 1 and isinstance(member.items[0], TracedNode):
        yield _node_line(member.items[0], line)
    else:
        yield line + "one after the other", ""
        yield from _tree(found, member, indent=indent)


def _drawn(items: Sequence[_T], indent: str) -> Iterator[tuple[_T | str, str, str]]:
    """Give items with the beginning of their line, and of the lines under them; the middle of many is left out."""
    shown: list[_T | str] = list(items)
    if len(items) > _MOST_ITEMS:
        head, tail = _MOST_ITEMS - 6, 5
        shown[head:-tail] = [f"… {len(items) - head - tail} more; --json shows all"]
    for index, item in enumerate(shown):
        is_last = index == len(shown) - 1
        yield item, indent + ("└─ " if is_last else "├─ "), indent + ("   " if is_last else "│  ")


def _node_line(node: TracedNode, line: str) -> _Line:
    return line + words.shorten(node_words(node), _CALL_WIDTH), f"{node.node_id}, line {node.line}"


def _end(found: Preview) -> str:
    end = found.trace.end
    assert end is not None
    if end.error is not None:
        return f"raises {type(end.error).__name__}: {end.error}"
    if end.next_life is not None:
        call = words.call("continue_as_new", end.next_life, ref=name_result)
        return f"returns {call}: the next life of the run begins"
    return f"returns {words.value(end.result, ref=name_result)}"


def _canvas_text(found: Preview) -> Iterator[str]:
    yield f"Celery canvas ({RUN_ID} stands for the run's id):"
    if not found.stages:
        yield "  nothing: no step runs"
    for stage in found.stages[:_MOST_STAGES]:
        yield f"  {_when(found, stage)}:"
        for canvas in stage.canvases[:_MOST_ITEMS]:
            yield f"    {canvas.words}"
            yield f"      {canvas.text}"
            yield from (f"        {held}" for held in map(_held_back, canvas.tasks) if held)
        yield from _left_out("    ", len(stage.canvases) - _MOST_ITEMS, "beside these")
    yield from _left_out("  ", len(found.stages) - _MOST_STAGES, "after that")


def _left_out(indent: str, count: int, where: str) -> Iterator[str]:
    if count > 0:
        yield f"{indent}… {count} more {where}; --json shows all"


def _when(found: Preview, stage: Stage) -> str:
    if not stage.after:
        return "at the start"
    names = [
        f"the sleep {node.node_id} ({length(node)}, kept in the database)"
        if node.kind is NodeKind.SLEEP
        else f"{words.last_part(node.name)} {node.node_id}"
        for node in (found.nodes[node_id] for node_id in stage.after)
    ]
    if len(names) > _MOST_NAMES:
        names[_MOST_NAMES:] = [f"{len(names) - _MOST_NAMES} more"]
    return f"after {', '.join(names)}"


def _held_back(task: Task) -> str:
    if task.until is not None:
        return f"{task.node_id} with the ETA {words.moment(task.until)}"
    return f"{task.node_id} with a countdown of {words.span(task.delay)}" if task.delay else ""


def _boundary_text(found: Preview) -> Iterator[str]:
    bodies = (found.workflow, *found.inlined)
    told = [line for one in bodies for line in _boundaries_of(found, one)]
    # What no place in a body stands for: the bound of a segment.
    known = {boundary.sentence for boundary in found.boundaries if not boundary.conditional}
    told += [f"  {why}" for why in found.stops.values() if why not in known]
    if told:
        yield "Boundaries, where the body waits for results before more is planned:"
        yield from told
    else:
        yield "No boundary: all of it is planned at the start."
    perhaps = [_lines(found, one) for one in bodies]
    if any(perhaps):
        said = "; ".join(filter(None, perhaps))
        yield f"If a result is an object and not plain data, the body also waits for it at {said}; --json names the result."


def _boundaries_of(found: Preview, workflow: Workflow[..., Any]) -> list[str]:
    if workflow.body.rewritten:
        told = [
            b.sentence for b in found.boundaries if b.workflow == workflow.name and not b.conditional
        ]
    else:
        told = [f"every await: {workflow.body.why_not}"]
    if workflow is found.workflow:
        return [f"  {line}" for line in told]
    where = [f"  in {workflow.name} ({_where(workflow.site.file)}):"] if told else []
    return [*where, *(f"    {line}" for line in told)]


def _lines(found: Preview, workflow: Workflow[..., Any]) -> str:
    """Say the lines of a body at which values decide."""
    lines = [b.line for b in found.boundaries if b.conditional and b.workflow == workflow.name]
    if not lines:
        return ""
    of = "" if workflow is found.workflow else f" of {words.last_part(workflow.name)}"
    lines = list(dict.fromkeys(lines))
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}{of}"


def _where(file: str) -> str:
    """Say a file as short as it is clear from here."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else os.fspath(path)
