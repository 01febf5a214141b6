"""`plan`: what a workflow will do, without doing it, as text, JSON or a Mermaid flowchart.

Not here: how it is found out and drawn (`ckworkflow.drawing`).
"""

from __future__ import annotations

import click

from ckworkflow import canvas
from ckworkflow.cli.home import Home, pass_home
from ckworkflow.cli.lookup import find_workflow, read_arguments
from ckworkflow.cli.printing import say, to_json
from ckworkflow.drawing.data import as_data
from ckworkflow.drawing.dry_run import preview
from ckworkflow.drawing.mermaid import flowchart
from ckworkflow.drawing.preview import RUN_ID
from ckworkflow.drawing.text import outline

__all__ = ["plan"]


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
    found = preview(
        workflow, args, kwargs, horizon=home.settings.horizon,
        canvas_of=lambda piece: canvas.build(home.app, RUN_ID, piece),
    )  # fmt: skip
    if as_json:
        say(to_json(as_data(found)))
    elif as_mermaid:
        say("\n".join(flowchart(found)))
    else:
        say("\n".join(outline(found)))
