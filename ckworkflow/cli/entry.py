"""The two entrances to the commands: `ckworkflow`, and `celery workflow` as a plug-in of Celery's own command.

Both hold the same commands; they differ only in who has found the app. A named error is one sentence on
standard error and exit code 1; a traceback is a bug, of ours or in the user's configuration.

Not here: the commands (`plan`, `runs`, `database`, `web`), and which app is meant (`home`).
"""

from __future__ import annotations

import logging
import sys

import click

from ckworkflow.cli.database import db
from ckworkflow.cli.home import Home
from ckworkflow.cli.plan import plan
from ckworkflow.cli.printing import plain
from ckworkflow.cli.runs import runs
from ckworkflow.cli.web import web
from ckworkflow.errors import CkWorkflowError
from ckworkflow.scrub import scrub

__all__ = ["main", "workflow"]


class _Commands(click.Group):
    """A group whose commands may raise named errors."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except CkWorkflowError as error:
            raise click.ClickException(plain(scrub(str(error)))) from error
        except click.ClickException as error:
            if type(error) is not click.ClickException:
                raise  # click's own, of what was typed
            raise click.ClickException(plain(scrub(error.message))) from error


@click.group("ckworkflow", cls=_Commands)
@click.option(
    "-A",
    "--app",
    metavar="MODULE:ATTRIBUTE",
    help="Your own Celery app, as `celery -A` takes it. Without it: the celeryconfig.py of this folder.",
)
@click.version_option(package_name="ckworkflow")
@click.pass_context
def _ckworkflow(ctx: click.Context, app: str | None) -> None:
    """Look at durable workflows, and at their runs."""
    _be_quiet()
    ctx.obj = Home.of_name(app)


@click.group("workflow", cls=_Commands)
@click.pass_context
def workflow(ctx: click.Context) -> None:
    """Look at durable workflows, and at their runs (ckworkflow)."""
    _be_quiet()
    # Without -A Celery hands over whichever app is current, even one that it has made up.
    is_named = ctx.find_root().params.get("app") is not None
    ctx.obj = Home.of_app(ctx.obj.app) if is_named else Home.of_name(None)


for _command in (plan, runs, db, web):
    _ckworkflow.add_command(_command)
    workflow.add_command(_command)


def main() -> None:
    """Run the command line; the `ckworkflow` script of the package."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal without box drawing gets question marks, not a traceback.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    _ckworkflow(prog_name="ckworkflow")


def _be_quiet() -> None:
    """Keep log records off a terminal that nobody has set up for them: what matters is printed."""
    logging.getLogger("ckworkflow").addHandler(logging.NullHandler())
