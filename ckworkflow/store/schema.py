"""The schema of a workflow database: bringing it up to date, and refusing one that does not fit.

The code knows one revision, `CODE_REVISION`. A database says which revision it has and which is the
oldest code that may use it, so that old and new workers can overlap during a deploy: expand first,
contract later. A SQLite file migrates itself; a server's database waits for `ckworkflow db upgrade`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import sqlalchemy as sa

from ckworkflow.errors import SchemaVersionError
from ckworkflow.store.tables import schema_info

if TYPE_CHECKING:
    from ckworkflow.store.database import Database, Transaction

CODE_REVISION = 1
"""The revision of `migrations/versions` that this code needs."""

_ADVISORY_LOCK = 0x636B7766  # "ckwf": two upgrades at once must not interleave


def upgrade(database: Database) -> None:
    """Bring the database to this code's schema; do nothing when it is there already or newer.

    Raises:
        DatabaseUnavailableError: It cannot be reached.
    """
    database.transact(lambda tx: _upgrade(tx, is_sqlite=database.is_sqlite))


def ensure(database: Database) -> None:
    """Check that this code may use the database; a SQLite file is made or brought up to date first.

    Raises:
        SchemaVersionError: It is older than this code needs, or so new that this code may not use it.
        DatabaseUnavailableError: It cannot be reached.
    """
    found = database.read(_read)
    if database.is_sqlite and (found is None or found[0] < CODE_REVISION):
        upgrade(database)
        found = database.read(_read)
    if found is None:
        raise SchemaVersionError(
            database.url, "it has no ckworkflow tables yet. Run `ckworkflow db upgrade` once."
        )
    revision, oldest_code = found
    if revision < CODE_REVISION:
        raise SchemaVersionError(
            database.url,
            f"it has revision {revision} and this code needs {CODE_REVISION}. Run `ckworkflow db upgrade`.",
        )
    if oldest_code > CODE_REVISION:
        raise SchemaVersionError(
            database.url,
            f"its revision {revision} may be used from code revision {oldest_code} on, and this is "
            f"{CODE_REVISION}. Upgrade ckworkflow in this process.",
        )


def _read(tx: Transaction) -> tuple[int, int] | None:
    if not sa.inspect(tx).has_table(schema_info.name):
        return None
    row = tx.execute(
        sa.select(schema_info.c.revision, schema_info.c.oldest_code)
        .order_by(schema_info.c.revision.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else (row[0], row[1])


def _upgrade(tx: Transaction, *, is_sqlite: bool) -> None:
    if not is_sqlite:
        tx.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    found = _read(tx)
    if found is not None and found[0] >= CODE_REVISION:
        return
    # Alembic announces its plugins at INFO: news to nobody who starts a bot.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Here, because only the process that migrates needs it, and it takes a fifth of a second to import.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "ckworkflow.store:migrations")
    config.attributes["connection"] = tx
    command.upgrade(config, "head")
