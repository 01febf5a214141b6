"""What the log says: each line by itself, whatever the format; of each attempt once, however it was carried."""

from __future__ import annotations

import ast
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ckworkflow
import log_flows
from ckworkflow import start_sync
from ckworkflow.testing import FakeDiscord, worker
from worker_home import TESTS, WorkerHome

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(ckworkflow.__file__).parent
LEVELS = {"info", "warning", "error", "exception", "critical", "log"}
EVERY_STEP = [
    "on_the_loop (0:1) INFO succeeded",
    "on_the_loop (0:2) INFO succeeded",
    "on_a_thread (0:3) INFO succeeded",
    "on_the_loop (0.1:1) INFO succeeded",
    "on_a_thread (0.2:1) INFO succeeded",
    "stumbles (0:4) WARNING failed at attempt 1 of 4: ValueError; it is tried again in 0.01 s.",
    "stumbles (0:4) WARNING failed at attempt 2 of 4: ValueError; it is tried again in 0.01 s.",
    "stumbles (0:4) INFO succeeded at attempt 3",
    "falls (0:5) ERROR failed at attempt 1 of 4: FatalError; it is not tried again.",
]
LINE = re.compile(
    r"(INFO|WARNING|ERROR)\S* step log_flows\.(\w+ \(\S+\)) of run (\w{32}) \(log_flows\.walk\) ([^`\n]*[^`\s])"
)
START = "import log_flows; from ckworkflow import start_sync; print(start_sync(log_flows.walk, 'xyzzy').run_id)"
EMBEDDED = """
import logging, log_flows
from ckworkflow import start_sync
from ckworkflow.testing import worker
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
with worker():
    try:
        start_sync(log_flows.walk, 'xyzzy').return_value(timeout=20)
    except Exception:
        pass
"""


@pytest.fixture
def make_home(tmp_path) -> Iterator:
    homes = []

    def make(**settings) -> WorkerHome:
        env = {"CELERY_BROKER_URL": "", "DISCORD_TOKEN": ""}
        homes.append(
            WorkerHome(tmp_path, TESTS, {"workflow_packages": ["log_flows"], **settings}, env=env)
        )
        return homes[-1]

    yield make
    for home in homes:
        home.stop()


def log_of(home: WorkerHome, *options: str) -> str:
    """The log of a worker that has carried out one run, started elsewhere or in its own process."""
    if options == ("embedded",):
        process = home.spawn("program", "python", "-c", EMBEDDED)
    else:
        process = home.start_worker(*options)
        home.command("python", "-c", START)
    home.wait_for(lambda: "(log_flows.walk) failed: FatalError" in home.logs(), "the end of the run")
    if options == ("embedded",):
        process.wait(20)
    return home.logs()


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--pool=prefork", "-c", "1"), ("embedded",)], ids=str)
def test_each_attempt_is_one_line_however_it_was_carried(make_home, options):
    log = log_of(make_home(), *options)

    found = [f"{name} {level} {text}" for level, name, _, text in LINE.findall(log)]
    assert sorted(found) == sorted(EVERY_STEP)
    others = [
        line for line in log.splitlines() if re.match(r"\[20|[A-Z]+ ", line) and "log_flows" in line
    ]
    others = [line for line in others if not LINE.search(line)]
    assert all("run " in line for line in others), others
    assert ": None" not in log
    assert "xyzzy" not in log
    assert "Traceback" not in log
    if "embedded" in options:
        assert log.index("(log_flows.walk) started") < log.index("step log_flows")


@pytest.mark.slow
def test_at_a_desk_the_log_has_messages_and_tracebacks(make_home):
    log = log_of(make_home(workflow_log_tracebacks=True), "embedded")

    assert "ValueError: xyzzy" in log
    assert (
        log.count("Traceback (most recent call last)") >= 3
    )  # of its attempts, as far as the end of the log goes back
    assert "raise FatalError(secret)" in log


@pytest.mark.slow
def test_a_fault_of_the_worker_names_the_step_that_met_it(make_app, monkeypatch, caplog):
    make_app(is_own=True)
    with FakeDiscord() as fake, caplog.at_level(logging.INFO):
        for name, value in fake.env.items():
            monkeypatch.setenv(name, value)
        ada = fake.add_user("ada")
        fake.fail("GET", "/users/{user_id}", status=401, times=None)
        with worker():
            run = start_sync(log_flows.asking, ada.id)
            fake.wait_for(lambda: "log_flows.asks_discord" in caplog.text)
    (line,) = [text for text in caplog.messages if "log_flows.asks_discord" in text]

    assert line == (
        f"step log_flows.asks_discord (0:1) of run {run.run_id} (log_flows.asking) could not run (this attempt is not counted): "
        f"auth: GET /users/{{id}}: 401 Unauthorized (error code: 0): 401: scripted; it is tried again. `ckworkflow runs show {run.run_id}` has the message"
    )


def test_what_a_log_call_says_in_extra_it_says_in_its_text():
    """A format that does not print `extra`, as Celery's and discord.py's, loses nothing."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            is_log = call.func.attr in LEVELS and "logger" in ast.unparse(call.func.value)
            extra = next((word.value for word in call.keywords if word.arg == "extra"), None)
            if not is_log or extra is None:
                continue
            text = " ".join(ast.unparse(each) for each in call.args)
            if not isinstance(extra, ast.Dict):
                found.append(f"{file.name}:{call.lineno}: extra is no literal")
                continue
            found += [
                f"{file.name}:{call.lineno}: {ast.unparse(value)}"
                for value in extra.values
                if value is not None and ast.unparse(value) not in text
            ]
    assert found == []
