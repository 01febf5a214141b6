"""Redis, RabbitMQ and PostgreSQL for the tests: found, or started, and never shared between two tests.

A test asks for `redis_url`, `rabbitmq_url` or `postgres_url` and gets a database (a virtual host) of its own. The
servers are real and private: started on a free port with a temporary folder, stopped at the end.
`CKWORKFLOW_TEST_REDIS_URL`, `CKWORKFLOW_TEST_RABBITMQ_URL` (with its management interface ten thousand ports
higher, as is RabbitMQ's custom) and `CKWORKFLOW_TEST_POSTGRES_URL` name running servers to use instead.

A server that cannot be had skips the test, and the last lines of the report say what was not run; with
`CI=true` it fails the test instead, so that a green CI means that everything ran.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

IS_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
START_TIMEOUT_SECONDS = 120

NOT_AVAILABLE = "is not available:"
XDIST_NUMBER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
XDIST_COUNT = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def absent(service: str, how: str) -> None:
    """Skip the test that wanted a service which is not here; in CI, fail it."""
    reason = f"{service} {NOT_AVAILABLE} {how}"
    if IS_CI:
        pytest.fail(f"{reason}. With CI=true that is an error.", pytrace=False)
    pytest.skip(reason)


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes] | None = None) -> bool:
    """Wait until something listens; `False` when the process ends or the time is up."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            return False
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.02)
    return False


def temporary_folder(kind: str, user: str | None) -> Path:
    """Make a folder for a server that runs as this user.

    Not pytest's folder: that belongs to root, with parents that nobody else may enter.
    """
    root = os.environ.get("PYTEST_DEBUG_TEMPROOT")  # in memory, where conftest.py has found room for it
    folder = Path(tempfile.mkdtemp(prefix=f"ckworkflow-{kind}-", dir=root))
    if user is not None:
        shutil.chown(folder, user)
    return folder


def _user_named(*names: str) -> str:
    for name in names:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise AssertionError(f"root, and no user {' or '.join(names)} to run a server as")


# --- Redis -----------------------------------------------------------------------------------------

REDIS_DATABASES = 10_000  # one for each test: kombu's queues and fan-outs are told apart by the number


