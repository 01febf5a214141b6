"""The schema: migrations and tables agree, and code and database refuse each other outside their range."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

import services
from ckworkflow.errors import DatabaseUnavailableError, SchemaVersionError
from ckworkflow.store import Database, schema
from ckworkflow.store.tables import metadata, nodes, runs, schema_info
from ckworkflow.store.verdicts import ConstraintError
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

TESTS = Path(__file__).parents[1]


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'runs.sqlite3'}")
    yield database
    database.dispose()


def differences(database: Database) -> list[object]:
    def compare(tx):
        options = {"version_table": "ckworkflow_alembic", "compare_server_default": False}
        context = MigrationContext.configure(tx.connection, opts=options)
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

    assert (
        sqlite.read(lambda tx: tx.execute(sa.select(sa.func.max(schema_info.c.revision))).scalar_one())
        == schema.CODE_REVISION
    )


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
    newer = schema.CODE_REVISION + 1
    sqlite.transact(
        lambda tx: tx.execute(sa.insert(schema_info).values(revision=newer + 1, oldest_code=newer))
    )

    with pytest.raises(
        SchemaVersionError,
        match=rf"revision {newer + 1} may be used from code revision {newer} on.*Upgrade",
    ):
        schema.ensure(sqlite)


def test_code_within_the_range_of_a_newer_database_goes_on(sqlite: Database) -> None:
    schema.ensure(sqlite)
    newer = schema.CODE_REVISION + 1
    sqlite.transact(lambda tx: tx.execute(sa.insert(schema_info).values(revision=newer, oldest_code=1)))

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

    with pytest.raises(ConstraintError, match="ck_runs_live_wakes"):
        sqlite.transact(insert)


def test_an_unreachable_server_is_a_named_error_without_the_password() -> None:
    database = Database("postgresql+psycopg://bot:hunter2@127.0.0.1:1/none")

    with pytest.raises(DatabaseUnavailableError) as caught:
        schema.ensure(database)

    assert "127.0.0.1:1" in str(caught.value)
    assert "hunter2" not in str(caught.value)


# --- from the revision before ------------------------------------------------------------------------


WHEEL = TESTS / "releases" / "ckworkflow-0.1.0-py3-none-any.whl"
MIGRATIONS = "ckworkflow/store/migrations/versions"


def test_a_released_migration_is_never_edited() -> None:
    with zipfile.ZipFile(WHEEL) as wheel:
        released = {
            name: wheel.read(name).decode()
            for name in wheel.namelist()
            if name.startswith(MIGRATIONS) and name.endswith(".py") and "__init__" not in name
        }

    assert released
    assert {name: (TESTS.parent / name).read_text() for name in released} == released


@pytest.fixture(params=["sqlite", "postgres"])
def old_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database that the code of the release before this one has made."""
    url = f"sqlite:///{tmp_path / 'old.sqlite3'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    release = tmp_path / "release"
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(release)
    code = f"""
from ckworkflow.store import Database, schema
assert schema.__file__.startswith({str(release)!r}) and schema.CODE_REVISION == 1
schema.upgrade(Database({url!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=release,
        env={**os.environ, "PYTHONPATH": str(release)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    database = Database(url)
    yield database
    database.dispose()


@pytest.fixture
def old_server(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A server's database of the first revision."""

    def make(tx: Any) -> None:
        config = Config()
        config.set_main_option("script_location", "ckworkflow.store:migrations")
        config.attributes["connection"] = tx.connection
        command.upgrade(config, "0001")

    database = Database(postgres_url)
    database.transact(make)
    yield database
    database.dispose()


def shape(database: Database) -> dict[str, Any]:
    """All that the database knows of its tables."""

    def read(tx: Any) -> dict[str, Any]:
        found = sa.inspect(tx.connection)
        return {
            table: {
                "columns": {
                    column["name"]: (str(column["type"]), column["nullable"], column["default"])
                    for column in found.get_columns(table)
                },
                "indexes": {
                    index["name"]: (
                        index["column_names"],
                        index["unique"],
                        [str(option) for option in index.get("dialect_options", {}).values()],
                    )
                    for index in found.get_indexes(table)
                },
                "keys": [found.get_pk_constraint(table), found.get_foreign_keys(table)],
                "checks": found.get_check_constraints(table),
            }
            for table in found.get_table_names()
        }

    return database.read(read)


@pytest.mark.slow
def test_an_upgraded_database_is_the_same_as_a_new_one(
    old_database: Database, tmp_path: Path, postgres_server: str | None
) -> None:
    assert "is_held" not in shape(old_database)["nodes"]["columns"]
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{tmp_path / 'fresh.sqlite3'}"
        if not old_database.is_sqlite:
            url = stack.enter_context(services.empty_postgres_database(postgres_server))
        fresh = Database(url)

        schema.upgrade(old_database)
        schema.upgrade(fresh)

        assert shape(old_database) == shape(fresh)
        fresh.dispose()
    assert differences(old_database) == []
    assert {"ix_runs_finished_at", "ix_nodes_held"} <= index_names(old_database)
    assert {"spins", "spins_since", "held"} <= shape(old_database)["runs"]["columns"].keys()


