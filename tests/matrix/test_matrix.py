"""Every combination of broker, database and pool does everything that a run can do.

One worker for each combination, with all behaviours (`mixed.py`) started at once, the first of them while no
worker is there. The cross of brokers and pools is whole. Databases alternate over it, so that each broker and
each pool meets both: which database it is shows in neither, and a combination costs seconds.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import services
from matrix.mixed import (
    BEHAVIOURS,
    BESIDE_A_FAILURE,
    LIMITED,
    LONG_NAP,
    OTHER_QUEUE,
    RATE,
    RETRIES,
    SHORT_NAP,
    STEPS,
)
from worker_home import WorkerHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker_home import Program

pytestmark = pytest.mark.slow

CODE = Path(__file__).parent
RESULT_SECONDS = 90.0
HORIZON = {"workflow_horizon": "1 second"}
QUORUM = {
    "task_default_queue_type": "quorum",
    "task_create_missing_queue_type": "quorum",
    "worker_detect_quorum_queues": True,
}
BROKERS: dict[str, dict[str, Any]] = {
    "embedded": HORIZON,
    "redis": HORIZON,
    "rabbitmq": HORIZON,
    "quorum": QUORUM,  # long sleeps are in SQL whatever the horizon: it is 0
}
DATABASES = ["sqlite", "postgres"]
POOLS = {
    "threads": ["--pool=threads", "--concurrency=50"],
    "prefork": ["--pool=prefork", "--concurrency=2"],
    "solo": ["--pool=solo"],
}
WIDTH = {"threads": 200, "prefork": 50, "solo": 50}
"""Of the big fan-out: wide where a message is cheap, and that is on each broker and database."""
CROSS = [
    (broker, DATABASES[(at + beside) % 2], pool)
    for at, broker in enumerate(BROKERS)
    for beside, pool in enumerate(POOLS)
]


@dataclass(frozen=True)
class Combination:
    """A place for workers, and what the broker says of its queues."""

    home: WorkerHome
    pool: str
    queue_kinds: Callable[[], set[str]] | None = None
    kind: str = ""


@pytest.fixture
def combination(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Combination]:
    broker, database, pool = request.param
    settings = {"workflow_packages": ["mixed"], **BROKERS[broker]}
    queue_kinds = None
    with contextlib.ExitStack() as stack:
        if broker == "redis":
            server = request.getfixturevalue("redis_server")
            settings["broker_url"] = services.empty_redis_database(server)
        elif broker != "embedded":
            rabbitmq = request.getfixturevalue("rabbitmq_server")
            url = stack.enter_context(services.empty_rabbitmq_vhost(rabbitmq))
            settings["broker_url"] = url
            queue_kinds = partial(kinds_of_queues, rabbitmq, url.rpartition("/")[2])
        if database == "postgres":
            postgres = request.getfixturevalue("postgres_server")
            settings["workflow_database_url"] = stack.enter_context(
                services.empty_postgres_database(postgres)
            )
        home = WorkerHome(tmp_path, CODE, settings)
        stack.callback(home.stop)
        yield Combination(home, pool, queue_kinds, "quorum" if broker == "quorum" else "classic")


def kinds_of_queues(server: services.RabbitMQ, vhost: str) -> set[str]:
    queues = {queue["name"]: queue["type"] for queue in server.ask("GET", f"queues/{vhost}")}
    return {queues["ckworkflow"], queues[OTHER_QUEUE]}


def marks(*names: str) -> list[pytest.MarkDecorator]:
    servers = {"redis": "redis", "rabbitmq": "rabbitmq", "quorum": "rabbitmq", "postgres": "postgres"}
    return [getattr(pytest.mark, servers[name]) for name in names if name in servers]


@pytest.mark.parametrize(
    "combination",
    [pytest.param(names, id="-".join(names), marks=marks(*names)) for names in CROSS],
    indirect=True,
)
def test_everything_that_a_run_can_do_ends_right_with_each_step_run_once(
    combination: Combination,
) -> None:
    home = combination.home
    program = home.start_program()
    runs = {"chain": start(program, "chain")}
    home.start_worker(*POOLS[combination.pool], "-Q", f"ckworkflow,{OTHER_QUEUE}")
    began_at = time.time()
    runs |= {name: start(program, name) for name in BEHAVIOURS if name not in runs}
    width = WIDTH[combination.pool]
    runs["big_fan_out"] = start(program, "big_fan_out", width)

    results = {name: program.result(run_id, RESULT_SECONDS) for name, run_id in runs.items()}

    assert results == {**BEHAVIOURS, "big_fan_out": width * (width - 1)}
    notes = {name: notes_of(home, run_id) for name, run_id in runs.items()}
    steps = {name: len({note["key"] for note in found}) for name, found in notes.items()}
    assert steps["failing_member"] in BESIDE_A_FAILURE
    assert steps == {**STEPS, "failing_member": steps["failing_member"], "big_fan_out": width + 1}
    ran = Counter((note["key"], note["attempt"]) for found in notes.values() for note in found)
    assert [what for what, times in ran.items() if times > 1] == []
    assert len(ran) == sum(steps.values()) + RETRIES
    assert pause(notes["short_sleep"]) >= SHORT_NAP
    assert pause(notes["long_sleep"]) >= LONG_NAP
    # A busy worker may start several late, but none early.
    assert last_of("limited", notes["rate_limit"]) - began_at >= (LIMITED - 1) / RATE
    assert (home.folder / "worker.log").read_text().count("Traceback") == 0
    if combination.queue_kinds is not None:
        assert combination.queue_kinds() == {combination.kind}


def start(program: Program, name: str, *args: Any) -> str:
    return program.start(f"mixed:{name}", *args)


def notes_of(home: WorkerHome, run_id: str) -> list[dict[str, Any]]:
    return [note for note in home.journal("ran") if note["key"].startswith(f"{run_id}/")]


def last_of(step: str, notes: list[dict[str, Any]]) -> float:
    return max(note["at"] for note in notes if note["step"] == step)


def pause(notes: list[dict[str, Any]]) -> float:
    """The seconds between the first note and the last."""
    return notes[-1]["at"] - notes[0]["at"]
