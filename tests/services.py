"""Redis and PostgreSQL for the tests: found, or started, and never shared between two tests.

A test asks for `redis_url` or `postgres_url` and gets a database of its own. The servers are real and
private: started on a free port with a temporary folder, stopped at the end. `CKWORKFLOW_TEST_REDIS_URL`
and `CKWORKFLOW_TEST_POSTGRES_URL` name running servers to use instead.

A server that cannot be had skips the test, and the last lines of the report say what was not run; with
`CI=true` it fails the test instead, so that a green CI means that everything ran.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

IS_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
START_TIMEOUT_SECONDS = 60

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


# --- Redis -----------------------------------------------------------------------------------------

REDIS_DATABASES = 10_000  # one for each test: kombu's queues and fan-outs are told apart by the number


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
    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    options += ["--databases", str(REDIS_DATABASES), "--logfile", str(folder / "redis.log")]
    process = subprocess.Popen([program, *options])
    try:
        assert wait_for_port(port, process), (folder / "redis.log").read_text()
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


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
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise AssertionError("root, and no user to run PostgreSQL as")


@contextlib.contextmanager
def temporary_cluster(initdb: str, server: str) -> Iterator[str]:
    """Run a PostgreSQL server of our own in a temporary folder."""
    user = unprivileged_user()
    # Not pytest's folder: that belongs to root, with parents that nobody else may enter.
    folder = Path(tempfile.mkdtemp(prefix="ckworkflow-postgres-"))
    data, log, port = folder / "data", folder / "log", free_port()
    process = None
    try:
        if user is not None:
            shutil.chown(folder, user)
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
            user=user,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        # fsync off: what is tested is the death of our processes, not of the database's machine.
        run = [server, "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*run, "-c", "fsync=off", "-c", "max_connections=300"],
                user=user, cwd=folder, stdout=output, stderr=output,
            )  # fmt: skip
        assert wait_for_port(port, process), log.read_text()
        url = f"postgresql+psycopg://ckworkflow@127.0.0.1:{port}"
        wait_until_it_serves(url)
        yield url
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # "fast": clients are cut off, not waited for
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str | None]:
    """The URL of a PostgreSQL server without a database, or `None`."""
    given = os.environ.get("CKWORKFLOW_TEST_POSTGRES_URL")
    if given:
        yield given.rstrip("/")
        return
    initdb, server = postgres_program("initdb"), postgres_program("postgres")
    if initdb is None or server is None:
        yield running_postgres()
        return
    with temporary_cluster(initdb, server) as url:
        yield url


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
