"""`ckworkflow runs` and `ckworkflow db`: what the database says, and its schema."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from ckworkflow.engine import holding
from ckworkflow.engine.core import Engine
from ckworkflow.engine.settings import Settings
from ckworkflow.model import NodeId, RunId
from ckworkflow.store import Database, nodes, runs, tables

if TYPE_CHECKING:
    from cli_project import Project

pytestmark = pytest.mark.slow


def test_an_empty_database_is_told_with_its_name(project: Project) -> None:
    project.command("db", "upgrade")

    said = project.command("runs", "list")

    assert said == f"There are no runs in sqlite:///{project.folder}/ckworkflow.sqlite3.\n"
    assert project.data("runs", "list") == []


def test_where_nothing_was_started_readers_say_so_and_make_no_file(project: Project) -> None:
    project.configure(workflow_database_url="sqlite:///data/runs.sqlite3")
    before = sorted(path for path in project.folder.rglob("*") if "__pycache__" not in path.parts)

    for words in (("runs", "list"), ("runs", "show", "x"), ("db", "prune", "--older-than", "1d")):
        said = project.error(*words)
        assert (
            f"sqlite:///{project.folder}/data/runs.sqlite3 cannot be used: there is no such file" in said
        )
    assert (
        sorted(path for path in project.folder.rglob("*") if "__pycache__" not in path.parts) == before
    )


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
    hold = database.transact(
        lambda tx: holding.hold_spin(tx, runs.lock_run(tx, RunId(run_id), database).get(), 0)
    )
    database.dispose()

    said = project.command("runs", "show", run_id)
    assert f"status     running, held until {hold.until:%Y-%m-%d %H:%M:%S UTC}\n" in said
    assert f"\nheld       {hold.reason}\n" in said
    assert f"running, held until {hold.until:%Y-%m-%d %H:%M:%S UTC}" in project.command("runs", "list")
    shown = project.data("runs", "show", run_id)
    assert datetime.fromisoformat(shown["held_until"]) == hold.until
    assert shown["held"] == hold.reason


def test_a_held_step_is_told_with_its_reason(project: Project) -> None:
    run_id = RunId(project.start("greeting, '42'"))
    url = f"sqlite:///{project.folder / 'ckworkflow.sqlite3'}"
    engine = Engine(Settings(database_url=url), lambda *_: True)
    node = engine.database.read(lambda tx: nodes.load_node(tx, run_id, NodeId("0:1")).get())
    assert node is not None
    holding.hold_unknown_step(engine, run_id, node.node_id, node.generation, step=node.name)
    engine.database.dispose()

    said = project.command("runs", "show", run_id)
    assert ", held until " in said
    assert (
        f"\nheld       Step greet (0:1) cannot run: This process knows no step named '{node.name}'. "
        in said
    )
    assert project.data("runs", "list")[0]["held"].startswith("Step greet (0:1) cannot run: ")


def test_of_a_long_run_what_is_completed_is_folded(project: Project) -> None:
    run_id = RunId(project.start("returns, 3"))
    database = Database(f"sqlite:///{project.folder / 'ckworkflow.sqlite3'}")
    now = datetime.now(UTC)
    rows = [
        {
            "run_id": run_id, "node_id": f"0:{number + 10}", "position": 10**9 + number,
            "kind": "sleep" if number % 2 else "step", "name": "sleep" if number % 2 else "flows.poll", "line": 1,
            "generation": 1, "args": "{}", "status": "failed" if number == 900 else "completed", "unmet": 0,
            "next": "[]", "created_at": now,
        }
        for number in range(1_000)
    ]  # fmt: skip
    database.transact(lambda tx: tx.execute(sa.insert(tables.nodes), rows))
    database.dispose()

    said = project.command("runs", "show", run_id)
    assert "\n… 890 more, completed: 445 sleep, 445 poll (--all shows them)\n" in said
    assert "\n… 89 more, completed: 45 poll, 44 sleep (--all shows them)\n" in said
    assert "\n0:910 " in said  # the failed one
    assert len(said.splitlines()) < 50
    whole = project.command("runs", "show", run_id, "--all")
    assert all(f"\n{row['node_id']} " in whole for row in rows)
    assert "more, completed" not in whole


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


def put(project: Project, run_id: str, **values: str) -> None:
    """Write columns of a run, as somebody who can write to the database."""
    with contextlib.closing(sqlite3.connect(project.folder / "ckworkflow.sqlite3")) as file, file:
        for name, value in values.items():
            file.execute(f"UPDATE runs SET {name} = ? WHERE id = ?", (value, run_id))  # noqa: S608


def test_show_imports_nothing_for_a_name_in_the_database(project: Project) -> None:
    run_id = project.start("returns, 3")
    project.write("trap.py", "import pathlib; pathlib.Path('sprung').touch()\nclass E: pass\n")
    put(project, run_id, output='{"$":"enum","t":"trap:E","v":"A"}')

    assert '"trap:E"' in project.command("runs", "show", run_id)
    assert project.data("runs", "show", run_id)["return_value"]["t"] == "trap:E"
    assert not (project.folder / "sprung").exists()


def test_no_text_in_the_database_commands_the_terminal(project: Project) -> None:
    run_id = project.start("breaks")
    order = "\x1b]0;owned\x07 \x9b2J \x08\x7f \u202etxt.exe"
    error = {"type": f"m:{order}", "message": order, "traceback": f'T:\n  File "x"\n{order}\n'}
    put(project, run_id, error=json.dumps({**error, "cause": error}), workflow=f"w.{order}", held=None)

    said = [
        project.command("runs", "show", run_id),
        project.command("runs", "list"),
        project.command("runs", "list", "--json"),
        project.command("runs", "show", run_id, "--json"),
        project.error("runs", "show", order),
        project.error("plan", order),
    ]

    for text in said:
        assert [
            character for character in text if character != "\n" and not character.isprintable()
        ] == []
    assert r"caused by  \x1b]0;owned\x07 \x9b2J \x08\x7f \u202etxt.exe: \x1b]0;owned" in said[0]
    assert r"w.\x1b]0;owned" in said[1]


def test_show_tells_when_each_step_began_how_long_it_took_and_what_it_returned(project: Project) -> None:
    run_id = project.python(
        """
        import logging; logging.disable()
        from ckworkflow import start_sync
        from ckworkflow.testing import worker
        from workflows.flows import naps_a_little
        with worker():
            run = start_sync(naps_a_little, "42")
            run.return_value(timeout=30)
            print(run.run_id)
        """
    )

    said = project.command("runs", "show", run_id).splitlines()
    header = next(line for line in said if line.startswith("NODE"))
    assert header.split() == ["NODE", "STEP", "STATUS", "ATTEMPTS", "STARTED", "TOOK", "DUE", "RESULT"]
    verified, slept = (line for line in said if line.startswith("0:"))
    assert verified.endswith("  True")
    assert slept.endswith("  -")
    for line, least in ((verified, 0.0), (slept, 0.2)):
        began, took = line[header.index("STARTED") :][:23], line[header.index("TOOK") :].split()[0]
        assert datetime.strptime(began, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC) <= datetime.now(UTC)
        assert least <= float(took.removesuffix("s")) < 10
    steps = project.data("runs", "show", run_id)["steps"]
    assert [step["result"] for step in steps] == [True, None]


def test_an_id_may_be_cut_short_where_only_one_run_begins_like_that(project: Project) -> None:
    run_id = project.start("returns, 3")
    assert project.data("runs", "show", run_id[:6])["run_id"] == run_id

    twin = run_id[:8] + ("1" if run_id[8] == "0" else "0") + run_id[9:]
    database = Database(f"sqlite:///{project.folder / 'ckworkflow.sqlite3'}")
    run = database.transact(lambda tx: runs.lock_run(tx, RunId(run_id), database).get())
    database.transact(
        lambda tx: runs.insert_run(tx, run._replace(run_id=RunId(twin)), input_="null", wake_at=None)
    )
    database.dispose()

    first, second = sorted((run_id, twin))
    assert project.error("runs", "show", run_id[:8]) == (
        f"The ids of 2 runs begin with '{run_id[:8]}': {first}, {second}. Give more of the id."
    )
    assert project.data("runs", "show", run_id[:9])["run_id"] == run_id
    assert project.error("runs", "show", "%").startswith("No run has the id '%'")


def test_an_unknown_run_is_one_sentence(project: Project) -> None:
    project.command("db", "upgrade")

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

    url = f"sqlite:///{project.folder}/ckworkflow.sqlite3"
    assert said.startswith(f"The schema of {url} is up to date (revision ")


def test_upgrade_in_a_folder_without_settings_makes_no_database(project: Project) -> None:
    (project.folder / "celeryconfig.py").unlink()

    said = project.error("db", "upgrade")

    assert f"and no celeryconfig.py in {project.folder}: run this in the bot's folder" in said
    assert not list(project.folder.glob("*.sqlite3"))


def test_a_server_database_waits_for_its_upgrade(project: Project, postgres_url: str) -> None:
    project.configure(workflow_database_url=postgres_url)

    assert "Run `ckworkflow db upgrade`" in project.error("runs", "list")
    project.command("db", "upgrade")
    project.command("db", "upgrade")
    assert project.data("runs", "list") == []


def test_a_limit_that_no_database_takes_is_refused_in_a_sentence(project: Project) -> None:
    done = project.run("ckworkflow", "runs", "list", "--limit", str(10**21))

    assert done.returncode == 2
    assert f"Invalid value for '--limit': {10**21} is not in the range 1<=x<=1000000" in done.stderr
    assert "Traceback" not in done.stderr
