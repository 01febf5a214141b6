"""Recording: all of `flows` are run in an environment, and its database is kept at some moments.

`python -m recorded.recording` in `tests/`, with each Python (`.venv/bin`, `.venv/3.12/bin`, `.venv/3.13/bin`), writes `histories/NAME/`, where NAME says the Python and the schema: the database at each moment, and
how each run has ended. What is written is never changed: a later release, on any Python, goes on from there (`test_recorded.py`).

Not here: what the runs do (`flows.py`).
"""

from __future__ import annotations

import asyncio
import gzip
import importlib
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

from ckworkflow import CkWorkflowError, Run, get_run, resume_hook, start
from ckworkflow.engine.installation import current
from ckworkflow.store.schema import CODE_REVISION
from ckworkflow.testing import Environment, environment
from recorded import flows

FOLDER = Path(__file__).parent / "histories"
BEGAN = datetime(2026, 12, 1, 12, tzinfo=UTC)

Runs = dict[str, Run[Any]]


async def _first_answers(env: Environment, _runs: Runs) -> None:
    await env.advance("3 hours")
    await resume_hook("asked", "first")
    await flows.answer.resume("more", flows.Answer("yes", [1, 2]))


async def _second_answers(env: Environment, runs: Runs) -> None:
    await env.advance("8 hours")
    await resume_hook("asked", "second")
    await runs["cleaned_up"].cancel(reason="enough")


async def _days(env: Environment, _runs: Runs) -> None:
    await env.advance("2 days")


async def _months(env: Environment, _runs: Runs) -> None:
    await env.advance("60 days")


MOMENTS: dict[str, Callable[[Environment, Runs], Awaitable[None]]] = {
    "answered": _first_answers, "cancelled": _second_answers, "days": _days, "ended": _months,
}  # fmt: skip
"""What happens until each moment; `begun` is before them."""


async def go_on(
    env: Environment, runs: Runs, *, since: str, save: Callable[[str], object] = str
) -> None:
    """Let happen what comes after a moment."""
    names = ["begun", *MOMENTS]
    for name in names[names.index(since) + 1 :]:
        await MOMENTS[name](env, runs)
        save(name)


async def ends_of(runs: Runs) -> dict[str, str]:
    """How runs have ended: what each has returned or raised."""
    return {name: await _end(run) for name, run in runs.items()}


async def _end(run: Run[Any]) -> str:
    try:
        return repr(await run.return_value())
    except CkWorkflowError as error:
        return f"{type(error).__name__}: {_words(error.__cause__)}"


def _words(error: BaseException | None) -> str:
    if isinstance(error, BaseExceptionGroup):
        return f"{error.message} {[_words(each) for each in error.exceptions]}"
    return f"{type(error).__name__}({error}) {getattr(error, '__notes__', [])}"


def saved(folder: Path, name: str) -> bytes:
    """The database as it was at a moment."""
    return gzip.decompress((folder / f"{name}.sqlite3.gz").read_bytes())


@asynccontextmanager
async def opened(content: bytes, now: datetime, **options: Any) -> AsyncIterator[Environment]:
    """Go on from a database, in an environment."""
    module = importlib.import_module("ckworkflow.testing.environment")  # whose name a function has, too
    with mock.patch.object(module, "_empty_database", return_value=content):
        async with environment(now=now, **options) as env:
            yield env


async def record(folder: Path) -> None:
    """Write one set of histories."""
    folder.mkdir(parents=True)
    told: dict[str, Any] = {"times": {}}

    def save(name: str) -> None:
        told["times"][name] = env.now.isoformat()
        file = folder / "copy.sqlite3"
        path = current().engine.database.url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as source:
            source.execute("VACUUM INTO ?", [str(file)])
        (folder / f"{name}.sqlite3.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
        file.unlink()

    async with environment(now=BEGAN) as env:
        runs = {name: await start(flow, *args) for name, (flow, args) in flows.FLOWS.items()}
        await env.settle()
        save("begun")
        await go_on(env, runs, since="begun", save=save)
        told["runs"] = {name: str(run.run_id) for name, run in runs.items()}
        told["ends"] = await ends_of(runs)
    (folder / "told.json").write_text(json.dumps(told, indent=1) + "\n")


async def runs_of(told: dict[str, Any]) -> Runs:
    """The runs of a set, by name."""
    return {name: await get_run(run_id) for name, run_id in told["runs"].items()}


if __name__ == "__main__":
    version = "{}.{}".format(*sys.version_info[:2])
    asyncio.run(record(FOLDER / f"python{version}-schema{CODE_REVISION}"))
