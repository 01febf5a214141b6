"""Options of one call of a step: they are stored with it, and the step itself keeps its own."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from ckworkflow import InvalidDurationError, RunFailedError, start, step, timeout, workflow
from ckworkflow.context import use_step
from ckworkflow.definition.options import OnCancel
from ckworkflow.testing import Environment
from environments import in_environment

pytestmark = pytest.mark.fast

tries: list[tuple[int, int]] = []


@pytest.fixture(autouse=True)
def _no_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "")
    tries.clear()


@step(max_retries=2, retry_delay="1 second")
async def flaky(value: Any = None) -> Any:
    tries.append((use_step().attempt, use_step().max_attempts))
    raise ValueError("no")


@step(timeout="1 hour")
async def slow() -> str:
    return "done"


@step
async def echo(value: Any) -> Any:
    return value


@workflow
async def once(value: Any = None) -> None:
    await flaky.with_options(max_retries=0)(value)


@workflow
async def as_the_step_has_it() -> None:
    await flaky()


@workflow
async def often_and_late() -> None:
    await flaky.with_options(max_retries=1, retry_delay="1 day")()


@workflow
async def side_by_side() -> list[Any]:
    quick = echo.with_options(max_retries=0)
    return await asyncio.gather(quick(1), echo(2), quick.with_options(timeout=5)(3))


@workflow
async def in_a_hurry() -> str:
    return await slow.with_options(timeout=timedelta(minutes=1), max_retries=0)()


@workflow
async def let_go() -> str:
    try:
        async with timeout("1 second"):
            await slow.with_options(on_cancel="leave")()
    except TimeoutError:
        return "late"
    return "in time"


@pytest.mark.parametrize("always_replay", [False, True])
@pytest.mark.parametrize("value", [None, {"options": {"max_retries": 9}}])
def test_a_call_has_fewer_retries_than_its_step(always_replay: bool, value: Any):
    async def test(env: Environment):
        with pytest.raises(RunFailedError, match="after 1 attempt"):
            await (await start(once, value)).return_value()
        assert tries == [(1, 1)]

    in_environment(test, always_replay=always_replay)


def test_the_step_itself_keeps_its_options():
    async def test(env: Environment):
        run = await start(as_the_step_has_it)
        await env.advance("1 minute")
        with pytest.raises(RunFailedError, match="after 3 attempts"):
            await run.return_value()
        assert flaky.options.max_retries == 2

    in_environment(test)


def test_the_pause_is_that_of_the_call():
    async def test(env: Environment):
        run = await start(often_and_late)
        await env.advance("23 hours")
        assert tries == [(1, 2)]
        await env.advance("1 hour")
        with pytest.raises(RunFailedError, match="after 2 attempts"):
            await run.return_value()

    in_environment(test)


def test_members_of_a_gather_have_options_of_their_own():
    async def test(env: Environment):
        assert await (await start(side_by_side)).return_value() == [1, 2, 3]

    in_environment(test)


def test_the_timeout_is_that_of_the_call():
    async def test(env: Environment):
        with env.replaced(slow, env.never):
            run = await start(in_a_hurry)
            await env.advance("1 minute")
            with pytest.raises(RunFailedError, match="timeout of 60 s"):
                await run.return_value()

    in_environment(test)


def test_what_becomes_of_a_cancelled_await_is_the_calls_to_say():
    async def test(env: Environment):
        with env.replaced(slow, env.never):
            run = await start(let_go)
            await env.advance("1 second")
            assert await run.return_value() == "late"
            assert (await run.steps())[1].finished_at is None  # it runs on

    in_environment(test)


def test_bad_options_are_refused_where_they_stand():
    with pytest.raises(TypeError, match=r"queue belongs to the task of the step.*@step\(queue=\.\.\.\)"):
        flaky.with_options(queue="bot")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="there is no option 'max_retry'"):
        flaky.with_options(max_retry=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="max_retries must be 0 or more"):
        flaky.with_options(max_retries=-1)
    with pytest.raises(InvalidDurationError):
        flaky.with_options(timeout="soon")
    assert flaky.with_options(on_cancel="tell").on_cancel is OnCancel.TELL
    assert flaky.on_cancel is OnCancel.WAIT


def test_outside_of_a_body_a_call_is_a_call():
    assert asyncio.run(echo.with_options(max_retries=0)("here")) == "here"
