"""`ckworkflow db prune`: what it deletes, what it says, and what it refuses."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from ckworkflow.cli.entry import _ckworkflow

if TYPE_CHECKING:
    from click.testing import Result

    from cli_project import Project

ABOUT = r"that ended before \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC in sqlite:////\S+/ckworkflow.sqlite3"
MONTH = 31 * 86_400_000_000  # microseconds


def sql(project: Project, statement: str) -> list[Any]:
    with (
        contextlib.closing(sqlite3.connect(project.folder / "ckworkflow.sqlite3")) as database,
        database,
    ):
        return database.execute(statement).fetchall()


@pytest.mark.slow
def test_it_says_what_it_would_delete_and_deletes_no_more_than_that(project: Project) -> None:
    project.python(
        """
        import logging; logging.disable()
        from ckworkflow import start_sync
        from workflows.flows import *
        for body in (breaks, breaks, returns, naps, returns):
            start_sync(body, *["42"][:body in (returns, naps)])
        """
    )
    sql(
        project,
        f"UPDATE runs SET created_at = created_at - {MONTH}, finished_at = finished_at - {MONTH} "
        f"WHERE rowid < 5",
    )
    prune = ("db", "prune", "--older-than", "30d")
    narrow = ("--status", "failed", "--status", "cancelled")

    dry = project.run("celery", "-A", "ckworkflow", "workflow", *prune, "--dry-run").stdout
    real = project.command(*prune, *narrow)
    again = project.command(*prune, *narrow)

    assert re.fullmatch(rf"Would delete 3 runs {ABOUT}: 1 completed, 2 failed\.\n", dry)
    assert re.fullmatch(rf"Deleted 2 runs {ABOUT}: 2 failed\. Rows in all: 2\.\n", real)
    assert re.fullmatch(rf"There are no failed or cancelled runs {ABOUT}\.\n", again)
    left = sql(project, "SELECT status FROM runs ORDER BY rowid")
    assert left == [("completed",), ("running",), ("completed",)]


def refused(*words: str) -> Result:
    result = CliRunner().invoke(_ckworkflow, ["db", "prune", *words])
    assert "Traceback" not in result.output
    return result


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        ("30", "'30' is not a time span: the number 30 has no unit"),
        ("a month", "'a month' is not a time span: 'a month' is not a number and a unit"),
        ("-1d", "'-1d' is not a time span: it is negative"),
    ],
)
def test_a_bad_time_span_is_one_sentence(span: str, reason: str) -> None:
    said = refused(f"--older-than={span}")

    assert said.exit_code == 1
    assert said.output.startswith(f"Error: {reason}")
    assert len(said.output.splitlines()) == 1


def test_a_live_status_is_refused_and_the_others_are_named() -> None:
    said = refused("--older-than", "30d", "--status", "running")

    assert said.exit_code == 2
    assert "'running' is not one of 'completed', 'failed', 'cancelled'" in said.output


def test_the_age_must_be_given() -> None:
    said = refused()

    assert said.exit_code == 2
    assert "Missing option '--older-than'" in said.output
