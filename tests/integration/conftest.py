"""The clusters of the integration tests, by pytest-celery's fixtures.

The plugin is switched off for the whole of the tests (`pyproject.toml`): its fixtures are imported here, for this
folder alone, so that nobody else waits for the import. That is the same to pytest, but for the option that the
plugin of its Docker tools adds.

Not here: the nodes (`nodes.py`), and what runs on them (`greetings.py`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pytest_celery import *  # noqa: F403  # the plugin's fixtures
from pytest_celery import CeleryBrokerCluster, CeleryTestBroker, CeleryTestWorker, CeleryWorkerCluster
from pytest_docker_tools import container, fxtr
from pytest_docker_tools.plugin import docker_client  # noqa: F401  # a fixture

import services
import worker_home
from ckworkflow.engine import installation
from integration import nodes
from integration.nodes import NAMES
from worker_home import BIN, TESTS, WorkerHome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery

IMAGE = "ckworkflow-integration-worker"
DATABASE = "runs.sqlite3"
PATIENCE_SECONDS = 90.0


def pytest_configure(config: pytest.Config) -> None:
    # The option of the plugin that is switched off; its fixtures read it.
    config.option.reuse_containers = getattr(config.option, "reuse_containers", False)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerHome:
    """The folder in which the workers run, and which a container has for its own."""
    # Across containers nobody sees that a worker is dead until its lease has run out.
    monkeypatch.setattr(worker_home, "TIMEOUT_SECONDS", PATIENCE_SECONDS)
    return WorkerHome(
        tmp_path,
        TESTS,
        {
            "workflow_packages": ["integration.greetings"],
            "workflow_database_url": f"sqlite:///{DATABASE}",
        },
        env={"BIN": str(BIN), "DISCORD_TOKEN": ""},
    )


@pytest.fixture
def celery_setup_cls(home: WorkerHome) -> Iterator[type[nodes.WorkflowSetup]]:
    before = installation._current
    url = f"sqlite:///{home.folder / DATABASE}"
    yield type("Setup", (nodes.WorkflowSetup,), {"database_url": url})
    if installation._current is not None and installation._current is not before:
        installation._current.forget_engine()
    installation._current = before


# --- brokers -------------------------------------------------------------------------------------------


@pytest.fixture(params=["redis", "rabbitmq"])
def celery_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CeleryTestBroker]:
    if nodes.is_docker_there():
        yield request.getfixturevalue(f"celery_{request.param}_broker")
        return
    if request.param == "redis":
        program = shutil.which("redis-server")
        if program is None:
            services.absent("Redis", "install redis-server: these tests restart it")
        broker = CeleryTestBroker(nodes.RedisProcess(program, tmp_path))
    else:
        url = request.getfixturevalue("rabbitmq_url")
        broker = CeleryTestBroker(nodes.RabbitMQServer(request.getfixturevalue("rabbitmq_server"), url))
    yield broker
    broker.teardown()


@pytest.fixture
def celery_broker_cluster(celery_broker: CeleryTestBroker) -> Iterator[CeleryBrokerCluster]:
    cluster = CeleryBrokerCluster(celery_broker)
    assert cluster.ready()
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_backend_cluster() -> None:
    """None: results are in the database."""
    return


@pytest.fixture
def celery_backend_cluster_config() -> None:
    return


# --- workers -------------------------------------------------------------------------------------------


@pytest.fixture
def celery_worker_cluster(
    request: pytest.FixtureRequest,
    home: WorkerHome,
    celery_worker_cluster_config: dict[str, Any],
    celery_setup_app: Celery,
) -> Iterator[CeleryWorkerCluster]:
    """Two workers."""
    if nodes.is_docker_there():
        workers = [
            nodes.ContainerWorker(request.getfixturevalue(f"{name}_container"), celery_setup_app, name)
            for name in NAMES
        ]
    else:
        urls = celery_worker_cluster_config["celery_broker_cluster_config"]["urls"]
        env = {**home.env, "CELERY_BROKER_URL": ";".join(urls)}
        workers = [
            CeleryTestWorker(nodes.WorkerProcess(name, home.folder, env), celery_setup_app)
            for name in NAMES
        ]
    cluster = CeleryWorkerCluster(*workers)
    yield cluster
    for worker in workers:
        worker.teardown()
    cluster.teardown()


@pytest.fixture(scope="session")
def worker_image() -> str:
    """The image of a worker, as users build it."""
    build = ["docker", "build", "--file", "docker/Dockerfile", "--target", "worker", "--tag", IMAGE, "."]
    made = subprocess.run(build, cwd=TESTS.parent, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    return IMAGE


@pytest.fixture
def worker_volumes(home: WorkerHome) -> dict[str, dict[str, str]]:
    return {
        str(home.folder): {"bind": "/app", "mode": "rw"},
        str(TESTS): {"bind": "/tests", "mode": "ro"},
    }


def _env(name: str) -> Any:
    @pytest.fixture
    def env(celery_worker_cluster_config: dict[str, Any]) -> dict[str, str]:
        urls = celery_worker_cluster_config["celery_broker_cluster_config"]["urls"]
        return {
            "CELERY_BROKER_URL": ";".join(urls), "PYTHONPATH": "/app:/tests", "WORKER": name,
            "CKWORKFLOW_TEST_JOURNAL": "/app/journal.jsonl",
        }  # fmt: skip

    return env


def _container(name: str) -> Any:
    return container(
        image="{worker_image}", environment=fxtr(f"{name}_env"), volumes=fxtr("worker_volumes"),
        network="{default_pytest_celery_network.name}", user=f"{os.getuid()}:{os.getgid()}",
        command=nodes.worker_command(name, host="%h"), wrapper_class=nodes.WorkerContainer,
    )  # fmt: skip


first_env, second_env = map(_env, NAMES)
first_container, second_container = map(_container, NAMES)
