"""The death of one pool process, and shutdowns that were asked for."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ckworkflow.engine.procfs import is_running
from services import PostgresProcess, absent, empty_postgres_database, postgres_program
from worker_home import WorkerHome

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from worker_home import Program

pytestmark = pytest.mark.slow

CODE = Path(__file__).parent


@pytest.fixture
def home(redis_url: str, tmp_path: Path) -> Iterator[WorkerHome]:
    """A folder whose workers are fed by Redis."""
    home = WorkerHome(tmp_path, CODE, {"workflow_packages": ["crashing"], "broker_url": redis_url})
    yield home
    home.stop()


@pytest.fixture
def embedded_home(tmp_path: Path) -> Iterator[WorkerHome]:
    """A folder without a broker."""
    home = WorkerHome(tmp_path, CODE, {"workflow_packages": ["crashing"]})
    yield home
    home.stop()


@pytest.fixture
def own_postgres() -> Iterator[PostgresProcess]:
    """A database server that can be stopped."""
    initdb, server = postgres_program("initdb"), postgres_program("postgres")
    if initdb is None or server is None:
        absent("PostgreSQL", "install postgresql: a server that is not ours cannot be stopped")
    found = PostgresProcess(initdb, server)
    yield found
    found.close()


@pytest.fixture
def program(home: WorkerHome) -> Program:
    """A program that only starts runs."""
    return home.start_program()


def tell(home: WorkerHome, place: str) -> None:
    """Let the steps of a place end."""
    (home.folder / f"{place}.go").touch()


@pytest.mark.parametrize("workflow", ["waits", "waits_async"])
def test_a_killed_pool_process_costs_its_step_one_attempt_and_its_neighbours_nothing(
    home: WorkerHome, program: Program, workflow: str
) -> None:
    home.start_worker("--pool=prefork", "--concurrency=2")
    unlucky = program.start(f"crashing.workflows:{workflow}", "unlucky")
    neighbour = program.start(f"crashing.workflows:{workflow}", "neighbour")
    cut_off = home.wait_for_note("begin", place="unlucky")
    beside = home.wait_for_note("begin", place="neighbour")
    assert cut_off["pid"] != beside["pid"]

    os.kill(cut_off["pid"], signal.SIGKILL)
    killed_at = home.wait_for(lambda: gone_at(cut_off["pid"]), "the death of the child")
    again = home.wait_for_note("begin", place="unlucky", attempt=2)
    tell(home, "unlucky")
    tell(home, "neighbour")

    assert program.result(unlucky) == "unlucky"
    assert program.result(neighbour) == "neighbour"
    print(f"prefork, {workflow}: {(again['at'] - killed_at) * 1000:.0f} ms after the child was killed")
    # At once. The message may have gone to the process that was dying: then a moment later, and not after a lease.
    assert again["at"] - killed_at < 10
    assert again["key"] == cut_off["key"]
    assert [note["attempt"] for note in begun(home, "neighbour")] == [1]
    assert [note["attempt"] for note in begun(home, "unlucky")] == [1, 2]


def test_a_pool_process_that_is_born_while_the_database_is_down_waits_for_it(
    redis_url: str, own_postgres: PostgresProcess, tmp_path: Path
) -> None:
    with empty_postgres_database(own_postgres.url) as url:
        settings = {
            "workflow_packages": ["crashing"],
            "broker_url": redis_url,
            "workflow_database_url": url,
        }
        home = WorkerHome(tmp_path, CODE, settings)
        program = home.start_program()
        home.start_worker("--pool=prefork", "--concurrency=1", "--loglevel=DEBUG")
        run = program.start("crashing.workflows:waits", "place")
        cut_off = home.wait_for_note("begin", place="place")
        log = home.folder / "worker.log"

        own_postgres.stop()
        os.kill(cut_off["pid"], signal.SIGKILL)
        home.wait_for(
            lambda: "starts without its database" in log.read_text(), "the birth of another process"
        )
        # The step's message comes back and is taken: what it meets is not a failure of the step.
        home.wait_for(lambda: log.read_text().count(f"{run}:0:1:1] received") > 1, "the message")
        own_postgres.start()
        tell(home, "place")

        assert program.result(run) == "place"
        assert [note["attempt"] for note in begun(home, "place")] == [1, 2]
        assert "raised unexpected" not in log.read_text()
        home.stop()


@pytest.mark.parametrize("pool", ["threads", "prefork", "solo"])
def test_sigterm_lets_a_step_end_and_what_follows_is_not_lost(
    home: WorkerHome, program: Program, pool: str
) -> None:
    worker = home.start_worker(f"--pool={pool}", "--concurrency=2")
    run = program.start("crashing.workflows:waits", "place")
    home.wait_for_note("begin", place="place")

    worker.terminate()
    home.wait_for_note("stopping")
    tell(home, "place")

    assert ended(home, worker) == 0
    assert statuses(program, run)[0] == "completed"
    assert registered(home) == 0
    home.start_worker(f"--pool={pool}", "--concurrency=2")
    assert program.result(run) == "place"
    assert [note["attempt"] for note in home.journal("begin")] == [1, 1]


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_sigterm_releases_an_async_step_that_outlasts_the_grace_time(
    home: WorkerHome, program: Program, pool: str
) -> None:
    worker = home.start_worker(f"--pool={pool}", "--concurrency=2", GRACE_SECONDS="0.2")
    run = program.start("crashing.workflows:waits_async", "place")
    cut_off = home.wait_for_note("begin", place="place")

    worker.terminate()

    assert ended(home, worker) == 0
    assert statuses(program, run) == ["planned", "planned"]
    tell(home, "place")
    home.start_worker(f"--pool={pool}", "--concurrency=2")
    assert program.result(run) == "place"
    again = home.wait_for_note("begin", place="place", attempt=2)
    up = home.journal("up")[1]
    print(
        f"released at a shutdown: {(again['at'] - up['at']) * 1000:.0f} ms after the new worker was up"
    )
    assert again["key"] == cut_off["key"]
    assert again["at"] - up["at"] < 2


def test_leaving_an_embedded_worker_lets_a_step_end(embedded_home: WorkerHome) -> None:
    program = embedded_home.start_program(embedded=True)
    run = program.start("crashing.workflows:waits", "place")
    embedded_home.wait_for_note("begin", place="place")

    program.leave()
    tell(embedded_home, "place")

    assert ended(embedded_home, program.process) == 0

    after = embedded_home.start_program(embedded=True)
    assert after.result(run) == "place"
    assert [note["attempt"] for note in embedded_home.journal("begin")] == [1, 1]


def begun(home: WorkerHome, place: str) -> list[dict[str, object]]:
    return [note for note in home.journal("begin", place=place) if note["step"] != "second"]


def registered(home: WorkerHome) -> int:
    """How many processes say in the database that they live."""
    with contextlib.closing(sqlite3.connect(home.folder / "ckworkflow.sqlite3")) as database:
        (count,) = database.execute("SELECT count(*) FROM processes").fetchone()
    return int(count)


def statuses(program: Program, run_id: str) -> list[str]:
    return [step["status"] for step in program.steps(run_id)]


def ended(home: WorkerHome, process: subprocess.Popen[str]) -> int:
    """Wait for the end of a process; its exit code."""
    home.wait_for(lambda: process.poll() is not None, "the end of the process")
    return process.returncode


def gone_at(pid: int) -> float | None:
    """The time, once a killed process is dead or a zombie."""
    return None if is_running(pid) else time.time()
