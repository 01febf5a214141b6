"""Runs that live on: one life ends and the next begins, and nothing is lost or comes twice."""

import logging
from datetime import timedelta
from typing import Any

import pytest

from ckworkflow import (
    BodyStuckError,
    ContinueAsNewError,
    HistoryTooLongError,
    HookContextError,
    HookNotFoundError,
    RunCancelledError,
    RunFailedError,
    continue_as_new,
    get_hook,
    resume_hook,
    start,
)
from ckworkflow.engine.installation import current
from ckworkflow.store import nodes, tables
from ckworkflow.testing import Environment
from environment import life_flows as flows
from environments import in_environment

BOTH = pytest.mark.parametrize("always_replay", [False, True])


@BOTH
def test_a_run_lives_on_with_new_arguments(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.count, 0, 5)
        assert await run.return_value() == 5
        assert [info.node_id for info in await run.steps()] == ["4:1"]

    in_environment(test, always_replay=always_replay)


@BOTH
@pytest.mark.parametrize(
    "workflow", [flows.collect, flows.collect_and_close], ids=lambda each: each.__name__
)
def test_a_token_is_never_free_between_two_lives(always_replay: bool, workflow: Any):
    async def test(env: Environment):
        run = await start(workflow, "t", [])
        for what in ("a", "b", "c", "end"):
            await resume_hook("t", what)
        assert await run.return_value() == ["a", "b", "c", "end"]
        with pytest.raises(HookNotFoundError):
            await get_hook("t")

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_hook_that_is_made_later_is_closed_until_then(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.collect_later, "t", [])
        await env.settle()
        await resume_hook("t", "a")
        with pytest.raises(HookNotFoundError):
            await resume_hook("t", "b")
        await env.settle()
        await resume_hook("t", "end")
        assert await run.return_value() == ["a", "end"]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_nothing_that_is_derived_from_a_place_comes_twice(always_replay: bool):
    async def test(env: Environment):
        flows.KEYS.clear()
        run = await start(flows.derived, [])
        found = await run.return_value()
        assert len(found) == len(set(found)) == 12
        assert found[3::4] == flows.KEYS

    in_environment(test, always_replay=always_replay)


@BOTH
def test_the_time_of_the_body_goes_on(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.times, [])
        await env.advance("3 hours")
        seen = await run.return_value()
        assert seen == sorted(seen)
        assert seen[1] == seen[2]
        hours = [(later - seen[0]).total_seconds() / 3600 for later in seen]
        assert [round(hour) for hour in hours] == [0, 1, 1, 2, 2, 3]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_what_is_under_way_ends_with_its_life(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.lets_go, 0)
        await env.settle()
        with pytest.raises(HookNotFoundError):
            await resume_hook("left", 1)
        assert [info.node_id for info in await run.steps()] == ["1:1", "1:2"]
        await env.advance("2 minutes")
        assert await run.return_value() == 1
        assert all_nodes(run.run_id) == ["1:1", "1:2"]

    in_environment(test, always_replay=always_replay)


def all_nodes(run_id: Any) -> list[str]:
    rows = current().engine.database.read(lambda tx: nodes.load_nodes(tx, run_id).get())
    return [row.node_id for row in rows]


