"""`db upgrade` and `db prune`: the schema of the workflow database, and what is deleted from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ckworkflow.cli.home import Home, pass_home
from ckworkflow.cli.printing import say
from ckworkflow.drawing.words import moment
from ckworkflow.duration import parse_span
from ckworkflow.engine import retention
from ckworkflow.model import RunStatus
from ckworkflow.store import schema
from ckworkflow.store.location import is_relative

__all__ = ["db"]


@click.group("db")
def db() -> None:
    """Look after the workflow database."""


@db.command("upgrade")
@pass_home
def upgrade(home: Home) -> None:
    """Bring the database to the schema of this version.

    Run it once for a new server database, and at each deploy before the new workers start. It does nothing
    where there is nothing to do. SQLite files need it never: they are brought up to date when they are used.
    """
    database = home.installation.engine.database
    if not (database.is_there or home.has_settings) and is_relative(home.settings.database_url):
        raise click.ClickException(
            f"There is no {database.url}, and no celeryconfig.py in {Path.cwd()}: run this in the bot's folder. Nothing was made."
        )
    schema.upgrade(database)
    # Says so where this code must not use what it found.
    schema.ensure(database)
    say(f"The schema of {database.url} is up to date (revision {schema.CODE_REVISION}).")


@db.command("prune")
@click.option(
    "--older-than",
    metavar="SPAN",
    required=True,
    help="How long ago they must have ended: '30d', '12 hours', '1y'.",
)
@click.option(
    "--status",
    "statuses",
    type=click.Choice([status.value for status in retention.FINAL]),
    multiple=True,
    help="Only runs that ended like this; may be given several times. Without it: all three.",
)
@click.option("--dry-run", is_flag=True, help="Only count them.")
@pass_home
def prune(home: Home, older_than: str, statuses: Sequence[str], dry_run: bool) -> None:
    """Delete runs that ended long ago, with their steps.

    A run's age counts from its end. Runs that are still going, however old, are never touched. It works in small
    batches beside running workers, and may be interrupted: what was deleted stays deleted.
    """
    span = parse_span(older_than)
    wanted = [RunStatus(status) for status in dict.fromkeys(statuses)] or retention.FINAL
    engine = home.engine
    old = (retention.count if dry_run else retention.prune)(engine, older_than=span, statuses=wanted)
    kind = "" if len(wanted) == len(retention.FINAL) else f"{' or '.join(wanted)} "
    age = f"ended before {moment(old.before)} in {engine.database.url}"
    if not old.total:
        say(f"There are no {kind}runs that {age}.")
        return
    parts = ", ".join(f"{old.runs[status]} {status}" for status in retention.FINAL if status in old.runs)
    runs = f"{old.total} run{'' if old.total == 1 else 's'} that {age}: {parts}."
    say(f"Would delete {runs}" if dry_run else f"Deleted {runs} Rows in all: {old.rows}.")