def index_names(database: Database) -> set[str]:
    return database.read(
        lambda tx: {
            str(index["name"])
            for table in ("runs", "nodes")
            for index in sa.inspect(tx.connection).get_indexes(table)
        }
    )


# --- beside those who work on a server ---------------------------------------------------------------


@pytest.mark.slow
def test_an_upgrade_gives_way_to_a_reader_and_holds_up_nobody_meanwhile(
    old_server: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(schema, "LOCK_TIMEOUT_SECONDS", 0.2)
    read_all = sa.select(sa.func.count()).select_from(nodes)

    with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.WARNING):
        with old_server.engine.execution_options(
            isolation_level="READ COMMITTED"
        ).begin() as reader:  # a dump, say
            reader.execute(read_all)
            upgrading = pool.submit(schema.upgrade, old_server)
            until(lambda: "upgrade waits for a table" in caplog.text)
            assert not upgrading.done()
            with old_server.engine.execution_options(isolation_level="READ COMMITTED").begin() as other:
                # Behind the waiting upgrade, this would wait as long as the reader reads.
                other.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
                other.execute(read_all)
            pid = reader.scalar(sa.text("SELECT pg_backend_pid()"))
        upgrading.result(30)

    assert f"pid {pid} (ckworkflow, idle in transaction)" in caplog.text
    assert differences(old_server) == []


@pytest.mark.slow
def test_an_upgrade_that_is_never_let_in_says_who_is_in_its_way_and_changes_nothing(
    old_server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "LOCK_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(schema, "PATIENCE_SECONDS", 0.3)
    before = shape(old_server)

    with old_server.engine.execution_options(isolation_level="READ COMMITTED").begin() as reader:
        reader.execute(sa.select(sa.func.count()).select_from(nodes))
        pid = reader.scalar(sa.text("SELECT pg_backend_pid()"))
        with pytest.raises(SchemaVersionError, match=rf"pid {pid} .*End those.*Nothing was changed"):
            schema.upgrade(old_server)

    assert shape(old_server) == before


@pytest.mark.slow
def test_an_index_is_built_beside_a_transaction_that_writes_and_stops_no_other(
    old_server: Database,
) -> None:
    def insert(connection: sa.Connection, run_id: str) -> None:
        connection.execute(sa.text("SET LOCAL lock_timeout = '5s'"))
        connection.execute(
            sa.text(
                "INSERT INTO runs (id, workflow, source_hash, status, input, created_at, finished_at) "
                "VALUES (:id, 'w', '', 'completed', '{}', now(), now())"
            ),
            {"id": run_id},
        )

    old_server.transact(
        lambda tx: schema._migrate(old_server, tx)
    )  # the tables, which nobody may hold meanwhile
    with ThreadPoolExecutor(1) as pool:
        with old_server.engine.execution_options(isolation_level="READ COMMITTED").begin() as writer:
            insert(writer, "one")
            upgrading = pool.submit(schema.upgrade, old_server)
            until(lambda: is_building(old_server))
            with old_server.engine.execution_options(isolation_level="READ COMMITTED").begin() as other:
                insert(other, "two")
            assert not upgrading.done()
        upgrading.result(30)

    assert differences(old_server) == []


def is_building(database: Database) -> bool:
    with database.engine.connect() as connection:
        found = sa.text("SELECT 1 FROM pg_stat_progress_create_index WHERE datname = current_database()")
        return connection.execute(found).first() is not None


@pytest.mark.slow
def test_what_an_interrupted_build_has_left_is_built_anew(old_server: Database) -> None:
    schema.upgrade(old_server)
    with old_server.engine.connect() as raw:
        connection = raw.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(sa.text("DROP INDEX ix_runs_finished_at"))
        for run_id in ("one", "two"):
            connection.execute(
                sa.insert(runs).values(
                    id=run_id, workflow="w", source_hash="", status="failed", input="{}",
                    created_at=sa.func.now(),
                )
            )  # fmt: skip
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(
                sa.text("CREATE UNIQUE INDEX CONCURRENTLY ix_runs_finished_at ON runs (workflow)")
            )
    assert "ix_runs_finished_at" in index_names(old_server)

    schema.upgrade(old_server)

    assert differences(old_server) == []
    valid = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_runs_finished_at'::regclass")
    assert old_server.read(lambda tx: tx.execute(valid).scalar_one())


@pytest.mark.slow
def test_two_upgrades_at_once_are_one(old_server: Database) -> None:
    together = threading.Barrier(3)

    def upgrade(_: int) -> None:
        together.wait()
        schema.upgrade(old_server)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(upgrade, range(3)))

    assert differences(old_server) == []
    revisions = sa.select(schema_info.c.revision).order_by(schema_info.c.revision)
    assert old_server.read(lambda tx: tx.execute(revisions).scalars().all()) == [
        1,
        2,
        3,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
        12,
    ]
