"""A folder for workers whose runs leave histories."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from effects import VARIABLE
from histories import Histories
from worker_home import WorkerHome

MakeNotedHome = Callable[[str, str], tuple[WorkerHome, Histories]]


@pytest.fixture
def make_noted_home(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MakeNotedHome]:
    """Makes a folder for workers with a module of workflows, on the embedded broker and SQLite, or on Redis and PostgreSQL.

    Effects go into the same folder, and the database notes marks.
    """
    made: list[tuple[WorkerHome, Histories]] = []

    def make(place: str, module: str) -> tuple[WorkerHome, Histories]:
        url, broker = f"sqlite:///{tmp_path}/ckworkflow.sqlite3", None
        if place == "servers":
            url, broker = request.getfixturevalue("postgres_url"), request.getfixturevalue("redis_url")
        settings = {"workflow_packages": [module], "broker_url": broker, "workflow_database_url": url}
        home = WorkerHome(tmp_path, Path(__file__).parent, settings, {VARIABLE: str(tmp_path)})
        if place == "embedded":  # on a server it has its tables by now
            home.command("ckworkflow", "db", "upgrade")
        made.append((home, Histories(url, tmp_path)))
        return made[-1]

    yield make
    for home, histories in made:
        home.stop()
        histories.reader.close()
