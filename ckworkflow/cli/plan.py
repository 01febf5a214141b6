"""`plan`: what a workflow will do, without doing it, as text, JSON or a Mermaid flowchart.

Not here: how it is found out (`preview`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import click

from ckworkflow.cli import words
from ckworkflow.cli.home import Home, pass_home
from ckworkflow.cli.lookup import find_workflow, read_arguments
from ckworkflow.cli.mermaid import flowchart
from ckworkflow.cli.preview import RUN_ID, Preview, Stage, name_result, preview
from ckworkflow.cli.tree import Branch, Fork, arrange
from ckworkflow.model import NodeKind
from ckworkflow.plan import sleep_delay, sleep_until
from ckworkflow.tracing import TracedNode, Wait

if TYPE_CHECKING:
    from ckworkflow.cli.boundaries import Boundary
    from ckworkflow.definition import Workflow
    from ckworkflow.plan import Task

__all__ = ["plan"]

_T = TypeVar("_T")
_Line: TypeAlias = tuple[str, str]

_CALL_WIDTH: Final = 70
_MOST_ITEMS: Final = 40
_MOST_STAGES: Final = 10
_MOST_NAMES: Final = 3


@click.command("plan")
@click.argument("name")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print it for programs.")
@click.option("--mermaid", "as_mermaid", is_flag=True, help="Print a flowchart for mermaid.js.")
@pass_home
def plan(home: Home, name: str, arguments: tuple[str, ...], as_json: bool, as_mermaid: bool) -> None:
    """Show what a workflow will do, without doing it.

    NAME is the workflow's full name, or the last part of it. Each of ARGS is JSON, or else text; NAME=VALUE
    passes an argument by name. Write -- before ARGS that begin with a dash.

    No step runs, and neither the database nor the broker is touched. Shown are the steps, sleeps and groups
    of the first segment; the Celery canvas that they become; and every boundary, where the body must be
    asked again, with its line and the reason.
    """
    if as_json and as_mermaid:
        msg = "--json and --mermaid are two forms of the same: give one."
        raise click.UsageError(msg)
    workflow = find_workflow(home, name)
    args, kwargs = read_arguments(workflow, arguments)
    found = preview(home.app, workflow, args, kwargs, horizon=home.settings.horizon)
    if as_json:
        words.say(words.to_json(_data(found)))
    elif as_mermaid:
        words.say("\n".join(flowchart(found)))
    else:
        words.say("\n".join(_text(found)))


# -- text ---------------------------------------------------------------------------------------------


def _text(found: Preview) -> Iterator[str]:
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
    return line + words.shorten(_node(node), _CALL_WIDTH), f"{node.node_id}, line {node.line}"


def _node(node: TracedNode) -> str:
    if node.kind is NodeKind.STEP:
        return words.call(node.name, node.args, ref=name_result)
    return f"sleep {_length(node)}"


def _length(node: TracedNode) -> str:
    until = sleep_until(node.args)
    if until is not None:
        return f"until {words.moment(until)}"
    return words.span(sleep_delay(node.args) or timedelta())


def _end(found: Preview) -> str:
    end = found.trace.end
    assert end is not None
    if end.error is not None:
        return f"raises {type(end.error).__name__}: {end.error}"
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
        f"the sleep {node.node_id} ({_length(node)}, kept in the database)"
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


def _boundaries_of(found: Preview, workflow: Workflow[..., object]) -> list[str]:
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


def _lines(found: Preview, workflow: Workflow[..., object]) -> str:
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


# -- JSON ---------------------------------------------------------------------------------------------


def _data(found: Preview) -> dict[str, object]:
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
            "error": None if end.error is None else f"{type(end.error).__name__}: {end.error}",
            "after": sorted(end.after),
        },
    }


def _item(found: Preview, item: TracedNode | Fork | Wait) -> dict[str, object]:
    if isinstance(item, Fork):
        branches = [[_item(found, inner) for inner in branch.items] for branch in item.branches]
        return {"kind": "group", "branches": branches}
    if isinstance(item, Wait):
        return {"kind": "stop", "text": found.stops[item]}
    return {"kind": item.kind.value, "node_id": item.node_id, "text": _node(item)}


def _node_data(node: TracedNode) -> dict[str, object]:
    return {
        "node_id": node.node_id,
        "kind": node.kind.value,
        "name": node.name,
        "line": node.line,
        "args": node.args,
        "after": sorted(node.after),
    }


def _task_data(task: Task) -> dict[str, object]:
    return {
        "node_id": task.node_id,
        "name": task.name,
        "countdown": None if task.delay is None else task.delay.total_seconds(),
        "eta": task.until,
    }


def _boundary_data(boundary: Boundary) -> dict[str, object]:
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
