"""A project folder, and the real command run in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


class Project:
    """A folder with a `celeryconfig.py` and a package of workflows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configure()

    def configure(self, **settings: object) -> None:
        """Write `celeryconfig.py`."""
        found = {"workflow_packages": ["workflows"], **settings}
        self.write("celeryconfig.py", "".join(f"{name} = {value!r}\n" for name, value in found.items()))

    def write(self, path: str, text: str) -> None:
        """Write a file."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip("\n"))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a person would, in the folder and with nothing set up for it."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_")}
        env.pop("PYTHONPATH", None)
        return subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def command(self, *words: str) -> str:
        """Run `ckworkflow` and return what it printed."""
        done = self.run("ckworkflow", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def data(self, *words: str) -> Any:
        """Run `ckworkflow ... --json`."""
        return json.loads(self.command(*words[:2], "--json", *words[2:]))

    def error(self, *words: str) -> str:
        """Run `ckworkflow` where it must fail, and return the one sentence that it says."""
        done = self.run("ckworkflow", *words)
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("Error: ")
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr.removeprefix("Error: ").rstrip("\n")

    def python(self, code: str) -> str:
        """Run Python in the folder."""
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, call: str, module: str = "flows") -> str:
        """Start a run, with no worker about, and return its id."""
        return self.python(
            f"""
            import logging; logging.disable()
            from ckworkflow import start_sync
            from workflows.{module} import *
            print(start_sync({call}).run_id)
            """
        )


def line_of(text: str) -> int:
    """The first line of the workflows' module that holds a text."""
    lines = FLOWS.lstrip("\n").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


FLOWS = """
import asyncio
import logging

from ckworkflow import FatalError, sleep, step, workflow

log = logging.getLogger(__name__)


@step
async def greet(user_id, again=False):
    raise AssertionError("a plan runs no step")


@step
async def verify_member(user_id):
    return user_id == "42"


@step(max_retries=1, retry_delay=0.01)
async def flaky(text):
    raise ValueError("no luck with " + text)


@workflow
async def greeting(user_id: str):
    await greet(user_id)
    await sleep("5 seconds")
    await greet(user_id, again=True)
    return {"success": True}


@workflow
async def branching(user_id: str):
    verified = await verify_member(user_id)

    if verified:
        await greet(user_id)
    log.info("done")
    await greet(user_id)


@workflow
async def inner(user_id: str):
    member = await verify_member(user_id)
    await sleep("7 days")
    return await greet(member)


@workflow
async def parallel(user_id: str):
    first, second = await asyncio.gather(verify_member(user_id), inner(user_id))
    await greet(first, second)


@workflow
async def together(user_id: str):
    first, second = await asyncio.gather(verify_member(user_id), verify_member("43"))
    await greet(first, second)


@workflow
async def outer(user_id: str):
    await branching(user_id)


@workflow
async def forever():
    while True:
        await greet("42")
        await sleep("1h")


@workflow
async def peeking(user_id: str):
    locals()
    await greet(user_id)


@workflow
async def networking():
    await asyncio.open_connection("discord.com", 443)


@workflow
async def naps(user_id: str):
    await sleep("7 days")
    await greet(user_id)


@workflow
async def naps_a_little(user_id: str):
    await verify_member(user_id)
    await sleep("200 ms")


@workflow
async def returns(value):
    return {"value": value, "parts": {1}}


@workflow
async def breaks():
    raise FatalError("it is broken")


@workflow
async def struggles(text: str):
    await verify_member(text)
    await flaky(text)


@workflow
async def keywords(*numbers: int, name: str, note: str | None = None, **more):
    await greet([*numbers], {"name": name, "note": note, **more})
"""
