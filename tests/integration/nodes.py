"""Nodes for pytest-celery: processes of this machine where no Docker engine answers, else its containers.

A process stands behind `CeleryTestContainer`, so clusters, nodes and their log asserts are pytest-celery's own
either way. What differs is here, and in `conftest.py` which of the two is taken.
"""

from __future__ import annotations

import os
import signal as signals
import socket
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
from pytest_celery import (
    CeleryTestContainer,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerContainer,
    RedisContainer,
)

import services
from ckworkflow.worker import wiring

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery import Celery

READY_SECONDS = 60
STOP_SECONDS = 30
QUEUE = "ckworkflow"
NAMES = ("first", "second")


@cache
def is_docker_there() -> bool:
    """Tell whether a Docker engine answers."""
    # Not by asking its client: that leaves a socket open when nobody does.
    place = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    if place.startswith("/"):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(place)
            except OSError:
                return False
    client = docker.from_env(timeout=5)
    try:
        return bool(client.ping())
    finally:
        client.close()


# --- processes ---------------------------------------------------------------------------------------


class ProcessContainer(CeleryTestContainer):
    """A process in the place of a container.

    Args:
        name: What it is called in messages.
        words: Its command line.
        folder: Where it runs, and keeps its log.
        env: Its environment.
    """

    # Not the parent's: that wraps a container of an engine.
    def __init__(
        self, name: str, words: Sequence[str], folder: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self._name, self._words, self._folder, self._env = name, list(words), folder, env
        self._log = folder / f"{name}.log"
        self._started_at = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def id(self) -> str:
        return self._name

    @property
    def name(self) -> str:
        return self._name

    @property
    def status(self) -> str:
        return "running" if self._process is not None and self._process.poll() is None else "exited"

    def logs(self) -> str:
        """All that it has said, over every start."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        self._started_at = len(self.logs())
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._words, cwd=self._folder, env=self._env, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def ready(self) -> bool:
        """Wait until it has said so since its last start."""
        end = time.monotonic() + READY_SECONDS
        while (self.ready_prompt or "") not in self.logs()[self._started_at :]:
            assert self.status == "running", self.logs()
            assert time.monotonic() < end, f"{self._name} has not become ready\n{self.logs()}"
            time.sleep(0.02)
        return True

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal to the process and all that it has forked; wait for the end, as an engine would."""
        assert self._process is not None
        number = signals.Signals[signal] if isinstance(signal, str) else signals.Signals(signal)
        os.killpg(self._process.pid, number)
        self._process.wait(STOP_SECONDS)

    def reload(self) -> None:
        """Nothing is cached here."""

    def restart(self, timeout: float = STOP_SECONDS) -> None:
        if self.status == "running":
            self.kill("SIGTERM")
        self.start()

    def teardown(self) -> None:
        if self.status == "running":
            self.kill()


class RedisProcess(ProcessContainer):
    """A Redis server, with the options of pytest-celery's own container."""

    def __init__(self, program: str, folder: Path) -> None:
        self._port = services.free_port()
        words = RedisContainer.command("--port", str(self._port), "--bind", "127.0.0.1")
        super().__init__("redis", [program, *words[1:]], folder)

    @property
    def ready_prompt(self) -> str:
        return "Ready to accept connections"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        url = f"redis://127.0.0.1:{self._port}/0"
        return {"url": url, "host_url": url, "hostname": "127.0.0.1", "port": self._port, "vhost": "0"}


class RabbitMQServer(CeleryTestContainer):
    """The RabbitMQ of the session: it takes long to start, so a test has a virtual host of it."""

    def __init__(self, server: services.RabbitMQ, url: str) -> None:
        self._server, self._url = server, url

    id = name = "rabbitmq"
    status = "running"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        return {"url": self._url, "host_url": self._url, "vhost": self._url.rpartition("/")[2]}

    def ready(self) -> bool:
        return bool(self._server.ask("GET", "overview"))

    def teardown(self) -> None:
        """The virtual host is taken away by who made it."""


class WorkerProcess(ProcessContainer):
    """A worker: `celery -A ckworkflow worker`."""

    def __init__(self, name: str, folder: Path, env: Mapping[str, str]) -> None:
        words = worker_command(name, host=name)
        super().__init__(
            name, [str(Path(env["BIN"]) / words[0]), *words[1:]], folder, {**env, "WORKER": name}
        )

    @property
    def ready_prompt(self) -> str:
        return " ready."

    def worker_name(self) -> str:
        return self.name

    def worker_queue(self) -> str:
        return QUEUE


def worker_command(name: str, *, host: str) -> list[str]:
    """The command line of a worker; two steps at a time, so that one worker alone cannot do it all."""
    return [
        "celery", "-A", "ckworkflow", "worker", "--loglevel=INFO", f"--hostname={name}@{host}",
        f"--queues={QUEUE}", "--pool=threads", "--concurrency=2",
    ]  # fmt: skip


# --- containers ----------------------------------------------------------------------------------------


class WorkerContainer(CeleryWorkerContainer):
    """A worker from the image of this project."""

    @classmethod
    def worker_queue(cls) -> str:
        return QUEUE

    @property
    def ready_prompt(self) -> str:
        return " ready."


class ContainerWorker(CeleryTestWorker):
    """A node that is told its name: the containers of both are of one class."""

    def __init__(self, container: WorkerContainer, app: Celery, name: str) -> None:
        super().__init__(container, app)
        self._name = name

    @property
    def worker_name(self) -> str:
        return self._name


# --- both ----------------------------------------------------------------------------------------------


class WorkflowSetup(CeleryTestSetup):
    """A setup whose app carries workflows; `database_url` is set by the fixture that makes the class."""

    database_url = ""

    @classmethod
    def update_app_config(cls, app: Celery) -> None:
        app.conf.workflow_database_url = cls.database_url
        wiring.install(app, is_own=True)
