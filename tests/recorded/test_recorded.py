"""Histories that one Python has recorded go on, and are replayed, on each: no run is lost to an upgrade of Python, or of ckworkflow."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ckworkflow import codec
from ckworkflow.engine import failures
from ckworkflow.engine.installation import current
from ckworkflow.model import RunId
from ckworkflow.store import runs
from ckworkflow.store.schema import CODE_REVISION
from recorded import recording
from replaying import replayed_end

SETS = sorted(path for path in recording.FOLDER.iterdir() if path.is_dir())
pytestmark = pytest.mark.each_python


@pytest.fixture(params=SETS, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return found


def stored_end(run_id: str) -> dict[str, Any]:
    run = current().engine.database.read(lambda tx: runs.read_run(tx, RunId(run_id)))
    says = (
        failures.one_line(run.error)
        if run.error is not None
        else codec.dumps(codec.loads(run.output or ""))
    )
    return {"status": str(run.status), "says": says}


def test_each_python_has_recorded_a_set_of_this_schema() -> None:
    """A new revision needs new sets, beside the old ones: `recording.py` says how."""
    assert {path.name for path in SETS} >= {
        f"python{version}-schema{CODE_REVISION}" for version in ("3.11", "3.12", "3.13")
    }


@pytest.mark.parametrize("always_replay", [False, True], ids=["kept", "replayed"])
@pytest.mark.parametrize("moment", ["begun", *list(recording.MOMENTS)[:-1]])
def test_runs_go_on_from_what_was_recorded(folder: Path, moment: str, always_replay: bool) -> None:
    what = told(folder)

    async def main() -> None:
        now = datetime.fromisoformat(what["times"][moment])
        content = recording.saved(folder, moment)
        async with recording.opened(content, now, always_replay=always_replay) as env:
            found = await recording.runs_of(what)
            await recording.go_on(env, found, since=moment)
            assert await recording.ends_of(found) == what["ends"]

    asyncio.run(main())


def test_runs_that_have_ended_are_replayed_to_the_same_end(folder: Path) -> None:
    what = told(folder)

    async def main() -> None:
        now = datetime.fromisoformat(what["times"]["ended"])
        async with recording.opened(recording.saved(folder, "ended"), now):
            for name, run_id in what["runs"].items():
                assert (name, replayed_end(run_id)) == (name, stored_end(run_id))

    asyncio.run(main())
