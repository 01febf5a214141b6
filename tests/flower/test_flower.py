"""Flower: every step is a Celery task under its own name, and nothing private is on show."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from services import free_port
from worker_home import WorkerHome

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

CODE = Path(__file__).parent
SECRET = "what-ada-told-bob"


@pytest.fixture(params=["redis", "embedded"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WorkerHome]:
    """A folder with a broker of its own, Redis or the file of the embedded default."""
    broker_url = request.getfixturevalue("redis_url") if request.param == "redis" else None
    home = WorkerHome(
        tmp_path, CODE, {"workflow_packages": ["showing"], "broker_url": broker_url},
        env={"FLOWER_UNAUTHENTICATED_API": "true"},
    )  # fmt: skip
    yield home
    home.stop()


def read(url: str) -> Any:
    """What the API answers; nothing while it does not."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)
    except (urllib.error.URLError, ConnectionError):
        return None


def test_every_step_is_listed_under_its_own_name_and_nothing_private(
    home: WorkerHome, request: pytest.FixtureRequest
) -> None:
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    is_embedded = "embedded" in request.node.callspec.id
    home.spawn("flower", "celery", "-A", "ckworkflow", "flower", "--address=127.0.0.1", f"--port={port}")
    if not is_embedded:
        home.start_worker()
    program = home.start_program(embedded=is_embedded)
    home.wait_for(lambda: read(f"{api}/workers?refresh=1"), "Flower to know the worker")

    run_id = program.start("showing:tell", SECRET)
    assert program.result(run_id) == len(SECRET)

    def states() -> dict[str, str]:
        tasks = read(f"{api}/tasks") or {}
        return {task["name"]: task["state"] for task in tasks.values()}

    wanted = {"showing.remember": "SUCCESS", "showing.count": "SUCCESS", "refuse politely": "FAILURE"}
    home.wait_for(lambda: states() == wanted, f"{wanted}, not {states()}")
    tasks = read(f"{api}/tasks")
    assert all(task["root_id"] == run_id for task in tasks.values())
    assert {task["uuid"].split(":")[1] for task in tasks.values()} == {run_id}
    assert SECRET not in json.dumps([tasks, [read(f"{api}/task/info/{uuid}") for uuid in tasks]])
    assert SECRET not in home.logs()
