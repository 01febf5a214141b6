"""What happens around a worker with runs in the middle, and then is over: it waits, goes on, and loses nothing.

Connections that are cut and refused for a while, a broker or database that is started again, a disk that is
full, a file that somebody else has locked. Each fault comes while runs are held in a step; they are let go
while it lasts, so that what they record and publish falls into it.

Not here: the death of workers (`tests/crash`).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

import services
from matrix.gated import STEPS_OF_A_RUN
from matrix.obstacles import Proxy, SmallDisk
from worker_home import WorkerHome

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from worker_home import Program

pytestmark = pytest.mark.slow

CODE = Path(__file__).parent
RUNS = 4
RESULT_SECONDS = 90.0
LEAST_SECONDS = 1.5
"""How long a fault lasts at least: others than who notices it first are to meet it too."""
LOCK_SECONDS = 3.0
MOST_LINES, MOST_LINES_A_SECOND = 12, 1
"""How many warnings and errors a worker with a few runs may log about a fault, and again for each second of it."""

BROKER_IS_LOST = "Connection to broker lost|Cannot connect to|broker unreachable"
DATABASE_IS_LOST = "database.* unreachable"


@dataclass
class Stage:
    """A worker with a client, and what can be done to their servers."""

    home: WorkerHome
    program: Program
    worker: subprocess.Popen[str]
    servers: dict[str, Any] = field(default_factory=dict)
    proxies: dict[str, Proxy] = field(default_factory=dict)

    def log(self) -> str:
        return (self.home.folder / "worker.log").read_text(errors="replace")

    def ride_out(
        self,
        place: str,
        begin: Callable[[], None],
        end: Callable[[], None],
        *,
        sign: str,
        client_works: bool,
    ) -> None:
        """Hold runs in the middle, let a fault begin and end around them, and wait for their results.

        Args:
            place: Names the gate.
            begin: Begins the fault.
            end: Ends it.
            sign: What the worker's log says while it lasts.
            client_works: Whether runs can be started meanwhile.

        It is also seen to that the worker tells of it in few lines.
        """
        runs = self.start(place, range(RUNS))
        self.home.wait_for(lambda: len(self.held(place)) == RUNS, f"{RUNS} runs in the middle")
        seen, began_at = len(self.log()), time.monotonic()
        begin()
        try:
            if client_works:
                runs |= self.start(place, range(RUNS, RUNS + 2))
            self.open(place)
            self.home.wait_for(lambda: re.search(sign, self.log()[seen:]), sign)
            self.home.wait_for(lambda: time.monotonic() > began_at + LEAST_SECONDS, "the fault's end")
        finally:
            end()
        seconds = time.monotonic() - began_at
        self.see_through(place, runs)
        self.see_few_words(self.log()[seen:], seconds)

    def see_through(self, place: str, runs: dict[int, str]) -> None:
        """Wait for the results: right, and each step has run once."""
        results = {
            number: self.program.result(run_id, RESULT_SECONDS) for number, run_id in runs.items()
        }
        assert results == {number: number + 2 for number in runs}
        ran = Counter(note["key"] for note in self.home.journal("ran", place=place))
        assert [key for key, times in ran.items() if times > 1] == []
        assert len(ran) == STEPS_OF_A_RUN * len(runs)

    @staticmethod
    def see_few_words(log: str, seconds: float) -> None:
        """A worker tells of a fault in few lines, and not in tracebacks."""
        about = re.findall(r"^\[.*: (?:WARNING|ERROR|CRITICAL)/.*", log, re.MULTILINE)
        print(*about, sep="\n")
        assert log.count("Traceback") == 0
        assert len(about) <= MOST_LINES + seconds * MOST_LINES_A_SECOND

    def start(self, place: str, numbers: range, workflow: str = "through") -> dict[int, str]:
        return {number: self.program.start(f"gated:{workflow}", place, number) for number in numbers}

    def held(self, place: str) -> list[dict[str, Any]]:
        return self.home.journal("ran", place=place, step="held")

    def open(self, place: str) -> None:
        (self.home.folder / f"{place}.open").touch()


@contextlib.contextmanager
def stage(folder: Path, pool: list[str], **settings: Any) -> Iterator[Stage]:
    home = WorkerHome(folder, CODE, {"workflow_packages": ["gated"], **settings})
    try:
        program = home.start_program()
        worker = home.start_worker(*pool)
        yield Stage(home, program, worker)
    finally:
        home.stop()


def through(proxy: Proxy, url: str) -> str:
    """The URL by which a server is reached through a proxy."""
    return url.replace(f":{urlsplit(url).port}", f":{proxy.port}")


# --- Redis and PostgreSQL ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A worker on a Redis and a PostgreSQL of its own, both behind a proxy."""
    redis = shutil.which("redis-server")
    initdb, postgres = services.postgres_program("initdb"), services.postgres_program("postgres")
    if redis is None:
        services.absent("Redis", "install redis-server: this test restarts it")
    if initdb is None or postgres is None:
        services.absent("PostgreSQL", "install postgresql: this test restarts it")
    with contextlib.ExitStack() as stack:
        broker = services.RedisProcess(redis, tmp_path_factory.mktemp("redis"))
        stack.callback(broker.kill)
        database = services.PostgresProcess(initdb, postgres)
        stack.callback(database.close)
        url = stack.enter_context(services.empty_postgres_database(database.url))
        proxies = {"redis": Proxy(broker.port), "postgres": Proxy(database.port)}
        for proxy in proxies.values():
            stack.callback(proxy.cut)
        found = stack.enter_context(
            stage(
                tmp_path_factory.mktemp("servers"),
                ["--pool=threads", "--concurrency=20"],
                broker_url=through(proxies["redis"], f"{broker.url}/0"),
                broker_transport_options={"visibility_timeout": 1, "unacked_restore_interval": 1},
                workflow_database_url=through(proxies["postgres"], url),
            )
        )
        found.servers = {"redis": broker, "postgres": database}
        found.proxies = proxies
        yield found


