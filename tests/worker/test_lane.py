"""The lane: async steps that follow each other on the loop, and what brings the thread of their message back."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from math import ceil
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, signals

from ckworkflow import start_sync, step, workflow
from ckworkflow.background import LostThreadError, SpareThreads
from ckworkflow.engine import advance, attempts, budget
from ckworkflow.engine.budget import Limits
from ckworkflow.engine.installation import current
from ckworkflow.errors import FatalError, UnserializableValueError
from ckworkflow.hooks import use_step
from ckworkflow.model import NodeStatus
from ckworkflow.store import database as databases
from ckworkflow.store import schema
from ckworkflow.store.writer import BusyError
from ckworkflow.testing import worker
from ckworkflow.worker.process import runtime as runtimes
from ckworkflow.worker.process.runtime import Runtime
from ckworkflow.worker.steps import lane
from ckworkflow.worker.steps.ahead import BOX_SECONDS, STEP_SECONDS, RunAhead
from ckworkflow.worker.steps.lane import Handed, Lane
from waiting import failure_of, until

if TYPE_CHECKING:
    from ckworkflow.store.writer import Done

PATIENCE_SECONDS = 20
begun: Counter[str] = Counter()
threads: list[str] = []
inside, go_on = threading.Event(), threading.Event()


@step
async def note(name: str) -> str:
    begun[name] += 1
    threads.append(threading.current_thread().name)
    return name


@step
def note_plainly(name: str) -> str:
    begun[name] += 1
    threads.append(threading.current_thread().name)
    return name


@step(max_retries=1, retry_delay=0)
async def fails_first(name: str) -> str:
    begun[name] += 1
    if use_step().attempt == 1:
        raise RuntimeError("once")
    return name


@step
async def gives_up() -> None:
    raise FatalError("no")


@step
async def returns_nothing_storable() -> Any:
    return object()


@step
async def hangs() -> str:
    begun["hangs"] += 1
    inside.set()
    await asyncio.to_thread(go_on.wait, PATIENCE_SECONDS)
    return "hung"


@workflow
async def chain() -> str:
    for name in ("a", "b", "c", "d"):
        await note(name)
    return await note("e")


@workflow
async def chain_with_a_plain_one() -> str:
    await note("a")
    await note("b")
    await note_plainly("plain")
    await note("c")
    return await note("d")


@workflow
async def chain_with_a_retry() -> str:
    await note("a")
    await fails_first("flaky")
    await note("b")
    return await note("c")


@workflow
async def chain_that_fails() -> str:
    await note("a")
    await gives_up()
    return await note("never")


@workflow
async def chain_without_end() -> str:
    await note("a")
    await returns_nothing_storable()
    return await note("never")


@workflow
async def chain_that_hangs() -> str:
    await note("a")
    await note("b")
    await hangs()
    return await note("c")


@workflow
async def looks_at_each() -> list[str]:
    seen = []
    for name in ("a", "b", "c"):
        found = await note(name)
        threads.append(f"body in {threading.current_thread().name}")
        seen.append(found)
    return seen


@workflow
async def hangs_between_steps() -> list[str]:
    first = await note("a")
    second = await note(f"{first}b")
    if not go_on.is_set():
        inside.set()
        go_on.wait(PATIENCE_SECONDS)  # in C: nothing interrupts it
    third = await note(f"{second}c")
    return [first, second, third]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def app(request: pytest.FixtureRequest, make_app: Callable[..., Celery]) -> Iterator[Celery]:
    begun.clear()
    threads.clear()
    inside.clear()
    go_on.clear()
    settings = {}
    if request.param == "postgresql":
        settings["workflow_database_url"] = request.getfixturevalue("postgres_url")
    app = make_app(is_own=True, **settings)
    schema.upgrade(current().engine.database)
    yield app
    go_on.set()


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[Handed]:
    """What lanes have handed over to their threads."""
    found: list[Handed] = []
    run = Lane.run

    def noted(self: Lane, begins: Handed) -> Handed:
        found.append(run(self, begins))
        return found[-1]

    monkeypatch.setattr(lane.Lane, "run", noted)
    return found


def test_a_chain_comes_back_to_its_thread_once(app: Celery, handed: list[Handed]) -> None:
    with worker():
        assert start_sync(chain).return_value(PATIENCE_SECONDS) == "e"

    assert begun == dict.fromkeys("abcde", 1)
    assert [each.claimed.args for each in handed] == [("e",)]


def test_a_plain_step_runs_on_the_thread_and_the_lane_goes_on_behind_it(
    app: Celery, handed: list[Handed]
) -> None:
    with worker():
        assert start_sync(chain_with_a_plain_one).return_value(PATIENCE_SECONDS) == "d"

    assert begun == dict.fromkeys(("a", "b", "plain", "c", "d"), 1)
    assert [each.claimed.args for each in handed] == [("b",), ("d",)]
    assert len(set(threads)) == 2


def test_a_body_that_looks_at_each_result_does_not_bring_the_thread_back(
    app: Celery, handed: list[Handed]
) -> None:
    with worker():
        assert start_sync(looks_at_each).return_value(PATIENCE_SECONDS) == ["a", "b", "c"]

    assert begun == dict.fromkeys("abc", 1)
    bodies = [name for name in threads if name.startswith("body in ")]
    assert set(bodies) == {"body in ckworkflow-body"}  # where nobody waits who is needed
    assert [each.claimed.args for each in handed] == [("c",)]


def test_a_body_that_gets_no_thread_brings_the_thread_back(
    app: Celery, monkeypatch: pytest.MonkeyPatch, handed: list[Handed]
) -> None:
    begin = SpareThreads.begin

    def begins(self: SpareThreads, job: Callable[..., object], *args: Any) -> None:
        if getattr(job, "__func__", None) is Lane._record_with_body:
            raise RuntimeError("can't start new thread")
        begin(self, job, *args)

    monkeypatch.setattr(SpareThreads, "begin", begins)
    with worker():
        assert start_sync(looks_at_each).return_value(PATIENCE_SECONDS) == ["a", "b", "c"]

    assert begun == dict.fromkeys("abc", 1)
    assert [each.claimed.args for each in handed] == [("a",), ("b",), ("c",)]


def test_a_thread_that_is_lost_to_a_body_records_nothing_when_it_comes_back(
    app: Celery, monkeypatch: pytest.MonkeyPatch, handed: list[Handed]
) -> None:
    monkeypatch.setattr(budget, "CONTINUE", Limits(busy=0.1, blocked=0.1))
    monkeypatch.setattr(budget, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(budget, "INTERRUPT_SECONDS", 0.05)
    monkeypatch.setattr(budget, "INTERRUPTIONS", 1)
    monkeypatch.setattr(advance, "TRY_DELAY", timedelta(seconds=60))
    ended: list[BaseException] = []
    record = attempts.record_success

    def recorded(*args: Any, **options: Any) -> Any:
        try:
            return record(*args, **options)
        except BaseException as error:
            ended.append(error)
            raise

    monkeypatch.setattr(attempts, "record_success", recorded)
    with worker():
        run = start_sync(hangs_between_steps)
        assert inside.wait(PATIENCE_SECONDS)
        until(lambda: [each.status for each in run.steps()] == [NodeStatus.COMPLETED] * 2)
        until(lambda: bool(handed))

        go_on.set()  # its thread comes back, and could go on
        until(lambda: bool(ended))
        assert run.return_value(PATIENCE_SECONDS) == ["a", "ab", "abc"]

    assert [type(error) for error in ended] == [LostThreadError]
    assert begun == {"a": 1, "ab": 1, "abc": 1}
    assert handed[0].claimed.args == ("ab",)


def test_a_step_that_fails_on_the_lane_is_tried_again(app: Celery) -> None:
    with worker():
        assert start_sync(chain_with_a_retry).return_value(PATIENCE_SECONDS) == "c"

    assert begun == {"a": 1, "flaky": 2, "b": 1, "c": 1}


def test_a_step_that_gives_up_on_the_lane_fails_its_run(app: Celery) -> None:
    with worker():
        assert isinstance(failure_of(start_sync(chain_that_fails)), FatalError)

    assert begun == {"a": 1}


def test_a_result_that_cannot_be_stored_fails_its_step(app: Celery) -> None:
    with worker():
        failure = failure_of(start_sync(chain_without_end))
        assert UnserializableValueError.__name__ in str(failure)

    assert begun == {"a": 1}


def test_a_record_that_has_to_be_written_apart_is_written_by_the_thread(
    app: Celery, monkeypatch: pytest.MonkeyPatch, handed: list[Handed]
) -> None:
    def refuses(self: object, run_id: object, work: object, done: Done[Any]) -> None:
        def fails() -> Any:
            raise BusyError

        done(fails)

    monkeypatch.setattr(databases.Database, "submit_run", refuses)
    with worker():
        assert start_sync(chain).return_value(PATIENCE_SECONDS) == "e"

    assert begun == dict.fromkeys("abcde", 1)
    assert [each.claimed.args for each in handed] == [(name,) for name in "abcde"]


def test_a_record_whose_answer_was_lost_is_not_written_twice(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = databases.Database.submit_run
    lost: list[str] = []

    def loses_the_first(self: Any, run_id: Any, work: Any, done: Done[Any]) -> None:
        def end(outcome: Callable[[], Any]) -> None:
            def fails() -> Any:
                outcome()  # it stands
                lost.append(run_id)
                raise OSError("connection reset")

            done(outcome if lost else fails)

        submit(self, run_id, work, end)

    monkeypatch.setattr(databases.Database, "submit_run", loses_the_first)
    with worker():
        run = start_sync(chain)
        until(lambda: lost and not current().engine.active)

        # What came after it is freed by the next heartbeats.
        assert [step.status for step in run.steps()][:2] == [NodeStatus.COMPLETED, NodeStatus.RUNNING]
    assert begun == {"a": 1}


def test_who_listens_to_signals_hears_them_on_threads_of_the_pool(app: Celery) -> None:
    heard: list[tuple[str, str]] = []

    def listen(task_id: str, **_: object) -> None:
        heard.append((task_id.partition(":")[2], threading.current_thread().name))

    signals.task_prerun.connect(listen)
    try:
        with worker():
            run = start_sync(chain)
            assert run.return_value(PATIENCE_SECONDS) == "e"
    finally:
        signals.task_prerun.disconnect(listen)

    assert [task_id for task_id, _ in heard] == [f"{run.run_id}:0:{number}:1" for number in range(1, 6)]
    assert not {name for _, name in heard} & set(threads)


def test_a_worker_that_stops_gives_back_the_step_on_its_lane(app: Celery) -> None:
    with worker() as stopping:
        run = start_sync(chain_that_hangs)
        assert inside.wait(PATIENCE_SECONDS)
        stopping.stop(grace=timedelta())
    assert [step.status for step in run.steps()][2] is NodeStatus.PLANNED
    assert begun == {"a": 1, "b": 1, "hangs": 1}
    go_on.set()

    with worker():
        assert run.return_value(PATIENCE_SECONDS) == "c"

    assert begun == {"a": 1, "b": 1, "hangs": 2, "c": 1}


def test_a_step_that_would_begin_after_all_were_cancelled_does_not(app: Celery) -> None:
    with worker():
        stopping = runtimes.running()
        stopping.cancel_steps()

        with pytest.raises(asyncio.CancelledError):
            stopping.run_step("late", lambda: note.function("late"))

    assert begun == {}


def test_a_step_that_is_interrupted_before_its_first_turn_ends_with_that(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Runtime.begin_step

    def begin_and_interrupt(self: Runtime, *args: Any, **kwargs: Any) -> Any:
        task = begin(self, *args, **kwargs)
        self.interrupt_step(task, FatalError("told to stop"))
        return task

    monkeypatch.setattr(Runtime, "begin_step", begin_and_interrupt)
    with worker():
        assert "told to stop" in str(failure_of(start_sync(chain)))  # on a lane
        with pytest.raises(FatalError, match="told to stop"):
            runtimes.running().run_step("early", lambda: note.function("early"))

    assert begun == {}


def test_lanes_go_on_while_their_process_forks(app: Celery) -> None:
    with worker():
        runs = [start_sync(chain) for _ in range(20)]
        while not all(run.status().is_final for run in runs):
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)

        assert [run.return_value(PATIENCE_SECONDS) for run in runs] == ["e"] * 20

    assert begun == dict.fromkeys("abcde", 20)


def test_what_a_run_has_had_is_counted_on_whatever_thread_it_was(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    row: Any = SimpleNamespace(node_id="0:1", generation=1)
    claimed: Any = SimpleNamespace(run_id="run", row=row)
    crowded: Any = SimpleNamespace(
        is_stopping=False, engine=SimpleNamespace(host=SimpleNamespace(waiting=1))
    )
    message = RunAhead(app, note, claimed, crowded, hostname=None)
    monkeypatch.setattr(time, "thread_time", lambda: 1e9)  # of another thread, one that writes for many

    assert message.may_run(note.name)
    for _ in range(ceil(BOX_SECONDS / STEP_SECONDS) + 5):
        message.spend_on_step()
    assert not message.may_run(note.name)


def test_of_a_loop_that_has_ended_the_thread_gives_the_step_back(app: Celery) -> None:
    class Ended:
        def soon(self, call: object) -> None:
            raise RuntimeError("Event loop is closed")

    handed: Any = Handed(None, None, lambda: "never", None)  # type: ignore[arg-type]  # none is looked at
    ended: Any = Ended()
    unused: Any = None

    back = Lane(ended, unused, []).run(handed)

    with pytest.raises(lane.StoppedError):
        back.outcome()
