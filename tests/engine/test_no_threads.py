"""The system gives no more threads, or Python gives none to a process that ends (3.12.1 to all of its threads): nothing is lost, and nothing is stuck."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ckworkflow import codec, create_hook, workflow
from ckworkflow.engine import resume as sending
from ckworkflow.engine.advance import advance
from ckworkflow.model import HookKey, Namespace, RunId, RunStatus
from ckworkflow.store import tables
from desk import Desk
from engine_flows import doubling

BODIES, BUDGET = "ckworkflow-body", "ckworkflow-budget"


@workflow
async def get(token: str) -> Any:
    return await create_hook(token)


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Threads of a name cannot be started any more."""
    start, refused = threading.Thread.start, set[str]()

    def maybe(thread: threading.Thread) -> None:
        if thread.name in refused:
            msg = "can't start new thread"
            raise RuntimeError(msg)
        start(thread)

    with monkeypatch.context() as patches:
        patches.setattr(threading.Thread, "start", maybe)
        yield refused.add


@pytest.mark.parametrize("name", [BODIES, BUDGET])
def test_a_run_whose_body_gets_no_thread_goes_on_elsewhere(
    either_desk: Desk, refuse: Callable[[str], None], name: str
):
    """Its lease is given back, so that nobody waits for this process to be found dead."""
    desk = either_desk
    run_id = desk.start(get, "t")
    desk.engine.bodies.clear()
    other = desk.another("elsewhere")
    desk.engine.spare_threads._idle.clear()
    desk.engine.budget._is_watching = False
    refuse(name)
    key = HookKey.of(Namespace.CODE, "t")
    sending.resume(desk.engine, key, codec.dumps("hello"), dedup_key=None)
    run = desk.run(run_id)
    assert run.status == RunStatus.RUNNING
    query = sa.select(tables.runs.c.lease_owner).where(tables.runs.c.id == run_id)
    assert desk.engine.database.read(lambda tx: tx.execute(query).scalar_one()) is None
    other.engine.budget.run = lambda _tracer, _workflow, call, *_: call()  # type: ignore[method-assign]
    advance(other.engine, run_id)
    assert desk.run(run_id).status == RunStatus.COMPLETED


@pytest.mark.parametrize("name", [BODIES, BUDGET])
def test_a_run_that_is_started_where_there_is_no_thread_is_begun_elsewhere(
    either_desk: Desk, refuse: Callable[[str], None], name: str
):
    desk = either_desk
    other = desk.another("elsewhere")
    other.engine.budget.run = lambda _tracer, _workflow, call, *_: call()  # type: ignore[method-assign]
    desk.engine.spare_threads._idle.clear()
    refuse(name)
    run_id = desk.start(doubling, 1)
    assert desk.run(run_id).status == RunStatus.PENDING
    assert desk.published == []
    other.tick()
    assert other.published != []


def test_what_is_handed_to_the_writer_is_written(desk: Desk, refuse: Callable[[str], None]):
    refuse("ckworkflow-writer")
    found: list[Callable[[], int]] = []
    desk.engine.database.submit_run(RunId("x"), lambda _tx: 7, found.append)
    assert [outcome() for outcome in found] == [7]


def test_who_waits_for_many_runs_looks_for_itself(desk: Desk, refuse: Callable[[str], None]):
    refuse("ckworkflow-watch")
    watch, events = desk.engine.watch, [threading.Event() for _ in range(200)]
    waits = [watch.telling(RunId(f"run-{number}"), event) for number, event in enumerate(events)]
    for wait in waits:
        wait.__enter__()
    assert watch.next_look(0.0, 0.0) is not None
    for wait in waits:
        wait.__exit__(None, None, None)


FLOWS = """
from ckworkflow import create_hook, step, workflow

@step
async def note(what: str) -> str:
    return what

@workflow
async def get_it(token: str) -> str:
    return await note(await create_hook(token))
"""
SCRIPT = """
import sys
from own_flows import get_it
from ckworkflow import resume_hook_sync, start_sync

start_sync(get_it, sys.argv[1])
resume_hook_sync(sys.argv[1], "hello")
"""


@pytest.mark.each_python
def test_a_script_that_sends_and_ends_leaves_no_lease(tmp_path: Path):
    """The body goes on before the process ends, or elsewhere at once."""
    file = tmp_path / "script.py"
    file.write_text(SCRIPT)
    (tmp_path / "own_flows.py").write_text(FLOWS)
    (tmp_path / "celeryconfig.py").write_text("")
    for token in "abc":
        done = subprocess.run(
            [sys.executable, str(file), token], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        assert "unreachable" not in done.stderr
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'ckworkflow.sqlite3'}")
    with engine.connect() as connection:
        leases = connection.execute(sa.select(tables.runs.c.lease_owner)).scalars().all()
    engine.dispose()
    assert leases == [None] * 3
