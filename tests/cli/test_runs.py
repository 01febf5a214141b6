"""`ckworkflow runs` and `ckworkflow db`: what the database says, and its schema."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from ckworkflow.engine import spinning
from ckworkflow.model import RunId
from ckworkflow.store import Database, runs

if TYPE_CHECKING:
    from cli_project import Project

pytestmark = pytest.mark.slow


def test_an_empty_database_is_told_with_its_name(project: Project) -> None:
    assert project.command("runs", "list") == "There are no runs in sqlite:///ckworkflow.sqlite3.\n"
    assert project.data("runs", "list") == []


def test_list_shows_the_newest_first_and_filters(project: Project) -> None:
    done, failed, asleep = (project.start(call) for call in ("returns, 3", "breaks", "naps, '42'"))

    assert [run["run_id"] for run in project.data("runs", "list")] == [asleep, failed, done]
    assert [run["run_id"] for run in project.data("runs", "list", "--status", "failed")] == [failed]
    assert [run["run_id"] for run in project.data("runs", "list", "--limit", "1")] == [asleep]
    for name in ("returns", "workflows.flows.returns"):
        assert [run["run_id"] for run in project.data("runs", "list", "--workflow", name)] == [done]
    lines = project.command("runs", "list").splitlines()
    assert lines[0].split() == ["RUN", "WORKFLOW", "STATUS", "CREATED"]
    assert [line.split()[0] for line in lines[1:]] == [asleep, failed, done]


def test_a_run_that_only_sleeps_says_until_when(project: Project) -> None:
    run_id = project.start("naps, '42'")

    shown = project.data("runs", "show", run_id)
    until = datetime.fromisoformat(shown["sleeping_until"])
    assert timedelta(days=6, hours=23) < until - datetime.now(UTC) <= timedelta(days=7)
    assert shown["status"] == "running"
    assert [(step["name"], step["kind"], step["status"]) for step in shown["steps"]] == [
        ("sleep", "sleep", "running"),
        ("workflows.flows.greet", "step", "planned"),
    ]
    assert datetime.fromisoformat(shown["steps"][0]["due_at"]) == until
    words = f"running, sleeping until {until:%Y-%m-%d %H:%M:%S UTC}"
    assert words in project.command("runs", "show", run_id)
    assert words in project.command("runs", "list")


def test_show_tells_the_next_wake_of_a_live_run_and_that_no_worker_is_alive(project: Project) -> None:
    said = project.command("runs", "show", project.start("naps, '42'"))

    assert "\nnext wake  " in said
    assert "No worker is alive" in said


def test_a_held_run_says_until_when_and_why(project: Project) -> None:
    run_id = project.start("naps, '42'")
    database = Database(f"sqlite:///{project.folder / 'ckworkflow.sqlite3'}")
    hold = database.transact(lambda tx: spinning.hold(tx, runs.lock_run(tx, RunId(run_id), database), 0))
    database.dispose()

    said = project.command("runs", "show", run_id)
    assert f"status     running, held until {hold.until:%Y-%m-%d %H:%M:%S UTC}\n" in said
    assert f"\nheld       {hold.reason}\n" in said
    assert f"running, held until {hold.until:%Y-%m-%d %H:%M:%S UTC}" in project.command("runs", "list")
    shown = project.data("runs", "show", run_id)
    assert datetime.fromisoformat(shown["held_until"]) == hold.until
    assert shown["held"] == hold.reason


def test_a_run_with_a_step_to_do_does_not_count_as_sleeping(project: Project) -> None:
    shown = project.data("runs", "show", project.start("greeting, '42'"))

    assert (shown["status"], shown["sleeping_until"]) == ("pending", None)


def test_show_tells_input_and_output(project: Project) -> None:
    run_id = project.start("returns, 3")

    said = project.command("runs", "show", run_id)
    assert "input      returns(3)\n" in said
    assert "output     {'value': 3, 'parts': {1}}\n" in said
    assert "status     completed\n" in said
    shown = project.data("runs", "show", run_id)
    assert shown["input"] == {"args": [3], "kwargs": {}}
    assert shown["return_value"]["value"] == 3
    assert (shown["error"], shown["wake_at"], shown["steps"]) == (None, None, [])


def test_show_tells_the_error_of_a_failed_run_and_where_it_arose(project: Project) -> None:
    run_id = project.start("breaks")

    said = project.command("runs", "show", run_id)
    assert "error      FatalError: it is broken\n" in said
    assert 'raise FatalError("it is broken")' in said
    assert project.data("runs", "show", run_id)["error"] == "FatalError: it is broken"


def test_show_tells_attempts_and_the_cause_in_the_users_own_code(project: Project) -> None:
    run_id = project.python(
        """
        import logging; logging.disable()
        from ckworkflow import RunFailedError, start_sync
        from ckworkflow.testing import worker
        from workflows.flows import struggles
        with worker():
            run = start_sync(struggles, "socks")
            try:
                run.return_value(timeout=30)
            except RunFailedError:
                print(run.run_id)
        """
    )

    shown = project.data("runs", "show", run_id)
    assert [(step["name"], step["status"], step["attempt"]) for step in shown["steps"]] == [
        ("workflows.flows.verify_member", "completed", 1),
        ("workflows.flows.flaky", "failed", 2),
    ]
    assert "ValueError: no luck with socks" in shown["steps"][1]["error"]
    said = project.command("runs", "show", run_id)
    assert "\ncaused by  ValueError: no luck with socks\n" in said
    assert 'raise ValueError("no luck with " + text)' in said


def test_an_unknown_run_is_one_sentence(project: Project) -> None:
    said = project.error("runs", "show", "nothing")

    assert said.startswith("No run has the id 'nothing' in this database.")


def test_a_database_that_cannot_be_reached_is_one_sentence_without_the_password(
    project: Project,
) -> None:
    project.configure(workflow_database_url="postgresql+psycopg://bot:secret@127.0.0.1:1/none")

    for words in (["runs", "list"], ["db", "upgrade"]):
        said = project.error(*words)
        assert "postgresql+psycopg://bot:***@127.0.0.1:1/none cannot be reached" in said


def test_upgrade_of_a_sqlite_file_says_where_it_is(project: Project) -> None:
    said = project.command("db", "upgrade")

    assert said.startswith("The schema of sqlite:///ckworkflow.sqlite3 is up to date (revision ")


def test_a_server_database_waits_for_its_upgrade(project: Project, postgres_url: str) -> None:
    project.configure(workflow_database_url=postgres_url)

    assert "Run `ckworkflow db upgrade`" in project.error("runs", "list")
    project.command("db", "upgrade")
    project.command("db", "upgrade")
    assert project.data("runs", "list") == []
