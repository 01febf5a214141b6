"""`ckworkflow web`: a real process, a real port, and real signals."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli_project import BIN, Project
from waiting import until

pytestmark = pytest.mark.slow

FLOWS = """
from ckworkflow import create_hook, create_webhook, workflow


@workflow
async def waits():
    hook = create_webhook()
    create_hook("address", metadata=hook.url)  # where the test finds it
    return (await hook).json()
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write("workflows/__init__.py", "")
    made.write("workflows/flows.py", FLOWS)
    made.configure(workflow_web_url="https://bot.example.com/hooks")
    return made


@contextmanager
def command(project: Project, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process, and its port."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
    with (project.folder / "web.log").open("w") as log:
        process = subprocess.Popen(
            [str(BIN / "ckworkflow"), "web", "--port", "0", *options], cwd=project.folder, env=env,
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        found = re.search(r"at http://127\.0\.0\.1:(\d+)/hooks$", process.stdout.readline().strip())
        assert found, (project.folder / "web.log").read_text()
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate(timeout=20)


def path_of(project: Project) -> str:
    code = "from ckworkflow import get_hook_sync; print(get_hook_sync('address').metadata)"
    url = project.python(f"import logging; logging.disable(); {code}")
    assert url.startswith("https://bot.example.com/hooks/")
    return url.removeprefix("https://bot.example.com")


def post(port: int, path: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, body)
        return connection.getresponse().status
    finally:
        connection.close()


def test_a_request_reaches_the_body_without_any_worker_and_no_token_is_logged(project: Project):
    run_id = project.start("waits")
    path = path_of(project)
    with command(project) as (process, port):
        assert post(port, "/hooks/" + "A" * 22, b"{}") == 404
        assert post(port, path, b'{"paid": true}') == 202
        database = project.folder / "ckworkflow.sqlite3"

        def output() -> str | None:
            with sqlite3.connect(database) as connection:
                return connection.execute("SELECT output FROM runs WHERE id = ?", [run_id]).fetchone()[0]

        until(lambda: output() is not None)
        assert output() == '{"paid":true}'
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == "Stopped.\n"
        assert process.returncode == 0
    log = (project.folder / "web.log").read_text()
    assert f"run {run_id}: a request has come to its webhook" in log
    assert path.rpartition("/")[2] not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_what_is_being_received_is_answered_first(project: Project, number: int):
    project.start("waits")
    path = path_of(project)
    with command(project) as (process, port):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sender:
            sender.sendall(head.encode())
            assert sender.recv(100).startswith(b"HTTP/1.1 100 ")  # it is being received
            process.send_signal(number)
            until(lambda: is_refused(port))
            sender.sendall(b"{}")
            assert sender.recv(100).startswith(b"HTTP/1.1 202 ")
        process.communicate(timeout=5)
        assert process.returncode == 0


def is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
    except ConnectionRefusedError:
        return True
    return False


def test_without_an_address_it_says_which_setting_is_missing(project: Project):
    project.configure()
    said = project.error("web", "--port", "0")
    assert said.startswith("workflow_web_url = None cannot be used: it says where webhooks are found")


def test_a_port_that_is_taken_is_said_in_a_sentence(project: Project):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = project.run("ckworkflow", "web", "--port", str(port))
    assert done.returncode == 1
    assert f"Error: Cannot listen on 127.0.0.1:{port}: " in done.stderr
    assert "Traceback" not in done.stderr


def test_to_import_the_package_imports_no_aiohttp():
    code = "import sys, ckworkflow; print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
