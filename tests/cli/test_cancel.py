"""`ckworkflow runs cancel`: what it ends, what it says, and what it refuses."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cli_project import Project

pytestmark = pytest.mark.slow


def status_of(project: Project, run_id: str) -> str:
    (found,) = [run for run in project.data("runs", "list") if run["run_id"] == run_id]
    status: str = found["status"]
    return status


def test_a_run_is_cancelled_here_and_now_and_shows_why(project: Project) -> None:
    run_id = project.start("naps, '42'")

    said = project.command("runs", "cancel", run_id[:12], "--reason", "the member has left")

    assert said == f"Run {run_id} is cancelled.\n"
    shown = project.command("runs", "show", run_id)
    assert ": the member has left" in shown
    assert "status     cancelled" in shown
    assert "Traceback" not in shown
    assert "error" not in shown
    assert project.data("runs", "show", run_id)["cancel_reason"] == "the member has left"
    assert project.command("runs", "cancel", run_id) == f"Run {run_id} had ended already: cancelled.\n"


def test_what_is_terminated_says_that_its_clean_up_was_cut_off(project: Project) -> None:
    run_id = project.start("naps, '42'")
    project.command("runs", "cancel", run_id, "--terminate")
    assert "RunTerminatedError" in project.command("runs", "show", run_id)


def test_a_clean_up_goes_on_and_its_end_is_shown(project: Project) -> None:
    project.write(
        "workflows/cleaning.py",
        """
        from ckworkflow import sleep, step, workflow

        @step
        async def tidy():
            pass

        @workflow
        async def cleans():
            try:
                await sleep("1 day")
            finally:
                await tidy()

        @workflow
        async def stays():
            try:
                await sleep("1 day")
            except BaseException:
                return "stays"
        """,
    )
    cleaning, staying = (project.start(name, "cleaning") for name in ("cleans", "stays"))

    said = project.command("runs", "cancel", cleaning, "--grace", "1 hour")
    assert said.startswith(f"Run {cleaning} was asked to end, and cleans up.")
    assert "No worker is alive" in said
    assert "had been asked to end already" in project.command("runs", "cancel", cleaning)
    shown = project.command("runs", "show", cleaning)
    assert "running, to be cancelled" in shown
    assert "terminate  " in shown
    assert project.data("runs", "show", cleaning)["terminate_at"] is not None
    said = project.command("runs", "cancel", staying)
    assert said == f"Run {staying} was asked to end, and its body has chosen how: completed.\n"


def test_all_runs_of_a_workflow_are_cancelled_and_of_no_other(project: Project) -> None:
    napping = [project.start("naps, '42'") for _ in range(2)]
    other = project.start("naps_a_little, '42'")

    assert project.command("runs", "cancel", "--workflow", "naps") == "2 runs asked to end.\n"

    assert [status_of(project, run_id) for run_id in napping] == ["cancelled"] * 2
    assert status_of(project, other) == "pending"
    assert project.command("runs", "cancel", "--workflow", "naps") == "0 runs asked to end.\n"


def test_a_name_that_is_nobodys_or_several_ones_cancels_nothing_and_says_so(project: Project) -> None:
    run_id = project.start("naps, '42'")
    assert "No workflow is named 'napps'. Did you mean: " in project.error(
        "runs", "cancel", "--workflow", "napps"
    )
    project.write(
        "workflows/more.py",
        """
        from ckworkflow import sleep, workflow

        @workflow
        async def naps():
            await sleep("1 day")
        """,
    )
    for command in ("cancel", "list"):
        assert "2 workflows end in 'naps'" in project.error("runs", command, "--workflow", "naps")
    assert status_of(project, run_id) == "running"


def test_an_unknown_id_does_not_keep_the_others(project: Project) -> None:
    run_id = project.start("naps, '42'")
    done = project.run("ckworkflow", "runs", "cancel", "f" * 32, run_id)
    assert done.returncode == 1
    assert "No run has the id" in done.stderr
    assert done.stdout == f"Run {run_id} is cancelled.\n"
    assert status_of(project, run_id) == "cancelled"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Give the ids of runs, or --workflow."),
        (("x", "--workflow", "naps"), "Give the ids of runs, or --workflow."),
        (("--workflow", "naps", "--terminate"), "--terminate goes with RUN_ID;"),
        (("x", "--grace", "5s", "--terminate"), "give one of them"),
        (("x", "--grace", "soon"), "'soon' is no time span"),
    ],
)
def test_what_makes_no_sense_is_refused(project: Project, words: tuple[str, ...], said: str) -> None:
    done = project.run("ckworkflow", "runs", "cancel", *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_step_that_was_told_to_stop_has_a_word_of_its_own(project: Project) -> None:
    run_id = project.start("naps, '42'")
    with sqlite3.connect(project.folder / "ckworkflow.sqlite3") as connection:
        connection.execute(
            "INSERT INTO nodes (run_id, node_id, position, kind, name, line, generation, args, status, unmet, next, "
            "attempt, owner, cancelled_at, created_at) VALUES (?, '0:9', 9, 'step', 'charge', 1, 1, "
            "'{\"args\":[],\"kwargs\":{}}', 'running', 0, '[]', 1, 'somebody', 1, 1)",
            (run_id,),
        )
    assert "charge  stopping" in project.command("runs", "show", run_id)
