"""Compose on the files of `docker/`, with secrets that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DOCKER = Path(__file__).parents[1] / "docker"
BIN = Path(sys.executable).parent
SECRETS = {
    "discord_token": "MTAwMDAwMDAwMDAwMDAwMDAwMQ.GabcDE.a-token-that-opens-nothing-at-all-0123",
    "postgres_password": "p@ss/w#rd:%20'\"",
    "redis_password": "0123456789abcdef",
    "flower_redis_password": "fedcba9876543210",
    "flower_basic_auth": "ada:lovelace",
}
"""By the names of their files."""


def compose(
    *words: str, files: tuple[str, ...] = ("compose.yaml",), **env: str
) -> subprocess.CompletedProcess[str]:
    """Run Compose on files of the folder, with nothing in the environment but what is given."""
    options = [word for name in files for word in ("--file", str(DOCKER / name))]
    # The .env of a developer must not decide these tests.
    command = [str(BIN / "docker-compose"), "--env-file", "/dev/null", *options, *words]
    surroundings = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **env}
    return subprocess.run(command, env=surroundings, capture_output=True, text=True)
