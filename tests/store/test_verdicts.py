"""What errors of a real database mean: for the session that met them, and for whoever wanted something written."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

import engine_flows
from ckworkflow.errors import DatabaseUnavailableError, RefusedValueError, UnserializableValueError
from ckworkflow.model import NodeStatus
from ckworkflow.store import database as store
from ckworkflow.store.verdicts import ConstraintError
from desk import Desk, ManualClock

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(30)

NOT_OF_THE_VALUE = [
    "25006", "57014", "57P01", "57P03", "42501", "42P01", "42703", "53100", "53200", "53300", "53400",
    "58030", "XX000", "XX001", "08006", "55P03", "P0001", "0A000",
]  # fmt: skip
OF_THE_VALUE = ["22021", "22P05", "22001", "22003", "54000"]

RAISE = """
CREATE TABLE trouble (state text NOT NULL);
CREATE FUNCTION raise_trouble() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM trouble) THEN
        RAISE EXCEPTION 'in trouble' USING ERRCODE = (SELECT state FROM trouble);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER trouble BEFORE INSERT OR UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION raise_trouble();
CREATE TRIGGER trouble BEFORE UPDATE OF output ON nodes FOR EACH ROW EXECUTE FUNCTION raise_trouble()
"""


class Server:
    """A PostgreSQL database, and a session with which the test changes it under the engine."""

    def __init__(self, url: str) -> None:
        self.desk = Desk(url, ManualClock(), "here")
        self._admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        self.name = sa.make_url(url).database

    def do(self, *statements: str) -> None:
        with self._admin.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def only_reads(self, *, is_so: bool) -> None:
        """Have sessions that are opened from now on only read, or write again; those of the engine stay as they are."""
        change = (
            "SET default_transaction_read_only = on" if is_so else "RESET default_transaction_read_only"
        )
        self.do("SET default_transaction_read_only = off", f"ALTER DATABASE {self.name} {change}")

    def end_sessions(self) -> None:
        self.do(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{self.name}' AND pid <> pg_backend_pid()"
        )

    def close(self) -> None:
        self.desk.close()


@pytest.fixture
def server(postgres_url: str) -> Iterator[Server]:
    with closing(Server(postgres_url)) as server:
        yield server


@pytest.fixture
def troubled(server: Server) -> Server:
    """A server that raises what the table `trouble` names."""
    server.do(*RAISE.split(";\nCREATE")[:1], *[f"CREATE{rest}" for rest in RAISE.split(";\nCREATE")[1:]])
    return server


@pytest.mark.parametrize("state", NOT_OF_THE_VALUE)
def test_what_is_not_the_values_fault_is_an_outage_and_the_result_is_recorded_after_it(
    troubled: Server, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "RETRIES", 3)
    desk = troubled.desk
    run_id = desk.start(engine_flows.doubling, 3)
    claimed = desk.claim(run_id)
    troubled.do(f"INSERT INTO trouble VALUES ('{state}')")

    with pytest.raises(DatabaseUnavailableError, match="in trouble"):
        desk.succeed(claimed, 6)
    with pytest.raises(DatabaseUnavailableError, match="in trouble"):
        desk.start(engine_flows.doubling, 3)

    troubled.do("DELETE FROM trouble")
    desk.succeed(claimed, 6)
    assert desk.node(run_id).output == "6"
    assert desk.node(run_id).attempt == 1


@pytest.mark.parametrize("state", OF_THE_VALUE)
def test_a_verdict_on_the_value_is_an_error_of_the_value(troubled: Server, state: str) -> None:
    desk = troubled.desk
    claimed = desk.claim(desk.start(engine_flows.doubling, 3))
    troubled.do(f"INSERT INTO trouble VALUES ('{state}')")

    with pytest.raises(RefusedValueError, match="The database refuses a value: in trouble") as caught:
        desk.succeed(claimed, 6)
    assert isinstance(caught.value, UnserializableValueError)  # which is the step's own fault
    with pytest.raises(RefusedValueError):
        desk.start(engine_flows.doubling, 3)


def test_a_session_that_only_reads_is_given_up_with_all_that_were_opened_then(server: Server) -> None:
    desk = server.desk
    server.only_reads(is_so=True)
    server.end_sessions()

    def hold_sessions(count: int) -> None:
        if count:
            desk.engine.database.read(
                lambda tx: (tx.execute(sa.text("SELECT 1")), hold_sessions(count - 1))
            )

    hold_sessions(5)
    with pytest.raises(DatabaseUnavailableError, match=r"only reads.*target_session_attrs=read-write"):
        desk.start(engine_flows.doubling, 3)
    hold_sessions(5)  # which stay in the pool, and only read

    server.only_reads(is_so=False)
    run_id = desk.start(engine_flows.doubling, 3)
    desk.succeed(desk.claim(run_id), 6)
    assert desk.node(run_id).status is NodeStatus.COMPLETED


def test_a_missing_right_is_named_by_the_server_and_waited_for(server: Server) -> None:
    desk = server.desk
    run_id = desk.start(engine_flows.doubling, 3)
    claimed = desk.claim(run_id)
    server.do("ALTER TABLE nodes RENAME TO nodes_elsewhere")

    with pytest.raises(DatabaseUnavailableError, match='relation "nodes" does not exist'):
        desk.succeed(claimed, 6)

    server.do("ALTER TABLE nodes_elsewhere RENAME TO nodes")
    desk.succeed(claimed, 6)
    assert desk.node(run_id).attempt == 1


def test_no_free_session_within_the_time_is_an_outage(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Desk(postgres_url, ManualClock(), "here")) as desk:
        database = desk.engine.database
        monkeypatch.setattr(database.engine.pool, "_timeout", 0.05)

        def nested(count: int) -> Any:
            return database.read(lambda _: nested(count + 1))

        with pytest.raises(DatabaseUnavailableError, match="all 10 sessions of this process are in use"):
            nested(0)


def limit_values(desk: Desk, length: int) -> None:
    """Have SQLite refuse longer values, as it refuses those of more than a gigabyte."""

    def limit(connection: sqlite3.Connection, _record: object) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, length)

    engine = desk.engine.database.engine
    desk.engine.database.dispose()
    sa.event.listen(engine, "connect", limit)


def test_a_result_that_is_too_large_for_the_database_is_the_failure_of_its_step(desk: Desk) -> None:
    run_id = desk.start(engine_flows.doubling, 3)
    claimed = desk.claim(run_id)
    limit_values(desk, 50_000)

    with pytest.raises(RefusedValueError, match="too big") as caught:
        desk.succeed(claimed, "x" * 60_000)
    desk.fail(claimed, caught.value, engine_flows.double)

    node = desk.node(run_id)
    assert (node.status, node.attempt) == (NodeStatus.FAILED, 1)
    assert "The database refuses a value: string or blob too big" in (node.error or "")


def test_an_error_that_is_too_large_for_the_database_is_recorded_as_that(desk: Desk) -> None:
    run_id = desk.start(engine_flows.doubling, 3)
    claimed = desk.claim(run_id)
    limit_values(desk, 1500)

    desk.fail(claimed, UnserializableValueError("result", 1, "hint " * 400), engine_flows.double)

    assert desk.node(run_id).status is NodeStatus.FAILED
    assert "string or blob too big" in (desk.node(run_id).error or "")


def forbid(desk: Desk, change: str) -> None:
    trigger = (
        f"CREATE TRIGGER forbid BEFORE UPDATE ON {change} BEGIN SELECT RAISE(ABORT, 'forbidden'); END"
    )
    desk.engine.database.transact(lambda tx: tx.execute(sa.text(trigger)))


def test_a_result_that_a_constraint_forbids_is_recorded_once_it_does_not(desk: Desk) -> None:
    run_id = desk.start(engine_flows.doubling, 3)
    claimed = desk.claim(run_id)
    forbid(desk, "nodes WHEN NEW.output IS NOT NULL")

    with pytest.raises(DatabaseUnavailableError, match="forbidden") as caught:
        desk.succeed(claimed, 6)
    assert isinstance(caught.value, ConstraintError)

    desk.engine.database.transact(lambda tx: tx.execute(sa.text("DROP TRIGGER forbid")))
    desk.succeed(claimed, 6)
    assert desk.node(run_id).status is NodeStatus.COMPLETED


def test_a_run_that_a_constraint_forbids_to_recover_holds_up_no_other(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    broken, fine = desk.start(engine_flows.doubling, 3), desk.start(engine_flows.doubling, 3)
    forbid(desk, f"runs WHEN NEW.id = '{broken}' AND NEW.dispatches > 0")
    desk.messages.clear()
    desk.clock.advance(timedelta(minutes=2))

    desk.tick()

    assert {run_id for run_id, _ in desk.messages} == {fine}
    assert "not recovered" in caplog.text


@pytest.fixture
def desk(tmp_path: Any) -> Iterator[Desk]:
    with closing(Desk(f"sqlite:///{tmp_path / 'desk.sqlite3'}", ManualClock(), "here")) as desk:
        yield desk
