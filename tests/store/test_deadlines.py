"""How long a transaction may take: one time for all that it is tried again for, from when it was asked for."""

from __future__ import annotations

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import sqlalchemy as sa

import engine_flows
from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.store import database as store
from ckworkflow.store import tables, transaction, writer
from ckworkflow.store.writer import GroupWriter
from desk import Desk, ManualClock
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(30)

SECONDS = 0.5


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(store, "LONGEST_SECONDS", SECONDS)
    monkeypatch.setattr(transaction, "BUSY_SECONDS", SECONDS)
    monkeypatch.setattr(store, "BUSY_SECONDS", SECONDS)
    with closing(Desk(f"sqlite:///{tmp_path / 'desk.sqlite3'}", ManualClock(), "here")) as desk:
        yield desk


@contextmanager
def locked(desk: Desk) -> Iterator[None]:
    """Write to the file of an SQLite database, as a process does that never comes to an end."""
    path = desk.engine.database._url.database
    assert path is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def time_of(desk: Desk) -> float:
    """How long a start takes that cannot write."""
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match=r"cannot be used: .*locked\. Another process"):
        desk.start(engine_flows.doubling, 3)
    return time.monotonic() - began


def test_a_start_waits_once_for_a_file_that_stays_locked(desk: Desk) -> None:
    with locked(desk):
        assert SECONDS <= time_of(desk) < 6 * SECONDS  # and not once for each of eight tries


def test_starts_that_queue_for_a_file_that_stays_locked_wait_no_longer_than_one(desk: Desk) -> None:
    with locked(desk), ThreadPoolExecutor(8) as threads:
        times = list(threads.map(lambda _: time_of(desk), range(8)))

    assert max(times) < 12 * SECONDS  # and not one after the other, which took 64


def test_a_file_that_stays_locked_is_said_in_the_log(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transaction, "QUIET_SECONDS", 0.1, raising=False)
    with locked(desk):
        time_of(desk)

    said = [each.getMessage() for each in caplog.records if "locked" in each.getMessage()]
    assert len(said) == 1
    assert "another process keeps the database file locked" in said[0]


def test_a_start_waits_once_for_a_table_that_a_server_does_not_free(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LONGEST_SECONDS", SECONDS, raising=False)
    url = f"{postgres_url}?options=-clock_timeout%3D300ms"
    with closing(Desk(url, ManualClock(), "here")) as desk:
        desk.start(engine_flows.doubling, 3)  # whatever a first start does
        with psycopg.connect(postgres_url.replace("+psycopg", "")) as other:
            other.execute("LOCK TABLE runs")
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailableError, match="lock timeout"):
                desk.start(engine_flows.doubling, 3)
            # The group's try, and one that begins just before the time is up.
            assert time.monotonic() - began < 3 * SECONDS


def test_those_of_a_group_whose_time_is_not_up_go_on_without_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(writer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    began, may_go_on = threading.Event(), threading.Event()
    groups: list[float] = []

    def transact(_work: object, _is_lasting: bool, until: float) -> list[str]:
        began.set()
        assert may_go_on.wait(20)
        groups.append(until)
        if len(groups) == 2:  # that of the two: up to the end of the first one's time
            now[0] = until
            raise DatabaseUnavailableError("sqlite:///runs", "it is locked")
        return ["written"]

    shared = GroupWriter(transact, longest_seconds=30)
    with ThreadPoolExecutor(3) as threads:
        threads.submit(shared.run, lambda _: None)
        assert began.wait(20)
        late = threads.submit(shared.run, lambda _: None)
        until(lambda: len(shared._queue) == 1)
        now[0] = 10
        early = threads.submit(shared.run, lambda _: None)
        until(lambda: len(shared._queue) == 2)
        may_go_on.set()

        with pytest.raises(DatabaseUnavailableError):
            late.result(20)
        assert early.result(20) == "written"
    assert groups == [30, 30, 40]


def test_a_file_says_that_it_has_no_write_ahead_log(tmp_path: Path) -> None:
    record = SimpleNamespace(info={})
    # Without locks there is no memory that processes share, as on a network's file system.
    with closing(sqlite3.connect(f"file:{tmp_path / 'runs'}?vfs=unix-none", uri=True)) as connection:
        store._prepare_sqlite(connection, record)  # type: ignore[arg-type]

    assert record.info[transaction.PRAGMAS]["journal_mode"] == "delete"


def test_without_a_write_ahead_log_a_commit_waits_for_those_who_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(connection: sqlite3.Connection, record: Any) -> None:
        connection.execute("PRAGMA journal_mode=DELETE")
        record.info[transaction.PRAGMAS] = {"journal_mode": "delete"}

    monkeypatch.setattr(store, "_prepare_sqlite", prepare)
    path = tmp_path / "desk.sqlite3"
    with (
        closing(Desk(f"sqlite:///{path}", ManualClock(), "here")) as desk,
        closing(sqlite3.connect(path, isolation_level=None)) as reader,
        closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as newcomer,
        ThreadPoolExecutor(1) as pool,
    ):

        def is_committing() -> bool:
            # Until those who read have gone, nobody else may begin to.
            try:
                newcomer.execute("SELECT * FROM runs").fetchall()
            except sqlite3.OperationalError as error:
                return "locked" in str(error)
            return False

        reader.execute("BEGIN")
        reader.execute("SELECT * FROM runs").fetchall()
        begun: list[int] = []
        writing = pool.submit(
            desk.engine.database.transact, lambda tx: (begun.append(1), tx.execute(_A_WRITE))
        )
        until(is_committing)
        reader.execute("COMMIT")
        writing.result()

    assert begun == [1]


_A_WRITE = transaction.Prepared(sa.update(tables.runs).values(status="running"))