class RedisProcess:
    """A Redis server of our own that keeps nothing; `url` has no database number."""

    def __init__(self, program: str, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._log = folder / "redis.log"
        self._words = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._words += ["--save", "", "--appendonly", "no", "--logfile", str(self._log)]
        self._words += ["--databases", str(REDIS_DATABASES)]
        self.start()

    def start(self) -> None:
        """Start the server, empty, and wait until it serves."""
        self._process = subprocess.Popen(self._words)
        assert wait_for_port(self.port, self._process), self._log.read_text()

    def kill(self) -> None:
        """Let the server die with all that it holds."""
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    """The URL of a Redis server without a database number, or `None`."""
    given = os.environ.get("CKWORKFLOW_TEST_REDIS_URL")
    if given:
        yield given.rstrip("/")
        return
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    server = RedisProcess(program, tmp_path_factory.mktemp("redis"))
    try:
        yield server.url
    finally:
        server.kill()


_redis_numbers = itertools.count(XDIST_NUMBER, XDIST_COUNT)


@pytest.fixture
def redis_url(redis_server: str | None) -> str:
    """An empty Redis database: the URL of a broker that only this test uses."""
    return empty_redis_database(redis_server)


def empty_redis_database(server: str | None) -> str:
    """Return the URL of a database of the server that nobody else uses, for a fixture of any scope."""
    if server is None:
        absent("Redis", "install redis-server, or set CKWORKFLOW_TEST_REDIS_URL")
    databases = 16 if os.environ.get("CKWORKFLOW_TEST_REDIS_URL") else REDIS_DATABASES
    url = f"{server}/{next(_redis_numbers) % databases}"
    import redis

    with redis.Redis.from_url(url) as connection:
        connection.flushdb()
    return url


# --- RabbitMQ --------------------------------------------------------------------------------------


class RabbitMQ:
    """A RabbitMQ server. `url` has no virtual host; `api` is its management interface."""

    def __init__(self, url: str, api: str) -> None:
        parts = urlsplit(url)
        self.url, self.api = url, api
        login = f"{parts.username or 'guest'}:{parts.password or 'guest'}"
        self._authorization = "Basic " + base64.b64encode(login.encode()).decode()
        self._user = parts.username or "guest"

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Ask the management interface; its answer, or `None` for an empty one."""
        request = urllib.request.Request(
            f"{self.api}/api/{path}", method=method, data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": self._authorization, "Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    @contextlib.contextmanager
    def empty_vhost(self) -> Iterator[str]:
        """Make a virtual host for as long as the `with` lasts: the URL of a broker that nobody else uses."""
        name = f"ckworkflow-{os.getpid()}-{next(_rabbitmq_numbers)}"
        self.ask("PUT", f"vhosts/{name}")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.ask("PUT", f"permissions/{name}/{self._user}", everything)
        try:
            yield f"{self.url}/{name}"
        finally:
            self.ask("DELETE", f"vhosts/{name}")


class RabbitMQProcess(RabbitMQ):
    """A RabbitMQ server of our own in a temporary folder; `settings` are further ones of `rabbit`."""

    def __init__(self, program: str, **settings: int) -> None:
        # Debian's own script insists on its user's folders; what it starts takes them from the environment.
        script = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        self._program = str(script) if script.exists() else program
        self.port, api_port, epmd_port = free_port(), free_port(), free_port()
        super().__init__(f"amqp://guest:guest@127.0.0.1:{self.port}", f"http://127.0.0.1:{api_port}")
        self._user_name = _user_named("rabbitmq", "nobody") if os.geteuid() == 0 else None
        self.folder = temporary_folder("rabbitmq", self._user_name)
        config, plugins = self.folder / "rabbitmq.conf", self.folder / "plugins"
        advanced = self.folder / "advanced.config"
        terms = ", ".join(f"{{{name}, {value}}}" for name, value in settings.items())
        advanced.write_text(f"[{{rabbit, [{terms}]}}].\n")
        config.write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {api_port}\n"
        )
        plugins.write_text("[rabbitmq_management].\n")
        for file in (config, plugins, advanced):
            file.chmod(0o644)
        self._env = {
            **os.environ,
            "HOME": str(self.folder),  # Erlang's cookie
            "RABBITMQ_NODENAME": f"ckworkflow{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(advanced),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
        # Erlang would start its port mapper itself, as a daemon that nobody ends.
        self._mapper = self._spawn("epmd", "-port", str(epmd_port), "-address", "127.0.0.1")
        assert wait_for_port(epmd_port, self._mapper), self.log()
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the server, with what it kept from before, and wait until it serves."""
        self._server = self._spawn(self._program)
        for url in (self.url, self.api):  # the interface comes last
            assert wait_for_port(urlsplit(url).port, self._server), self.log()

    def stop(self) -> None:
        """Stop the server in order: it closes its connections and keeps what is durable."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGTERM)
            self._server.wait(30)

    def close(self) -> None:
        """End everything."""
        for process in (self._server, self._mapper):
            if process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """What the server has said."""
        return (self.folder / "output").read_text(errors="replace")

    def _spawn(self, *words: str) -> subprocess.Popen[bytes]:
        user = self._user_name
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                words, env=self._env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, user=user, group=user and pwd.getpwnam(user).pw_gid,
                extra_groups=None if user is None else [],
            )  # fmt: skip


def rabbitmq_program() -> str | None:
    """Find RabbitMQ's server; Debian keeps it off the PATH of ordinary users."""
    return shutil.which("rabbitmq-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitMQ | None]:
    """A RabbitMQ server, or `None`. One of our own takes several seconds to start."""
    given = os.environ.get("CKWORKFLOW_TEST_RABBITMQ_URL")
    if given:
        parts = urlsplit(given)
        api = f"http://{parts.hostname}:{(parts.port or 5672) + 10_000}"
        yield RabbitMQ(given.rstrip("/"), api)
        return
    program = rabbitmq_program()
    if program is None:
        yield None
        return
    server = RabbitMQProcess(program)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def rabbitmq_url(rabbitmq_server: RabbitMQ | None) -> Iterator[str]:
    """An empty virtual host of RabbitMQ: the URL of a broker that only this test uses."""
    with empty_rabbitmq_vhost(rabbitmq_server) as url:
        yield url


@contextlib.contextmanager
def empty_rabbitmq_vhost(server: RabbitMQ | None) -> Iterator[str]:
    """Make a virtual host on the server for as long as the `with` lasts, for a fixture of any scope."""
    if server is None:
        absent("RabbitMQ", "install rabbitmq-server, or set CKWORKFLOW_TEST_RABBITMQ_URL")
    with server.empty_vhost() as url:
        yield url


_rabbitmq_numbers = itertools.count()


# --- PostgreSQL ------------------------------------------------------------------------------------


def postgres_program(name: str) -> str | None:
    """Find a program of the PostgreSQL server; Debian keeps them off the PATH."""
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name), reverse=True
    )
    search = os.pathsep.join([os.environ.get("PATH", ""), *map(str, versions)])
    return shutil.which(name, path=search)


