"""Texts that a database cannot hold: refused in both alike, and never cut or changed in silence."""

from __future__ import annotations

import enum
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa

import engine_flows
from ckworkflow import codec, step
from ckworkflow.engine.shared import SharedStore
from ckworkflow.errors import InvalidSettingError, RefusedValueError
from ckworkflow.model import RunId
from ckworkflow.store import Database, nodes, runs, schema
from desk import Desk, ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Text(str):
    __slots__ = ()


class Name(enum.StrEnum):
    WITH_NUL = "a\0b"


BAD = [
    ("NUL", "a\0b"), ("NUL", Text("a\0b")), ("NUL", Name.WITH_NUL),
    ("half of a surrogate pair", "a\ud83db"), ("half of a surrogate pair", Text("a\ud83db")),
]  # fmt: skip

PLAIN = [bad for _, bad in BAD if type(bad) is str]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    is_sqlite = request.param == "sqlite"
    url = (
        f"sqlite:///{tmp_path / 'desk.sqlite3'}"
        if is_sqlite
        else request.getfixturevalue("postgres_url")
    )
    desk = Desk(url, ManualClock(), "here")
    yield desk
    desk.close()


@step
async def nothing(value: Any) -> None: ...


def ways(desk: Desk) -> dict[str, Callable[[str], object]]:
    """All that takes an id, a key or a name of a user's."""
    database, store = desk.engine.database, SharedStore(desk.engine)
    return {
        "a run's id": lambda bad: desk.run(RunId(bad)),
        "a run's status": lambda bad: database.read(lambda tx: runs.read_status(tx, RunId(bad))),
        "a run to lock": lambda bad: database.transact(
            lambda tx: runs.lock_run(tx, RunId(bad), database).get()
        ),
        "the nodes of a run": lambda bad: database.read(
            lambda tx: nodes.load_nodes(tx, RunId(bad)).get()
        ),
        "a run that is waited for": lambda bad: database.read(lambda tx: runs.live_of(tx, [RunId(bad)])),
        "a workflow's name": lambda bad: database.read(
            lambda tx: runs.list_runs(tx, status=None, workflow=bad, limit=1)
        ),
        "a key that is written": lambda bad: store.sync.set(bad, 1),
        "a key that is read": lambda bad: store.sync.get(bad),
        "a key that is deleted": lambda bad: store.sync.delete(bad),
    }


def test_a_text_that_one_database_cannot_hold_is_refused_in_both(desk: Desk) -> None:
    for way, call in ways(desk).items():
        for what, bad in BAD:
            with pytest.raises(RefusedValueError, match=f"a text with .*{what}"):
                call(bad)
                pytest.fail(f"{way} with {what} was taken")


def test_a_run_is_not_found_by_what_is_before_a_nul(desk: Desk) -> None:
    run_id = desk.start(engine_flows.doubling, 3)

    with pytest.raises(RefusedValueError):
        desk.run(RunId(f"{run_id}\0"))


def test_values_may_hold_any_text(desk: Desk) -> None:
    run_id = desk.start(engine_flows.doubling, 3)
    claimed = desk.claim(run_id)

    desk.succeed(claimed, PLAIN)

    assert codec.decode(codec.loads(desk.node(run_id).output or "")) == PLAIN


# --- encodings of servers ------------------------------------------------------------------------------


@contextmanager
def database_in(encoding: str, beside: str) -> Iterator[str]:
    url = sa.make_url(beside)
    name = f"{url.database}_{encoding.lower()}"
    with psycopg.connect(beside.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
        try:
            yield url.set(database=name).render_as_string()
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("encoding", ["LATIN1", "EUC_JP", "SQL_ASCII", "WIN1252"])
def test_a_database_that_is_not_encoded_in_utf_8_is_refused_with_a_sentence(
    postgres_url: str, encoding: str
) -> None:
    with database_in(encoding, postgres_url) as url:
        for use in (schema.upgrade, schema.ensure):
            database = Database(url)
            with pytest.raises(InvalidSettingError, match=f"encoded in {encoding}.*ENCODING 'UTF8'"):
                use(database)
            database.dispose()


def test_texts_come_in_utf_8_whatever_the_server_sends_by_default(postgres_url: str) -> None:
    name = sa.make_url(postgres_url).database
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {name} SET client_encoding = 'LATIN1'")
    desk = Desk(postgres_url, ManualClock(), "here")
    try:
        run_id = desk.start(engine_flows.doubling, 3)
        desk.succeed(desk.claim(run_id), "日本 ✓")
        assert desk.node(run_id).output == '"日本 ✓"'
    finally:
        desk.close()
    # What was sent and read back in the same wrong encoding looks right from here, and is not.
    with psycopg.connect(postgres_url.replace("+psycopg", ""), client_encoding="UTF8") as other:
        assert other.execute("SELECT output FROM nodes WHERE output IS NOT NULL").fetchall() == [
            ('"日本 ✓"',)
        ]
