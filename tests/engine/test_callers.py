"""What the caller of a run sees: its state, its steps, its result or its error, and nothing of any secret."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from ckworkflow import Workflow, get_run, get_run_sync, sleep, start, start_sync, step, workflow
from ckworkflow.client import Run
from ckworkflow.engine import liveness, outcomes
from ckworkflow.engine.queues import WorkerLook
from ckworkflow.errors import FatalError, ReturnValueTimeoutError, RunFailedError
from ckworkflow.model import NodeKind, NodeStatus, RunStatus
from ckworkflow.store import tables
from ckworkflow.testing import worker
from waiting import failure_of

if TYPE_CHECKING:
    from ckworkflow.engine.installation import Installation

TOKEN = "A" * 24 + ".abcdef." + "x" * 38


class QuotaError(Exception):
    """An error of a user's own."""


@step
async def pays(how: str) -> str:
    if how == "closed":
        raise FatalError("account closed", code=50007)
    return "paid"


@workflow
async def paying(how: str) -> str:
    return await pays(how)


@workflow
async def clumsy() -> None:
    await pays("fine")
    raise QuotaError(f"no more, says {TOKEN}")


def test_a_failed_run_raises_with_the_error_of_its_body_as_the_cause(running: Installation) -> None:
    run = start_sync(paying, "closed")

    with pytest.raises(
        RunFailedError, match=r"paying failed: FatalError: account closed\. `ckworkflow runs show"
    ) as caught:
        run.return_value(10)
    assert caught.value.run_id == run.run_id
    assert isinstance(caught.value.__cause__, FatalError)
    assert caught.value.__cause__.code == 50007
    assert run.status() is RunStatus.FAILED
    assert run.exists()
    (only,) = run.steps()
    assert (only.kind, only.status, only.attempt) == (NodeKind.STEP, NodeStatus.FAILED, 1)
    assert only.name.endswith(".pays")
    assert only.error == "FatalError: account closed"
    assert only.started_at <= only.finished_at
    with pytest.raises(RunFailedError):
        asyncio.run(_ask_again(run.run_id))
    with pytest.raises(RunFailedError):
        get_run_sync(run.run_id).return_value()


async def _ask_again(run_id: str) -> None:
    run = await get_run(run_id)
    assert await run.status() is RunStatus.FAILED
    assert await run.exists()
    assert len(await run.steps()) == 1
    await run.return_value()


def test_an_error_of_the_body_itself_fails_the_run_and_holds_no_secret(running: Installation) -> None:
    run = start_sync(clumsy)
    error = failure_of(run)

    assert type(error) is QuotaError
    assert str(error) == "no more, says [token]"
    assert TOKEN not in database_text(running)


@step(max_retries=0)
async def leaks(how: str) -> None:
    if how == "fatal":
        raise FatalError(
            f"cannot use {TOKEN}", code=TOKEN, kind=TOKEN, details={"said": [f"by {TOKEN}"]}
        )
    if how == "arguments":
        raise QuotaError({"token": TOKEN}, [TOKEN], TOKEN)
    try:
        raise QuotaError(TOKEN)
    except QuotaError as error:
        raise RuntimeError("outer") from error


@workflow
async def leaking(how: str) -> None:
    await leaks(how)


