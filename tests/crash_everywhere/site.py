"""A site: one combination of broker, database and pool, the processes on it, and what can be read of its runs.

The processes are real workers that a fork server (`fork_server.py`) forks, each with a session of its own. The
harness reads the database by plain SQL on a connection of its own that it lets go at every crash, so that who
comes next finds the files as the dead process left them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ckworkflow.engine.procfs import is_running
from crash_everywhere.points import COUNT_ONLY, Control
from effect_flows import HORIZON_SECONDS, Flow
from effects import VARIABLE, Effect, effects_of

T = TypeVar("T")

TESTS = Path(__file__).parents[1]
PATIENCE_SECONDS = 20.0
WORKER, CLIENT = 1, 2
"""Roles: whose points an experiment counts."""
FINAL = ("completed", "failed", "cancelled")
_LOOK_SECONDS = 0.004
_STILL_SECONDS = 0.05


class StuckError(AssertionError):
    """Something that had to happen did not."""


@dataclass(frozen=True, slots=True)
class Combination:
    """What a worker stands on.

    Attributes:
        broker: `embedded` (none configured: the program that starts runs has the worker inside it), `redis`
            or `rabbitmq`.
        database: `sqlite` or `postgres`.
        pool: The pool of a worker that is a process of its own.
    """

    broker: str
    database: str
    pool: str = "threads"

    def __str__(self) -> str:
        return "+".join((self.broker, self.database, *([self.pool] if self.pool != "threads" else [])))


# -- processes ----------------------------------------------------------------------------------------


class ForkServer:
    """The process that forks the workers; see `fork_server.py`."""

    def __init__(self, modules: Iterable[str] = ("effect_flows",)) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(TESTS)]),
            "DISCORD_TOKEN": "",  # one in the developer's shell must not reach these workers
        }
        program = str(TESTS / "crash_everywhere" / "fork_server.py")
        self._process = subprocess.Popen(
            [sys.executable, program, str(theirs.fileno()), *modules],
            pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        self._socket = ours
        self._socket.settimeout(60)
        assert self._socket.recv(100) == b"ready"
        self.fork_seconds: list[float] = []

    def fork(self, **orders: Any) -> Child:
        """Start a process; see `fork_server.become` for what it can be told."""
        ours, theirs = socket.socketpair()
        socket.send_fds(self._socket, [json.dumps(orders).encode()], [theirs.fileno()])
        theirs.close()
        answer = json.loads(self._socket.recv(1000))
        self.fork_seconds.append(answer["seconds"])
        return Child(answer["pid"], ours, self)

    def release(self, pid: int) -> None:
        """Let go of the number of a process that has ended."""
        with contextlib.suppress(OSError):  # it was closed before what it made
            self._socket.sendall(json.dumps({"release": pid}).encode())

    def close(self) -> None:
        self._socket.close()
        self._process.wait(10)


class Child:
    """A process that the fork server made; its number is its own until `close`."""

    def __init__(self, pid: int, line: socket.socket, server: ForkServer) -> None:
        self.pid, self._socket, self._server = pid, line, server
        self._received = b""
        self._has_ended = False

    def look(self, seconds: float = 0) -> None:
        """Take in what it has said, waiting for it so long."""
        if self._has_ended or not select.select([self._socket], [], [], seconds)[0]:
            return
        try:
            data = self._socket.recv(65536)
        except ConnectionError:
            data = b""
        self._received += data
        self._has_ended = not data

    @property
    def is_dead(self) -> bool:
        """Whether it has ended, and whoever it has forked."""
        self.look()
        return self._has_ended

    def said(self) -> Any:
        """The next thing that it said; `None` when there is none yet."""
        self.look()
        if b"\n" not in self._received:
            return None
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def tell(self, value: Any) -> None:
        with contextlib.suppress(ConnectionError):  # it has just been killed
            self._socket.sendall(json.dumps(value).encode() + b"\n")

    def signal(self, number: int) -> None:
        """Send a signal to it and to whoever it has forked."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        wait_for(lambda: self.is_dead, "the death of a process")
        self.close()

    def close(self) -> None:
        """Let go of a process that has ended."""
        self._socket.close()
        self._server.release(self.pid)


