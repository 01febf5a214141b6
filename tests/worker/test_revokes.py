"""A step that is revoked ends as failed, whatever carries it."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from ckworkflow import FatalError, RetryableError, start_sync, step, workflow
from ckworkflow.canvas import task_id
from ckworkflow.model import NodeId, RunId, RunStatus
from ckworkflow.testing import worker
from waiting import failure_of, until

if TYPE_CHECKING:
    from celery import Celery

    from ckworkflow import SyncRun

begun: Counter[str] = Counter()
is_told = threading.Event()


@step
async def quick() -> None:
    begun["quick"] += 1


@step
async def waits() -> str:
    begun["waits"] += 1
    await asyncio.to_thread(is_told.wait, 20)
    return "ended"


@step
def waits_plainly() -> str:
    begun["waits_plainly"] += 1
    is_told.wait(20)
    return "ended"


@step
async def comes_again() -> str:
    begun["comes_again"] += 1
    raise RetryableError("later", retry_after="1 hour")


@step
async def comes_again_soon() -> str:
    begun["comes_again_soon"] += 1
    await asyncio.to_thread(is_told.wait, 20)
    raise RetryableError("soon", retry_after="1 second")


@workflow
async def by_its_message() -> str:
    return await waits()


@workflow
async def on_a_lane() -> str:
    await quick()
    return await waits()


@workflow
async def on_a_thread() -> str:
    return await waits_plainly()


@workflow
async def later() -> str:
    return await comes_again()


@workflow
async def soon() -> str:
    return await comes_again_soon()


@workflow
async def catches() -> str | None:
    try:
        return await waits()
    except FatalError as error:
        return error.kind


@pytest.fixture
def app(make_app: Callable[..., Celery]) -> Iterator[Celery]:
    begun.clear()
    is_told.clear()
    app = make_app(is_own=True)
    with worker():
        yield app
        is_told.set()


def revoke(app: Celery, run: SyncRun[object], node: str, *, terminate: bool = False) -> None:
    revoked_id = task_id(RunId(run.run_id), NodeId(node), 1)
    assert app.control.revoke(revoked_id, terminate=terminate, reply=True, timeout=5, limit=1)


@pytest.mark.parametrize(
    ("wf", "name", "node"),
    [
        (by_its_message, "waits", "0:1"),
        (on_a_lane, "waits", "0:2"),
        (on_a_thread, "waits_plainly", "0:1"),
    ],
)
def test_a_step_that_runs_and_is_to_be_terminated_fails(app: Celery, wf, name: str, node: str) -> None:
    run = start_sync(wf)
    until(lambda: begun[name])

    revoke(app, run, node, terminate=True)

    error = failure_of(run)
    assert isinstance(error, FatalError)
    assert error.kind == "revoked"
    assert begun[name] == 1


def test_a_step_that_waits_for_its_next_attempt_fails(app: Celery) -> None:
    run = start_sync(later)
    until(lambda: begun["comes_again"] and str(run.steps()[0].status) == "planned")

    revoke(app, run, "0:1")

    assert getattr(failure_of(run), "kind", None) == "revoked"


def test_a_step_that_runs_goes_on_where_nobody_terminates_it(app: Celery) -> None:
    run = start_sync(by_its_message)
    until(lambda: begun["waits"])

    revoke(app, run, "0:1")
    is_told.set()

    assert run.return_value(20) == "ended"


def test_of_a_step_that_goes_on_the_next_attempt_does_not_begin(app: Celery) -> None:
    run = start_sync(soon)
    until(lambda: begun["comes_again_soon"])

    revoke(app, run, "0:1")
    is_told.set()

    assert getattr(failure_of(run), "kind", None) == "revoked"
    assert begun["comes_again_soon"] == 1


def test_a_step_that_was_revoked_before_its_turn_does_not_begin(app: Celery) -> None:
    run = start_sync(two_in_a_row)
    until(lambda: begun["waits"])

    revoke(app, run, "0:2")
    is_told.set()

    assert getattr(failure_of(run), "kind", None) == "revoked"
    assert begun["quick"] == 0


@workflow
async def two_in_a_row() -> None:
    await waits()
    await quick()


def test_the_body_may_catch_it(app: Celery) -> None:
    run = start_sync(catches)
    until(lambda: begun["waits"])

    revoke(app, run, "0:1", terminate=True)

    assert run.return_value(20) == "revoked"
    assert run.status() is RunStatus.COMPLETED


def test_what_is_over_stays_as_it_is(app: Celery) -> None:
    is_told.set()
    run = start_sync(by_its_message)
    assert run.return_value(20) == "ended"

    revoke(app, run, "0:1", terminate=True)

    assert run.return_value(0) == "ended"
