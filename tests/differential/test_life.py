"""The tables of `ckworkflow.life`, and the watch that holds the arena's databases to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ckworkflow.life import (
    CHILD_CHANGES,
    CLOSE_CHANGES,
    HOOK_CHANGES,
    RUN_CHANGES,
    SLEEP_CHANGES,
    STEP_CHANGES,
)
from ckworkflow.model import NodeStatus, RunStatus
from ckworkflow.store import schema
from ckworkflow.store.database import Database
from differential import life_watch


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'runs.sqlite3'}")
    schema.upgrade(database)
    life_watch.install(database)
    yield database
    database.dispose()


def say(database: Database, words: str) -> None:
    database.transact(lambda tx: tx.execute(sa.text(words)))


def insert(database: Database, status: str) -> None:
    say(
        database,
        "INSERT INTO runs (id, workflow, source_hash, status, input, wake_at, created_at) "
        f"VALUES ('{status}', 'w', '', '{status}', 'null', 0, 0)",
    )


def test_a_change_that_the_tables_know_is_let_pass(database: Database) -> None:
    insert(database, "pending")
    say(database, "UPDATE runs SET status = 'running', wake_at = 1")
    say(database, "UPDATE runs SET wake_at = 2")

    life_watch.check(database)
    assert life_watch.seen(database) == {("run", "-", "pending"), ("run", "pending", "running")}


@pytest.mark.parametrize("words", ["UPDATE runs SET status = 'pending'", "DELETE FROM runs"])
def test_a_change_that_they_do_not_know_is_found(database: Database, words: str) -> None:
    insert(database, "running")
    say(database, words)

    with pytest.raises(AssertionError, match="ckworkflow.life does not know"):
        life_watch.check(database)


@pytest.mark.parametrize(
    ("changes", "states"),
    [
        (RUN_CHANGES, set(RunStatus)),
        (STEP_CHANGES, set(NodeStatus)),
        (SLEEP_CHANGES, set(NodeStatus) - {NodeStatus.FAILED}),
        (HOOK_CHANGES, {NodeStatus.COMPLETED, NodeStatus.FAILED}),
        (CLOSE_CHANGES, {NodeStatus.PLANNED, NodeStatus.COMPLETED}),
        (CHILD_CHANGES, set(NodeStatus) - {NodeStatus.PLANNED}),
    ],
)
def test_every_state_is_reached_and_no_change_is_told_twice(changes: Any, states: set[Any]) -> None:
    reached, before = set[Any](), {None}
    while before - reached:
        reached |= before
        before = {change.after for change in changes if change.before in reached} - {None}
    assert reached - {None} == states
    ways = [(change.before, change.after) for change in changes]
    assert len(ways) == len(set(ways))
    assert all(change.before is not change.after for change in changes)