@BOTH
@pytest.mark.parametrize(
    ("workflow", "expected"),
    [
        (flows.lazily, [1, 2, 3]),
        (flows.lazily_last, 2),
        (flows.gathers, [3, 3, 3]),
        (flows.ends_at_once, 1),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_life_ends_when_all_that_it_awaited_is_recorded(
    always_replay: bool, workflow: Any, expected: Any
):
    async def test(_env: Environment):
        begins_with = [] if workflow is flows.lazily else 0
        assert await (await start(workflow, begins_with)).return_value() == expected

    in_environment(test, always_replay=always_replay)


@BOTH
@pytest.mark.parametrize(
    ("workflow", "args"), [(flows.idle, ()), (flows.idle_later, (0,))], ids=["first", "second"]
)
def test_a_life_without_an_event_is_stuck(always_replay: bool, workflow: Any, args: Any):
    async def test(_env: Environment):
        run = await start(workflow, *args)
        with pytest.raises(RunFailedError) as caught:
            await run.return_value()
        assert isinstance(caught.value.__cause__, BodyStuckError)
        assert "begins its next life again and again" in str(caught.value)

    in_environment(test, always_replay=always_replay)


@BOTH
@pytest.mark.parametrize(
    "workflow",
    [flows.forgets_to_return, flows.in_a_workflow, flows.in_a_task],
    ids=lambda each: each.__name__,
)
def test_the_body_must_return_it(always_replay: bool, workflow: Any):
    async def test(_env: Environment):
        run = await start(workflow)
        with pytest.raises(RunFailedError) as caught:
            await run.return_value()
        assert isinstance(caught.value.__cause__, ContinueAsNewError)
        assert "must return what it gives" in str(caught.value)

    in_environment(test, always_replay=always_replay)


@BOTH
def test_what_takes_its_place_is_the_result(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.stopped_on_its_way, 0)
        await env.settle()
        await run.cancel()
        assert await run.return_value() == "stopped"

    in_environment(test, always_replay=always_replay)


@BOTH
def test_steps_are_in_the_order_of_the_body(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.collect_and_close, "t", [])
        await resume_hook("t", "a")
        await env.settle()
        (hook,) = await run.steps()
        assert hook.node_id == "1:1"
        run = await start(flows.listens_and_sleeps, 0)
        await env.advance("3 hours")
        assert [info.node_id for info in await run.steps()] == ["3:1", "3:2", "3:3"]
        await run.terminate()

    in_environment(test, always_replay=always_replay)


def test_it_is_no_value():
    async def test(_env: Environment):
        run = await start(flows.passes_it_to_a_step)
        with pytest.raises(RunFailedError, match=r"return continue_as_new\(\.\.\.\)"):
            await run.return_value()

    in_environment(test)


@pytest.mark.parametrize(
    ("what", "expected"),
    [("signature", ("TypeError", "bad_arguments")), ("value", ("UnserializableValueError", "args[0]"))],
)
def test_bad_arguments_are_an_error_at_the_call(what: str, expected: tuple[str, str]):
    async def test(_env: Environment):
        name, text = await (await start(flows.bad_arguments, what)).return_value()
        assert name == expected[0]
        assert expected[1] in text

    in_environment(test)


def test_only_a_body_can_begin_its_next_life():
    with pytest.raises(HookContextError, match=r"continue_as_new\(\) cannot be used here"):
        continue_as_new(1)


@BOTH
@pytest.mark.parametrize(
    "workflow", [flows.dies_in_its_next_life, flows.raises_at_once], ids=lambda each: each.__name__
)
def test_a_later_life_fails_as_the_first(always_replay: bool, workflow: Any):
    async def test(_env: Environment):
        run = await start(workflow, 0)
        with pytest.raises(RunFailedError, match="no|at once"):
            await run.return_value()

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_child_goes_on_and_is_cancelled_with_its_parent_in_a_later_life(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.parent, 0)
        await env.settle()
        (child,) = children(run.run_id)
        await env.advance("1 hour")
        await run.cancel(reason="enough")
        with pytest.raises(RunCancelledError):
            await run.return_value()
        await env.settle()
        assert status_of(child) == "cancelled"

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_child_ends_while_its_parent_is_in_a_later_life(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.parent, 0)
        await env.advance("2 days")
        (child,) = children(run.run_id)
        assert status_of(child) == "completed"
        await env.advance("6 days")
        assert await run.return_value() == 2

    in_environment(test, always_replay=always_replay)


def children(run_id: Any) -> list[Any]:
    query = (
        tables.runs.select().where(tables.runs.c.parent == run_id).with_only_columns(tables.runs.c.id)
    )
    return current().engine.database.read(lambda tx: list(tx.execute(query).scalars()))


def status_of(run_id: Any) -> str:
    query = (
        tables.runs.select().where(tables.runs.c.id == run_id).with_only_columns(tables.runs.c.status)
    )
    return str(current().engine.database.read(lambda tx: tx.execute(query).scalar_one()))


@BOTH
def test_a_request_that_was_told_is_not_told_again_in_the_next_life(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.cancelled_and_lives_on, 0)
        await env.settle()
        await run.cancel()
        assert await run.return_value() == 1

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_later_life_can_be_cancelled_and_terminated(always_replay: bool):
    async def test(env: Environment):
        for end in ("cancel", "terminate"):
            run = await start(flows.sleeps_in_lives, 0)
            await env.advance("3 hours")
            await getattr(run, end)(reason="enough")
            with pytest.raises(RunCancelledError):
                await run.return_value()

    in_environment(test, always_replay=always_replay)


@BOTH
@pytest.mark.parametrize("is_taken", [False, True])
def test_a_hook_of_the_next_life_that_another_run_has(always_replay: bool, is_taken: bool):
    async def test(env: Environment):
        if is_taken:
            await start(flows.collect, "wanted", [])
        run = await start(flows.conflicts, 0)
        await env.advance("2 minutes")
        assert await run.return_value() == ("taken" if is_taken else "free")

    in_environment(test, always_replay=always_replay)


@BOTH
@pytest.mark.parametrize(
    ("workflow", "args"),
    [
        (flows.count, (0, 4)), (flows.lets_go, (0,)), (flows.talks_to_itself, (0, [])), (flows.conflicts, (0,)), (flows.parent, (0,)),
        (flows.lazily, ([],)), (flows.gathers, (0,)),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)  # fmt: skip
def test_a_crash_at_any_write_changes_nothing(always_replay: bool, workflow: Any, args: tuple[Any, ...]):
    async def test(env: Environment):
        assert await env.crash_everywhere(workflow, *args) > 10

    in_environment(test, always_replay=always_replay)


def test_a_long_life_is_mentioned_and_a_longer_one_is_not_replayed(caplog: pytest.LogCaptureFixture):
    async def test(env: Environment):
        settings = current().engine.settings
        object.__setattr__(settings, "history_warning", 5)
        object.__setattr__(settings, "history_limit", 10)
        assert await (await start(flows.many_events, 4)).return_value() == 4
        assert "continue_as_new" not in caplog.text
        run = await start(flows.many_events, 20)
        with pytest.raises(RunFailedError) as caught:
            await run.return_value()
        assert isinstance(caught.value.__cause__, HistoryTooLongError)
        assert caplog.text.count("continue_as_new(...) now and then") >= 1

    with caplog.at_level(logging.WARNING, "ckworkflow"):
        in_environment(test, always_replay=True)


def test_a_life_says_which_it_is():
    async def test(env: Environment):
        run = await start(flows.sleeps_in_lives, 0)
        await env.advance(timedelta(hours=2, minutes=30))
        assert (
            current().engine.database.read(
                lambda tx: tx.execute(
                    tables.runs.select().with_only_columns(tables.runs.c.life)
                ).scalar_one()
            )
            == 2
        )
        await run.terminate()

    in_environment(test)
