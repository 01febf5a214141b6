"""A preview as a flowchart for mermaid.js.

Every id is made here and every label is quoted, its special characters as entity codes: whatever a step is
called or given, the text is a valid flowchart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from ckworkflow.drawing import words
from ckworkflow.drawing.nodes import length
from ckworkflow.model import NodeKind

if TYPE_CHECKING:
    from ckworkflow.drawing.preview import Preview
    from ckworkflow.model import NodeId
    from ckworkflow.tracing import TracedNode

__all__ = ["flowchart"]

_LABEL_WIDTH: Final = 80
_PLAIN: Final = re.compile(r"[^\w .,:()'=/+*\[\]-]")


def flowchart(found: Preview) -> Iterator[str]:
    """Give the lines of the flowchart: steps, sleeps, and where and why the first segment stops."""
    trace = found.trace
    ids: dict[NodeId, str] = {node.node_id: f"n{index}" for index, node in enumerate(trace.nodes, 1)}
    yield "flowchart TD"
    yield f'    start(["{_label(words.last_part(found.workflow.name))}"])'
    for node in trace.nodes:
        yield f"    {ids[node.node_id]}{_shape(node)}"
    ends: list[tuple[str, frozenset[NodeId]]] = []
    for index, (wait, why) in enumerate(found.stops.items(), 1):
        yield f'    stop{index}{{{{"{_label(why)}"}}}}'
        ends.append((f"stop{index}", wait.nodes))
    if trace.end is not None:
        error = trace.end.error
        word = "continues as new" if trace.ends_life else "returns"
        word = word if error is None else f"raises {type(error).__name__}"
        yield f'    finish(["{_label(word)}"])'
        ends.append(("finish", trace.end.after))
    yield from _edges(ids, [*((ids[node.node_id], node.after) for node in trace.nodes), *ends])


def _edges(ids: dict[NodeId, str], targets: Iterable[tuple[str, frozenset[NodeId]]]) -> Iterator[str]:
    """Give the arrows; where many wait for the same many, through one point."""
    known = [(target, frozenset(after & ids.keys())) for target, after in targets]
    uses = Counter(after for _, after in known)
    points: dict[frozenset[NodeId], str] = {}
    for target, after in known:
        if not after:
            yield f"    start --> {target}"
        elif len(after) == 1 or uses[after] == 1:
            yield from (f"    {ids[node_id]} --> {target}" for node_id in sorted(after))
        else:
            if after not in points:
                points[after] = point = f"join{len(points) + 1}"
                yield f'    {point}(("all"))'
                yield from (f"    {ids[node_id]} --> {point}" for node_id in sorted(after))
            yield f"    {points[after]} --> {target}"


def _shape(node: TracedNode) -> str:
    if node.kind is NodeKind.STEP:
        return f'["{_label(words.last_part(node.name))}"]'
    text = f"{node.name} {length(node)}"
    return f'("{_label(text)}")'


def _label(text: str) -> str:
    """Quote what mermaid would read as syntax, markdown or HTML."""
    return _PLAIN.sub(lambda found: f"#{ord(found[0])};", words.shorten(text, _LABEL_WIDTH))
