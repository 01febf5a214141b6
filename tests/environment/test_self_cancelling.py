"""A body that is cancelled from inside does what it does in plain asyncio, though it may have run ahead of what cancels it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from ckworkflow import RunCancelledError, start
from ckworkflow.testing import Environment
from environment import self_cancel_flows as flows
from environments import in_environment

BOTH = pytest.mark.parametrize("always_replay", [False, True], ids=["kept", "replayed"])


@pytest.fixture(autouse=True)
def nothing_done() -> Iterator[None]:
    flows.done.clear()
    yield
    flows.done.clear()


def plainly(body: Any) -> tuple[Any, list[Any]]:
    """What a body comes to in plain asyncio, where a sleep takes a moment for each hour."""

    async def act(what: Any) -> Any:
        await asyncio.sleep(0.001)  # a step begins when its await has begun
        flows.done.append(what)
        return what

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0.02 + seconds / 50_000)

    with mock.patch.object(flows, "act", act), mock.patch.object(flows, "sleep", sleep):
        try:
            outcome = asyncio.run(body())
        except asyncio.CancelledError as error:
            outcome = f"cancelled: {error}"
    done = list(flows.done)
    flows.done.clear()
    return outcome, done


def durably(start_: Any, *, always_replay: bool) -> tuple[Any, list[Any]]:
    async def test(env: Environment) -> Any:
        run = await start_()
        await env.advance("1 day")
        try:
            return await run.return_value()
        except RunCancelledError as error:
            return f"cancelled: {error.reason}"

    outcome = in_environment(test, always_replay=always_replay)
    return outcome, [list(each) if isinstance(each, tuple) else each for each in flows.done]


@BOTH
@pytest.mark.parametrize("name", flows.FLOWS)
def test_a_body_that_is_cancelled_from_inside_does_as_in_asyncio(name: str, always_replay: bool):
    outcome, done = plainly(flows.FLOWS[name].function)
    done = [list(each) if isinstance(each, tuple) else each for each in done]
    assert durably(lambda: start(flows.FLOWS[name]), always_replay=always_replay) == (outcome, done)


@BOTH
@pytest.mark.parametrize("name", flows.FLOWS)
def test_so_does_one_that_another_workflow_calls(name: str, always_replay: bool):
    outcome, done = plainly(flows.FLOWS[name].function)
    done = [list(each) if isinstance(each, tuple) else each for each in done]
    if not str(outcome).startswith("cancelled"):
        outcome = [name, outcome]
    found = durably(lambda: start(flows.inlined, name), always_replay=always_replay)
    assert found == (outcome, done)


@BOTH
def test_so_does_a_later_life(always_replay: bool):
    found = durably(lambda: start(flows.in_a_later_life), always_replay=always_replay)
    assert found == (True, [0, 1, "refund"])


@pytest.mark.parametrize("name", flows.FLOWS)
def test_a_crash_at_any_write_changes_nothing(name: str):
    async def test(env: Environment):
        assert await env.crash_everywhere(flows.FLOWS[name])

    in_environment(test)
