"""`environment()` and `workflow_env`: time in the hand of a test, steps replaced, crashes everywhere."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import re
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import pytest

from ckworkflow import (
    FatalError,
    InvalidTokenError,
    RunFailedError,
    RunStatus,
    get_run,
    start,
    start_sync,
)
from ckworkflow.engine import installation
from ckworkflow.testing import (
    Environment,
    FakeDiscord,
    NotSettledError,
    RunWaitsError,
    environment,
    worker,
)
from environment import flows
from environments import in_environment

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _nothing_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "")
    flows.done.clear()


# -- time ---------------------------------------------------------------------------------------------


def test_a_sleep_ends_when_its_time_has_passed_and_not_before():
    async def test(env: Environment):
        run = await start(flows.onboarding, "ada")
        await env.advance("6 days 23 hours")
        assert flows.done == ["welcome ada"]
        await env.advance("1 hour")
        assert await run.return_value() == ["welcome ada", "how is it, ada?"]

    in_environment(test)


def test_time_that_the_test_lets_pass_is_the_time_in_bodies():
    async def test(env: Environment):
        run = await start(flows.tells_time)
        await env.advance(timedelta(days=1))
        assert await run.return_value() == ["2026-03-01T12:00:00+00:00", "2026-03-02T12:00:00+00:00"]
        assert env.now == START + timedelta(days=1)

    in_environment(test, now=START)


def test_each_sleep_of_a_loop_begins_when_the_one_before_has_ended():
    async def test(env: Environment):
        run = await start(flows.three_times)
        await env.advance("2 days")
        assert flows.done == [0, 1, 2]
        assert await run.status() is RunStatus.RUNNING
        await env.advance("1 day")
        assert await run.return_value() == 3

    in_environment(test)


def test_what_comes_due_first_goes_on_first_also_in_one_advance():
    async def test(env: Environment):
        await start(flows.who_is_first)
        await env.advance("1 week")
        assert flows.done == ["early", "third", "late", "end"]

    in_environment(test)


def test_nothing_happens_by_itself():
    async def test(env: Environment):
        run = await start(flows.onboarding, "ada")
        await asyncio.sleep(0.05)
        assert flows.done == []
        assert await run.status() is RunStatus.PENDING
        await env.settle()
        assert flows.done == ["welcome ada"]

    in_environment(test)


def test_wait_for_sleep_says_when_the_sleep_ends():
    async def test(env: Environment):
        run = await start(flows.onboarding, "ada")
        due = await env.wait_for_sleep(run)
        assert timedelta() <= due - START - timedelta(days=7) < timedelta(seconds=1)
        await env.advance("7 days")
        with pytest.raises(AssertionError, match="does not sleep: it has completed"):
            await env.wait_for_sleep(run)

    in_environment(test, now=START)


def test_retries_wait_for_the_time_of_the_environment():
    async def test(env: Environment):
        run = await start(flows.retried, 2)
        await env.advance("59 seconds")
        assert flows.done == [1]
        await env.advance("1 second")
        assert flows.done == [1, 2]
        await env.advance("1 hour")
        assert await run.return_value() == "at last"

    in_environment(test)


def test_a_step_that_asks_for_a_later_attempt_gets_it_then():
    async def test(env: Environment):
        run = await start(flows.until_tomorrow)
        with pytest.raises(RunWaitsError, match=r'tomorrow \(0:1\) again: .*advance\("1 day"\)'):
            await run.return_value()
        await env.advance("1 day")
        assert await run.return_value() == "open"

    in_environment(test)


@pytest.mark.parametrize("now", [START.replace(tzinfo=None), START.replace(year=7000)])
def test_a_time_without_a_zone_or_too_late_is_refused(now):
    with pytest.raises(ValueError, match="time zone, in the year 5999 at the latest"):
        environment(now=now)


# -- waiting for the end ------------------------------------------------------------------------------


def test_return_value_raises_at_once_where_only_time_helps():
    async def test(env: Environment):
        run = await start(flows.onboarding, "ada")
        with pytest.raises(RunWaitsError) as caught:
            await run.return_value()
        assert re.fullmatch(
            rf"run {run.run_id} sleeps \(0:2\) until 2026-03-08 12:00:00 UTC\. "
            rf'Let time pass: await env\.advance\("7 days"\)',
            str(caught.value),
        )
        assert caught.value.run_id == run.run_id

    in_environment(test, now=START)


def test_a_run_that_fails_raises_its_error():
    async def test(_):
        with pytest.raises(RunFailedError, match="no entry") as caught:
            await (await start(flows.fails)).return_value()
        assert isinstance(caught.value.__cause__, FatalError)
        assert await (await start(flows.forbidden)).return_value() == "no entry"

    in_environment(test)


def test_a_step_that_wants_discord_is_told_of_the_fake(monkeypatch):
    monkeypatch.setenv("DISCORD_TOKEN", "a.token.of-the-developer")  # nobody logs in with it

    async def test(_):
        with pytest.raises(RunFailedError, match="reaches no Discord but a FakeDiscord"):
            await (await start(flows.greeting, 1)).return_value()

    in_environment(test)


def test_what_a_step_itself_waits_for_is_real_time():
    async def test(_):
        assert await (await start(flows.rests, 0.05)).return_value() == "rested"

    in_environment(test)


def test_a_step_that_does_not_come_to_an_end_is_named(monkeypatch):
    monkeypatch.setattr(sys.modules[environment.__module__], "SETTLE_SECONDS", 0.05)

    async def test(env: Environment):
        await start(flows.rests, 600)
        with pytest.raises(NotSettledError, match=r"after 0.05 s .*flows.nap \(0:1\)\. .*env\.never"):
            await env.settle()

    in_environment(test)
    assert flows.done == []


@pytest.mark.parametrize("workflow", [flows.parent, flows.plain_parent])
def test_a_step_may_wait_for_another_run(workflow):
    async def test(env: Environment):
        run = await start(workflow, "ada")
        with pytest.raises(
            RunWaitsError, match=r"start_another.*, which waits for another run\. .*7 days"
        ):
            await run.return_value()
        assert flows.done == ["welcome ada"]
        await env.advance("7 days")
        assert await run.return_value() == ["welcome ada", "how is it, ada?"]

    in_environment(test)


def test_return_value_of_a_sync_run_works_on_another_thread_and_explains_itself_on_this_one():
    async def test(env: Environment):
        run = start_sync(flows.side_by_side, ["a", "B"])
        with pytest.raises(RuntimeError, match="on the event loop of the test"):
            run.return_value()
        assert await asyncio.to_thread(run.return_value, 10) == ["a", "B"]

    in_environment(test)


# -- steps --------------------------------------------------------------------------------------------


def test_steps_begin_in_the_order_of_the_plan():
    async def test(_):
        names = ["a", "B", "c", "D", "E", "f"]
        assert await (await start(flows.side_by_side, names)).return_value() == names
        assert [name for name in flows.done if name.islower()] == ["a", "c", "f"]
        assert [name for name in flows.done if name.isupper()] == ["B", "D", "E"]

    in_environment(test)


def test_more_steps_than_a_worker_would_begin_at_a_time():
    async def test(_):
        assert await (await start(flows.wide, 150)).return_value() == 150
        assert sorted(flows.done, key=int) == [str(number) for number in range(150)]

    in_environment(test)


def test_a_step_has_its_surroundings():
    async def test(_):
        found = await (await start(flows.looks_around)).return_value()
        assert found == {
            "run": True,
            "stored": 1,
            "setting": installation.current().app.conf.task_acks_late,
        }

    in_environment(test)


def test_a_plain_step_may_run_a_loop_of_its_own():
    async def test(_):
        assert await (await start(flows.runs_a_loop)).return_value() == "ran"

    in_environment(test)


def test_a_step_does_not_see_the_context_variables_of_the_test():
    seen = []
    variable = contextvars.ContextVar("variable", default="none")

    async def test(env: Environment):
        variable.set("of the test")
        with env.replaced(flows.note, lambda what: seen.append(variable.get())):
            await start(flows.side_by_side, ["a"])
            await env.settle()

    in_environment(test)
    assert seen == ["none"]


def test_a_step_reaches_discord_through_the_fake(monkeypatch):
    with FakeDiscord() as discord:
        for name, value in discord.env.items():
            monkeypatch.setenv(name, value)
        ada = discord.add_user("ada")

        async def test(env: Environment):
            run = await start(flows.greeting, ada.id)
            await env.settle()
            assert [message.content for message in await asyncio.to_thread(discord.dms, ada)] == [
                "Hello!"
            ]
            await env.advance("1 day")
            await run.return_value()

        in_environment(test)
        assert [message.content for message in discord.dms(ada)] == ["Hello!", "Hello!"]


def test_the_first_two_callers_wait_for_discord_to_be_open(monkeypatch):
    with FakeDiscord() as discord:
        for name, value in discord.env.items():
            monkeypatch.setenv(name, value)
        ada = discord.add_user("ada")

        async def test(env: Environment):
            runs = [await start(flows.greeting, ada.id) for _ in range(2)]
            await asyncio.gather(env.settle(), env.settle())
            await env.advance("1 day")
            await asyncio.gather(*[run.return_value() for run in runs])

        in_environment(test)
        assert len(discord.dms(ada)) == 4


def test_discord_is_closed_where_each_call_has_a_loop_of_its_own(monkeypatch):
    with FakeDiscord() as discord:
        for name, value in discord.env.items():
            monkeypatch.setenv(name, value)
        ada = discord.add_user("ada")
        with environment() as env:
            run = asyncio.run(start(flows.greeting, ada.id))
            asyncio.run(env.advance("1 day"))
            asyncio.run(run.return_value())
        gc.collect()  # what is open still warns
        assert len(discord.dms(ada)) == 2


def test_a_discord_that_refuses_the_token_says_so_each_time(monkeypatch):
    with FakeDiscord() as discord:
        for name, value in discord.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DISCORD_TOKEN", "wrong")

        async def test(env: Environment):
            for _ in range(2):
                with pytest.raises(InvalidTokenError):
                    await env.settle()

        in_environment(test)


def test_a_plain_step_may_raise_what_no_coroutine_can():
    async def test(env: Environment):
        run = await start(flows.takes_the_next, [])
        await env.advance("1 hour")
        assert await run.return_value() == ("StopIteration", "after")

    in_environment(test)


def test_steps_wait_for_runs_on_threads_of_their_own():
    async def test(_):
        assert await (await start(flows.thread_parent)).return_value() == [["A"], "B"]
        names = await (await start(flows.plain_parents, 12)).return_value()
        assert names == [[f"{number}A"] for number in range(12)]

    in_environment(test)


def test_a_step_cannot_let_time_pass():
    async def test(env: Environment):
        async def advance(_):
            await env.advance("1 day")

        with env.replaced(flows.note, advance):
            run = await start(flows.side_by_side, ["a"])
            with pytest.raises(RunWaitsError, match="only a test lets"):
                await run.return_value()

    in_environment(test)


# -- replaced steps -----------------------------------------------------------------------------------


def test_a_replaced_step_gives_what_its_stand_in_returns():
    async def test(env: Environment):
        with env.replaced(flows.note, lambda what: f"not {what}"):
            with env.replaced(flows.note_plainly, lambda what: f"plainly not {what}"):
                assert await (await start(flows.side_by_side, ["a", "B"])).return_value() == [
                    "not a", "plainly not B",
                ]  # fmt: skip
        assert flows.done == []
        assert await (await start(flows.side_by_side, ["a"])).return_value() == ["a"]

    in_environment(test)


def test_the_inner_of_two_stand_ins_counts():
    async def test(env: Environment):
        with env.replaced(flows.note, lambda _: "outer"):
            with env.replaced(flows.note, lambda _: "inner"):
                assert await (await start(flows.side_by_side, ["a"])).return_value() == ["inner"]
            assert await (await start(flows.side_by_side, ["a"])).return_value() == ["outer"]

    in_environment(test)


def test_a_stand_in_may_be_a_mock_or_a_coroutine_function():
    async def test(env: Environment):
        stand_in = mock.AsyncMock(return_value="mocked")
        with env.replaced(flows.note, stand_in):
            assert await (await start(flows.side_by_side, ["a"])).return_value() == ["mocked"]
        stand_in.assert_awaited_once_with("a")

        async def other(what):
            await asyncio.sleep(0)
            return what * 2

        with env.replaced(flows.note, other):
            assert await (await start(flows.side_by_side, ["a"])).return_value() == ["aa"]
        plain = mock.Mock(return_value="plainly")
        with env.replaced(flows.note_plainly, plain):
            assert await (await start(flows.side_by_side, ["B"])).return_value() == ["plainly"]
        plain.assert_called_once_with("B")

    in_environment(test)


def test_a_stand_in_keeps_the_options_of_its_step():
    async def test(env: Environment):
        tries = mock.Mock(side_effect=[OSError("down"), OSError("down"), "up"])
        with env.replaced(flows.flaky, tries):
            run = await start(flows.retried, 0)
            await env.advance("1 hour")
            assert await run.return_value() == "up"
        with env.replaced(flows.flaky, mock.Mock(side_effect=FatalError("never"))):
            with pytest.raises(RunFailedError, match="never"):
                await (await start(flows.retried, 0)).return_value()

    in_environment(test)


def test_a_step_that_never_ends_counts_as_settled():
    async def test(env: Environment):
        with env.replaced(flows.note, env.never), env.replaced(flows.note_plainly, env.never):
            for names in (["a"], ["B"]):
                run = await start(flows.side_by_side, names)
                with pytest.raises(RunWaitsError, match=r"waits for .*note.* \(0\.1:1\), which"):
                    await run.return_value()
        await env.advance("1 year")
        assert await run.status() is RunStatus.RUNNING

    in_environment(test)


def test_the_timeout_of_a_step_that_never_ends_is_time_of_the_test():
    async def test(env: Environment):
        with env.replaced(flows.ask_the_bank, env.never):
            run = await start(flows.asks_the_bank)
            with pytest.raises(
                RunWaitsError, match=r"ask_the_bank .*, whose timeout passes at .*1 hour"
            ):
                await run.return_value()
            await env.advance("59 minutes")
            assert await run.status() is RunStatus.RUNNING
            await env.advance("1 minute")
            assert await run.return_value() == "StepTimeoutError"
            assert await env.crash_everywhere(flows.asks_the_bank) > 0

    in_environment(test)


def test_stand_ins_may_be_taken_away_in_any_order():
    async def test(env: Environment):
        outer, inner = (
            env.replaced(flows.note, lambda _: "outer"),
            env.replaced(flows.note, lambda _: "inner"),
        )
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        assert await (await start(flows.side_by_side, ["a"])).return_value() == ["inner"]
        inner.__exit__(None, None, None)
        assert await (await start(flows.side_by_side, ["a"])).return_value() == ["a"]

    in_environment(test)


def test_a_plain_step_is_told_that_its_stand_in_is_not():
    async def test(env: Environment):
        async def coroutine_function(what):
            return what

        with env.replaced(flows.note_plainly, lambda what: coroutine_function(what)):
            with pytest.raises(RunFailedError, match="what replaces it returned a coroutine"):
                await (await start(flows.side_by_side, ["B"])).return_value()

    in_environment(test)


def test_a_step_that_was_begun_keeps_its_stand_in():
    async def test(env: Environment):
        run = await start(flows.side_by_side, ["a"])
        with env.replaced(flows.note, env.never):
            env._running.begin_ready()
        await asyncio.sleep(0)
        await env.settle()
        assert flows.done == []
        assert await run.status() is RunStatus.RUNNING

    in_environment(test)


def test_only_steps_are_replaced_and_plain_ones_by_plain_functions():
    async def test(env: Environment):
        with pytest.raises(TypeError, match="decorate it with @step"):
            with env.replaced(print, print):
                pass

        async def coroutine_function(what):
            return what

        with pytest.raises(TypeError, match="needs a function"):
            with env.replaced(flows.note, None):
                pass

        with pytest.raises(TypeError, match="is not async"):
            with env.replaced(flows.note_plainly, coroutine_function):
                pass

    in_environment(test)


# -- replay and crashes -------------------------------------------------------------------------------


@pytest.mark.parametrize(("always_replay", "begun"), [(False, 1), (True, 3)])
def test_always_replay_begins_the_body_anew_each_time(always_replay, begun):
    flows.lines = 0

    async def test(env: Environment):
        run = await start(flows.counts_lines)
        await env.advance("2 hours")
        assert await run.return_value() == 0

    in_environment(test, always_replay=always_replay)
    assert flows.lines == begun


def test_always_replay_finds_a_body_that_is_not_repeatable():
    flows.lines = 0

    async def test(env: Environment):
        run = await start(flows.not_repeatable)
        await env.advance("1 hour")
        with pytest.raises(RunWaitsError, match="is held: .*note"):
            await run.return_value()

    in_environment(test, always_replay=True)


def test_crash_everywhere_passes_where_every_run_ends_alike():
    async def test(env: Environment):
        crashes = await env.crash_everywhere(flows.onboarding, "ada")
        assert crashes >= 8
        assert crashes % 2 == 0
        # One run without a crash and one for each; steps that ran when the worker died have run again.
        for what in ("welcome ada", "how is it, ada?"):
            assert flows.done.count(what) > crashes + 1
        assert await env.crash_everywhere(flows.side_by_side, ["a", "B"]) > 0
        assert await env.crash_everywhere(flows.fails) > 0
        assert await env.crash_everywhere(flows.retried, 2) > 0
        assert await env.crash_everywhere(flows.parent, "ada") > 0

    in_environment(test)


def test_crash_everywhere_says_where_a_run_ended_otherwise():
    flows.attempts_told = 0

    async def test(env: Environment):
        with pytest.raises(
            AssertionError, match=r"not_idempotent ended with 2, and without a crash with 1\. "
        ) as e:
            await env.crash_everywhere(flows.not_idempotent)
        assert "crashed before the commit of write 1" in str(e.value)

    in_environment(test)


def test_crash_everywhere_leaves_the_environment_as_it_is():
    async def test(env: Environment):
        run = await start(flows.onboarding, "ada")
        with env.replaced(flows.note, env.never):
            waiting = await start(flows.side_by_side, ["a"])
            await env.settle()
        assert await env.crash_everywhere(flows.begins_an_endless_one) > 0
        assert env.now == START
        assert await waiting.status() is RunStatus.RUNNING
        await env.advance("7 days")
        assert await run.status() is RunStatus.RUNNING  # its first step waits for ever, too

    in_environment(test, now=START)


def test_each_run_of_crash_everywhere_begins_at_the_same_time_with_an_empty_store():
    async def test(env: Environment):
        assert await env.crash_everywhere(flows.reminder, env.now + timedelta(days=1)) > 0
        with pytest.raises(
            AssertionError, match="greets_once ended with False, and without a crash with True"
        ):
            await env.crash_everywhere(
                flows.greets_once
            )  # not between its runs, but in one with a crash

    in_environment(test)


def test_crash_everywhere_takes_a_workflow():
    async def test(env: Environment):
        with pytest.raises(TypeError, match="workflow"):
            await env.crash_everywhere(flows.note, "a")

    in_environment(test)


def test_crash_everywhere_names_a_wait_that_never_ends():
    async def test(env: Environment):
        with env.replaced(flows.note, env.never), pytest.raises(RunWaitsError, match="note"):
            await env.crash_everywhere(flows.side_by_side, ["a"])

    in_environment(test)


# -- the environment itself ---------------------------------------------------------------------------


def test_environments_know_nothing_of_each_other_and_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = installation.current()

    async def test(env: Environment):
        run = await start(flows.onboarding, "ada")
        await env.settle()
        return run.run_id

    async def other(_):
        with pytest.raises(Exception, match=run_id):
            await get_run(run_id)

    run_id = in_environment(test)
    in_environment(other)
    assert installation.current() is before
    assert list(tmp_path.iterdir()) == []


def test_an_environment_in_another_one():
    async def test(env: Environment):
        run = await start(flows.onboarding, "ada")
        async with environment() as inner:
            await start(flows.onboarding, "bob")
            await inner.advance("7 days")
        assert flows.done == ["welcome bob", "how is it, bob?"]
        await env.advance("7 days")
        assert (await run.return_value())[0] == "welcome ada"

    in_environment(test)


def test_environments_may_end_in_any_order():
    before = installation.current()
    one, two, three = environment(), environment(), environment()
    for each in (one, two, three):
        each.__enter__()
    asyncio.run(start(flows.onboarding, "in three"))
    two.__exit__(None, None, None)
    one.__exit__(None, None, None)
    asyncio.run(three.settle())
    assert flows.done == ["welcome in three"]
    three.__exit__(None, None, None)
    assert installation.current() is before


def test_an_environment_that_has_ended_says_so():
    async def main():
        async with environment() as env:
            with pytest.raises(RuntimeError, match="make another one"):
                await env.__aenter__()
        with pytest.raises(RuntimeError, match="has ended"):
            await env.settle()
        with pytest.raises(TypeError, match="async with"), environment():
            pass

    asyncio.run(main())


def test_no_worker_starts_in_an_environment():
    async def test(_):
        with pytest.raises(RuntimeError, match="runs the steps itself"), worker():
            pass

    in_environment(test)


def test_steps_that_run_are_cancelled_at_the_end_and_nothing_is_logged_as_an_error(caplog):
    caplog.set_level(logging.WARNING)

    async def test(env: Environment):
        with env.replaced(flows.note, env.never):
            await start(flows.side_by_side, ["a"])
            await env.settle()

    in_environment(test)
    assert caplog.records == []


def test_a_test_that_is_not_async_uses_one_loop_after_the_other(caplog):
    caplog.set_level(logging.ERROR)
    with environment() as env:
        run = asyncio.run(start(flows.onboarding, "ada"))
        with env.replaced(flows.note, env.never):
            asyncio.run(env.settle())  # ends the loop on which the step waits
        asyncio.run(env.advance("7 days"))  # on this one it runs again
        assert asyncio.run(run.return_value()) == ["welcome ada", "how is it, ada?"]
    assert caplog.records == []


def test_one_loop_at_a_time():
    async def test(env: Environment):
        await env.settle()
        with pytest.raises(RuntimeError, match="belongs to one event loop"):
            await asyncio.to_thread(lambda: asyncio.run(env.settle()))

    in_environment(test)


def test_a_step_that_the_end_of_a_loop_cancels_has_not_failed(caplog):
    with environment() as env:
        with env.replaced(flows.flaky, env.never):
            run = asyncio.run(start(flows.retried, 0))
            asyncio.run(env.settle())
        (step,) = asyncio.run(run.steps())
        assert (step.attempt, step.error) == (1, None)


# -- the fixture --------------------------------------------------------------------------------------

TESTS = """
import asyncio
import pytest
from ckworkflow import sleep, start, step, workflow

