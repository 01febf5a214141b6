"""What Celery offers a task holds for a step, however it is carried: the table of docs/operations.md."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, Task, signals

from ckworkflow import RetryableError, WorkflowPlugin, canvas, sleep, start_sync, step, workflow
from ckworkflow.hooks import use_step
from ckworkflow.outage import Outage
from ckworkflow.testing import worker
from waiting import failure_of, until

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_SECONDS = 20
ran: list[tuple[str, float]] = []
around: contextvars.ContextVar[str | None] = contextvars.ContextVar("around", default=None)
seen: list[tuple[str, str | None, str]] = []


@pytest.fixture(autouse=True)
def again() -> None:
    ran.clear()
    seen.clear()


@step
async def note(name: str) -> str:
    ran.append((name, time.monotonic()))
    seen.append((name, around.get(), threading.current_thread().name))
    return name


@step
def note_plainly(name: str) -> str:
    seen.append((name, around.get(), threading.current_thread().name))
    return name


@step(max_retries=1, retry_delay=0)
async def fails_once(name: str) -> str:
    if use_step().attempt == 1:
        raise ValueError("secret")
    return name


@step(max_retries=0)
async def fails(name: str) -> str:
    raise ValueError("secret")


@step
async def waits_long(name: str) -> None:
    raise RetryableError("secret", retry_after="1 hour")


@workflow
async def five() -> None:
    for number in range(5):
        await note(str(number))


@workflow
async def five_side_by_side() -> None:
    await asyncio.gather(*[note(str(number)) for number in range(5)])


@workflow
async def five_looked_at() -> None:
    for number in range(5):
        assert await note(str(number)) == str(number)


@workflow
async def joined() -> str:
    one, two = await asyncio.gather(note("one"), note("two"))
    return await note(one + two)


@workflow
async def after_a_sleep() -> str:
    await note("before")
    await sleep("20 ms")
    return await note("after")


@workflow
async def asleep_first() -> str:
    await sleep("20 ms")
    return await note("after")


@workflow
async def asleep_side_by_side() -> str:
    one, two = await asyncio.gather(slept("one"), slept("two"))
    return await note(one + two)


@workflow
async def slept(name: str) -> str:
    await sleep("20 ms")
    return await note(name)


@workflow
async def of_all_kinds() -> str:
    await note("by a message")
    await note_plainly("plain")
    return await note("in place")


@workflow
async def retried_in_a_message() -> str:
    return await fails_once("x")


@workflow
async def retried_in_place() -> str:
    await note("first")
    return await fails_once("x")


@workflow
async def failing_in_a_message() -> str:
    return await fails("x")


@workflow
async def failing_in_place() -> str:
    await note("first")
    return await fails("x")


@workflow
async def waiting_in_a_message() -> None:
    await waits_long("x")


@workflow
async def waiting_in_place() -> None:
    await note("first")
    await waits_long("x")


# --- rates --------------------------------------------------------------------------------------------


def seconds() -> float:
    times = [at for _, at in ran]
    assert len(times) == 5
    return max(times) - min(times)


@pytest.mark.parametrize("flow", [five, five_side_by_side, five_looked_at])
@pytest.mark.parametrize(
    "settings",
    [{"task_annotations": {note.name: {"rate_limit": "10/s"}}}, {"task_default_rate_limit": "10/s"}],
)
def test_a_rate_limit_of_the_settings_holds(
    make_app: Callable[..., Celery], flow: Any, settings: dict[str, Any]
) -> None:
    make_app(**settings)
    with worker():
        start_sync(flow).return_value(PATIENCE_SECONDS)

    assert seconds() > 0.3


def test_a_rate_limit_by_remote_control_holds_and_can_be_taken_back(
    make_app: Callable[..., Celery],
) -> None:
    app = make_app()
    with worker():
        app.control.rate_limit(note.name, "10/s", reply=True, timeout=5, limit=1)
        start_sync(five).return_value(PATIENCE_SECONDS)
        limited = seconds()
        ran.clear()
        app.control.rate_limit(note.name, "1/h", reply=True, timeout=5, limit=1)
        app.control.rate_limit(note.name, "0", reply=True, timeout=5, limit=1)
        start_sync(five).return_value(PATIENCE_SECONDS)

    assert limited > 0.3
    assert len(ran) == 5


def test_rate_limits_that_are_switched_off_hold_nothing_up(make_app: Callable[..., Celery]) -> None:
    make_app(task_default_rate_limit="1/h", worker_disable_rate_limits=True)
    with worker():
        start_sync(five).return_value(PATIENCE_SECONDS)

    assert len(ran) == 5


# --- signals ------------------------------------------------------------------------------------------


@contextmanager
def heard(signal: Any) -> Iterator[list[dict[str, Any]]]:
    found: list[dict[str, Any]] = []

    def hear(**arguments: Any) -> None:
        found.append(arguments)

    signal.connect(hear)
    try:
        yield found
    finally:
        signal.disconnect(hear)


@pytest.mark.parametrize(
    ("flow", "node"),
    [
        (retried_in_a_message, "0:1"), (retried_in_place, "0:2"), (waiting_in_a_message, "0:1"),
        (waiting_in_place, "0:2"),
    ],
)  # fmt: skip
def test_the_signal_of_a_retry_is_sent(make_app: Callable[..., Celery], flow: Any, node: str) -> None:
    make_app()
    with heard(signals.task_retry) as retries, heard(signals.task_failure) as failures, worker():
        run = start_sync(flow)
        until(lambda: retries)

    assert [told["request"].id for told in retries] == [f"ckw:{run.run_id}:{node}:1"]
    assert "runs show" in str(retries[0]["reason"].exc)
    assert "secret" not in f"{retries[0]['reason'].exc} {retries[0]['einfo'].traceback}"
    assert failures == []


@pytest.mark.parametrize(("flow", "node"), [(failing_in_a_message, "0:1"), (failing_in_place, "0:2")])
def test_the_signal_of_a_failure_is_sent(make_app: Callable[..., Celery], flow: Any, node: str) -> None:
    make_app()
    with heard(signals.task_failure) as failures, heard(signals.task_retry) as retries, worker():
        run = start_sync(flow)
        failure_of(run)
        until(lambda: failures)

    (told,) = failures
    assert (told["task_id"], told["sender"].name) == (f"ckw:{run.run_id}:{node}:1", fails.name)
    assert "secret" not in f"{told['exception']} {told['einfo'].traceback}"
    assert retries == []


# --- the app's own task class -------------------------------------------------------------------------


class ContextTask(Task):
    """As Flask's documentation has it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = around.set(self.request.id)
        try:
            return self.run(*args, **kwargs)
        finally:
            around.reset(token)


