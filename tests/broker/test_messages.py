"""What travels over the broker: one task message for each step at most, and nothing private in any message.

Measured at the broker itself: on Redis with `MONITOR`, on the embedded transport in its file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import services
from broker_taps import FileTap, RedisTap, opened
from ckworkflow.testing import FakeDiscord
from worker_home import WorkerHome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker_home import Program

pytestmark = pytest.mark.slow

CODE = Path(__file__).parent
WORD = "what-ada-told-bob"
INTERACTION_TOKEN = "aW50ZXJhY3Rpb246MTIzNDU2Nzg5MDEyMzQ1Njc4OmFiY2RlZmdoaWprbG1ub3A"


@dataclass
class Wire:
    """A worker whose broker is tapped, and a program that starts runs."""

    home: WorkerHome
    program: Program
    tap: RedisTap | FileTap
    fake: FakeDiscord
    is_embedded: bool

    def run(self, workflow: str, argument: str) -> str:
        """Carry a run out to its end; its id."""
        run_id = self.program.start(f"greeting:{workflow}", argument)
        self.program.result(run_id)
        return run_id

    def task_messages_of(self, run_id: str) -> list[bytes]:
        """What was put into the queue for a run, unpacked."""
        return [text for text in map(opened, self.tap.task_messages()) if run_id.encode() in text]

    def steps_of(self, run_id: str) -> list[str]:
        return [step["node"] for step in self.program.steps(run_id) if step["name"] != "sleep"]


@pytest.fixture(scope="module", params=["redis", "embedded"])
def wire(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """A worker process on Redis, or the program's own worker on the embedded default."""
    is_embedded = request.param == "embedded"
    folder = tmp_path_factory.mktemp("wire")
    settings = {"workflow_packages": ["greeting"]}
    if not is_embedded:
        url = services.empty_redis_database(request.getfixturevalue("redis_server"))
        settings["broker_url"] = url
    tap = FileTap(folder) if is_embedded else RedisTap(url)
    with FakeDiscord() as fake:
        home = WorkerHome(folder, CODE, settings, env=fake.env)
        try:
            if not is_embedded:
                home.start_worker()
                # What is published before a worker is up may be published again: that is not measured here.
                home.wait_for(lambda: " ready." in home.logs(), "the worker")
            yield Wire(home, home.start_program(embedded=is_embedded), tap, fake, is_embedded)
        finally:
            home.stop()
            tap.close()


def test_the_static_greet_workflow_publishes_one_task_message_for_each_step_that_waits(
    wire: Wire,
) -> None:
    user = wire.fake.add_user("ada")

    run_id = wire.run("greet", str(user.id))

    assert [message.content for message in wire.fake.dms(user)] == ["Hello!", "Hello again!"]
    *first, second = wire.task_messages_of(run_id)
    # Where the program that starts the run works itself, the first step begins without one.
    assert len(first) == (0 if wire.is_embedded else 1)
    assert all(f'"id": "ckw:{run_id}:0:1:1"'.encode() in message for message in first)
    assert f'"id": "ckw:{run_id}:0:3:1"'.encode() in second
    assert all(b'"task": "greeting.greet_user"' in message for message in (*first, second))


def test_fan_out_joins_and_boundaries_cost_no_message_and_steps_in_place_neither(wire: Wire) -> None:
    run_id = wire.run("every_shape", WORD)

    assert len(wire.steps_of(run_id)) == 7
    assert 1 <= len(wire.task_messages_of(run_id)) < 7


def test_no_message_holds_an_argument_a_result_or_a_token(wire: Wire) -> None:
    user = wire.fake.add_user("bob")
    private = [WORD, INTERACTION_TOKEN, str(user.id), wire.fake.token, "result-", "Hello", "success"]

    runs = [wire.run("greet", str(user.id))]
    for workflow in ("every_shape", "with_a_retry"):
        runs += [wire.run(workflow, word) for word in (WORD, INTERACTION_TOKEN)]

    everything = b"\n".join(map(opened, wire.tap.everything()))
    assert all(run_id.encode() in everything for run_id in runs)
    assert b'"errbacks"' in everything, "bodies were not unpacked"
    assert [word for word in private if word.encode() in everything] == []
    assert wire.fake.token not in wire.home.logs()
    assert WORD not in wire.home.logs()