@step
async def note(what):
    return what

@workflow
async def follow_up(name):
    await sleep("7 days")
    return await note(name)

MARK
async def test_follow_up(workflow_env):
    run = await start(follow_up, "ada")
    await workflow_env.advance("7 days")
    assert await run.return_value() == "ada"

MARK
async def test_left_waiting(workflow_env):
    with workflow_env.replaced(note, workflow_env.never):
        await start(follow_up, "ada")
        await workflow_env.advance("7 days")
"""
PLAIN = """
def test_with_a_loop_of_its_own(workflow_env):
    async def main():
        run = await start(follow_up, "ada")
        await workflow_env.advance("7 days")
        assert await run.return_value() == "ada"

    asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mark", "options"),
    [
        ("@pytest.mark.asyncio", []),
        ("", ["-o", "asyncio_mode=auto"]),
        ("@pytest.mark.anyio", []),
    ],
)
def test_the_fixture_is_there_for_every_plugin_of_async_tests(pytester, mark, options):
    pytester.makeconftest("import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n")
    pytester.makepyfile(TESTS.replace("MARK", mark) + PLAIN)

    found = pytester.runpytest_subprocess("-W", "error::ResourceWarning", "-q", *options)

    found.assert_outcomes(passed=3)


@pytest.mark.slow
def test_the_plugin_costs_little_and_needs_nothing_of_the_tests(pytester):
    pytester.makepyfile("def test_nothing(): pass")

    found = pytester.runpytest_subprocess("-q", "-p", "no:asyncio", "-p", "no:anyio")

    found.assert_outcomes(passed=1)
    assert Path(pytester.path, "ckworkflow.sqlite3").exists() is False
