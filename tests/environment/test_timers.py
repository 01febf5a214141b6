"""Deadlines and timers of asyncio in bodies: as durable as a sleep, through any crash."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from ckworkflow import FatalError, InvalidDurationError, now, sleep, start, step, timeout, workflow
from ckworkflow.engine.installation import current
from ckworkflow.store import tables
from ckworkflow.testing import Environment
from environments import in_environment


@step
async def ask(question: str) -> str:
    return f"answer to {question}"


@step
async def tidy_up() -> str:
    return "tidied up"


@workflow
async def approval() -> list[str]:
    began = now()
    try:
        async with timeout("2 days"):
            return [await ask("yes or no?")]
    except TimeoutError:
        return [await tidy_up(), str((now() - began) // timedelta(days=1))]


def test_a_deadline_of_days_comes_while_a_step_never_ends() -> None:
    async def test(env: Environment) -> None:
        with env.replaced(ask, env.never):
            run = await start(approval)
            await env.advance("1 day")
            assert not (await run.status()).is_final
            await env.advance("1 day")
            assert await run.return_value() == ["tidied up", "2"]

    in_environment(test)


def test_what_ends_in_time_leaves_no_deadline_behind() -> None:
    async def test(env: Environment) -> None:
        run = await start(approval)
        assert await run.return_value() == ["answer to yes or no?"]
        assert names_of(run.run_id) == [ask.name]

    in_environment(test)


@workflow
async def polls(rounds: int) -> int:
    found = 0
    for _ in range(rounds):
        async with asyncio.timeout(60):
            found += len(await ask("again"))
        await asyncio.sleep(5)
    return found


def test_a_loop_under_deadlines_keeps_no_timers() -> None:
    async def test(env: Environment) -> None:
        run = await start(polls, 20)
        await env.advance("2 minutes")
        assert await run.return_value() == 20 * len("answer to again")
        assert (
            names_of(run.run_id) == ["timer"] * 20 + [ask.name] * 20
        )  # those of the sleeps, which have come due

    in_environment(test)


@workflow
async def gives_up_one_of_two() -> list[Any]:
    found: list[Any] = []
    try:
        found.append(await asyncio.wait_for(ask("slow"), 30))
    except TimeoutError:
        found.append("late")
    tasks = [asyncio.create_task(asked(text)) for text in ("fast", "slow")]
    done, pending = await asyncio.wait(tasks, timeout=30)
    found.append([len(done), len(pending)])
    async with asyncio.timeout(None) as limit:
        limit.reschedule(asyncio.get_running_loop().time() + 90)
        await sleep("1 minute")
    found.append(limit.expired())
    return found


async def asked(text: str) -> str:
    return await ask(text)


def test_what_asyncio_limits_is_limited_in_test_time() -> None:
    async def test(env: Environment) -> None:
        with env.replaced(ask, env.never):
            run = await start(gives_up_one_of_two)
            await env.advance("30 seconds")
            await env.advance("30 seconds")
            await env.advance("1 minute")
            assert await run.return_value() == ["late", [0, 2], False]

    in_environment(test)


@workflow
async def limited_by_nothing() -> str:
    try:
        async with timeout(0):
            await ask("too late")
    except TimeoutError:
        return "at once"
    return "in time"


def test_a_deadline_that_has_passed_ends_the_first_await() -> None:
    async def test(env: Environment) -> None:
        run = await start(limited_by_nothing)
        assert await run.return_value() == "at once"
        assert [row for row in names_of(run.run_id) if row == "timer"] == []

    in_environment(test)


@workflow
async def limited_by(span: Any) -> str:
    try:
        async with timeout(span):
            return await ask("a question")
    except InvalidDurationError as error:
        return str(error)


def test_a_deadline_takes_what_a_sleep_takes() -> None:
    async def test(env: Environment) -> None:
        for good in ("1h 30m", 5, None):
            assert await (await start(limited_by, good)).return_value() == "answer to a question"
        for bad in ("1 month", -5, "soon"):
            assert "is not a time span" in await (await start(limited_by, bad)).return_value()

    in_environment(test)


@workflow
async def nested() -> list[str]:
    seen: list[str] = []
    try:
        async with asyncio.timeout(100):
            try:
                async with asyncio.timeout(10):
                    await ask("first")
            except TimeoutError:
                seen.append("inner")
            await ask("second")
    except TimeoutError:
        seen.append("outer")
    seen.append(await tidy_up())
    return seen


def test_an_inner_deadline_leaves_the_outer_one_alone() -> None:
    async def test(env: Environment) -> None:
        with env.replaced(ask, env.never):
            run = await start(nested)
            await env.advance("10 seconds")
            await env.advance("90 seconds")
            assert await run.return_value() == ["inner", "outer", "tidied up"]

    in_environment(test)


def test_deadlines_are_the_same_wherever_processes_die() -> None:
    async def test(env: Environment) -> None:
        await env.crash_everywhere(polls, 2)
        with env.replaced(ask, lambda _: fail()):
            await env.crash_everywhere(gives_up_at_a_failure)

    in_environment(test)


def fail() -> None:
    raise FatalError("no answer")


@workflow
async def gives_up_at_a_failure() -> str:
    try:
        async with asyncio.timeout(60):
            await ask("a question")
    except FatalError:
        await asyncio.sleep(30)
        return await tidy_up()
    return "answered"


def names_of(run_id: str) -> list[str]:
    """The names of the nodes that a run has left."""
    query = sa.select(tables.nodes.c.name).where(tables.nodes.c.run_id == run_id)
    names = current().engine.database.read(lambda tx: tx.execute(query).scalars().all())
    return sorted(names, key=lambda name: (name != "timer", name))
