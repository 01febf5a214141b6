"""The dry run: what starting a workflow would do, found out by tracing it and doing nothing else.

No step runs, nothing is stored, and neither the database nor the broker is asked. The body itself runs as
far as `start` would run it.

Not here: how a preview is shown (`text`, `mermaid`, `data`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.background import SpareThreads
from ckworkflow.definition import check_main
from ckworkflow.drawing.boundaries import boundaries_of, reachable, tell
from ckworkflow.drawing.preview import RUN_ID, Canvas, Preview, Stage
from ckworkflow.drawing.stages import cut_stages, in_words, tasks_of
from ckworkflow.engine.budget import START, Budget
from ckworkflow.engine.start import make_body
from ckworkflow.plan import build_plan
from ckworkflow.tracing import ReplayNeededError, Tracer

if TYPE_CHECKING:
    from ckworkflow.definition import Workflow
    from ckworkflow.plan import Piece
    from ckworkflow.tracing import Trace

__all__ = ["preview"]


def preview(
    workflow: Workflow[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    horizon: timedelta,
    canvas_of: Callable[[Piece], object],
) -> Preview:
    """Trace the first segment of a workflow.

    Args:
        workflow: What to trace.
        args: As for `start`.
        kwargs: As for `start`.
        horizon: Sleeps longer than this are left to SQL.
        canvas_of: Builds the Celery canvas of a piece, whose `repr` is shown; its run is `RUN_ID`.

    Raises:
        MainModuleError: No worker could find the workflow.
        UnserializableValueError: An argument cannot be stored.
        BodyAwaitError: The body awaits something that is not durable.
        BodyStuckError: It waits for what nothing can bring.
        BodyTimeoutError: The body computes or blocks for too long.
    """
    check_main(workflow)
    tree: dict[str, Any] = {
        "args": [codec.encode(arg, path=f"args[{index}]") for index, arg in enumerate(args)],
        "kwargs": {key: codec.encode(arg, path=key) for key, arg in kwargs.items()},
    }
    try:
        trace = _trace(workflow, tree)
    except ReplayNeededError as error:  # a task of the body cancels the body, which has run ahead of it
        trace = _trace(workflow, tree, strict=error.strict)
    stages = [
        Stage(
            after,
            tuple(
                Canvas(repr(canvas_of(piece)), in_words(piece), tuple(tasks_of(piece)))
                for piece in pieces
            ),
        )
        for after, pieces in cut_stages(build_plan(trace), horizon)
    ]
    workflows = reachable(workflow)
    boundaries = [boundary for one in workflows for boundary in boundaries_of(one)]
    return Preview(
        workflow,
        tree,
        trace,
        tuple(stages),
        tuple(boundaries),
        {wait: tell(wait, boundaries) for wait in trace.waits},
        tuple(workflows[1:]),
    )


def _trace(workflow: Workflow[..., Any], tree: dict[str, Any], *, strict: int = 0) -> Trace:
    tracer = Tracer(
        RUN_ID, make_body(workflow, tree), workflow=workflow.name, started_at=datetime.now(UTC)
    )
    try:
        resume = partial(tracer.resume, strict=strict)
        return Budget(SpareThreads()).run(tracer, workflow.name, resume, START)
    finally:
        tracer.close()
