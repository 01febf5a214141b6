"""A role that may not do what it must, tables that are somebody else's, a pooler that loses statements: one sentence each."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy as sa

from ckworkflow.errors import DatabaseUnavailableError, SchemaVersionError
from ckworkflow.model import RunId
from ckworkflow.store import Database, nodes, schema
from ckworkflow.store import database as store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ckworkflow.store import Transaction


class Site:
    """A database with its owner's session, and the URL of a role with few rights."""

    def __init__(self, url: str) -> None:
        self.owners_url = url
        self.admin = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
        self.role = f"bot_{self.admin.info.dbname}"
        self.do(f"CREATE ROLE {self.role} LOGIN")
        self.url = sa.make_url(url).set(username=self.role).render_as_string()

    def do(self, *statements: str) -> None:
        for statement in statements:
            self.admin.execute(statement)

    def upgrade(self, url: str | None = None) -> None:
        with opened(url or self.url) as database:
            schema.upgrade(database)

    def close(self) -> None:
        self.do(f"DROP OWNED BY {self.role}", f"DROP ROLE {self.role}")
        self.admin.close()


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.dispose()


@pytest.fixture
def site(postgres_url: str) -> Iterator[Site]:
    with closing(Site(postgres_url)) as site:
        yield site


def test_an_upgrade_without_rights_says_what_to_grant_where(site: Site) -> None:
    site.do("REVOKE CREATE ON SCHEMA public FROM PUBLIC")  # as PostgreSQL 15 and newer have it

    with pytest.raises(DatabaseUnavailableError) as caught:
        site.upgrade()

    said = str(caught.value)
    assert "permission denied for schema public" in said
    assert f"GRANT USAGE, CREATE ON SCHEMA public TO {site.role} for `ckworkflow db upgrade`" in said
    site.do(f"GRANT USAGE, CREATE ON SCHEMA public TO {site.role}")
    site.upgrade()


def test_a_worker_without_rights_says_what_to_grant_where(site: Site) -> None:
    site.upgrade(site.owners_url)

    with opened(site.url) as database:
        with pytest.raises(DatabaseUnavailableError) as caught:
            schema.ensure(database)
        said = str(caught.value)
        assert "permission denied for table schema_info" in said
        grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {site.role}"
        assert grant in said

        site.do(grant)
        schema.ensure(database)


def test_a_role_that_may_use_no_schema_is_not_told_to_upgrade(site: Site) -> None:
    site.upgrade(site.owners_url)
    site.do("REVOKE USAGE ON SCHEMA public FROM PUBLIC")

    with opened(site.url) as database:
        with pytest.raises(
            DatabaseUnavailableError, match=f"GRANT USAGE ON SCHEMA public TO {site.role}"
        ):
            schema.ensure(database)
        with pytest.raises(DatabaseUnavailableError, match="GRANT USAGE, CREATE ON SCHEMA public"):
            schema.upgrade(database)


@pytest.mark.parametrize("name", ["runs", "store", "schema_info"])
def test_a_table_of_somebody_else_is_left_alone_and_named(site: Site, name: str) -> None:
    site.do(f"CREATE TABLE {name} (id int)")

    with pytest.raises(
        SchemaVersionError, match=rf"a table {name} that is not ckworkflow's.*search_path"
    ):
        site.upgrade(site.owners_url)

    site.do("CREATE SCHEMA ckworkflow")
    url = f"{site.owners_url}?options=-csearch_path%3Dckworkflow"
    site.upgrade(url)
    with opened(url) as database:
        schema.ensure(database)


def test_a_table_of_somebody_else_in_a_file_is_left_alone_and_named(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path / 'shop.sqlite3'}") as database:
        database.transact(lambda tx: tx.execute(sa.text("CREATE TABLE runs (id int)")))

        with pytest.raises(
            SchemaVersionError, match=r"a table runs that is not ckworkflow's.*file of its own"
        ):
            schema.ensure(database)


def test_a_pooler_that_loses_prepared_statements_is_named_with_the_version_that_does_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction gets a session that some other client has used, as in PgBouncer's transaction mode."""
    monkeypatch.setattr(store, "RETRIES", 2)
    site.upgrade(site.owners_url)
    tries: list[int] = []
    with opened(site.owners_url) as database:

        def look(tx: Transaction) -> None:
            nodes.load_nodes(tx, RunId("nobody")).get()

        def lose(tx: Transaction) -> None:
            tries.append(1)
            look(tx)
            tx.connection.exec_driver_sql("DEALLOCATE ALL")
            look(tx)

        with pytest.raises(DatabaseUnavailableError, match=r"does not exist.*PgBouncer 1\.21 or newer"):
            database.transact(lose)
        assert len(tries) == 2  # in another session, too
