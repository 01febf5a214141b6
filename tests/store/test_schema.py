"""The schema: migrations and tables agree, and code and database refuse each other outside their range."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from ckworkflow.errors import DatabaseUnavailableError, SchemaVersionError
from ckworkflow.store import Database, schema
from ckworkflow.store.tables import metadata, runs, schema_info


@pytest.fixture
def sqlite(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path / 'runs.sqlite3'}")


def differences(database: Database) -> list[object]:
    def compare(tx):
        options = {"version_table": "ckworkflow_alembic", "compare_server_default": False}
        context = MigrationContext.configure(tx, opts=options)
        return compare_metadata(context, metadata)

    return database.read(compare)


def test_the_migrations_make_the_tables_on_sqlite(sqlite: Database) -> None:
    schema.upgrade(sqlite)

    assert differences(sqlite) == []


def test_the_migrations_make_the_tables_on_postgresql(postgres_url: str) -> None:
    database = Database(postgres_url)
    schema.upgrade(database)

    assert differences(database) == []
    database.dispose()


def test_an_sqlite_file_migrates_itself(sqlite: Database) -> None:
    schema.ensure(sqlite)

    assert sqlite.read(lambda tx: tx.execute(sa.select(schema_info.c.revision)).scalar_one()) == 1


def test_a_server_database_waits_for_the_command(postgres_url: str) -> None:
    database = Database(postgres_url)

    with pytest.raises(SchemaVersionError, match=r"no ckworkflow tables.*ckworkflow db upgrade"):
        schema.ensure(database)

    schema.upgrade(database)
    schema.ensure(database)
    database.dispose()


def test_a_second_upgrade_changes_nothing(sqlite: Database) -> None:
    schema.upgrade(sqlite)
    schema.upgrade(sqlite)

    assert differences(sqlite) == []


def test_code_that_is_too_old_for_the_database_says_so_and_stops(sqlite: Database) -> None:
    schema.ensure(sqlite)
    sqlite.transact(lambda tx: tx.execute(sa.insert(schema_info).values(revision=9, oldest_code=8)))

    with pytest.raises(
        SchemaVersionError, match=r"revision 9 may be used from code revision 8 on.*Upgrade"
    ):
        schema.ensure(sqlite)


def test_code_within_the_range_of_a_newer_database_goes_on(sqlite: Database) -> None:
    schema.ensure(sqlite)
    sqlite.transact(lambda tx: tx.execute(sa.insert(schema_info).values(revision=2, oldest_code=1)))

    schema.ensure(sqlite)


def test_the_database_itself_refuses_a_live_run_without_wake_at(sqlite: Database) -> None:
    schema.ensure(sqlite)

    def insert(tx):
        now = sqlite.now(tx)
        tx.execute(
            sa.insert(runs).values(
                id="r", workflow="w", source_hash="", status="running", input="{}", created_at=now
            )
        )

    with pytest.raises(sa.exc.IntegrityError, match="ck_runs_live_wakes"):
        sqlite.transact(insert)


def test_an_unreachable_server_is_a_named_error_without_the_password() -> None:
    database = Database("postgresql+psycopg://bot:hunter2@127.0.0.1:1/none")

    with pytest.raises(DatabaseUnavailableError) as caught:
        schema.ensure(database)

    assert "127.0.0.1:1" in str(caught.value)
    assert "hunter2" not in str(caught.value)
