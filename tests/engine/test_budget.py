"""A body that computes or blocks without awaiting anything fails its run, and keeps nobody else from going on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import time
import weakref
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from ckworkflow import sleep, start, start_sync, workflow
from ckworkflow.background import SpareThreads
from ckworkflow.engine import advance as advancing
from ckworkflow.engine import budget
from ckworkflow.engine.budget import Budget, Limits
from ckworkflow.engine.core import Engine
from ckworkflow.engine.settings import Settings
from ckworkflow.engine.start import start_run
from ckworkflow.errors import BodyTimeoutError
from ckworkflow.model import NodeStatus, RunId, RunStatus
from ckworkflow.store import tables
from ckworkflow.testing import worker
from ckworkflow.tracing import Tracer
from ckworkflow.worker.process import runtime
from ckworkflow.worker.process.clock import ClockThread
from ckworkflow.worker.process.heartbeat import Heartbeat
from engine_flows import doubling, one
from waiting import failure_of, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ckworkflow.engine.installation import Installation

released, entered = threading.Event(), threading.Event()


def hang(how: str) -> None:
    """Go on until the end of the test, in the way that a body must not."""
    entered.set()
    if how == "computing":
        while not released.is_set():
            pass
    elif how == "catching everything":
        while not released.is_set():
            with contextlib.suppress(BaseException):
                while not released.is_set():
                    pass
    else:
        released.wait(60)  # in C: nothing interrupts it


HOW = ["computing", "catching everything", "blocking"]


@workflow
async def hangs_at_once(how: str) -> int:
    hang(how)
    return await one()


@workflow
async def hangs_after_a_step(how: str) -> int:
    if await one():
        hang(how)
    return await one()


@workflow
async def hangs_after_a_sleep(how: str) -> None:
    await sleep("10ms")
    hang(how)


@workflow
async def sleeps() -> str:
    await sleep("10ms")
    return "slept"


@pytest.fixture(autouse=True)
def release() -> Iterator[None]:
    released.clear()
    entered.clear()
    yield
    released.set()


@pytest.fixture
def nimble() -> Iterator[None]:
    """Threads that take turns as often as a body ends in the test below."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that tests can wait for."""
    monkeypatch.setattr(budget, "CONTINUE", Limits(busy=0.1, blocked=0.3))
    monkeypatch.setattr(budget, "START", Limits(busy=0.1, blocked=0.3))
    monkeypatch.setattr(budget, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(budget, "INTERRUPT_SECONDS", 0.1)
    monkeypatch.setattr(budget, "INTERRUPTIONS", 2)
    monkeypatch.setattr(advancing, "TRY_DELAY", timedelta(seconds=0.05))


@pytest.mark.slow
@pytest.mark.each_python
@pytest.mark.parametrize(
    ("hangs", "how"),
    [
        (hangs_at_once, "computing"),
        (hangs_at_once, "catching everything"),
        (hangs_after_a_step, "computing"),
        (hangs_after_a_step, "blocking"),
        (hangs_after_a_sleep, "blocking"),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_its_run_fails_with_a_named_error_after_a_few_tries(
    impatient: None, running: Installation, caplog: pytest.LogCaptureFixture, hangs, how: str
) -> None:
    run = start_sync(hangs, how)

    error = failure_of(run)

    assert isinstance(error, BodyTimeoutError)
    assert f"The body of run {run.run_id} (" in str(error)
    assert "move long computations and blocking calls into a @step" in str(error)
    assert "last in " in str(error)
    tries = [record for record in caplog.records if "tried again in" in record.getMessage()]
    assert len(tries) == advancing.TRIES - 1
    assert start_sync(doubling, 1).return_value(10) == 4
    assert start_sync(sleeps).return_value(10) == "slept"


@pytest.mark.slow
@pytest.mark.each_python
def test_many_starts_that_hang_do_not_block_another(impatient: None, home: Installation) -> None:
    async def start_all() -> list[RunStatus]:
        hanging = [start(hangs_at_once, HOW[number % len(HOW)]) for number in range(12)]
        found = await asyncio.gather(*hanging, start(doubling, 1))
        return [await run.status() for run in found]

    assert asyncio.run(start_all()) == [RunStatus.PENDING] * 13


def test_a_start_that_was_given_up_is_begun_by_a_worker(impatient: None, home: Installation) -> None:
    run = start_sync(hangs_at_once, "blocking")
    released.set()

    with worker():
        assert run.return_value(10) == 1


@pytest.mark.slow
@pytest.mark.each_python
def test_a_worker_that_stops_gives_up_bodies_that_go_on(
    home: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "GIVE_UP_SECONDS", 0.1)
    with worker() as stopping:
        run = start_sync(hangs_after_a_step, "blocking")
        assert entered.wait(10)
        stopping.stop(grace=timedelta(seconds=0.1))
        assert not stopping.is_alive

    assert [each.status for each in run.steps()] == [NodeStatus.COMPLETED]
    released.set()
    with worker():
        assert run.return_value(20) == 1


def test_the_clock_ends_sleeps_while_bodies_hang_that_it_has_woken(home: Installation) -> None:
    home.engine.ensure_schema()
    clock = ClockThread(home.engine)
    for _ in range(6):  # more than go on side by side
        start_sync(hangs_after_a_sleep, "blocking")
    clock.start()
    assert entered.wait(10)

    try:
        assert start_sync(sleeps).return_value(10) == "slept"
    finally:
        released.set()
        clock.stop()


def test_the_lease_of_a_body_that_goes_on_is_renewed(tmp_path: Path) -> None:
    settings = Settings(
        database_url=f"sqlite:///{tmp_path / 'runs.sqlite3'}", heartbeat=timedelta(seconds=0.05)
    )
    engine = Engine(settings, lambda _run_id, _pieces: True)
    engine.ensure_schema()
    heartbeat = Heartbeat(engine)
    heartbeat.start()
    run_id = start_run(engine, hangs_after_a_sleep, ("blocking",), {})

    def lease_until() -> datetime | None:
        row = tables.runs.c
        query = sa.select(row.lease_until).where(row.id == run_id)
        return engine.database.read(lambda tx: tx.execute(query).scalar_one())

    clock = ClockThread(engine)
    clock.start()
    assert entered.wait(10)
    first = lease_until()
    assert first is not None

    until(lambda: (lease_until() or first) > first)

    released.set()
    until(lambda: not engine.advancing)
    clock.stop()
    heartbeat.stop()
    engine.database.dispose()


def test_an_interruption_never_comes_to_code_that_is_not_the_body(
    nimble: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "LOOK_SECONDS", 0.0005)
    monkeypatch.setattr(budget, "INTERRUPT_SECONDS", 0.0005)
    limits, watch = Limits(busy=0.001, blocked=1), Budget(SpareThreads())
    outcomes: set[str] = set()
    gc.collect()
    gc.disable()  # or it ends what other tests have left, and an interruption may come to that

    def compute(seconds: float) -> str:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        return "value"

    for number in range(400):
        tracer = Tracer(RunId("run"), asyncio.sleep, started_at=datetime.now(UTC))
        try:
            outcome = watch.run(
                tracer, "flow", lambda n=number: compute(0.0005 + n % 20 * 0.0001), limits
            )
        except BodyTimeoutError:
            outcome = "timeout"
        compute(0.0002)
        outcomes.add(outcome)

        tracer.close()
    gc.enable()

    assert outcomes == {"value", "timeout"}


def test_an_error_of_a_body_leaves_nothing_for_the_collector() -> None:
    watch = Budget(SpareThreads())
    tracer = Tracer(RunId("run"), asyncio.sleep, started_at=datetime.now(UTC))
    gone: list[weakref.ref[Exception]] = []

    class BodyError(Exception):
        pass

    def fail() -> None:
        error = BodyError()
        gone.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(BodyError):
            watch.run(tracer, "flow", fail)

        until(lambda: gone[0]() is None)  # its thread may be about to let go of it
    finally:
        gc.enable()
        tracer.close()


@pytest.mark.parametrize("how", HOW)
def test_an_interrupted_body_leaves_a_thread_with_a_trace_function_alone(
    impatient: None, how: str
) -> None:
    """Python 3.11 never gets past a call there while an asynchronous exception is announced, to whichever thread."""
    watch = Budget(SpareThreads())
    tracer = Tracer(RunId("run"), asyncio.sleep, started_at=datetime.now(UTC))
    called = threading.Event()

    def trace() -> None:
        sys.settrace(lambda *_: None)
        called.set()
        sys.settrace(None)

    with pytest.raises(BodyTimeoutError):
        watch.run(tracer, "flow", lambda: hang(how), budget.CONTINUE)

    threading.Thread(target=trace, daemon=True).start()
    assert called.wait(5)


def test_what_a_body_sets_on_its_thread_is_not_there_for_the_next_one() -> None:
    watch = Budget(SpareThreads())
    tracer = Tracer(RunId("run"), asyncio.sleep, started_at=datetime.now(UTC))

    def spy() -> int:
        sys.settrace(lambda *_: None)
        sys.setprofile(lambda *_: None)
        return threading.get_ident()

    def look() -> tuple[int, object, object]:
        return threading.get_ident(), sys.gettrace(), sys.getprofile()

    before = watch.run(tracer, "flow", look)
    thread = watch.run(tracer, "flow", spy)

    assert before[0] == thread
    assert watch.run(tracer, "flow", look) == before
    tracer.close()
