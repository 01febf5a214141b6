"""Servers for one benchmark: private, on free ports, with the durability of production where it counts.

PostgreSQL runs with its defaults, so every commit waits for the disk; folders are under the temporary
directory of the machine, which must be a real disk. Redis and RabbitMQ are brokers and keep nothing.

Not here: skipping (`run.py` says what a missing program costs).
"""

from __future__ import annotations

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
from collections.abc import Iterator
from pathlib import Path

START_TIMEOUT_SECONDS = 60


class MissingServerError(Exception):
    """A program that the wanted combination needs is not on this machine."""


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server listens.

    Raises:
        RuntimeError: It ended, or never did; with its log.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args!r} does not listen on {port}:\n{log.read_text(errors='replace')}")


def program(name: str, *more: str) -> str:
    """Find a program; Debian keeps those of PostgreSQL off the PATH.

    Raises:
        MissingServerError: It is not installed.
    """
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *more]))
    if found is None:
        raise MissingServerError(f"{name} is not installed")
    return found


def _unprivileged(name: str) -> str | None:
    """Who may run a server that refuses root."""
    if os.geteuid() != 0:
        return None
    for user in (name, "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(user).pw_name
    return None


def _folder(kind: str, user: str | None) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"ckworkflow-bench-{kind}-"))
    if user is not None:
        shutil.chown(folder, user)
    return folder


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    process.send_signal(how)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Yield the URL of a Redis server, without a database number.

    Raises:
        MissingServerError: There is no Redis here.
    """
    name, folder, port = program("redis-server"), _folder("redis", None), free_port()
    log = folder / "redis.log"
    words = [name, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*words, "--appendonly", "no", "--databases", "1000"],
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for_port(port, process, log)
        yield f"redis://127.0.0.1:{port}"
    finally:
        _end(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def rabbitmq_server(vhosts: int = 100) -> Iterator[str]:
    """Yield the URL of a RabbitMQ server; its virtual hosts are named `1` to `vhosts`.

    Raises:
        MissingServerError: There is no RabbitMQ here.
    """
    name = program("rabbitmq-server", "/usr/sbin", "/usr/lib/rabbitmq/bin")
    user = _unprivileged("rabbitmq")
    folder, port = _folder("rabbitmq", user), free_port()
    names = [str(number) for number in range(1, vhosts + 1)]
    permission = {"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}
    definitions = folder / "definitions.json"
    definitions.write_text(
        json.dumps(
            {
                "users": [{"name": "guest", "password": "guest", "tags": "administrator"}],
                "vhosts": [{"name": vhost} for vhost in names],
                "permissions": [{**permission, "vhost": vhost} for vhost in names],
            }
        )
    )
    config = folder / "rabbitmq.conf"
    config.write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\nload_definitions = {definitions}\n")
    for path in (definitions, config):
        path.chmod(0o644)
    env = {
        **os.environ,
        "HOME": str(folder),  # Erlang's cookie
        "RABBITMQ_NODENAME": f"bench{port}@localhost",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_CONFIG_FILE": str(config),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "no-plugins"),
        "ERL_EPMD_PORT": str(free_port()),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    log = folder / "output.log"
    script = Path(
        "/usr/lib/rabbitmq/bin/rabbitmq-server"
    )  # Debian's wrapper insists on its own user and paths
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(script) if script.exists() else name],
            user=user, group=user and pwd.getpwnam(user).pw_gid, extra_groups=[] if user else None,
            cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for_port(port, process, log)
        yield f"amqp://guest:guest@127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the shell script and the Erlang machine
        process.wait()
        # Erlang's port mapper has made itself a daemon; it goes when no node is left.
        subprocess.run(["epmd", "-kill"], env=env, capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """Yield the URL of a PostgreSQL server, without a database: default settings, so fsync is on.

    Raises:
        MissingServerError: There is no PostgreSQL here.
    """
    folders = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    initdb, server = program("initdb", *folders), program("postgres", *folders)
    user = _unprivileged("postgres")
    folder, port = _folder("postgres", user), free_port()
    data, log = folder / "data", folder / "log"
    try:
        made = subprocess.run(
            [initdb, "--pgdata", str(data), "--username", "ckworkflow", "--auth", "trust", "--no-sync",
             "--encoding", "UTF8", "--locale", "C"],
            user=user, cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(made.stdout + made.stderr)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [server, "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder),
                 "-c", "max_connections=300"],
                user=user, cwd=folder, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        try:
            wait_for_port(port, process, log)
            url = f"postgresql+psycopg://ckworkflow@127.0.0.1:{port}"
            _wait_until_it_serves(url)
            yield url
        finally:
            _end(process, signal.SIGINT)  # "fast": clients are cut off, not waited for
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _dsn(server: str, database: str) -> str:
    return f"{server.replace('postgresql+psycopg://', 'postgresql://')}/{database}"


def _wait_until_it_serves(server: str) -> None:
    import psycopg

    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        try:
            psycopg.connect(_dsn(server, "postgres"), connect_timeout=3).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


_numbers = itertools.count(1)


def new_postgres_database(server: str) -> str:
    """Make an empty database and return its URL."""
    import psycopg

    name = f"bench_{next(_numbers)}"
    with psycopg.connect(_dsn(server, "postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    return f"{server}/{name}"


def postgres_setting(server: str, name: str) -> str:
    """Read a setting of the server, to print beside the figures."""
    import psycopg

    with psycopg.connect(_dsn(server, "postgres"), autocommit=True) as admin:
        row = admin.execute("SELECT current_setting(%s)", [name]).fetchone()
    return str(row[0]) if row else "?"
