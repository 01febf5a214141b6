"""A preview: what starting a workflow would do.

Not here: how it is found out (`dry_run`), and how it is shown (`text`, `mermaid`, `data`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckworkflow.model import RunId

if TYPE_CHECKING:
    from ckworkflow.definition import Workflow
    from ckworkflow.drawing.boundaries import Boundary
    from ckworkflow.model import NodeId
    from ckworkflow.plan import Task
    from ckworkflow.tracing import Trace, TracedNode, Wait

__all__ = ["RUN_ID", "Canvas", "Preview", "Stage"]

RUN_ID = RunId("RUN")
"""Stands in the canvas for the id that a run would have."""


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

    workflow: Workflow[..., Any]
    args: Mapping[str, Any]
    trace: Trace
    stages: tuple[Stage, ...]
    boundaries: tuple[Boundary, ...]
    stops: Mapping[Wait, str]
    inlined: tuple[Workflow[..., Any], ...]

    @property
    def nodes(self) -> Mapping[NodeId, TracedNode]:
        """The nodes of the segment by id."""
        return {node.node_id: node for node in self.trace.nodes}
