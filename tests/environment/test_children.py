"""Runs that runs start: they begin once, their ends are told, and a request to cancel reaches them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ckworkflow import (
    FatalError,
    NotAwaitedError,
    Run,
    RunCancelledError,
    RunExistsError,
    RunFailedError,
    RunStatus,
    get_run,
    start,
)
from ckworkflow.engine.installation import current
from ckworkflow.model import NodeId, RunId, child_id
from ckworkflow.store import tables
from ckworkflow.testing import Environment
from environment import child_flows as flows
from environments import in_environment

pytestmark = pytest.mark.fast

BOTH = pytest.mark.parametrize("always_replay", [False, True])


@pytest.fixture(autouse=True)
def _nothing_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "")
    flows.done.clear()
    flows.tries.clear()


def child_of(run: Run[Any], node_id: str = "0:1") -> Run[Any]:
    return Run(child_id(RunId(run.run_id), NodeId(node_id)))


def notes_left() -> list[Any]:
    database = current().engine.database
    return list(database.read(lambda tx: tx.execute(tables.notes.select()).all()))


@BOTH
def test_a_child_runs_beside_its_parent_and_its_result_is_awaited(always_replay: bool):
    async def test(_env: Environment):
        run = await start(flows.parent, 20)
        assert await run.return_value() == 41
        assert sorted(flows.done, key=str) == [20, "beside"]
        child = child_of(run)
        assert await child.return_value() == 40
        assert [(step.kind, step.name) for step in await run.steps()] == [
            ("child", flows.double.name), ("step", flows.note.name),
        ]  # fmt: skip
        assert notes_left() == []

    in_environment(test, always_replay=always_replay)


@BOTH
def test_many_children_are_waited_for_at_once(always_replay: bool):
    async def test(_env: Environment):
        run = await start(flows.many, 30)
        assert await run.return_value() == [2 * number for number in range(30)]
        assert sorted(flows.done) == list(range(30))
        assert notes_left() == []

    in_environment(test, always_replay=always_replay)


@BOTH
def test_children_of_children(always_replay: bool):
    async def test(_env: Environment):
        run = await start(flows.two_levels)
        assert await run.return_value() == 110
        assert notes_left() == []

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_child_that_fails_raises_what_anybody_gets_who_waits_for_it(always_replay: bool):
    async def test(_env: Environment):
        run = await start(flows.of_a_failing_child)
        assert await run.return_value() == [True, "FatalError", 50007]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_wait_that_is_cancelled_leaves_the_child_alone(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.impatient)
        await env.advance("1 day")
        assert await run.return_value() == ["late", "later", 1, 1]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_body_asks_its_child_to_end(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.cancelling)
        await env.advance("1 hour")
        assert await run.return_value() == [True, "enough", True, False]
        assert [info.node_id for info in await run.steps()] == ["0:1", "0:2", "0:3", "0:4"]
        assert flows.done == ["slow 2 ends"]
        assert notes_left() == []

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_child_goes_on_when_its_parent_has_ended(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.leaving, 3)
        child = await get_run(await run.return_value())
        assert await child.status() == RunStatus.RUNNING
        await env.advance("1 day")
        assert await child.return_value() == 3
        assert notes_left() == []

    in_environment(test, always_replay=always_replay)


@BOTH
@pytest.mark.parametrize("how", ["cancel", "terminate"])
def test_a_request_reaches_the_children_and_not_those_of_the_clean_up(how: str, always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.cancelled_with_its_child)
        await env.settle()
        child = child_of(run)
        await (run.cancel if how == "cancel" else run.terminate)(reason="the user has left")
        with pytest.raises(RunCancelledError, match="the user has left"):
            await child.return_value()
        with pytest.raises(RunCancelledError, match="the user has left"):
            await run.return_value()
        assert (
            flows.done == ["slow 4 ends", 7]
            or (how, flows.done) == ("terminate", ["slow 4 ends"])
            or sorted(flows.done, key=str) == [7, "slow 4 ends"]
        )
        assert notes_left() == []

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_step_that_is_repeated_starts_its_runs_once(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.starts_in_a_step, 2)
        await env.advance("1 minute")
        found = await run.return_value()
        assert flows.tries == found * 3
        assert [await (await get_run(each)).return_value() for each in found] == [0, 2]
        assert sorted(flows.done) == [0, 1]
        other = await start(flows.starts_in_a_step, 0)
        assert set(await other.return_value()).isdisjoint(found)

    in_environment(test, always_replay=always_replay)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("status", "HookContextError: Run.status.*Call it in a @step"),
        ("steps", "HookContextError: Run.steps.*Call it in a @step"),
        ("exists", "HookContextError: Run.exists.*Call it in a @step"),
        ("terminate", "HookContextError: Run.terminate.*Call it in a @step"),
        ("get_run", "HookContextError: get_run.*Call it in a @step"),
        ("start_sync", r"HookContextError: start_sync.*Use `await start\(...\)`"),
        ("argument", "TypeError: .*too many positional arguments"),
        ("no workflow", "NotAWorkflowError: "),
        ("unstorable", r"UnserializableValueError: args\[0\]"),
    ],
)
def test_what_a_body_cannot_do_with_runs(what: str, why: str):
    async def test(_env: Environment):
        assert re.match(why, await (await start(flows.looks_at_its_child, what)).return_value())

    in_environment(test)


@pytest.mark.parametrize("workflow", [flows.forgets_its_child, flows.forgets_to_start])
def test_a_forgotten_await_is_told(workflow: Any):
    async def test(_env: Environment):
        run = await start(workflow)
        with pytest.raises(RunFailedError) as caught:
            await run.return_value()
        assert isinstance(caught.value.__cause__, NotAwaitedError)

    in_environment(test)


@BOTH
@pytest.mark.parametrize(
    "workflow", [flows.two_levels, flows.cancelling, flows.of_a_failing_child, flows.impatient]
)
def test_a_crash_at_any_write_changes_nothing(workflow: Any, always_replay: bool):
    async def test(env: Environment):
        assert await env.crash_everywhere(workflow) > 10

    in_environment(test, always_replay=always_replay)


def test_an_attempt_that_starts_something_else_is_told_so():
    async def test(env: Environment):
        run = await start(flows.starts_another)
        await env.advance("1 minute")
        with pytest.raises(RunFailedError) as caught:
            await run.return_value()
        assert isinstance(caught.value.__cause__, FatalError)
        cause = caught.value.__cause__.__cause__
        assert isinstance(cause, RunExistsError)
        assert cause.workflow == flows.double.name
        assert flows.done == [1]

    in_environment(test)


def test_arguments_that_are_only_equal_to_python_are_others():
    async def test(env: Environment):
        run = await start(flows.starts_with_equals)
        await env.advance("1 minute")
        with pytest.raises(RunFailedError, match="RunExistsError|already"):
            await run.return_value()

    in_environment(test)


@BOTH
def test_requests_to_children_stand_where_the_body_makes_them(always_replay: bool):
    async def test(_env: Environment):
        run = await start(flows.cancels_among_steps)
        await run.return_value()
        assert [(info.node_id, info.kind) for info in await run.steps()] == [
            ("0:1", "child"), ("0:2", "child"), ("0:3", "cancel"), ("0.1:1", "cancel"), ("0:4", "step"), ("0:5", "step"),
        ]  # fmt: skip

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_clean_up_that_leaves_the_durable_world_leaves_no_child(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.cleans_up_badly)
        await env.settle()
        await run.cancel(reason="enough")
        assert await run.status() == RunStatus.FAILED
        with pytest.raises(RunCancelledError, match="enough"):
            await child_of(run).return_value()
        assert notes_left() == []

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_second_request_to_a_child_brings_its_termination_forward(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.cancels_twice)
        await env.advance("1 hour")
        await env.advance("1 minute")
        assert await run.return_value() == "first, terminated: True"

    in_environment(test, always_replay=always_replay)


@BOTH
def test_the_end_of_a_child_that_its_engine_has_ended_is_told_at_once(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.of_a_broken_child)
        await env.settle()
        assert await run.return_value() == "BodyAwaitError"

    in_environment(test, always_replay=always_replay)


def test_children_that_are_gathered_wake_their_parent_once():
    async def test(_env: Environment):
        run = await start(flows.many, 40)
        await run.return_value()
        query = tables.runs.select().where(tables.runs.c.id == run.run_id)
        (row,) = current().engine.database.read(lambda tx: tx.execute(query).all())
        assert row.epoch <= 4, "a lease for each child"

    in_environment(test)
