"""A race between a payload and a deadline is decided once, and a token is never free in between, whatever is killed.

Payloads come all the time, and as often as deadlines. Meanwhile workers, and the program that sends, are killed with `kill -9`; a sender that
hears nothing sends again under the same key. Every payload that was accepted is taken once, in order, or left over.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from worker_home import Program, WorkerHome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IS_SOAK = os.environ.get("CKWORKFLOW_SOAK", "") not in {"", "0"}
SEED = int(os.environ["CKWORKFLOW_SEED"])
ROUNDS = 1_000 if IS_SOAK else 120
KILLS = 40 if IS_SOAK else 4


@pytest.fixture
def make_home(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[str], WorkerHome]]:
    """Makes a folder for workers on the embedded broker and SQLite, or on Redis and PostgreSQL."""
    homes: list[WorkerHome] = []

    def make(place: str) -> WorkerHome:
        settings: dict[str, object] = {"workflow_packages": ["hook_race_flows"]}
        if place == "servers":
            settings |= {
                "broker_url": request.getfixturevalue("redis_url"),
                "workflow_database_url": request.getfixturevalue("postgres_url"),
            }
        homes.append(WorkerHome(tmp_path, Path(__file__).parent, settings))
        return homes[-1]

    yield make
    for home in homes:
        home.stop()


class Sender:
    """A program that sends numbers, one by one, and is started again when it was killed."""

    def __init__(self, home: WorkerHome) -> None:
        self.home, self.program = home, home.start_program()
        self.accepted: list[int] = []
        self._next = 0

    def send(self, token: str, *, is_killed: bool) -> bool:
        """Send the next number, and return whether a hook has it. Perhaps the program is killed meanwhile."""
        number, self._next = self._next, self._next + 1
        request = ("resume", token, number, f"sending {number}")
        if is_killed:
            self._kill_during(request)
        answers: list[str] = []

        def is_answered() -> bool:
            answers.append(self.program.ask(*request))
            return answers[-1] != "full"

        self.home.wait_for(is_answered, "room in the hook")
        if answers[-1] != "no hook":
            self.accepted.append(number)
        return answers[-1] != "no hook"

    def _kill_during(self, request: tuple[Any, ...]) -> None:
        self.program.begin(*request)
        self.home.kill(self.program.process)
        self.program = self.home.start_program()


def work(home: WorkerHome, workflow: str, chance: random.Random) -> tuple[str, list[int], Program]:
    """Start a run of a workflow, and send until it has closed its hook; return what was accepted of it."""
    sender = Sender(home)
    worker = home.start_worker("--pool=threads", "--concurrency=2")
    run_id: str = sender.program.start(f"hook_race_flows:{workflow}", "t", ROUNDS)
    kills = {chance.randint(1, ROUNDS): bool(each % 2) for each in range(KILLS)}
    number = 0
    while sender.send("t", is_killed=kills.get(number) is True):
        if kills.get(number) is False:
            home.kill(worker)
            worker = home.start_worker("--pool=threads", "--concurrency=2")
        number += 1
    return run_id, sender.accepted, sender.program


@pytest.mark.parametrize("place", ["embedded", "servers"])
def test_a_payload_against_a_deadline_is_decided_once(
    make_home: Callable[[str], WorkerHome], place: str
) -> None:
    home = make_home(place)
    run_id, accepted, program = work(home, "rounds", random.Random(f"{SEED} {place}"))

    won, pending = program.result(run_id, 120)
    assert len(won) == ROUNDS
    assert [each for each in won if each != "late"] + pending == accepted, f"seed {SEED}"


@pytest.mark.parametrize("place", ["embedded", "servers"])
def test_a_token_that_is_closed_and_made_again_loses_nothing(
    make_home: Callable[[str], WorkerHome], place: str
) -> None:
    home = make_home(place)
    run_id, accepted, program = work(home, "again_and_again", random.Random(f"{SEED} {place}"))

    found = program.result(run_id, 120)
    assert found == accepted[:ROUNDS], f"seed {SEED}"


@pytest.mark.parametrize("place", ["embedded", "servers"])
def test_a_token_is_never_free_while_a_run_lives_on(
    make_home: Callable[[str], WorkerHome], place: str
) -> None:
    home = make_home(place)
    run_id, accepted, program = work(home, "life_after_life", random.Random(f"{SEED} {place}"))

    assert len(accepted) >= ROUNDS, f"seed {SEED}"
    found = program.result(run_id, 120)
    assert found == accepted[:ROUNDS], f"seed {SEED}"