@pytest.mark.parametrize("how", ["fatal", "arguments", "cause"])
def test_no_stored_error_holds_a_secret(
    running: Installation, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    with caplog.at_level(logging.DEBUG):
        failure_of(start_sync(leaking, how))

    assert TOKEN not in database_text(running)
    assert TOKEN not in caplog.text


def database_text(home: Installation) -> str:
    """All that the tables hold about runs."""
    names = (tables.runs, tables.nodes, tables.attempts)
    # As tuples: a row of SQLAlchemy shows long values cut.
    rows = [
        tuple(row)
        for name in names
        for row in home.engine.database.read(lambda tx, name=name: tx.execute(name.select()).all())
    ]
    return str(rows)


@workflow
async def long_sleep() -> str:
    await sleep("7 days")
    return "slept"


def test_a_caller_that_does_not_wait_longer_is_told_and_the_run_goes_on(running: Installation) -> None:
    run = start_sync(long_sleep)

    with pytest.raises(
        ReturnValueTimeoutError, match=r"has not ended within 0\.05 s\. It is still going"
    ) as caught:
        run.return_value(0.05)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.is_worker_alive
    assert not run.status().is_final
    (only,) = run.steps()
    assert (only.kind, only.name, only.status) == (NodeKind.SLEEP, "sleep", NodeStatus.RUNNING)
    assert timedelta(days=6) < only.due_at - datetime.now(UTC) <= timedelta(days=7)


def test_a_caller_of_a_run_that_no_worker_has_begun_is_told_so(home: Installation) -> None:
    run = start_sync(paying, "fine")
    liveness.heartbeat(home.engine)

    with pytest.raises(
        ReturnValueTimeoutError,
        match=rf"No worker has begun it yet: `ckworkflow runs show {run.run_id}`",
    ) as caught:
        run.return_value(0.01)
    assert not caught.value.has_begun


def test_a_caller_without_a_worker_is_told_so_in_its_timeout(home: Installation) -> None:
    with pytest.raises(
        ReturnValueTimeoutError, match="No worker is alive: run `celery -A ckworkflow worker`"
    ):
        start_sync(paying, "fine").return_value(0.01)


def test_a_caller_that_waits_without_a_worker_is_warned_once(
    home: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outcomes, "NO_WORKER_SECONDS", 0.02)

    run = start_sync(paying, "fine")
    caplog.clear()
    with pytest.raises(ReturnValueTimeoutError):
        run.return_value(0.3)

    (warning,) = [text for text in caplog.messages if text.startswith(f"run {run.run_id} waits")]
    assert warning.startswith(
        f"run {run.run_id} waits: no worker is alive. Run `celery -A ckworkflow worker`"
    )


@workflow
async def ends_at_once() -> int:
    return 1


def test_who_starts_runs_without_a_worker_is_warned_now_and_then(
    home: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings_after(started: Workflow[..., object], *args: object) -> list[str]:
        caplog.clear()
        run = start_sync(started, *args)
        return [line.replace(run.run_id, "RUN") for line in caplog.messages if "no worker" in line]

    def a_minute_passes() -> None:
        monkeypatch.setattr(home.engine, "worker_look", WorkerLook())

    expected = (
        "run RUN is safe, and waits: no worker is alive. Run `celery -A ckworkflow worker`, "
        "or load the bot extension."
    )
    assert warnings_after(paying, "fine") == [expected]
    assert warnings_after(paying, "fine") == []
    a_minute_passes()
    assert warnings_after(ends_at_once) == []
    a_minute_passes()
    liveness.heartbeat(home.engine)
    assert warnings_after(paying, "fine") == []


def test_a_bot_with_a_worker_inside_is_not_warned(
    home: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    with worker():
        start_sync(paying, "fine").return_value(20)

    assert "no worker is alive" not in caplog.text


def test_a_caller_that_is_cancelled_leaves_nothing_waiting(home: Installation) -> None:
    async def give_up() -> None:
        run = await start(paying, "fine")
        waiting = asyncio.create_task(run.return_value())
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(give_up())

    assert home.engine.watch._waiting == {}


def test_any_number_may_wait_and_each_is_told_in_its_own_time(running: Installation) -> None:
    async def wait() -> None:
        others, ended = await start(long_sleep), await start(paying, "fine")
        waiting = [asyncio.create_task(others.return_value()) for _ in range(300)]
        await asyncio.sleep(0)

        threads = threading.active_count()
        began = time.monotonic()
        assert await ended.return_value(10) == "paid"
        assert await ended.return_value(0) == "paid"
        late = [asyncio.create_task(others.return_value(0.2)) for _ in range(300)]
        told = await asyncio.gather(*late, return_exceptions=True)
        assert {type(error) for error in told} == {ReturnValueTimeoutError}
        assert time.monotonic() - began < 8
        assert threading.active_count() - threads < 60  # and not one for each of three hundred
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()

    asyncio.run(wait())


def test_a_timeout_ends_a_wait_for_a_database_that_does_not_answer(
    home: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = start_sync(paying, "fine").run_id
    answers, has_read = threading.Event(), threading.Event()
    read = home.engine.database.read

    def reads_late(work: Any) -> Any:
        assert answers.wait(30)
        try:
            return read(work)
        finally:
            has_read.set()

    monkeypatch.setattr(home.engine.database, "read", reads_late)
    try:
        with pytest.raises(ReturnValueTimeoutError, match="database has not answered") as caught:
            asyncio.run(Run(run_id).return_value(0.05))
    finally:
        answers.set()
        assert has_read.wait(30)  # or it opens the database again that is closed after the test
    assert caught.value.is_worker_alive is None


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_asks_with_threads_of_its_own(home: Installation) -> None:
    run = start_sync(paying, "fine")

    async def look() -> str:
        found = await get_run(run.run_id)
        with pytest.raises(ReturnValueTimeoutError, match="has not ended"):
            await found.return_value(0)
        return str(await found.status())

    async def look_together() -> list[str]:
        return await asyncio.gather(*[look() for _ in range(8)])

    # So that threads are there, and idle: the child would leave its calls to them.
    (before,) = set(asyncio.run(look_together()))
    reads, writes = os.pipe()
    if (pid := os.fork()) == 0:
        said = "nothing"
        with contextlib.suppress(BaseException):
            said = asyncio.run(asyncio.wait_for(look(), 10))
        os.write(writes, said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writes)
    with os.fdopen(reads) as answers:
        assert answers.read() == before
