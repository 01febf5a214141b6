"""`db upgrade`: bring the workflow database to this version's schema."""

from __future__ import annotations

import click

from ckworkflow.cli.home import Home, pass_home
from ckworkflow.store import schema

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
    schema.upgrade(database)
    # Says so where this code must not use what it found.
    schema.ensure(database)
    click.echo(f"The schema of {database.url} is up to date (revision {schema.CODE_REVISION}).")