def wait_for(
    condition: Callable[[], T], what: str | Callable[[], str], seconds: float = PATIENCE_SECONDS
) -> T:
    """Wait until a condition holds, and return what it gave."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            raise StuckError(f"waited in vain for {what if isinstance(what, str) else what()}")
        time.sleep(_LOOK_SECONDS)
    return answer


# -- what the database says ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """A node as its row is."""

    node_id: str
    kind: str
    name: str
    status: str
    attempt: int
    output: str | None
    error: str | None

    @property
    def is_recorded(self) -> bool:
        return self.status in {"completed", "failed"}


@dataclass(frozen=True, slots=True)
class Seen:
    """A run as it was at some moment: its rows, and what its steps had done to the world."""

    status: str
    output: str | None
    error: str | None
    has_wake_at: bool
    nodes: dict[str, Node]
    attempts: list[tuple[str, int, str]]
    effects: list[Effect]
    life: int
    """Its present life; rows of those before may be gone."""

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    def __str__(self) -> str:
        rows = [f"  {node.node_id:12} {node.kind} {node.name.rpartition('.')[2]} {node.status} "
                f"attempt {node.attempt} {node.output or node.error or ''}"[:160] for node in self.nodes.values()]  # fmt: skip
        done = ", ".join(f"{line.label} ({line.node_id}, {line.attempt})" for line in self.effects)
        return "\n".join(
            [f"{self.status} {self.output or self.error or ''}"[:200], *rows, f"  effects: {done}"]
        )


class Reader:
    """The database of a site, read by plain SQL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.is_sqlite = url.startswith("sqlite")
        self._connection: Any = None

    def all(self, sql: str, *values: Any) -> list[Any]:
        """The rows of a query; none while there is no database yet."""
        try:
            if self._connection is None:
                self._connection = self._connect()
            if self.is_sqlite:
                return list(self._connection.execute(sql, values).fetchall())
            return list(self._connection.execute(sql.replace("?", "%s"), values).fetchall())
        except sqlite3.OperationalError as error:
            if "no such table" in str(error) or "unable to open" in str(error):
                return []
            raise

    def _connect(self) -> Any:
        if self.is_sqlite:
            path = self._url.removeprefix("sqlite:///")
            return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10, isolation_level=None)
        import psycopg

        return psycopg.connect(self._url.replace("+psycopg", ""), autocommit=True)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


# -- the site -----------------------------------------------------------------------------------------


