"""Sees every change of state in an SQLite database, by triggers, and holds it to the tables of `ckworkflow.life`."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from ckworkflow.life import (
    CHILD_CHANGES,
    CLOSE_CHANGES,
    HOOK_CHANGES,
    RUN_CHANGES,
    SLEEP_CHANGES,
    STEP_CHANGES,
    Change,
)
from ckworkflow.store.database import Database
from ckworkflow.store.transaction import Transaction

_SEEN = """
CREATE TABLE IF NOT EXISTS seen_changes (
    what TEXT, before TEXT, after TEXT, PRIMARY KEY (what, before, after)
)"""
_TRIGGER = """
CREATE TRIGGER IF NOT EXISTS see_{table}_{event} AFTER {event} ON {table} {when} BEGIN
    INSERT OR IGNORE INTO seen_changes VALUES ({what}, {before}, {after});
END"""
_WHAT = {"runs": "'run'", "nodes": "{row}.kind"}


def install(database: Database) -> None:
    """Begin to note the changes of state in a database."""

    def work(tx: Transaction) -> None:
        tx.execute(sa.text(_SEEN))
        for table, what in _WHAT.items():
            for event, row, before, after in (
                ("INSERT", "new", "'-'", "new.status"),
                ("UPDATE", "new", "old.status", "new.status"),
                ("DELETE", "old", "old.status", "'-'"),
            ):
                when = "WHEN old.status <> new.status" if event == "UPDATE" else ""
                if (table, event) == ("nodes", "DELETE"):
                    # Those of lives before are deleted however they are, and the others with their run.
                    when = "WHEN old.life = (SELECT life FROM runs WHERE id = old.run_id)"
                tx.execute(
                    sa.text(
                        _TRIGGER.format(
                            table=table,
                            event=event,
                            when=when,
                            what=what.format(row=row),
                            before=before,
                            after=after,
                        )
                    )
                )

    database.transact(work)


def seen(database: Database) -> set[tuple[str, str, str]]:
    """The changes that were noted: of what, from which state, to which; `-` where there is no row."""
    rows = database.read(lambda tx: tx.execute(sa.text("SELECT * FROM seen_changes")).all())
    return {(row[0], row[1], row[2]) for row in rows}


def _told(what: str, changes: Iterable[Change[object]]) -> set[tuple[str, str, str]]:
    return {(what, str(each.before or "-"), str(each.after or "-")) for each in changes}


ALLOWED = (
    _told("run", RUN_CHANGES)
    | _told("step", STEP_CHANGES)
    | _told("sleep", SLEEP_CHANGES)
    | _told("hook", HOOK_CHANGES)
    | _told("close", CLOSE_CHANGES)
    | _told("child", CHILD_CHANGES)
    | {("cancel", "-", "completed")}
)


def check(database: Database) -> None:
    """Assert that every change was one that the tables know."""
    unknown = seen(database) - ALLOWED
    assert not unknown, f"changes of state that ckworkflow.life does not know: {unknown}"
