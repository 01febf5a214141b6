"""How each side is started on each broker and database: ours as a user would, each peer with its best fair settings.

A peer has variants (pools, numbers of threads); the runner tries each and compares with the fastest.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import servers
from sides import DRIVERS, Spec
from workloads import DBOS, RAW, Workload

SLOTS = 200
"""Slots of a worker: what ours has by default."""


@dataclass
class Ground:
    """The servers under a comparison.

    Attributes:
        broker: `embedded`, `redis` or `rabbitmq`.
        database: `sqlite` or `postgresql`.
        redis: URL of the server, where there is one.
        rabbitmq: The same.
        postgres: The same.
    """

    broker: str
    database: str
    redis: str | None = None
    rabbitmq: str | None = None
    postgres: str | None = None
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def new_redis(self) -> str:
        """Return a Redis database that nobody else uses."""
        return f"{self.redis}/{next(self._numbers)}"

    def new_broker(self) -> str:
        """Return a broker URL that nobody else uses: no worker takes the messages of another."""
        if self.broker == "redis":
            return self.new_redis()
        return f"{self.rabbitmq}/{next(self._numbers)}"


def is_dbos_here() -> bool:
    """Tell whether the optional peer is installed."""
    return importlib.util.find_spec("dbos") is not None


@dataclass(frozen=True)
class Choice:
    """A side that could be started.

    Attributes:
        name: `ours`, or the peer's in the report.
        setting: The variant in words, such as `threads 200`.
        make: Returns how to start it, with a broker and a database of its own.
    """

    name: str
    setting: str
    make: Callable[[], Spec]


def ours(ground: Ground, settings: Mapping[str, Any]) -> Choice:
    """Our side: the default app with its default settings, as a bot and its worker."""

    def make() -> Spec:
        config: dict[str, Any] = {"workflow_packages": ["bench_flows"], **settings}
        prepare: Sequence[str] = ()
        if ground.database == "postgresql":
            assert ground.postgres is not None
            config["workflow_database_url"] = servers.new_postgres_database(ground.postgres)
            prepare = ["ckworkflow", "db", "upgrade"]
        driver, worker = [str(DRIVERS / "ours.py")], ["celery", "-A", "ckworkflow", "worker"]
        if ground.broker == "embedded":
            driver, worker = [*driver, "--embedded"], []
        else:
            config["broker_url"] = ground.new_broker()
        return Spec("ours", driver, worker=worker, config=config, prepare=prepare, may_stop=False)

    return Choice("ours", " ".join(f"{name}={value}" for name, value in settings.items()), make)


def rivals(ground: Ground, workload: Workload, *, has_dbos: bool) -> Mapping[str, Sequence[Choice]]:
    """Return the peers of a workload by name, each with its variants; the first is the one like ours."""
    found: dict[str, list[Choice]] = {}
    if RAW in workload.peers:
        for choice in _raw(ground, workload):
            found.setdefault(choice.name, []).append(choice)
    if has_dbos and DBOS in workload.peers:
        styles = ["async"] if workload.is_waiting or workload.name == "wide" else ["async", "threads"]
        found[DBOS] = [Choice(DBOS, style, partial(_dbos, ground, style)) for style in styles]
    return found


def _raw(ground: Ground, workload: Workload) -> Iterator[Choice]:
    if ground.broker == "embedded":
        # Both keep results in memory: a result backend on the disk would only slow them down.
        brokers = {
            f"{RAW} on memory": "memory://",
            f"{RAW} on our file": "ckworkflow+sqlite:///raw-broker.sqlite3",
        }
        for (name, url), threads in itertools.product(brokers.items(), (SLOTS, 8)):
            if threads == SLOTS or not workload.is_waiting:
                yield Choice(name, f"threads {threads}", partial(_inside, name, url, threads))
        return
    for pool, size in (("threads", SLOTS), ("threads", 8), ("prefork", 2)):
        if size == SLOTS or not workload.is_waiting:
            yield Choice(RAW, f"{pool} {size}", partial(_worker, ground, pool, size))


def _inside(name: str, broker: str, threads: int) -> Spec:
    driver = [str(DRIVERS / "raw.py"), "--embedded", str(threads)]
    return Spec(name, driver, env={"RAW_BROKER": broker, "RAW_BACKEND": "cache+memory://"})


def _worker(ground: Ground, pool: str, size: int) -> Spec:
    worker = ["celery", "-A", "raw_app", "worker", "--pool", pool, "--concurrency", str(size)]
    worker += ["--without-mingle", "--without-gossip"]
    # `rpc://` would be RabbitMQ's own, but knows no chords.
    backend = ground.new_redis() if ground.redis else "rpc://"
    env = {"RAW_BROKER": ground.new_broker(), "RAW_BACKEND": backend}
    return Spec(RAW, [str(DRIVERS / "raw.py")], worker=worker, env=env)


def _dbos(ground: Ground, style: str) -> Spec:
    database = "sqlite:///dbos.sqlite3"
    if ground.database == "postgresql":
        assert ground.postgres is not None
        database = servers.new_postgres_database(ground.postgres).replace("+psycopg", "")
    env = {"BENCH_DATABASE": database, "BENCH_STYLE": style}
    return Spec(DBOS, [str(DRIVERS / "dbos_driver.py")], env=env)
