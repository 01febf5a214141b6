"""A cluster to torment: Redis and PostgreSQL of our own, three workers, and a program that starts runs.

The workers come from the fork server of the crash tests. One that ends by itself (a database that is down stops
a worker that starts) is started again, as a service manager would.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckworkflow.engine.procfs import children_of
from crash_everywhere.site import Child, ForkServer, Reader, wait_for
from effect_flows import FLOWS, HORIZON_SECONDS
from effects import LINGER_VARIABLE, VARIABLE
from nemesis import tuning
from nemesis.tuning import pid_of
from services import PostgresProcess, RedisProcess

POOLS = ("threads", "threads", "prefork")
LINGER_SECONDS = 0.05
VISIBILITY_SECONDS = 5
"""What a dead worker held comes back after so long: more doubled messages, and from the broker itself."""
NAMES = [name for name in FLOWS if name != "three_lives"]
"""The workflows that are started. The rows of a life that has ended are deleted, and runs are judged by their rows."""
CANCELLED = 0.2
"""How many of the runs are asked to end, about."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that was done to a process and may cost its steps an attempt.

    Attributes:
        group: Its process group.
        pid: The one process that it was done to; `None`: all of the group.
        until: When it was over; for a death never.
    """

    group: int
    pid: int | None
    since: float
    until: float = float("inf")


@dataclass(slots=True)
class Slot:
    """A place in the cluster, and the worker that has it now."""

    number: int
    pool: str
    worker: Child | None = None
    stopped_at: float | None = None
    is_ending: bool = False


class Cluster:
    """See the module.

    Args:
        folder: An empty folder.
        server: Who forks.
        redis: The broker.
        postgres: The database server.
        database_url: A database of it.
    """

    def __init__(
        self,
        folder: Path,
        server: ForkServer,
        redis: RedisProcess,
        postgres: PostgresProcess,
        database_url: str,
    ) -> None:
        self.folder, self.redis_server, self.postgres = folder, redis, postgres
        self._server = server
        self._numbers = itertools.count(1)
        self.effects_folder = folder / "effects"
        self.effects_folder.mkdir()
        lines = {
            "workflow_packages": ["effect_flows"], "workflow_horizon": HORIZON_SECONDS,
            "broker_url": f"{redis.url}/0", "workflow_database_url": database_url,
            "broker_transport_options": {"visibility_timeout": VISIBILITY_SECONDS},
        }  # fmt: skip
        (folder / "celeryconfig.py").write_text(
            "".join(f"{name} = {value!r}\n" for name, value in lines.items())
        )
        self.reader = Reader(database_url)
        self.troubles: list[Trouble] = []
        self.outages: list[tuple[float, float]] = []
        """When the database could not be reached, or had just cut all connections."""
        self.counts: Counter[str] = Counter()
        self.events: list[tuple[float, str]] = []
        self.started: set[str] = set()
        self.cancelled: set[str] = set()
        """The runs that somebody has asked to end, or has tried to."""
        self._ordered = 0
        self.slots = [Slot(number, pool) for number, pool in enumerate(POOLS)]
        self._upgrade(database_url)
        self.client = self._fork("client", [])
        for slot in self.slots:
            self.start_worker(slot)

    @staticmethod
    def _upgrade(url: str) -> None:
        from ckworkflow.store import schema
        from ckworkflow.store.database import Database

        database = Database(url)
        schema.upgrade(database)
        database.dispose()

    def note(self, event: str) -> None:
        """Note what is done now, for the report of a failure."""
        self.events.append((time.time(), event))

    def events_between(self, since: float, until: float) -> str:
        """What was done about that time, as lines."""
        return "\n".join(
            f"    {at - since:+7.2f} s {event}"
            for at, event in self.events
            if since - 2 <= at <= until + 2
        )

    # --- processes -----------------------------------------------------------------------------------

    def _fork(self, kind: str, options: list[str]) -> Child:
        number = next(self._numbers)
        return self._server.fork(
            kind=kind, role=None, folder=str(self.folder), log=str(self.folder / f"{kind}-{number}.log"),
            env={
                VARIABLE: str(self.effects_folder), LINGER_VARIABLE: str(LINGER_SECONDS),
            },
            options=options, patches=["nemesis.tuning:install"],
        )  # fmt: skip

    def start_worker(self, slot: Slot) -> None:
        concurrency = 2 if slot.pool == "prefork" else 50
        options = [f"--pool={slot.pool}", f"--concurrency={concurrency}", "--loglevel=INFO"]
        slot.worker = self._fork(
            "worker", [*options, f"--hostname=slot{slot.number}-{time.time_ns()}@%h"]
        )
        slot.stopped_at, slot.is_ending = None, False
        self.note(f"slot {slot.number} has worker {slot.worker.pid}")

    def kill_worker(self, slot: Slot) -> None:
        """Kill a worker, stopped or not; `supervise` starts another one."""
        if slot.worker is None:
            return
        # Of one that is stopped the trouble began then: it may have been taken for dead before it was.
        since = slot.stopped_at or time.time()
        slot.worker.kill()
        self.troubles.append(Trouble(slot.worker.pid, None, since))
        self.note(f"worker {slot.worker.pid} was killed")
        slot.worker = slot.stopped_at = None

    def pids(self, slot: Slot) -> set[int]:
        """The processes in a place."""
        if slot.worker is None:
            return set()
        return {slot.worker.pid, *(children_of(slot.worker.pid) if slot.pool == "prefork" else ())}

    def busy_pids(self) -> set[int]:
        """The processes that own a step now; none while the database is down."""
        import psycopg

        try:
            rows = self.reader.all(
                "SELECT DISTINCT owner FROM nodes WHERE status = 'running' AND kind = 'step'"
            )
        except psycopg.OperationalError:
            self.reader.close()
            return set()
        return {pid_of(owner) for (owner,) in rows if owner is not None}

    def kill_child(self, slot: Slot, chance: random.Random, wanted: set[int]) -> bool:
        """Kill one pool process of a worker, one of those that are wanted if it can be; whether there was one."""
        children = set(children_of(slot.worker.pid)) if slot.worker is not None else set()
        if slot.worker is None or not children:
            return False
        pid = chance.choice(sorted(children & wanted or children))
        since = time.time()  # before: on a busy machine its loss is recorded before this goes on
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.troubles.append(Trouble(slot.worker.pid, pid, since))
        self.note(f"process {pid} of worker {slot.worker.pid} was killed")
        return True

    def end_worker(self, slot: Slot) -> None:
        """Ask a worker to end in order."""
        if slot.worker is not None and slot.stopped_at is None:
            slot.is_ending = True
            self.note(f"worker {slot.worker.pid} is to end")
            with contextlib.suppress(ProcessLookupError):
                os.kill(slot.worker.pid, signal.SIGTERM)

    def stop_worker(self, slot: Slot) -> None:
        """Stop a worker with all its processes; it knows of nothing until it is continued."""
        if slot.worker is not None and slot.stopped_at is None:
            slot.stopped_at = time.time()
            self.note(f"worker {slot.worker.pid} is stopped")
            slot.worker.signal(signal.SIGSTOP)

    def continue_worker(self, slot: Slot) -> None:
        if slot.worker is not None and slot.stopped_at is not None:
            self.troubles.append(Trouble(slot.worker.pid, None, slot.stopped_at, time.time()))
            slot.stopped_at = None
            slot.worker.signal(signal.SIGCONT)
            self.note(f"worker {slot.worker.pid} goes on")

    def supervise(self) -> None:
        """Start a worker wherever one has ended."""
        for slot in self.slots:
            if slot.worker is not None and slot.worker.is_dead:
                self.counts["workers that ended by themselves"] += not slot.is_ending
                self.note(f"worker {slot.worker.pid} has ended")
                slot.worker.close()
                slot.worker = None
            if slot.worker is None:
                self.start_worker(slot)

    def group_of(self, owner: str) -> int:
        """The process group of a worker process, also of one that is gone."""
        return dict(tuning.children(self.folder)).get(owner, pid_of(owner))

    def close(self) -> None:
        for slot in self.slots:
            if slot.worker is not None:
                slot.worker.kill()
        self.client.kill()
        self.reader.close()

    # --- runs ----------------------------------------------------------------------------------------

    def order_run(self, chance: random.Random) -> None:
        """Have the program start a run, and perhaps cancel it at once; what came of it is heard by `listen`."""
        how = "cancel+" if chance.random() < CANCELLED else ""
        self.client.tell(f"{how}effect_flows:{chance.choice(NAMES)}")
        self._ordered += 1

    @property
    def is_client_busy(self) -> bool:
        self.listen()
        return self._ordered > 0

    def listen(self) -> None:
        """Take in which runs were started."""
        assert not self.client.is_dead, self.logs()
        while (answer := self.client.said()) is not None:
            if answer == "ready":
                continue
            self._ordered -= 1
            if "run" in answer:
                self.started.add(answer["run"])
                if "was_live" in answer:
                    self.cancelled.add(answer["run"])
                    self.counts["runs that were cancelled while they were live"] += answer["was_live"]
            else:
                # The caller is told that nothing was started, or, where the answer was lost, that it may have been.
                assert (
                    "DatabaseUnavailableError" in answer["error"]
                    or "OperationalError" in answer["error"]
                ), answer
                self.counts["starts and requests refused while the database was down"] += 1

    # --- the broker ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def broker(self) -> Iterator[Any]:
        import redis

        with redis.Redis.from_url(f"{self.redis_server.url}/0") as connection:
            yield connection

    @staticmethod
    def queues(broker: Any) -> list[bytes]:
        """The lists in which messages wait, one for each priority."""
        return sorted(key for key in broker.keys("ckworkflow*") if broker.type(key) == b"list")

    def double(self, chance: random.Random) -> int:
        """Put copies of messages into the broker: of some that wait, and of some that a worker holds."""
        with self.broker() as broker:
            copies = 0
            for queue in self.queues(broker):
                waiting = broker.lrange(queue, 0, -1)
                for message in chance.sample(waiting, min(len(waiting), 20)):
                    chance.choice([broker.lpush, broker.rpush])(queue, message)
                    copies += 1
            for held in broker.hvals("unacked"):
                message, _exchange, queue = json.loads(held)
                broker.lpush(queue, json.dumps(message))
                copies += 1
        return copies

    def shuffle(self, chance: random.Random) -> int:
        """Put the messages that wait into another order."""
        moved = 0
        with self.broker() as broker:
            for queue in self.queues(broker):
                waiting = broker.lrange(queue, 0, -1)
                chance.shuffle(waiting)
                if len(waiting) > 1:
                    # Workers may have taken one meanwhile, which then is there twice: all the better.
                    broker.pipeline().delete(queue).rpush(queue, *waiting).execute()
                    moved += len(waiting)
        return moved

    def drop(self, chance: random.Random) -> int:
        """Lose some of the messages that wait."""
        lost = 0
        with self.broker() as broker:
            for queue in self.queues(broker):
                for _ in range(chance.randint(1, 5)):
                    lost += broker.rpop(queue) is not None
        return lost

    def flush(self) -> int:
        """Lose everything that the broker has; how many messages that was."""
        with self.broker() as broker:
            lost = sum(broker.llen(queue) for queue in self.queues(broker)) + broker.hlen("unacked")
            broker.flushall()
        self.note(f"{lost} messages were flushed")
        return lost

    def restart_broker(self) -> None:
        self.note("the broker is killed")
        self.redis_server.kill()
        self.redis_server.start()
        self.note("the broker is back")

    # --- the database --------------------------------------------------------------------------------

    def restart_database(self, number: signal.Signals, *, away_seconds: float = 0) -> None:
        """Restart the server; `SIGINT` cuts its clients off, `SIGQUIT` ends it where it stands."""
        self.reader.close()
        began = time.time()
        self.note(f"the database is stopped by {number.name}")
        process = self.postgres._process
        process.send_signal(number)
        process.wait(60)
        time.sleep(away_seconds)
        self.postgres.start()
        self.outages.append((began, time.time()))
        self.note("the database is back")

    def cut_connections(self) -> int:
        """End all connections of the cluster to its database."""
        self.outages.append((time.time(), time.time()))
        self.note("all connections to the database are cut")
        rows = self.reader.all(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return len(rows)

    def logs(self) -> str:
        """The end of what the newest processes have said."""
        newest = sorted(self.folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[-4:]
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in newest
        )


def wait_until_up(cluster: Cluster) -> None:
    """Wait until every worker has registered itself."""
    wait_for(
        lambda: (
            cluster.reader.all("SELECT count(*) FROM processes WHERE role = 'worker'")[0][0]
            >= len(POOLS)
        ),
        lambda: f"the workers\n{cluster.logs()}",
        60,
    )
