"""What an error leaves behind that comes only when a pipeline is at its end."""

from __future__ import annotations

from contextlib import closing

import pytest
import sqlalchemy as sa

import engine_flows
from ckworkflow.store import database as store
from ckworkflow.store import runs
from ckworkflow.store.tables import runs as table
from ckworkflow.store.transaction import Prepared, Transaction
from ckworkflow.store.verdicts import ConstraintError
from desk import Desk, ManualClock

UNREAD = Prepared(
    sa.update(table).values(status=sa.bindparam("v_status")).where(table.c.id == sa.bindparam("b_run"))
)


def test_an_error_that_a_commit_meets_leaves_a_connection_as_it_was(postgres_url: str) -> None:
    with closing(Desk(postgres_url, ManualClock(), "here")) as desk:
        run_id = desk.start(engine_flows.doubling, 3)
        database = desk.engine.database

        def break_off(tx: Transaction) -> None:
            tx.execute(UNREAD, {"b_run": run_id, "v_status": None})  # nobody reads what comes of it

        with pytest.raises(ConstraintError):
            database.transact(break_off)

        # One connection is in the pool, and it is that one.
        assert database.transact(lambda tx: runs.lock_run(tx, run_id, database).get()).run_id == run_id
        statuses = database.transact(
            lambda tx: (runs.read_status(tx, run_id), tx.connection.connection.pgconn.pipeline_status)
        )
        assert statuses == ("pending", 0)


def test_a_rollback_forgets_no_prepared_statement(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "RETRIES", 1)  # a session that has forgotten one would be given up
    with closing(Desk(postgres_url, ManualClock(), "here")) as desk:
        run_id = desk.start(engine_flows.doubling, 3)
        database = desk.engine.database

        def ask_often(tx: Transaction) -> None:
            runs.lock_run(tx, run_id, database).get()
            for _ in range(10):
                tx.execute(sa.select(sa.func.count()).select_from(table))
            raise LookupError

        for _ in range(2):
            with pytest.raises(LookupError):
                database.transact(ask_often)

        assert database.transact(lambda tx: runs.lock_run(tx, run_id, database).get()).run_id == run_id
