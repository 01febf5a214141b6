"""kill -9: the run goes on, what is recorded stays recorded, and what was cut off runs again.

Three settings: the program that starts runs has the worker inside it; a separate worker on Redis with SQLite,
and with PostgreSQL. In each one process is killed while eight runs stand at eight different places, and started
again. "Up" is the first tick of the new process's clock; from there the runs have two seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import services
from worker_home import WorkerHome

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

CODE = Path(__file__).parent
BAR_SECONDS = 2.0
HORIZON_SECONDS = 4
WORKFLOWS = {
    "inside an async step": "inside_async_step",
    "inside a sync step": "inside_sync_step",
    "inside a member of a gather": "members",
    "claimed": "two_steps",
    "recorded": "two_steps",
    "boundary": "boundary",
    "continued": "continued",
}
INSIDE = {
    "inside an async step": "held_async",
    "inside a sync step": "held_sync",
    "inside a member of a gather": "held_sync",
}
NAPS = {"a sleep by countdown": 3.0, "a sleep in SQL": 6.0}
PLACES = [*WORKFLOWS, *NAPS]


@dataclass(frozen=True)
class Crash:
    """What a kill and a restart left in the journal."""

    before: list[dict[str, Any]]
    after: list[dict[str, Any]]
    up_at: float
    results: dict[str, Any]
    name: str

    def began(self, place: str, *, when: str = "after") -> list[dict[str, Any]]:
        notes = self.after if when == "after" else self.before
        return [note for note in notes if (note["what"], note.get("place")) == ("begin", place)]


@pytest.fixture(scope="module", params=["embedded", "redis", "redis, postgres"])
def crash(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crash]:
    """Start a run for each place, wait until all stand there, kill, start again, wait for all results."""
    urls: dict[str, str] = {}
    if "redis" in request.param:
        urls["broker_url"] = services.empty_redis_database(request.getfixturevalue("redis_server"))
    if "postgres" in request.param:
        urls["workflow_database_url"] = request.getfixturevalue("postgres_url_for_module")
    settings = {"workflow_packages": ["crashing"], "workflow_horizon": HORIZON_SECONDS, **urls}
    home = WorkerHome(tmp_path_factory.mktemp("home"), CODE, settings)
    try:
        yield kill_and_restart(home, request.param)
    finally:
        home.stop()


@pytest.fixture(scope="module")
def postgres_url_for_module(postgres_server: str | None) -> Iterator[str]:
    """A PostgreSQL database for all tests of a module."""
    with services.empty_postgres_database(postgres_server) as url:
        yield url


def kill_and_restart(home: WorkerHome, name: str) -> Crash:
    is_embedded = name == "embedded"
    program = home.start_program(embedded=is_embedded, **({"HOLD": "1"} if is_embedded else {}))
    victim = program.process if is_embedded else home.start_worker(HOLD="1")
    home.wait_for_note("up")
    runs = {
        place: program.start(f"crashing.workflows:{workflow}", place)
        for place, workflow in WORKFLOWS.items()
    }
    for place in WORKFLOWS:
        if place in INSIDE:
            home.wait_for_note("begin", place=place, step=INSIDE[place])
        else:
            home.wait_for_note("held", place=place)
    for place, seconds in NAPS.items():
        runs[place] = program.start("crashing.workflows:nap", place, seconds)
    for place in NAPS:
        home.wait_for(lambda: statuses(program, runs[place])[:2] == ["completed", "running"], place)  # noqa: B023
    home.kill(victim)
    before = home.journal()

    if is_embedded:
        program = home.start_program(embedded=True)
    else:
        home.start_worker()
    home.wait_for(lambda: len(home.journal("up")) == 2, "the new worker")
    results = {place: program.result(run_id) for place, run_id in runs.items()}
    up_at = home.journal("up")[1]["at"]
    return Crash(before, home.journal()[len(before) :], up_at, results, name)


def statuses(program: Any, run_id: str) -> list[str]:
    return [step["status"] for step in program.steps(run_id)]


@pytest.mark.parametrize("place", PLACES)
def test_the_run_goes_on_within_two_seconds_of_the_restart(crash: Crash, place: str) -> None:
    due_at = crash.up_at
    if place in NAPS:
        (first,) = crash.began(place, when="before")
        due_at = max(due_at, first["at"] + NAPS[place])

    late = crash.began(place)[0]["at"] - due_at

    print(
        f"{crash.name}, {place}: {late * 1000:.0f} ms after the new worker was up or the sleep had ended"
    )
    assert late < BAR_SECONDS


@pytest.mark.parametrize("place", PLACES)
def test_a_step_recorded_before_the_kill_does_not_run_again(crash: Crash, place: str) -> None:
    recorded = [note["step"] for note in crash.began(place, when="before")]
    recorded = [step for step in recorded if step != INSIDE.get(place)]

    assert recorded == ["first"]
    assert "first" not in [note["step"] for note in crash.began(place)]


@pytest.mark.parametrize("place", list(INSIDE))
def test_a_step_killed_inside_runs_again_with_the_same_idempotency_key(crash: Crash, place: str) -> None:
    step = INSIDE[place]
    (cut_off,) = [note for note in crash.began(place, when="before") if note["step"] == step]
    (again,) = [note for note in crash.began(place) if note["step"] == step]

    assert again["key"] == cut_off["key"]
    assert again["attempt"] == cut_off["attempt"] + 1
    assert again["pid"] != cut_off["pid"]


@pytest.mark.parametrize("place", PLACES)
def test_every_later_step_runs_once_and_the_run_returns(crash: Crash, place: str) -> None:
    steps = [note["step"] for note in crash.began(place)]

    assert sorted(steps) == sorted(set(steps))
    assert steps[-1] in {"second", "published"}
    assert crash.results[place] == place


@pytest.mark.parametrize("place", list(NAPS))
def test_a_sleep_does_not_begin_anew(crash: Crash, place: str) -> None:
    (first,) = crash.began(place, when="before")
    (second,) = crash.began(place)

    assert second["at"] - first["at"] >= NAPS[place]
    assert second["at"] - max(crash.up_at, first["at"] + NAPS[place]) < BAR_SECONDS
