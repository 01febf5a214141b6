"""Steps that are told to stop in real workers: another process cancels, clean-up never overtakes, workers die meanwhile."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from worker_home import WorkerHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

CODE = Path(__file__).parent


@pytest.fixture
def make_home(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], WorkerHome]]:
    """Makes a folder for workers on the embedded broker and SQLite, or on Redis and PostgreSQL."""
    homes: list[WorkerHome] = []

    def make(place: str) -> WorkerHome:
        settings: dict[str, object] = {"workflow_packages": ["stopped_flows"]}
        if place == "servers":
            settings |= {
                "broker_url": request.getfixturevalue("redis_url"),
                "workflow_database_url": request.getfixturevalue("postgres_url"),
            }
        homes.append(WorkerHome(tmp_path, CODE, settings))
        return homes[-1]

    yield make
    for home in homes:
        home.stop()


@pytest.mark.parametrize(
    ("place", "pool"), [("embedded", "threads"), ("servers", "threads"), ("servers", "prefork")]
)
@pytest.mark.parametrize("workflow", ["buys", "buys_plainly"])
def test_a_step_in_another_process_is_told_and_its_clean_up_follows(
    make_home: Callable[[str], WorkerHome], place: str, pool: str, workflow: str
) -> None:
    home = make_home(place)
    home.start_worker(f"--pool={pool}", "--concurrency=2")
    program = home.start_program()
    run_id = program.start(f"stopped_flows:{workflow}", "here")
    home.wait_for_note("charge begins", place="here")
    assert program.cancel(run_id, reason="enough")
    home.wait_for_note("refund", place="here")
    home.wait_for(lambda: program.ask("status", run_id) == "cancelled", "the end of the run")
    home.wait_for_note("charge ends", place="here", told=True)
    if workflow == "buys":
        assert [note["what"] for note in home.journal()] == ["charge begins", "charge ends", "refund"]


def test_a_deadline_stops_the_step_of_its_own_process(make_home: Callable[[str], WorkerHome]) -> None:
    home = make_home("embedded")
    program = home.start_program(embedded=True)
    run_id = program.start("stopped_flows:buys_in_time", "here")
    assert program.result(run_id) == "refunded"
    assert [note["what"] for note in home.journal()] == ["charge begins", "charge ends", "refund"]


@pytest.mark.parametrize("place", ["embedded", "servers"])
def test_the_clean_up_waits_for_a_step_that_takes_its_time_and_for_the_death_of_its_worker(
    make_home: Callable[[str], WorkerHome], place: str
) -> None:
    home = make_home(place)
    doomed = home.start_worker("--pool=threads", "--concurrency=2")
    program = home.start_program()
    (home.folder / "here.slow").touch()
    run_id = program.start("stopped_flows:buys", "here")
    home.wait_for_note("charge begins", place="here")
    assert program.cancel(run_id)
    home.wait_for(
        lambda: program.ask("told", run_id), "the telling of the body"
    )  # and the step does not end
    assert home.journal("refund") == []
    os.killpg(doomed.pid, signal.SIGKILL)
    home.start_worker("--pool=threads", "--concurrency=2")
    home.wait_for_note("refund", place="here")
    home.wait_for(lambda: program.ask("status", run_id) == "cancelled", "the end of the run")
    assert home.journal("charge ends") == []
    assert len(home.journal("charge begins")) == 1