def unprivileged_user() -> str | None:
    """Who may run the server: PostgreSQL refuses to run as root."""
    return _user_named("postgres", "nobody") if os.geteuid() == 0 else None


class PostgresProcess:
    """A PostgreSQL server of our own in a temporary folder; `url` has no database."""

    def __init__(self, initdb: str, program: str) -> None:
        self._user = unprivileged_user()
        self._folder = temporary_folder("postgres", self._user)
        self._log, self.port = self._folder / "log", free_port()
        self.url = f"postgresql+psycopg://ckworkflow@127.0.0.1:{self.port}"
        data = self._folder / "data"
        make = [
            initdb,
            "--pgdata",
            str(data),
            "--username",
            "ckworkflow",
            "--auth",
            "trust",
            "--no-sync",
        ]
        made = subprocess.run(
            [*make, "--encoding", "UTF8", "--locale", "C"],
            user=self._user, cwd=self._folder, capture_output=True, text=True,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr
        self._words = [program, "-D", str(data), "-p", str(self.port), "-h", "127.0.0.1", "-k"]
        # fsync off: what is tested is the death of our processes, not of the database's machine.
        self._words += [str(self._folder), "-c", "fsync=off", "-c", "max_connections=300"]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the server, with what it kept from before, and wait until it serves."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._words, user=self._user, cwd=self._folder, stdout=output, stderr=output
            )
        assert wait_for_port(self.port, self._process), self._log.read_text()
        wait_until_it_serves(self.url)

    def stop(self) -> None:
        """Stop the server in order: clients are cut off, not waited for."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)

    def close(self) -> None:
        """End everything."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def own_postgres() -> PostgresProcess | None:
    """Start a server; `None`: its programs are not here."""
    initdb, server = postgres_program("initdb"), postgres_program("postgres")
    return None if initdb is None or server is None else PostgresProcess(initdb, server)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str | None]:
    """The URL of a PostgreSQL server without a database, or `None`."""
    given = os.environ.get("CKWORKFLOW_TEST_POSTGRES_URL")
    if given:
        yield given.rstrip("/")
        return
    own = own_postgres()
    if own is None:
        yield running_postgres()
        return
    try:
        yield own.url
    finally:
        own.close()


def running_postgres() -> str | None:
    """Find a server that runs here and lets this user in; only fresh databases of it are used."""
    import psycopg

    for user in dict.fromkeys([os.environ.get("PGUSER", "postgres"), "postgres"]):
        url = f"postgresql+psycopg://{user}@127.0.0.1:5432"
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(_dsn(url, "postgres"), connect_timeout=3).close()
            return url
    return None


def wait_until_it_serves(server: str) -> None:
    """Wait until a server that listens has also come up: until then it refuses everybody."""
    import psycopg

    end = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        try:
            psycopg.connect(_dsn(server, "postgres"), connect_timeout=3).close()
        except psycopg.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
        else:
            return


def _dsn(server: str, database: str) -> str:
    return f"{server.replace('postgresql+psycopg://', 'postgresql://')}/{database}"


@pytest.fixture
def postgres_url(postgres_server: str | None) -> Iterator[str]:
    """An empty PostgreSQL database: a `workflow_database_url` that only this test uses."""
    with empty_postgres_database(postgres_server) as url:
        yield url


@contextlib.contextmanager
def empty_postgres_database(server: str | None) -> Iterator[str]:
    """Make a database on the server for as long as the `with` lasts, for a fixture of any scope."""
    if server is None:
        absent("PostgreSQL", "install postgresql, or set CKWORKFLOW_TEST_POSTGRES_URL")
    import psycopg
    from psycopg import sql

    name = f"ckworkflow_{os.getpid()}_{next(_postgres_numbers)}"
    with psycopg.connect(_dsn(server, "postgres"), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield f"{server}/{name}"
    finally:
        with psycopg.connect(_dsn(server, "postgres"), autocommit=True) as admin:
            # FORCE: a worker that the test killed may have left its connections behind.
            admin.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )


_postgres_numbers = itertools.count()
