"""Celery's time limits, and signals to the processes of a prefork pool."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from ckworkflow.engine.identity import pid_started
from worker_home import WorkerHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

CODE = Path(__file__).parent
CARRIED = [
    "carried_by_its_message", "carried_on_a_lane", "carried_by_a_thread", "carried_by_another_thread",
]  # fmt: skip


@pytest.fixture
def make_home(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., WorkerHome]]:
    """Make a folder with these settings, with a prefork worker."""
    homes: list[WorkerHome] = []

    def make(*, has_worker: bool = True, **settings: Any) -> WorkerHome:
        home = WorkerHome(
            tmp_path, CODE, {"workflow_packages": ["crashing"], "broker_url": redis_url, **settings}
        )
        homes.append(home)
        if has_worker:
            home.start_worker("--pool=prefork", "--concurrency=3")
        return home

    yield make
    for home in homes:
        home.stop()


def attempts(home: WorkerHome, run: str) -> list[tuple[int, str, str]]:
    """Number, outcome and kind of error of each attempt in a run that gave no result."""
    with closing(sqlite3.connect(home.folder / "ckworkflow.sqlite3")) as database:
        query = (
            "SELECT attempt, outcome, json_extract(error, '$.type') FROM attempts"
            " WHERE run_id = ? ORDER BY attempt"
        )
        return database.execute(query, [run]).fetchall()


def owners(home: WorkerHome) -> list[tuple[str]]:
    """Who owns a step, or says that it lives."""
    with closing(sqlite3.connect(home.folder / "ckworkflow.sqlite3")) as database:
        query = "SELECT owner FROM nodes WHERE owner IS NOT NULL UNION SELECT id FROM processes"
        return database.execute(query).fetchall()


def begun(home: WorkerHome, place: str) -> list[int]:
    return [note["attempt"] for note in home.journal("begin", place=place)]


def test_a_soft_time_limit_ends_an_attempt_however_its_step_is_carried(
    make_home: Callable[..., WorkerHome],
) -> None:
    home = make_home(
        task_soft_time_limit=2
    )  # four steps of 0.7 s take longer, and one does not on a slow machine either
    program = home.start_program()

    runs = {name: program.start(f"crashing.limited:{name}", name) for name in CARRIED}
    in_a_row = program.start("crashing.limited:four_in_a_row", "row")

    for name, run in runs.items():
        assert program.result(run) == name
        assert begun(home, name) == [1, 2]
        assert attempts(home, run) == [(1, "retried", "ckworkflow.errors:StepTimeLimitError")]
        # Of the first attempt's coroutine nothing goes on.
        assert len(home.journal("acted", place=name)) == 1
        assert len(home.journal("cancelled", place=name)) == (name in CARRIED[:2])
    # It is the limit of a step, and not that of all in a row.
    assert program.result(in_a_row) == "row"
    assert len(home.journal("while")) == 4


def test_a_hard_time_limit_ends_an_attempt_by_its_own_word(make_home: Callable[..., WorkerHome]) -> None:
    home = make_home(task_time_limit=1)
    program = home.start_program()

    runs = {name: program.start(f"crashing.limited:{name}", name) for name in CARRIED[::2]}
    hopeless = program.start("crashing.limited:hopeless", "hopeless")

    for name, run in runs.items():
        assert program.result(run) == name
        assert attempts(home, run) == [(1, "retried", "ckworkflow.errors:StepTimeLimitError")]
        first, again = home.journal("begin", place=name)
        # At least the delay, and no silence of 30 s. Of the limit some has passed when a step has begun on a slow machine.
        assert 1 <= again["at"] - first["at"] < 20
    with pytest.raises(AssertionError, match=r"hard time limit of 1 s, so its pool process was ended"):
        program.result(hopeless)
    assert begun(home, "hopeless") == [1]


def test_a_pool_process_that_is_told_to_end_gives_its_step_back(
    make_home: Callable[..., WorkerHome],
) -> None:
    home = make_home()
    program = home.start_program()
    runs = {name: program.start(f"crashing.limited:{name}", name) for name in ("told", "told_sync")}
    cut_off = {name: home.wait_for_note("begin", place=name) for name in runs}

    for name in runs:
        os.kill(cut_off[name]["pid"], signal.SIGTERM)

    for name, run in runs.items():
        again = home.wait_for_note("begin", place=name, attempt=2)
        (home.folder / f"{name}.go").touch()
        assert program.result(run) == name
        assert again["at"] - cut_off[name]["at"] < 20  # and not after a silence of 30 s
        assert attempts(home, run) == [(1, "released", "ckworkflow:Released")]


def test_a_whole_service_that_is_told_to_end_leaves_nothing_behind(
    make_home: Callable[..., WorkerHome],
) -> None:
    home = make_home(has_worker=False)
    worker = home.start_worker("--pool=prefork", "--concurrency=2")
    program = home.start_program()
    runs = {name: program.start(f"crashing.limited:{name}", name) for name in ("told", "told_sync")}
    for name in runs:
        home.wait_for_note("begin", place=name)

    os.killpg(worker.pid, signal.SIGTERM)  # as systemd does it

    # Celery keeps the main process for another ten seconds: it waits for what the killed ones may still say.
    home.wait_for(lambda: len(owners(home)) <= 1, "the end of its pool")
    for run in runs.values():
        assert attempts(home, run) == [(1, "released", "ckworkflow:Released")]


def test_a_revoke_reaches_the_steps_of_pool_processes(
    make_home: Callable[..., WorkerHome], redis_url: str
) -> None:
    home = make_home()
    program = home.start_program()
    in_place = program.start("crashing.limited:told", "in place")
    between = program.start("crashing.limited:again", "between")
    cut_off = home.wait_for_note("begin", place="in place")
    home.wait_for_note("begin", place="between")
    with Celery(broker=redis_url, set_as_current=False) as app:
        assert app.control.revoke(
            f"ckw:{in_place}:0:2:1", terminate=True, reply=True, timeout=5, limit=1
        )
        assert app.control.revoke(f"ckw:{between}:0:1:1", reply=True, timeout=5, limit=1)
    (home.folder / "between.go").touch()

    for run in (in_place, between):
        with pytest.raises(AssertionError, match="was revoked with Celery's `revoke`"):
            program.result(run)

    assert (begun(home, "in place"), begun(home, "between")) == ([1], [1])
    home.wait_for(lambda: pid_started(cut_off["pid"]) is None, "the end of the process")


def test_a_rate_limit_by_remote_control_reaches_pool_processes(
    make_home: Callable[..., WorkerHome], redis_url: str
) -> None:
    home = make_home()
    home.wait_for(lambda: " ready." in home.logs(), "the worker")
    with Celery(broker=redis_url, set_as_current=False) as app:
        # A worker on Redis says that it is ready before it listens to remote control.
        home.wait_for(
            lambda: app.control.rate_limit(
                "crashing.limited.quick", "5/s", reply=True, timeout=1, limit=1
            ),
            "the worker's answer",
        )
    program = home.start_program()

    program.result(program.start("crashing.limited:five_quick", "place"))

    times = [note["at"] for note in home.journal("quick")]
    assert len(times) == 5
    assert times[-1] - times[0] > 0.6
