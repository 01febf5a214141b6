"""A call in a body that nobody awaits is found out, and what is awaited in the end is left alone."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from ckworkflow import FatalError, NotAwaitedError, sleep, step, workflow
from ckworkflow.definition import Workflow
from ckworkflow.model import NodeId, RunId
from ckworkflow.tracing import Outcome, Trace, Tracer

START = datetime(2030, 1, 1, tzinfo=UTC)


@step
async def unban(user: Any = 0) -> Any:
    return user


@step
async def tell(text: Any = "") -> Any:
    return text


@workflow
async def greets() -> Any:
    return await tell("hi")


def outcome(definition: Workflow[..., Any]) -> Trace:
    """Run a body to its end, each step giving 2."""
    tracer = Tracer(RunId("run"), lambda: definition.body.function(), started_at=START)
    trace = tracer.resume()
    told: set[NodeId] = set()
    while trace.end is None:
        new = [node.node_id for node in trace.nodes if node.node_id not in told]
        told.update(new)
        trace = tracer.resume([Outcome(node_id, 2, None, START) for node_id in new])
    tracer.close()
    return trace


def line_of(definition: Workflow[..., Any], nth: int) -> int:
    return definition.function.__code__.co_firstlineno + nth


# --- a statement of its own --------------------------------------------------------------------------


@workflow
async def forgets_a_step() -> None:
    await tell()
    unban(1)  # type: ignore[unused-coroutine]
    await tell()


@workflow
async def forgets_a_sleep() -> None:
    sleep("1 hour")  # type: ignore[unused-coroutine]
    await tell()


@workflow
async def forgets_a_workflow() -> None:
    greets()  # type: ignore[unused-coroutine]
    await tell()


@workflow
async def forgets_in_an_endless_loop() -> None:
    while True:
        unban(1)  # type: ignore[unused-coroutine]
        await sleep("1 hour")


@workflow
async def forgets_and_handles_everything() -> None:
    try:
        if await tell():
            unban(1)  # type: ignore[unused-coroutine]
        await tell()
    except Exception:  # noqa: BLE001, S110  # a careless body
        pass


async def helper() -> None:
    unban(1)  # type: ignore[unused-coroutine]


@workflow
async def forgets_in_a_helper() -> None:
    await helper()
    await tell()


@workflow
async def forgets_in_a_task() -> None:
    await asyncio.create_task(helper())


@workflow
async def calls_what_is_wrapped() -> None:
    call = unban
    call(1)  # type: ignore[unused-coroutine]


@pytest.mark.parametrize(
    ("body", "what", "line"),
    [
        (forgets_a_step, "unban", 3),
        (forgets_a_sleep, "sleep", 2),
        (forgets_a_workflow, "greets", 2),
        (forgets_in_an_endless_loop, "unban", 3),
        (forgets_and_handles_everything, "unban", 4),
        (forgets_in_a_helper, "unban", -3),
        (forgets_in_a_task, "unban", -9),
        (calls_what_is_wrapped, "unban", 3),
    ],
)
def test_a_call_that_stands_alone_fails_the_run_whatever_the_body_handles(
    body: Workflow[..., Any], what: str, line: int
) -> None:
    with pytest.raises(
        NotAwaitedError, match=rf"^{what} \(line \d+\) was called but not awaited"
    ) as caught:
        outcome(body)
    assert (caught.value.what, caught.value.line) == (what, line_of(body, line))


# --- a value ----------------------------------------------------------------------------------------


@workflow
async def compares() -> Any:
    if unban(2) == 2:  # type: ignore[comparison-overlap]
        await tell("equal")


@workflow
async def asks_for_its_truth() -> Any:
    try:
        while not unban():
            await tell()
    except Exception:  # noqa: BLE001  # a careless body
        return 1


@workflow
async def writes_it() -> Any:
    await tell(f"hello {unban()}")


@workflow
async def passes_it_on() -> Any:
    await tell(unban())


@workflow
async def passes_it_on_in_a_list() -> Any:
    await tell(["hello", {"user": unban()}])


@workflow
async def loops_over_it() -> Any:
    for one in unban():  # type: ignore[attr-defined]
        await tell(one)


@workflow
async def adds_to_it() -> Any:
    return unban() + 1  # type: ignore[operator]


@pytest.mark.parametrize(
    "body",
    [
        compares, asks_for_its_truth, writes_it, passes_it_on, passes_it_on_in_a_list, loops_over_it, adds_to_it,
    ],
)  # fmt: skip
def test_a_call_that_is_used_as_a_value_fails_the_run(body: Workflow[..., Any]) -> None:
    with pytest.raises(NotAwaitedError, match="^unban ") as caught:
        raise outcome(body).end.error  # type: ignore[union-attr, misc]
    assert caught.value.what == "unban"


@workflow
async def asks_for_a_part() -> Any:
    user = unban()
    return user.id  # type: ignore[attr-defined]


def test_a_part_of_a_call_is_no_attribute_and_says_why() -> None:
    end = outcome(asks_for_a_part).end
    assert isinstance(end.error, AttributeError)  # type: ignore[union-attr]
    assert "unban (line " in str(end.error)  # type: ignore[union-attr]


# --- kept ------------------------------------------------------------------------------------------


@workflow
async def keeps() -> int:
    pending = [unban(number) for number in range(3)]
    await tell()
    return len(pending)


@workflow
async def returns_it() -> Any:
    return unban()


@workflow
async def returns_it_and_handles_errors() -> Any:
    try:
        return unban()
    except ValueError:
        return None


@pytest.mark.parametrize("body", [keeps, returns_it, returns_it_and_handles_errors])
def test_a_call_that_is_left_when_the_body_returns_fails_the_run(body: Workflow[..., Any]) -> None:
    try:
        error = outcome(body).end.error  # type: ignore[union-attr]
    except NotAwaitedError as alone:
        error = alone
    assert isinstance(error, NotAwaitedError)
    assert error.what == "unban"


@workflow
async def is_interrupted() -> Any:
    try:
        await asyncio.gather(unban(1), tell(object()))
    except TypeError:
        await tell("handled")


def test_a_call_that_an_error_has_kept_from_its_await_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert outcome(is_interrupted).end.error is None  # type: ignore[union-attr]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "unban (line " in warning.getMessage()


@workflow
async def fails_first() -> Any:
    pending = unban()
    raise ValueError(pending is None)


def test_the_error_of_a_body_comes_before_what_it_had_still_to_await() -> None:
    assert isinstance(outcome(fails_first).end.error, ValueError)  # type: ignore[union-attr]


# --- what is right -----------------------------------------------------------------------------------


async def awaits(call: Any) -> Any:
    return await call


@workflow
async def all_kinds() -> Any:
    first, second = unban(1), unban(2)
    calls = list(map(unban, range(3)))
    calls.extend(map(unban, range(3)))
    later = asyncio.gather(first, second)
    task = asyncio.create_task(unban(4))
    cancelled = asyncio.create_task(unban(5))
    cancelled.cancel()
    dropped = unban(6)
    dropped.close()
    chosen = {unban(7): "seven"}
    await later
    await asyncio.gather(*calls)
    await awaits(unban(3))
    await asyncio.wait([asyncio.create_task(call) for call in chosen])
    for done in asyncio.as_completed([unban(8), unban(9)]):
        await done
    inner = greets()
    await inner
    await tell(await unban(10))
    return await task


def test_what_is_awaited_gathered_or_given_to_a_task_is_left_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    end = outcome(all_kinds).end
    assert end is not None
    assert end.error is None
    assert caplog.records == []


@workflow
async def ends_before_its_tasks() -> Any:
    async def waits() -> None:
        kept = unban(1)
        await sleep("1 day")
        await kept

    task = asyncio.create_task(waits())
    await tell()
    return task.done()


def test_a_task_that_the_end_cancels_need_not_have_awaited_all() -> None:
    assert outcome(ends_before_its_tasks).end.error is None  # type: ignore[union-attr]


def test_a_failed_step_is_the_error_and_not_what_its_gather_had_still_to_begin() -> None:
    tracer = Tracer(RunId("run"), lambda: all_kinds.body.function(), started_at=START)
    first = tracer.resume().nodes[0].node_id
    trace = tracer.resume([Outcome(first, None, FatalError("boom"), START)])
    assert trace.end is not None
    assert str(trace.end.error) == "boom"
