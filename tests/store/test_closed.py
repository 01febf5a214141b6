"""A database that is closed for good keeps no session open, whoever still opens one."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from ckworkflow.store.database import Database


def test_what_is_opened_after_the_close_is_closed_after_its_work(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'runs.sqlite3'}")
    opened: list[object] = []
    sa.event.listen(database.engine, "connect", lambda raw, _: opened.append(raw))
    closed: list[object] = []
    sa.event.listen(database.engine, "close_detached", lambda raw: closed.append(raw))
    database.close()

    database.read(lambda tx: tx.execute(sa.text("SELECT 1")).all())
    database.transact(lambda tx: tx.execute(sa.text("CREATE TABLE t (a INTEGER)")))

    assert len(opened) == len(closed) == 2