def test_the_apps_own_task_class_is_around_every_step(tmp_path: Path, forget: None) -> None:
    app = Celery("flask", task_cls=ContextTask, set_as_current=False)
    app.conf.workflow_database_url = f"sqlite:///{tmp_path / 'runs.sqlite3'}"
    WorkflowPlugin(app)
    with worker():
        run = start_sync(of_all_kinds)
        assert run.return_value(PATIENCE_SECONDS) == "in place"

    assert [(name, inside) for name, inside, _ in seen] == [
        ("by a message", f"ckw:{run.run_id}:0:1:1"),
        ("plain", f"ckw:{run.run_id}:0:2:1"),
        ("in place", f"ckw:{run.run_id}:0:3:1"),
    ]
    assert {thread for _, _, thread in seen[::2]} == {"ckworkflow-loop"}


# --- publishing ---------------------------------------------------------------------------------------

SHAPES = [five, joined, after_a_sleep, five_side_by_side, asleep_first, asleep_side_by_side]


@pytest.mark.parametrize(
    "settings",
    [
        {"task_always_eager": True, "task_eager_propagates": True},
        {"task_serializer": "nope"},
        {"task_compression": None, "accept_content": ["pickle"], "task_serializer": "pickle"},
    ],
)
def test_steps_run_at_workers_whatever_the_settings_say_of_other_tasks(
    make_app: Callable[..., Celery], settings: dict[str, Any]
) -> None:
    make_app(**settings)

    runs = [start_sync(flow) for flow in SHAPES]

    assert ran == []
    with worker():
        for run in runs:
            run.return_value(PATIENCE_SECONDS)


@step(retry_delay=1.5, retry_jitter=False)
def fails_once_and_waits() -> str:
    if use_step().attempt == 1:
        raise ConnectionError("down")
    return "x"


@workflow
async def retried_later() -> str:
    return await fails_once_and_waits()


@pytest.mark.slow
@pytest.mark.parametrize("flow", [retried_in_a_message, retried_later])
def test_a_retry_is_a_message_where_other_tasks_are_eager(
    make_app: Callable[..., Celery], flow: Any
) -> None:
    make_app(task_always_eager=True, task_eager_propagates=True)
    run = start_sync(flow)  # before there is a worker, which would begin it without a message
    with heard(signals.task_retry) as retries, heard(signals.task_failure) as failed, worker():
        assert run.return_value(PATIENCE_SECONDS) == "x"

    assert len(retries) == 1
    assert failed == []


@pytest.mark.parametrize("flow", SHAPES)
def test_nothing_that_publishing_raises_leaves_start(
    make_app: Callable[..., Celery], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    flow: Any,
) -> None:  # fmt: skip
    def route(*_: Any, **__: Any) -> None:
        raise LookupError("no such route")

    make_app(task_routes=(route,))
    monkeypatch.setattr(canvas, "_publishing", Outage(canvas.logger, "publishing", problem="fails"))
    with caplog.at_level(logging.WARNING):
        run = start_sync(flow)

    assert not run.status().is_final
    (record,) = [each for each in caplog.records if "publishing fails" in each.message]
    assert "LookupError: no such route. The runs are in the database" in record.message
    assert record.exc_info is None


def test_a_broker_url_that_cannot_be_used_does_not_leave_start_either(
    make_app: Callable[..., Celery], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canvas, "_publishing", Outage(canvas.logger, "publishing", problem="fails"))
    make_app(broker_url="redis://:hush/hush@localhost/0")
    with caplog.at_level(logging.DEBUG):
        run = start_sync(joined)

    assert not run.status().is_final
    (record,) = [each for each in caplog.records if "publishing fails" in each.message]
    assert "`broker_url` cannot be used" in record.message
    assert "hush" not in caplog.text


def test_annotations_cannot_take_away_what_steps_stand_on(
    make_app: Callable[..., Celery], caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(
        task_annotations={"*": {"max_retries": 0, "acks_late": False, "serializer": "pickle"}}
    )
    with caplog.at_level(logging.WARNING):
        task = app.tasks[fails_once.name]

    assert (task.max_retries, task.acks_late, task.serializer) == (None, True, "json")
    assert f"cannot set max_retries of step {fails_once.name}" in caplog.text
    with worker():
        assert start_sync(retried_in_a_message).return_value(PATIENCE_SECONDS) == "x"


def test_an_annotated_queue_and_priority_are_those_of_the_message(
    make_app: Callable[..., Celery],
) -> None:
    make_app(task_annotations={note.name: {"queue": "annotated", "priority": 7}})
    with heard(signals.before_task_publish) as published:
        for flow in (five, joined):
            start_sync(flow)

    assert {(told["routing_key"], told["properties"]["priority"]) for told in published} == {
        ("annotated", 7)
    }
