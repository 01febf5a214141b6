"""The schema of a workflow database: bringing it up to date, and refusing one that does not fit.

The code knows one revision, `CODE_REVISION`. A database says which revision it has and which is the
oldest code that may use it, so that old and new workers can overlap during a deploy: expand first,
contract later. A SQLite file migrates itself; a server's database waits for `ckworkflow db upgrade`.

An upgrade of a server disturbs nobody who works on it. What must lock a table is quick and gives up early,
since whoever comes later queues behind it; it tries again. Indexes are built afterwards, concurrently.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
from sqlalchemy import exc

from ckworkflow.errors import DatabaseUnavailableError, SchemaVersionError
from ckworkflow.store.tables import metadata, schema_info

if TYPE_CHECKING:
    from ckworkflow.store.database import Database
    from ckworkflow.store.transaction import Transaction

logger = logging.getLogger(__name__)

CODE_REVISION = 12
"""The revision of `migrations/versions` that this code needs."""

VERSION_TABLE: Final = "ckworkflow_alembic"
LOCK_TIMEOUT_SECONDS = 1.0
"""The longest that a migration waits for a table, and that others therefore wait behind it."""
PATIENCE_SECONDS = 30.0
"""How long it goes on trying."""

_ADVISORY_LOCK: Final = 0x636B7766  # "ckwf": two upgrades at once must not interleave
_POLL_SECONDS: Final = 0.2
_LOCK_NOT_AVAILABLE: Final = "55P03"


def upgrade(database: Database) -> None:
    """Bring the database to this code's schema; do nothing when it is there already or newer.

    Raises:
        DatabaseUnavailableError: It cannot be reached, or the role has no right to change it.
        SchemaVersionError: It has a table of a name of ours that is not ours; on a server: somebody holds a table
            that must be changed, and does not let go.
    """
    if database.is_sqlite:
        database.make_folder()
        database.transact(lambda tx: _migrate(database, tx))
        return
    database.read(_read)  # a server that is down is told in the usual words
    # An index cannot be built concurrently inside a transaction.
    with database.session() as connection, _only_upgrade(connection):
        _migrate_server(database, connection)
        for index in _concurrent_indexes():
            _build(connection, index)


class NoRunsYetError(DatabaseUnavailableError):
    """There is no database yet, and a caller that only reads makes none."""


def ensure(database: Database, *, creates: bool = True) -> None:
    """Check that this code may use the database; a SQLite file is made or brought up to date first.

    Args:
        database: The database.
        creates: Whether to make a file that is not there.

    Raises:
        NoRunsYetError: It is not there.
        SchemaVersionError: It is older than this code needs, or so new that this code may not use it.
        DatabaseUnavailableError: It cannot be reached.
    """
    if not database.is_there:
        if not creates:
            raise NoRunsYetError(
                database.url, "there is no such file", "The first run creates it: check that this is the "
                "folder in which the bot is started, or name the file in workflow_database_url",
            )  # fmt: skip
        database.make_folder()
    found = database.read(_read)
    if database.is_sqlite and (found is None or found[0] < CODE_REVISION):
        upgrade(database)
        found = database.read(_read)
    if found is None:
        if not database.read(_sees_schema):
            raise DatabaseUnavailableError(
                database.url, "its role may use no schema", database.rights_needed()
            )
        raise SchemaVersionError(
            database.url, "it has no ckworkflow tables yet. Run `ckworkflow db upgrade` once."
        )
    if found[0] < CODE_REVISION:
        raise SchemaVersionError(
            database.url,
            f"it has revision {found[0]} and this code needs {CODE_REVISION}. Run `ckworkflow db upgrade`.",
        )
    _refuse_contracted(database, found)


def check(database: Database) -> None:
    """Check, while this code uses the database, that it has not been contracted beyond this code.

    Raises:
        SchemaVersionError: It has.
        DatabaseUnavailableError: It cannot be reached.
    """
    found = database.read(_read)
    if found is not None:
        _refuse_contracted(database, found)


def _refuse_contracted(database: Database, found: tuple[int, int]) -> None:
    revision, oldest_code = found
    if oldest_code > CODE_REVISION:
        raise SchemaVersionError(
            database.url,
            f"its revision {revision} may be used from code revision {oldest_code} on, and this is "
            f"{CODE_REVISION}. Upgrade ckworkflow in this process.",
        )


def _sees_schema(tx: Transaction) -> bool:
    return tx.connection.dialect.name == "sqlite" or bool(
        tx.execute(sa.text("SELECT current_schema()")).scalar_one()
    )


def _read(tx: Transaction) -> tuple[int, int] | None:
    inspector = sa.inspect(tx.connection)
    if not inspector.has_table(schema_info.name):
        return None
    columns = {column["name"] for column in inspector.get_columns(schema_info.name)}
    if not columns >= set(schema_info.columns.keys()):
        return None  # somebody else's: `_refuse_foreign`
    row = tx.execute(
        sa.select(schema_info.c.revision, schema_info.c.oldest_code)
        .order_by(schema_info.c.revision.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else (row[0], row[1])


def _refuse_foreign(database: Database, tx: Transaction) -> None:
    """Refuse a database that was never ours and has tables of our names."""
    names = set(sa.inspect(tx.connection).get_table_names())
    theirs = sorted(names & set(metadata.tables))
    if not theirs or VERSION_TABLE in names:
        return
    if database.is_sqlite:
        advice = "Give ckworkflow a file of its own"
    else:
        advice = (
            "Give ckworkflow a schema of its own: CREATE SCHEMA ckworkflow, and add "
            "?options=-csearch_path%3Dckworkflow to workflow_database_url"
        )
    listed = ", ".join(theirs)
    tables = f"a table {listed} that is" if len(theirs) == 1 else f"tables {listed} that are"
    raise SchemaVersionError(
        database.url, f"it has {tables} not ckworkflow's. Nothing was changed. {advice}."
    )


def _migrate(database: Database, tx: Transaction) -> None:
    found = _read(tx)
    if found is not None and found[0] >= CODE_REVISION:
        return
    if found is None:
        _refuse_foreign(database, tx)
    # Alembic announces its plugins at INFO: news to nobody who starts a bot.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Here, because only the process that migrates needs it, and it takes a fifth of a second to import.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "ckworkflow.store:migrations")
    config.attributes["connection"] = tx.connection
    command.upgrade(config, "head")


# -- on a server, beside those who work on it ---------------------------------------------------------


@contextmanager
def _only_upgrade(connection: sa.Connection) -> Iterator[None]:
    """Keep other upgrades out.

    By asking again and again: one that waited for the lock inside a statement would be one of those whom a
    concurrent index waits for.
    """
    key = {"key": _ADVISORY_LOCK}
    while not connection.scalar(sa.text("SELECT pg_try_advisory_lock(:key)"), key):
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), key)


class _TableBusyError(Exception):
    """A table could not be locked: nothing has happened."""


def _migrate_server(database: Database, connection: sa.Connection) -> None:
    """Run the migrations in one transaction that waits for no lock for long."""

    def migrate(tx: Transaction) -> None:
        # With a waiting ALTER TABLE everybody waits who comes after it, even for what could be shared.
        tx.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS * 1000:.0f}ms'"))
        try:
            _migrate(database, tx)
        except exc.OperationalError as error:
            if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
                raise _TableBusyError from error  # `transact` would try again without a pause
            raise

    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return database.transact(migrate)
        except _TableBusyError as error:
            holders = _long_transactions(connection)
            if time.monotonic() > end:
                raise SchemaVersionError(
                    database.url,
                    f"it must be changed, and for {PATIENCE_SECONDS:g} s its tables were never free. "
                    f"{holders}. Nothing was changed; run `ckworkflow db upgrade` again.",
                ) from error
        logger.warning("upgrade waits for a table: %s", holders)
        time.sleep(LOCK_TIMEOUT_SECONDS)  # those who have queued behind it go first


def _long_transactions(connection: sa.Connection) -> str:
    """Name the sessions that have held our tables for longer than one of our transactions takes."""
    rows = connection.execute(
        sa.text(
            "SELECT DISTINCT a.pid, coalesce(nullif(a.application_name, ''), a.usename) AS who, a.state "
            "FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
            "WHERE l.granted AND l.relation::regclass::text = ANY(:tables) AND a.datname = current_database() "
            "AND a.xact_start < clock_timestamp() - make_interval(secs => :seconds) ORDER BY a.pid"
        ),
        {"tables": list(metadata.tables), "seconds": LOCK_TIMEOUT_SECONDS},
    ).all()
    if not rows:
        return "They were too busy; try at a quieter time"
    sessions = ", ".join(f"pid {row.pid} ({row.who}, {row.state})" for row in rows)
    return f"Sessions that hold them in a long transaction: {sessions}. End those"


def _concurrent_indexes() -> Iterator[sa.Index]:
    for table in metadata.sorted_tables:
        for index in table.indexes:
            if index.dialect_options["postgresql"]["concurrently"]:
                yield index


def _build(connection: sa.Connection, index: sa.Index) -> None:
    """Build an index, unless it is there, without keeping others from writing to its table."""
    is_valid = connection.scalar(
        sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"),
        {"name": index.name},
    )
    if is_valid:
        return
    # It waits for every transaction that has begun before it, and holds up none.
    for limit in ("statement_timeout", "lock_timeout"):
        connection.execute(sa.text(f"SET {limit} = 0"))
    if is_valid is not None:  # what an interrupted build has left: it costs, and serves nobody
        connection.execute(sa.schema.DropIndex(index, if_exists=True))
    logger.info("building index %s", index.name)
    connection.execute(sa.schema.CreateIndex(index))