class Site:
    """See the module.

    Args:
        folder: An empty folder.
        server: Who forks.
        combination: What to stand on.
        broker_url: Of an empty broker, where the combination has one.
        database_url: Of an empty database; `None`: an SQLite file in the folder.
        patches: Functions (`module:name`) that each process calls before it does anything.
        settings: Further lines of `celeryconfig.py`.
    """

    def __init__(
        self, folder: Path, server: ForkServer, combination: Combination, *, broker_url: str | None = None,
        database_url: str | None = None, patches: Sequence[str] = (), settings: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.combination = folder, combination
        self._server, self._patches = server, list(patches)
        self.is_embedded = combination.broker == "embedded"
        self.effects_folder = folder / "effects"
        self.effects_folder.mkdir()
        self.control = Control(folder)
        self.database_url = database_url or f"sqlite:///{folder}/ckworkflow.sqlite3"
        self.broker_url = broker_url
        lines = {
            "workflow_packages": ["effect_flows"], "workflow_horizon": HORIZON_SECONDS,
            "broker_url": broker_url, "workflow_database_url": self.database_url, **(settings or {}),
        }  # fmt: skip
        text = "".join(f"{name} = {value!r}\n" for name, value in lines.items() if value is not None)
        (folder / "celeryconfig.py").write_text(text)
        self.reader = Reader(self.database_url)
        self._children: list[Child] = []
        self._held_by_dead: set[bytes] = set()
        self.boot_seconds: list[float] = []
        if not self.reader.is_sqlite:
            self._upgrade()

    def _upgrade(self) -> None:
        from ckworkflow.store import schema
        from ckworkflow.store.database import Database

        database = Database(self.database_url)
        schema.upgrade(database)
        database.dispose()

    # --- processes -----------------------------------------------------------------------------------

    def start_worker(self) -> Child:
        """Start a worker (embedded: the program around it); it is not waited for."""
        options = [f"--pool={self.combination.pool}", "--loglevel=INFO"]
        if self.combination.pool == "prefork":
            options.append("--concurrency=2")
        return self._fork("embedded" if self.is_embedded else "worker", WORKER, options)

    def start_client(self) -> Child:
        """Start a program that only starts runs."""
        return self._fork("client", CLIENT, [])

    def _fork(self, kind: str, role: int, options: list[str]) -> Child:
        child = self._server.fork(
            kind=kind, role=role, folder=str(self.folder), log=str(self.folder / f"{kind}.log"),
            env={VARIABLE: str(self.effects_folder)}, options=options,
            patches=self._patches,
        )  # fmt: skip
        self._children.append(child)
        return child

    def wait_until_ready(self, child: Child) -> None:
        """Wait until a process says that it is up; one that dies meanwhile is not."""
        began = time.monotonic()
        wait_for(lambda: child.is_dead or child.said() == "ready", lambda: f"a process\n{self.logs()}")
        self.boot_seconds.append(time.monotonic() - began)

    def clear_away(self, child: Child) -> None:
        """After the death of a process: let the database find it out, and note what the broker had given it."""
        child.close()
        self._children.remove(child)
        if not self.reader.is_sqlite:
            # What the server had been told before the death it still does.
            wait_for(lambda: not self._sessions_of_dead(), "the end of the dead process's transactions")
        if self.combination.broker == "redis":
            self._held_by_dead = set(self.redis().hkeys("unacked"))
        self.reader.close()

    def _sessions_of_dead(self) -> list[str]:
        """The sessions of processes that have ended, by the names that the engine gives them."""
        rows = self.reader.all(
            "SELECT application_name FROM pg_stat_activity WHERE datname = current_database() "
            "AND starts_with(application_name, 'ckworkflow ')"
        )
        return [name for (name,) in rows if not is_running(int(name.split(":")[-2]))]

    def wait_until_settled(self, child: Child) -> None:
        """Wait until a process that is up has also dealt with its dead predecessors."""

        def are_reaped() -> bool:
            return all(is_running(pid) for (pid,) in self.reader.all("SELECT pid FROM processes"))

        wait_for(lambda: child.is_dead or are_reaped(), lambda: f"a reaping\n{self.logs()}")
        self.wait_until_quiet(child)

    def forget_dead(self) -> None:
        """Take away what nobody will acknowledge, so that the next experiment begins with an empty broker."""
        if self._held_by_dead:
            self.redis().delete("unacked", "unacked_index")
            self._held_by_dead = set()

    def close(self) -> None:
        """Kill what still runs."""
        for child in self._children:
            child.kill()
        self._children.clear()
        self.reader.close()
        if "_redis" in self.__dict__:
            self.redis().close()

    # --- runs ----------------------------------------------------------------------------------------

    def start(self, program: Child, flow: Flow) -> str | None:
        """Have a program start a run; its id, or `None` when it died before it could start one."""
        known = {row[0] for row in self.reader.all("SELECT id FROM runs")}
        program.tell(f"effect_flows:{flow.name}")
        answer = wait_for(
            lambda: program.said() or (program.is_dead and {"killed": True}),
            lambda: f"a start\n{self.logs()}",
        )
        assert "error" not in answer, answer["error"]
        if "run" in answer:
            return str(answer["run"])
        new = {row[0] for row in self.reader.all("SELECT id FROM runs WHERE parent IS NULL")} - known
        return new.pop() if new else None

    def status(self, run_id: str) -> str:
        rows = self.reader.all("SELECT status FROM runs WHERE id = ?", run_id)
        return rows[0][0] if rows else "missing"

    def see(self, run_id: str) -> Seen:
        """A run as it is now."""
        (run,) = self.reader.all(
            "SELECT status, output, error, wake_at, life FROM runs WHERE id = ?", run_id
        )
        nodes = self.reader.all(
            "SELECT node_id, kind, name, status, attempt, output, error FROM nodes WHERE run_id = ? "
            "ORDER BY position", run_id,
        )  # fmt: skip
        attempts = self.reader.all(
            "SELECT node_id, attempt, outcome FROM attempts WHERE run_id = ? ORDER BY node_id, attempt",
            run_id,
        )
        return Seen(
            run[0], run[1], run[2], run[3] is not None, {row[0]: Node(*row) for row in nodes},
            [(row[0], row[1], row[2]) for row in attempts], effects_of(self.effects_folder, run_id), run[4],
        )  # fmt: skip

    def count_only(self, role: int = WORKER) -> None:
        self.control.arm(COUNT_ONLY, role=role)

    # --- the broker ----------------------------------------------------------------------------------

    def redis(self) -> Any:
        if "_redis" not in self.__dict__:
            import redis

            self._redis = redis.Redis.from_url(self.broker_url or "")
        return self._redis

    def is_quiet(self) -> bool:
        """Whether no message waits for anybody, or is held by anybody alive."""
        if self.combination.broker == "redis":
            queued = any(self.redis().llen(key) for key in self.redis().keys("ckworkflow*"))
            return not queued and not set(self.redis().hkeys("unacked")) - self._held_by_dead
        if self.is_embedded:
            path = self.folder / "ckworkflow-broker.sqlite3"
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
                return not file.execute("SELECT 1 FROM messages WHERE queue = 'ckworkflow'").fetchone()
        # RabbitMQ does not say what its consumers hold; who holds a message will write soon.
        before = self.control.trace_file.stat().st_size
        time.sleep(_STILL_SECONDS)
        return not self._rabbitmq_ready() and self.control.trace_file.stat().st_size == before

    def _rabbitmq_ready(self) -> int:
        import amqp
        import kombu

        with kombu.Connection(self.broker_url) as connection:
            try:
                return int(
                    connection.default_channel.queue_declare("ckworkflow", passive=True).message_count
                )
            except amqp.exceptions.NotFound:
                return 0

    def wait_until_quiet(self, child: Child) -> None:
        """Wait until all that a run has left behind is dealt with, or the process is dead."""

        wait_for(
            lambda: child.is_dead or (self.is_quiet() and not self.control.is_busy),
            lambda: f"an empty broker (empty: {self.is_quiet()})\n{self.logs()}",
        )

    def logs(self) -> str:
        """The end of what each kind of process has said."""
        texts = [
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        ]
        return "\n".join(texts)
