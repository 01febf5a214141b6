"""Every command of every image and of the compose file, run in order without an engine (see `play.py`)."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import services
from docker_env import SECRETS, compose

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

HERE = Path(__file__).parent
DOCKER = HERE.parents[1] / "docker"
DISCORD = "http://127.0.0.1:8080"
OFFLINE = ("Failed to fetch", "Could not fetch URL", "No matching distribution")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a play that has been played: once, also when the processes of `pytest -n` share these tests."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        services.absent("A container-like surrounding", "run as root on Linux, with util-linux")
    if not shutil.which("redis-server") or services.postgres_program("initdb") is None:
        services.absent("Redis or PostgreSQL", "install redis-server and postgresql")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, ending = shared / "docker-play", shared / "docker-play-ending"
    with (shared / "docker-play-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ending.exists():
            folder.mkdir()
            ending.write_text(play(folder))
    how_it_ended = ending.read_text()
    if any(words in how_it_ended for words in OFFLINE):
        services.absent("PyPI", "this machine cannot reach it")
    assert not how_it_ended, how_it_ended
    return folder


def play(folder: Path) -> str:
    """Play in a folder; what went wrong, and nothing when all went well."""
    discord = {
        "CKWORKFLOW_DISCORD_API_BASE": f"{DISCORD}/api/v10",
        "CKWORKFLOW_DISCORD_GATEWAY_URL": f"{DISCORD.replace('http', 'ws')}/gateway",
    }
    (folder / "secrets").mkdir()
    for name, secret in SECRETS.items():
        (folder / "secrets" / name).write_text(secret)
    config = compose("config", "--format", "json", **discord)
    (folder / "config.json").write_text(config.stdout)
    # What is mounted goes with the namespace, and so does whoever still runs.
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    words = [*alone, sys.executable, str(HERE / "play.py"), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=380)
    if done.returncode == 0:
        return ""
    logs = [f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(folder.glob("*.log"))]
    return "\n".join([f"exit code {done.returncode}", done.stdout, done.stderr, *logs])


@pytest.fixture(scope="module")
def facts(folder: Path) -> dict[str, Any]:
    """What was seen."""
    found: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return found


def test_the_images_hold_the_pinned_versions_and_nothing_else(facts: dict[str, Any]) -> None:
    lines = [
        line
        for line in (DOCKER / "constraints.txt").read_text().splitlines()
        if re.match(r"[a-z]", line)
    ]
    lines = [line.removesuffix(" \\") for line in lines]
    pinned = {canonicalize_name(each.name): str(each.specifier) for each in map(Requirement, lines)}
    installed = {canonicalize_name(name): f"=={version}" for name, version in facts["installed"].items()}
    installed.pop("ckworkflow")

    assert installed.items() <= pinned.items()


def test_the_bots_own_requirements_are_installed_and_its_secrets_are_left_out(
    facts: dict[str, Any],
) -> None:
    assert "tzdata" in facts["installed"]
    assert facts["project"] == [
        "README.md", "bot.py", "celeryconfig.py", "demo.py", "requirements.txt", "workflows",
    ]  # fmt: skip
    assert facts["left behind"] == []


def test_the_migration_ends_well(facts: dict[str, Any]) -> None:
    assert facts["migration"] == 0


def test_a_run_that_the_bot_starts_is_carried_out_by_the_worker(facts: dict[str, Any]) -> None:
    assert facts["greetings"] == ["Hello!", "Hello again!"]
    assert facts["runs"] == [["workflows.greet.greet_workflow.greet_user_workflow", "completed"]]


def test_every_health_check_tells_a_service_that_runs_from_one_that_does_not(
    facts: dict[str, Any],
) -> None:
    assert facts["healthy too soon"] == []
    assert facts["healthy"] == ["redis-1", "postgres-1", "bot-1", "worker-1", "flower-1"]
    assert facts["healthy after the end"] == []


def test_flower_does_not_start_without_a_password(facts: dict[str, Any]) -> None:
    code, last_line = facts["flower without a password"]

    assert code == 1
    assert last_line.startswith("Flower is not started: FLOWER_BASIC_AUTH is missing or has no password")


def test_flower_shows_itself_to_who_has_the_password_and_lets_nobody_change_anything(
    facts: dict[str, Any],
) -> None:
    assert facts["flower"] == {
        "nobody": [401, 401, 401],
        "a stranger": [401, 401],
        "the owner": [200, 200],
        "the owner, changing something": [403, 403],
    }


def test_flower_has_no_more_rights_at_the_broker_than_it_needs(facts: dict[str, Any]) -> None:
    refused = ["LPUSH", "RPOP", "HGETALL", "KEYS", "FLUSHALL", "CONFIG"]

    assert facts["flower at the broker"] == [
        *(f"refused {word}" for word in refused),
        "allowed LLEN int",
    ]


@pytest.mark.parametrize(("service", "code"), [("worker", 0), ("flower", 0), ("bot", -signal.SIGINT)])
def test_the_stop_signal_ends_a_service_in_order(facts: dict[str, Any], service: str, code: int) -> None:
    stop = facts["stops"][f"{service}-1"]

    assert stop["code"] == code
    assert stop["seconds"] < 30


def test_no_secret_stands_in_any_log(folder: Path) -> None:
    logs = {path.name: path.read_text() for path in folder.glob("*.log")}

    assert {"bot.log", "worker.log", "flower.log", "migrate.log"} <= set(logs)
    for name, text in logs.items():
        for secret in SECRETS.values():
            assert secret.rpartition(":")[2] not in text, name
