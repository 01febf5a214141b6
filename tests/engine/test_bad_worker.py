"""A worker that must not work says why and ends with an error; a world that is not there yet is waited for."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

import services
from ckworkflow import start_sync
from ckworkflow.model import NodeStatus
from ckworkflow.store import Database, schema
from ckworkflow.store.tables import schema_info
from ckworkflow.testing import FakeDiscord
from engine_flows import asking_for_the_bot, doubling
from worker_home import WorkerHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery

    from ckworkflow.engine.installation import Installation

pytestmark = pytest.mark.slow


TESTS = Path(__file__).parents[1]


@pytest.fixture
def worker_home(tmp_path: Path) -> Iterator[Callable[..., WorkerHome]]:
    """Makes the home of the worker processes of a test, over the SQLite files of `home`."""
    homes: list[WorkerHome] = []

    def make(**settings: Any) -> WorkerHome:
        ours = {
            "workflow_database_url": f"sqlite:///{tmp_path / 'runs.sqlite3'}",
            "workflow_packages": ["engine_flows"],
        }
        # No token by default: one in the developer's shell must not reach it.
        homes.append(WorkerHome(tmp_path, TESTS, ours | settings, {"DISCORD_TOKEN": ""}))
        return homes[-1]

    yield make
    for home in homes:
        home.stop()


def refusal(home: WorkerHome, *options: str, **env: str) -> str:
    """What a worker says that stops by itself with an error."""
    process = home.start_worker(*options, **env)
    home.wait_for(lambda: process.poll() is not None, "the end of the worker")
    said = home.logs()
    assert process.returncode != 0, said
    assert "Traceback" not in said
    assert " ready." not in said
    return said


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_bad_token_stops_the_worker_and_uses_no_attempt(
    home: Installation, worker_home: Callable[..., WorkerHome], pool: str
) -> None:
    workers = worker_home()
    with FakeDiscord() as fake:
        run = start_sync(asking_for_the_bot)

        said = refusal(workers, "-P", pool, **{**fake.env, "DISCORD_TOKEN": "bad"})

        assert "Discord refused DISCORD_TOKEN" in said
        assert "The worker stops before it takes any work" in said
        assert [(each.status, each.attempt) for each in run.steps()] == [(NodeStatus.PLANNED, 0)]

        workers.start_worker("-P", pool, "-c", "1", **fake.env)
        assert run.return_value(30) == "fake-bot"
        assert [each.attempt for each in run.steps()] == [1]


def test_a_database_that_does_not_answer_stops_the_worker(
    worker_home: Callable[..., WorkerHome], tmp_path: Path
) -> None:
    url = f"postgresql+psycopg://bot:pa55@127.0.0.1:{services.free_port()}/runs"
    workers = worker_home()
    with (tmp_path / "celeryconfig.py").open("a") as config:
        config.write(f"workflow_database_url = {url!r}\n")  # a home would migrate it

    said = refusal(workers)
    assert "The workflow database postgresql+psycopg://bot:***@127.0.0.1" in said
    assert "Check workflow_database_url in celeryconfig.py" in said
    assert "pa55" not in said


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_schema_that_does_not_fit_stops_the_worker(
    worker_home: Callable[..., WorkerHome], tmp_path: Path, pool: str
) -> None:
    workers = worker_home()
    database = Database(f"sqlite:///{tmp_path / 'runs.sqlite3'}")
    schema.ensure(database)
    needed = schema.CODE_REVISION + 1
    newer = sa.insert(schema_info).values(revision=needed + 1, oldest_code=needed)
    database.transact(lambda tx: tx.execute(newer))
    database.dispose()

    said = refusal(workers, "-P", pool)
    assert (
        f"its revision {needed + 1} may be used from code revision {needed} on, and this is "
        f"{schema.CODE_REVISION}. Upgrade ckworkflow"
    ) in said


def test_a_broken_workflow_module_is_reported_and_the_others_load(
    home: Installation, worker_home: Callable[..., WorkerHome], tmp_path: Path
) -> None:
    workers = worker_home(workflow_packages=["broken_flow", "engine_flows"])
    (tmp_path / "broken_flow.py").write_text("import os\n\nfrom nowhere_at_all import nothing\n")
    run = start_sync(doubling, 3)

    workers.start_worker()

    assert run.return_value(30) == 12
    said = workers.logs()
    assert f"Module broken_flow ({tmp_path / 'broken_flow.py'}:3) cannot be imported" in said
    assert "No module named 'nowhere_at_all'" in said


def test_a_run_that_was_started_with_the_broker_down_completes_when_it_is_up(
    app: Celery, home: Installation, worker_home: Callable[..., WorkerHome], tmp_path: Path
) -> None:
    if shutil.which("redis-server") is None:
        services.absent("Redis", "install redis-server")
    port = services.free_port()
    app.conf.broker_url = f"redis://127.0.0.1:{port}/0"
    workers = worker_home(broker_url=app.conf.broker_url)

    run = start_sync(doubling, 3)

    assert not run.status().is_final
    with redis_on(port, tmp_path):
        workers.start_worker()
        assert run.return_value(30) == 12


@contextmanager
def redis_on(port: int, folder: Path) -> Iterator[None]:
    """A Redis server on a port of one's choice."""
    words = [
        "redis-server",
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
        "--save",
        "",
    ]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log)
    try:
        assert services.wait_for_port(port, process)
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def silence() -> Iterator[int]:
    """A server that takes connections and says nothing; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def nothing() -> Iterator[int]:
    """A port on which nobody listens."""
    yield services.free_port()


@pytest.mark.parametrize(
    ("discord", "said"),
    [(silence, "the worker waits for discord"), (nothing, "Discord cannot be reached")],
    ids=["silent", "refused"],
)
def test_a_worker_that_waits_for_discord_says_so_and_stops_when_it_is_told(
    worker_home: Callable[..., WorkerHome], discord: Any, said: str
) -> None:
    workers = worker_home()
    with discord() as port:
        env = {"DISCORD_TOKEN": "any", "CKWORKFLOW_DISCORD_API_BASE": f"http://127.0.0.1:{port}/api/v10"}
        process = workers.start_worker(**env)
        workers.wait_for(lambda: said in workers.logs(), "a word on why it waits")

        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0

    assert "Traceback" not in workers.logs()
    assert " ready." not in workers.logs()