@pytest.mark.redis
@pytest.mark.postgres
def test_a_step_longer_than_redis_visibility_timeout_runs_once(servers: Stage) -> None:
    # A step that a worker takes without its message has none that could come again.
    servers.home.wait_for(lambda: " ready." in servers.log(), "the worker")
    (run_id,) = [servers.program.start("gated:long", "long")]
    servers.home.wait_for(lambda: servers.held("long"), "the step")

    servers.home.wait_for(lambda: deliveries(servers, run_id) > 1, "the second delivery of its message")
    servers.open("long")

    assert servers.program.result(run_id) == 2
    assert [note["step"] for note in servers.home.journal("ran", place="long")] == ["held", "after"]


def deliveries(stage: Stage, run_id: str) -> int:
    return len(re.findall(rf"Task gated\.held\[ckw:{run_id}:\S+\] received", stage.log()))


@pytest.mark.redis
@pytest.mark.postgres
def test_runs_go_on_after_the_connection_to_redis_was_lost(servers: Stage) -> None:
    line = servers.proxies["redis"]

    servers.ride_out("redis-lost", line.cut, line.mend, sign=BROKER_IS_LOST, client_works=True)


@pytest.mark.redis
@pytest.mark.postgres
def test_runs_go_on_after_redis_was_restarted_and_has_lost_all_messages(servers: Stage) -> None:
    redis = servers.servers["redis"]

    servers.ride_out("redis-restarted", redis.kill, redis.start, sign=BROKER_IS_LOST, client_works=True)


@pytest.mark.redis
@pytest.mark.postgres
def test_runs_go_on_after_the_connection_to_postgresql_was_lost(servers: Stage) -> None:
    line = servers.proxies["postgres"]

    servers.ride_out("postgres-lost", line.cut, line.mend, sign=DATABASE_IS_LOST, client_works=False)


@pytest.mark.redis
@pytest.mark.postgres
def test_runs_go_on_after_postgresql_was_restarted(servers: Stage) -> None:
    postgres = servers.servers["postgres"]

    servers.ride_out(
        "postgres-restarted", postgres.stop, postgres.start, sign=DATABASE_IS_LOST, client_works=False
    )


# --- RabbitMQ, in prefork ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rabbitmq(
    rabbitmq_server: services.RabbitMQ | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    """A worker with child processes on quorum queues of a RabbitMQ behind a proxy, and an SQLite file."""
    if not isinstance(rabbitmq_server, services.RabbitMQProcess):
        services.absent("RabbitMQ", "install rabbitmq-server: this test restarts it")
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(services.empty_rabbitmq_vhost(rabbitmq_server))
        line = Proxy(rabbitmq_server.port)
        stack.callback(line.cut)
        found = stack.enter_context(
            stage(
                tmp_path_factory.mktemp("rabbitmq"),
                ["--pool=prefork", f"--concurrency={RUNS}"],
                broker_url=through(line, url),
                task_default_queue_type="quorum",
            )
        )
        found.servers, found.proxies = {"rabbitmq": rabbitmq_server}, {"rabbitmq": line}
        yield found


@pytest.mark.rabbitmq
def test_runs_go_on_after_the_connection_to_rabbitmq_was_lost(rabbitmq: Stage) -> None:
    line = rabbitmq.proxies["rabbitmq"]

    rabbitmq.ride_out("rabbit-lost", line.cut, line.mend, sign=BROKER_IS_LOST, client_works=True)


@pytest.mark.rabbitmq
def test_runs_go_on_after_rabbitmq_was_restarted(rabbitmq: Stage) -> None:
    server = rabbitmq.servers["rabbitmq"]

    rabbitmq.ride_out(
        "rabbit-restarted", server.stop, server.start, sign=BROKER_IS_LOST, client_works=True
    )


# --- files -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, SmallDisk]]:
    """A worker whose database and messages are files on a small disk."""
    folder = tmp_path_factory.mktemp("files")
    disk = SmallDisk(folder / "disk")
    try:
        with stage(
            folder,
            ["--pool=threads", "--concurrency=20"],
            workflow_database_url=f"sqlite:///{disk.folder / 'runs.sqlite3'}",
        ) as found:
            yield found, disk
    finally:
        disk.remove()


def test_runs_go_on_after_the_disk_was_full(files: tuple[Stage, SmallDisk]) -> None:
    stage, disk = files

    stage.ride_out("full", disk.fill, disk.empty, sign=DATABASE_IS_LOST, client_works=False)


@pytest.mark.parametrize("file", ["runs.sqlite3", "ckworkflow-broker.sqlite3"])
def test_runs_go_on_after_another_process_had_locked_a_file(
    files: tuple[Stage, SmallDisk], file: str
) -> None:
    stage, disk = files
    place = f"locked-{file}"
    runs = stage.start(place, range(RUNS))
    stage.home.wait_for(lambda: len(stage.held(place)) == RUNS, "runs in the middle")
    seen = len(stage.log())

    with contextlib.closing(sqlite3.connect(disk.folder / file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        locked_at = time.monotonic()
        stage.open(place)
        stage.home.wait_for(
            lambda: len(stage.home.journal("let go", place=place)) == RUNS, "the steps' ends"
        )
        stage.home.wait_for(lambda: time.monotonic() > locked_at + LOCK_SECONDS, "the end of the lock")
        other.execute("COMMIT")

    stage.see_through(place, runs)
    stage.see_few_words(stage.log()[seen:], LOCK_SECONDS)
