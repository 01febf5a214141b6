"""Runs that are cancelled, and steps whose await is: what the body gets, what of it still runs, and how the run ends."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any
from unittest import mock

import pytest

from ckworkflow import (
    HookContextError,
    InvalidDurationError,
    Run,
    RunCancelledError,
    RunFailedError,
    RunStatus,
    RunTerminatedError,
    WorkflowNotRegisteredError,
    cancel_runs,
    get_run,
    start,
)
from ckworkflow.model import NodeStatus
from ckworkflow.testing import Environment
from ckworkflow.testing.process import Process
from environment import cancel_flows as flows
from environments import in_environment

pytestmark = pytest.mark.fast


@pytest.fixture(autouse=True)
def _nothing_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "")
    flows.done.clear()
    flows.begun.clear()


# -- a run is cancelled -------------------------------------------------------------------------------


@pytest.mark.parametrize("always_replay", [False, True])
def test_a_run_that_sleeps_is_cancelled_at_once(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.asleep)
        await env.settle()
        assert await run.cancel(reason="the user has left")
        assert await run.status() == RunStatus.CANCELLED
        with pytest.raises(RunCancelledError, match="was cancelled: the user has left") as caught:
            await run.return_value()
        assert (caught.value.run_id, caught.value.reason) == (run.run_id, "the user has left")
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        await env.advance("8 days")
        assert flows.done == []
        assert not await run.cancel()

    in_environment(test, always_replay=always_replay)


@pytest.mark.parametrize("always_replay", [False, True])
def test_clean_up_runs_durably_and_is_told_why(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.cleaning)
        await env.settle()
        await run.cancel(reason="enough")
        await env.settle()
        assert flows.done == ["begins", "cancelled: enough", "cleaned up"]
        assert await run.status() == RunStatus.CANCELLED

    in_environment(test, always_replay=always_replay)


@pytest.mark.parametrize("always_replay", [False, True])
def test_a_request_ends_the_clean_up_after_a_deadline(always_replay: bool):
    """On Python 3.11, too, where what `wait_for` waits for is a task, which is left behind."""

    async def test(env: Environment):
        run = await start(flows.cleans_up_after_a_deadline)
        await env.advance("10 minutes")
        assert await run.status() == RunStatus.RUNNING
        await run.cancel(reason="enough")
        await env.advance("2 hours")
        assert flows.done == ["begins"]
        assert await run.status() == RunStatus.CANCELLED

    in_environment(test, always_replay=always_replay)


def test_clean_up_that_sleeps_is_waited_for_and_a_second_request_does_not_disturb_it():
    async def test(env: Environment):
        run = await start(flows.slow_to_clean)
        await env.settle()
        assert await run.cancel(reason="first")
        assert await run.cancel(reason="second")
        await env.advance("59 minutes")
        assert await run.status() == RunStatus.RUNNING
        await env.advance("1 minute")
        assert flows.done == ["cleaned up"]
        with pytest.raises(RunCancelledError) as caught:
            await run.return_value()
        assert caught.value.reason == "first"

    in_environment(test)


def test_what_comes_out_of_the_body_decides_how_the_run_ends():
    async def test(env: Environment):
        went_on, worse, gave_up = [
            await start(flow) for flow in (flows.obstinate, flows.worse, flows.cancels_itself)
        ]
        await env.settle()
        await went_on.cancel()
        await worse.cancel()
        assert await went_on.return_value() == "went on"
        with pytest.raises(RunFailedError, match="while cleaning up"):
            await worse.return_value()
        with pytest.raises(RunCancelledError) as caught:
            await gave_up.return_value()
        assert caught.value.reason == "I give up"

    in_environment(test)


def test_grace_ends_what_has_not_ended_by_then():
    async def test(env: Environment):
        run = await start(flows.slow_to_clean)
        await env.settle()
        await run.cancel(grace="10 minutes")
        await env.advance("9 minutes")
        assert await run.status() == RunStatus.RUNNING
        await run.cancel(reason="hurry", grace="30 seconds")
        await run.cancel(grace="1 day")
        await env.advance("30 seconds")
        assert await run.status() == RunStatus.CANCELLED
        with pytest.raises(RunCancelledError, match="was terminated") as caught:
            await run.return_value()
        assert caught.value.is_terminated
        await env.advance("1 day")
        assert flows.done == []

    in_environment(test)


def test_a_run_that_is_terminated_cleans_nothing_up_and_its_steps_are_told():
    async def test(env: Environment):
        run = await start(flows.with_step, "long")
        step = asyncio.ensure_future(env.settle())
        while flows.done != ["long begins"]:
            await asyncio.sleep(0)
        assert await run.terminate(reason="now")
        assert await run.status() == RunStatus.CANCELLED
        await step
        assert flows.done == ["long begins", "long stops"]
        with pytest.raises(RunCancelledError, match="was terminated: now") as caught:
            await run.return_value()
        assert caught.value.is_terminated
        assert isinstance(caught.value.__cause__, RunTerminatedError)
        assert not await run.terminate()

    in_environment(test)


def test_a_termination_may_say_another_reason_than_the_request_before_it():
    async def test(env: Environment):
        run = await start(flows.slow_to_clean)
        await env.settle()
        await run.cancel(reason="enough")
        assert await run.terminate(reason="it hangs")
        with pytest.raises(RunCancelledError) as caught:
            await run.return_value()
        assert caught.value.reason == "it hangs"

    in_environment(test)


def test_a_run_of_which_nothing_has_begun_ends_without_its_body():
    async def test(env: Environment):
        run = await start(flows.chained)
        assert await run.cancel(reason="never mind")
        assert await run.status() == RunStatus.CANCELLED
        await env.settle()
        assert flows.done == []
        with pytest.raises(RunCancelledError, match="never mind") as caught:
            await run.return_value()
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)  # as if it had begun

    in_environment(test)


def test_a_step_that_is_to_be_tried_again_is_not():
    async def test(env: Environment):
        run = await start(flows.again_and_again)
        await env.advance("90 minutes")
        assert (await run.steps())[0].attempt == 2
        await run.cancel()
        await env.advance("10 days")
        assert await run.status() == RunStatus.CANCELLED
        assert (await run.steps())[0].attempt == 2

    in_environment(test)


def test_runs_are_cancelled_by_their_workflow_and_by_when_they_were_started():
    async def test(env: Environment):
        old = [await start(flows.asleep) for _ in range(3)]
        other = await start(flows.cleaning)
        await env.advance("1 minute")
        before = env.now
        young = await start(flows.asleep)
        await env.advance("1 minute")
        assert await cancel_runs(flows.asleep, created_before=before) == 3
        await env.settle()
        states = [await run.status() for run in (*old, young, other)]
        assert states == [RunStatus.CANCELLED] * 3 + [RunStatus.RUNNING] * 2
        assert await cancel_runs(flows.cleaning.name, reason="all") == 1
        assert await cancel_runs(flows.asleep) == 1
        await env.settle()
        assert await young.status() == await other.status() == RunStatus.CANCELLED
        assert await cancel_runs(flows.asleep) == 0
        with pytest.raises(WorkflowNotRegisteredError, match="'aslep'"):
            await cancel_runs("aslep")

    in_environment(test)


def test_bad_input_is_refused_at_the_call():
    async def test(env: Environment):
        run = await start(flows.asleep)
        with pytest.raises(InvalidDurationError):
            await run.cancel(grace="soon")
        with pytest.raises(TypeError, match="reason= must be text"):
            await run.cancel(reason=3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="needs a workflow"):
            await cancel_runs(flows.note)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="needs a workflow"):
            await cancel_runs(None)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="time zone"):
            await cancel_runs(flows.asleep, created_before=datetime(2026, 1, 1))  # noqa: DTZ001
        assert await (await get_run(run.run_id)).status() == RunStatus.RUNNING

    in_environment(test)


@pytest.mark.parametrize(
    "body",
    [flows.cancels_in_its_body, flows.terminates_in_its_body, flows.cancels_all_in_its_body],
)
def test_a_body_cancels_nothing_by_itself(body: Any):
    async def test(env: Environment):
        other = await start(flows.asleep)
        with pytest.raises(
            RunFailedError, match="this is the body of a workflow, .*Call it in a @step"
        ) as caught:
            await (await start(body, other.run_id)).return_value()
        assert isinstance(caught.value.__cause__, HookContextError)
        assert await other.status() == RunStatus.RUNNING

    in_environment(test)


# -- an await is cancelled while its step runs --------------------------------------------------------


@pytest.mark.parametrize("always_replay", [False, True])
def test_the_await_of_an_async_step_ends_when_the_step_has(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.with_step, "long")
        await cancel_while_it_runs(env, run)
        assert flows.done == ["long begins", "long stops", "after it"]
        with pytest.raises(RunCancelledError):
            await run.return_value()
        (first, *_) = await run.steps()
        assert first.status == NodeStatus.FAILED
        assert first.error is not None
        assert "was told to stop" in first.error

    in_environment(test, always_replay=always_replay)


def test_what_a_step_gives_that_ignores_its_cancellation_is_recorded_and_given_to_nobody():
    async def test(env: Environment):
        run = await start(flows.with_step, "stubborn")
        await cancel_while_it_runs(env, run)
        assert flows.done == ["stubborn was cancelled: True", "after it"]
        assert await run.status() == RunStatus.CANCELLED
        assert (await run.steps())[0].status == NodeStatus.COMPLETED

    in_environment(test)


def test_a_step_that_is_only_told_is_not_waited_for():
    async def test(env: Environment):
        run = await start(flows.with_step, "told")
        await cancel_while_it_runs(env, run)
        assert sorted(flows.done) == ["after it", "told"]
        assert await run.status() == RunStatus.CANCELLED

    in_environment(test)


def test_a_step_that_is_left_alone_ends_by_itself():
    async def test(env: Environment):
        run = await start(flows.with_step, "left")
        await cancel_while_it_runs(env, run)
        assert flows.done == ["left alone", "after it", "left ends: False"]
        assert await run.status() == RunStatus.CANCELLED

    in_environment(test)


def test_a_failed_sibling_of_a_group_is_waited_for():
    async def test(env: Environment):
        run = await start(flows.group)
        with pytest.raises(RunFailedError, match="TaskGroup"):
            await run.return_value()
        assert flows.done[-1] == "a stops"

    in_environment(test)


def test_a_run_that_fails_ends_when_its_other_steps_have():
    async def test(env: Environment):
        run = await start(flows.failed_gather)
        with pytest.raises(RunFailedError, match="no"):
            await run.return_value()
        assert flows.done == ["a begins", "a stops"]

    in_environment(test)


@pytest.mark.parametrize("always_replay", [False, True])
def test_a_timeout_ends_when_its_step_has(always_replay: bool):
    async def test(env: Environment):
        with env.replaced(flows.long, env.never):
            run = await start(flows.in_time, "long")
            await env.advance("59 minutes")
            assert flows.done == []
            await env.advance("1 minute")
            await run.return_value()
            assert flows.done == ["too late"]

    in_environment(test, always_replay=always_replay)


@pytest.mark.parametrize("always_replay", [False, True])
def test_a_cancelled_group_ends_when_all_its_members_have(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.group_and_clean)
        await cancel_while_it_runs(env, run)
        assert flows.done[-3:] == ["a stops", "b stops", "cleaned up"]

        # Of a gather, as in asyncio, the first end is enough; the run ends when all have ended.
        flows.done.clear()
        flows.begun.clear()
        run = await start(flows.gather_and_clean)
        await cancel_while_it_runs(env, run)
        assert sorted(flows.done[-3:]) == ["a stops", "b stops", "cleaned up"]
        assert await run.status() == RunStatus.CANCELLED

    in_environment(test, always_replay=always_replay)


@pytest.mark.parametrize("always_replay", [False, True])
def test_members_of_a_gather_that_has_failed_go_on_whatever_is_cancelled_later(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.sibling_goes_on)
        await env.advance("1 second")
        assert flows.done == ["left alone", "failed", "left ends: False", "timed out"]
        await env.advance("2 hours")
        retried = next(each for each in await run.steps() if each.name.endswith("flaky"))
        assert retried.attempt == 3

    in_environment(test, always_replay=always_replay)


def test_who_is_cancelled_while_a_step_stops_hears_the_last_reason():
    async def test(env: Environment):
        with env.replaced(flows.long, env.never):
            run = await start(flows.told_why)
            await env.settle()
            with mock.patch.object(Process, "tell_to_stop", return_value=None):
                await env.advance("1 hour")
                await run.cancel(reason="enough")
            env._running.tell_to_stop()
            await env.settle()
        assert flows.done == ["cancelled: enough"]

    in_environment(test)


def test_a_run_that_went_on_after_the_request_fails_as_any_other():
    async def test(env: Environment):
        run = await start(flows.stuck_afterwards)
        await env.settle()
        await run.cancel()
        await env.advance("30 days")
        with pytest.raises(RunFailedError, match="waits for Event.wait"):
            await run.return_value()

    in_environment(test)


def test_a_plain_step_that_waits_for_another_run_and_is_told_leaves_the_environment_in_order():
    async def test(env: Environment):
        other = await start(flows.asleep)
        run = await start(flows.waits_for, other.run_id)
        await env.settle()
        await run.cancel()
        await env.settle()
        assert await run.status() == RunStatus.CANCELLED
        await env.advance("7 days")
        assert await (await start(flows.plainly)).return_value() == "done"

    in_environment(test)


def test_a_workflow_that_ends_cancelled_may_crash_anywhere():
    async def test(env: Environment):
        assert await env.crash_everywhere(flows.ends_itself) > 0
        assert set(flows.done) == {"cleaned up"}

    in_environment(test)


async def cancel_while_it_runs(env: Environment, run: Run[Any]) -> None:
    settled = asyncio.ensure_future(env.settle())
    while not flows.begun:
        await asyncio.sleep(0)
    await run.cancel()
    await settled
    await env.settle()
