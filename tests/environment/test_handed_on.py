"""Runs as values: a child that the next life of its parent waits for, and a run that a step is given."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from ckworkflow import (
    FatalError,
    HookContextError,
    Run,
    RunCancelledError,
    RunFailedError,
    RunNotFoundError,
    RunStatus,
    SyncRun,
    codec,
    continue_as_new,
    get_run,
    sleep,
    start,
    step,
    timeout,
    workflow,
)
from ckworkflow.engine import retention
from ckworkflow.engine.installation import current
from ckworkflow.store import notes, tables
from ckworkflow.testing import Environment
from environments import in_environment

pytestmark = pytest.mark.fast

BOTH = pytest.mark.parametrize("always_replay", [False, True])


@step
async def say(what: Any = None) -> Any:
    return what


@step
async def fail() -> None:
    raise FatalError("no")


@workflow
async def child(days: int, what: Any) -> Any:
    if days:
        await sleep(f"{days} days")
    if what == "fail":
        await fail()
    return await say(what)


@workflow
async def hands_on(days: int, what: Any, wait: int, run: Run[Any] | None = None, life: int = 0) -> Any:
    """Wait for a child, for some days, in the life after the one that has started it."""
    if run is None:
        run = await start(child, days, what)
        await sleep(f"{wait} days")
        return continue_as_new(days, what, wait, run, 1)
    try:
        async with timeout(f"{wait + 1} days"):
            return [life, await run.return_value()]
    except TimeoutError:
        return continue_as_new(days, what, wait, run, life + 1)
    except RunFailedError as error:
        return [life, str(error.__cause__)]
    except RunCancelledError as error:
        return [life, error.reason]


@workflow
async def waits_twice(runs: list[Run[Any]], life: int) -> Any:
    if not life:
        await say()
        return continue_as_new([await start(child, 1, "a"), await start(child, 0, "b")], 1)
    if life == 1:
        await say()
        return continue_as_new(runs, 2)
    both = await asyncio.gather(*[run.return_value() for run in runs])
    return both + [await run.return_value() for run in reversed(runs)]


@workflow
async def cancels(run: Run[Any] | None = None) -> Any:
    if run is None:
        await say()
        return continue_as_new(await start(child, 7, 1))
    asked = [await run.cancel(reason="enough")]
    try:
        await run.return_value()
    except RunCancelledError as error:
        return [*asked, error.reason, await run.cancel()]


@workflow
async def is_cancelled(waits: bool, run: Run[Any] | None = None) -> Any:
    if run is None:
        await say()
        return continue_as_new(waits, await start(child, 7, 1))
    await (run.return_value() if waits else sleep("30 days"))


@workflow
async def asks_another(run: Run[Any]) -> Any:
    return await run.return_value()


@workflow
async def looks_late(run: Run[Any] | None = None, life: int = 0) -> Any:
    """The child has ended, and was deleted, when somebody waits for it."""
    if run is None:
        await say()
        return continue_as_new(await start(child, 0, 1), 1)
    await sleep("30 days")
    if life == 1:
        return continue_as_new(run, 2)
    try:
        return await run.return_value()
    except RunNotFoundError as error:
        return [type(error).__name__, error.run_id == run.run_id]


@step
async def begin() -> Run[Any]:
    return await start(child, 0, "from a step")


@step
async def result_of(run: Run[Any]) -> Any:
    return await run.return_value(5)


@step
def sync_result_of(run: SyncRun[Any]) -> Any:
    return run.return_value(5)


@workflow
async def through_steps() -> Any:
    return await result_of(await begin())


@workflow
async def in_place() -> Any:
    """A body that is called in a body, and a task, have the same handle."""
    run = await start(child, 0, "x")
    return [await asks_another(run), await asyncio.create_task(run.return_value())]


@BOTH
@pytest.mark.parametrize(
    ("days", "what", "wait", "expected"),
    [
        (5, "late", 2, [2, "late"]),  # the wait of the second life is given up
        (4, "in time", 2, [1, "in time"]),
        (1, "early", 2, [1, "early"]),  # it has ended before anybody waits
        (0, "at once", 0, [1, "at once"]),
        (3, "fail", 2, [1, "FatalError: no"]),
        (9, "much later", 1, [4, "much later"]),
    ],
)
def test_a_later_life_waits_for_a_child(
    days: int, what: str, wait: int, expected: list[Any], always_replay: bool
):
    async def test(env: Environment):
        run = await start(hands_on, days, what, wait)
        await env.advance("30 days")
        assert await run.return_value() == [expected[0], expected[1].removeprefix("FatalError: ")]
        assert notes_left() == []

    in_environment(test, always_replay=always_replay)


def notes_left() -> list[Any]:
    database = current().engine.database
    return list(database.read(lambda tx: tx.execute(tables.notes.select()).all()))


@BOTH
def test_several_children_are_waited_for_again_and_again(always_replay: bool):
    async def test(env: Environment):
        run = await start(waits_twice, [], 0)
        await env.advance("1 day")
        assert await run.return_value() == ["a", "b", "b", "a"]
        assert {step.child_run_id for step in await run.steps() if step.kind == "child"} == {
            row.child_run_id for row in await run.steps() if row.child_run_id
        }

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_later_life_cancels_a_child(always_replay: bool):
    async def test(_env: Environment):
        run = await start(cancels)
        assert await run.return_value() == [True, "enough", False]
        assert notes_left() == []

    in_environment(test, always_replay=always_replay)


@BOTH
@pytest.mark.parametrize("waits", [True, False])
def test_a_request_reaches_a_child_of_a_life_before_once(waits: bool, always_replay: bool):
    async def test(env: Environment):
        run = await start(is_cancelled, waits)
        await env.advance("1 day")
        (born,) = [each for each in await all_runs() if each != run]
        await run.cancel(reason="gone")
        with pytest.raises(RunCancelledError):
            await run.return_value()
        with pytest.raises(RunCancelledError, match="gone"):
            await born.return_value()
        assert notes_left() == []

    in_environment(test, always_replay=always_replay)


async def all_runs() -> list[Run[Any]]:
    database = current().engine.database
    ids = database.read(lambda tx: tx.execute(sa.select(tables.runs.c.id)).scalars().all())
    return [await get_run(run_id) for run_id in ids]


@BOTH
def test_a_child_that_was_deleted_is_told(always_replay: bool):
    async def test(env: Environment):
        run = await start(looks_late)
        await env.advance("40 days")
        engine = current().engine
        assert retention.prune(engine, older_than=timedelta(days=5)).total == 1
        await env.advance("30 days")
        assert await run.return_value() == ["RunNotFoundError", True]
        assert notes_left() == []

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_run_that_this_one_has_not_started_is_for_steps(always_replay: bool):
    async def test(_env: Environment):
        other = await start(child, 0, 1)
        run = await start(asks_another, other)
        with pytest.raises(RunFailedError) as caught:
            await run.return_value()
        assert isinstance(caught.value.__cause__, HookContextError)
        assert "its run has not started that one. Call it in a @step" in str(caught.value.__cause__)

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_step_gets_a_run_and_gives_one(always_replay: bool):
    async def test(_env: Environment):
        run = await start(through_steps)
        assert await run.return_value() == "from a step"

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_handle_goes_wherever_a_body_goes(always_replay: bool):
    async def test(_env: Environment):
        run = await start(in_place)
        assert await run.return_value() == ["x", "x"]

    in_environment(test, always_replay=always_replay)


@pytest.mark.parametrize(
    ("workflow", "args"),
    [(hands_on, (5, "late", 2)), (waits_twice, ([], 0)), (cancels, ())],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_crash_at_any_write_changes_nothing(workflow: Any, args: tuple[Any, ...]):
    async def test(env: Environment):
        await env.crash_everywhere(workflow, *args)

    in_environment(test)


@pytest.mark.parametrize("kind", [Run, SyncRun])
def test_a_run_is_a_value(kind: Any):
    run = kind("a" * 32)
    again = codec.decode(codec.loads(codec.dumps(codec.encode(run, path="run"))))
    assert type(again) is kind
    assert again == run != kind("b" * 32)
    assert len({again, run}) == 1


def test_states_of_runs_are_for_steps():
    async def test(_env: Environment):
        run = await start(child, 0, 1)
        assert await run.return_value() == 1
        assert await run.status() is RunStatus.COMPLETED

    in_environment(test)


@workflow
async def waits_in_each_life(life: int, run: Run[Any] | None = None) -> Any:
    if run is None:
        run = await start(child, 1, "x")
    got = await run.return_value()
    return [life, got] if life == 4 else continue_as_new(life + 1, run)


@BOTH
def test_an_end_that_another_process_tells_meanwhile_reaches_the_next_life(
    always_replay: bool, monkeypatch: pytest.MonkeyPatch
):
    """Told to the life before and crossed out by another process, when the next life has just asked for it."""
    read, told = notes.notes_of, set[str]()

    def notes_of(tx: Any, run_id: Any) -> list[notes.Note]:
        found = [note for note in read(tx, run_id) if note.kind != "ended" or run_id not in told]
        told.update(run_id for note in found if note.kind == "ended")
        return found

    async def test(env: Environment):
        monkeypatch.setattr(notes, "notes_of", notes_of)
        run = await start(waits_in_each_life, 0)
        await env.advance("1 day")
        assert await run.return_value() == [4, "x"]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_each_life_waits_for_the_same_child(always_replay: bool):
    async def test(env: Environment):
        run = await start(waits_in_each_life, 0)
        await env.advance("1 day")
        assert await run.return_value() == [4, "x"]
        assert notes_left() == []

    in_environment(test, always_replay=always_replay)
