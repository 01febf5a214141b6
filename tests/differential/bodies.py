"""Harder bodies than the table's: concurrency, failures and ends of bodies, alone and combined."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from ckworkflow import FatalError, now, random, sleep, workflow
from compiler import steps
from compiler.steps import (
    Channel,
    clean_up,
    count_up,
    create_channel,
    echo,
    fetch_member,
    fetch_numbers,
    note,
    noting,
    ping,
    plain_echo,
    send,
    verify,
)
from differential.comparison import Body

BODIES: list[Body] = []


def body(*args: Any) -> Any:
    def register(definition: Any) -> Any:
        BODIES.append(Body(definition.__name__, definition, args))
        return definition

    return register


# -- gathers -----------------------------------------------------------------------------------------


@workflow
async def chain_of(name: Any, length: int) -> list[Any]:
    out = []
    for number in range(length):
        out.append(await echo(f"{name}{number}"))
    return out


@workflow
async def guarded_chain(name: str) -> str:
    try:
        await send(name, text="first")
        await send(name, text="second")
    except FatalError as error:
        await clean_up(name)
        return f"{name} failed with {error.code}"
    return name


@workflow
async def finally_chain(name: str) -> str:
    try:
        await send(name, text="first")
        await send(name, text="second")
        return name
    finally:
        await clean_up(name)


@workflow
async def sleepy(name: str, seconds: float) -> str:
    await sleep(seconds)
    return await echo(name)


@body()
@workflow
async def chains_side_by_side() -> Any:
    results = await asyncio.gather(chain_of("a", 2), chain_of("b", 2))
    await echo(results)
    return results


@body()
@workflow
async def gather_in_gather() -> Any:
    return await asyncio.gather(fan("a"), fan("b"), ping())


@workflow
async def fan(name: str) -> Any:
    await ping()
    found = await asyncio.gather(echo(name), send(name))
    await clean_up(name)
    return found


@body()
@workflow
async def gather_after_gather() -> Any:
    one, two = await asyncio.gather(echo(1), echo(2))
    three, four = await asyncio.gather(send(one), send(two))
    await echo([three, four])
    return [one, two, three, four]


@body()
@workflow
async def members_that_handle_their_failures() -> Any:
    return await asyncio.gather(guarded_chain("a"), guarded_chain("b"))


@body()
@workflow
async def failure_beside_chains() -> Any:
    try:
        return await asyncio.gather(chain_of("a", 3), chain_of("b", 2))
    except FatalError:
        await clean_up("one")
        await clean_up("two")
        return "failed"


@body()
@workflow
async def failure_and_a_long_wait() -> Any:
    """What goes on beside has all the time of the sleep."""
    try:
        await asyncio.gather(ping(), chain_of("a", 3))
    except FatalError:
        await sleep("1 day")
        return "failed"
    return "fine"


@body()
@workflow
async def failure_and_a_strict_wait() -> Any:
    """The same, with a boundary in the handler."""
    try:
        await asyncio.gather(ping(), chain_of("a", 2))
    except FatalError:
        if await verify(1):
            await clean_up()
        return "failed"
    return "fine"


@body()
@workflow
async def failure_ends_the_run_beside_chains() -> Any:
    await asyncio.gather(ping(), chain_of("a", 2), chain_of("b", 1))
    return "fine"


@body()
@workflow
async def single_nodes_beside_a_failure() -> Any:
    try:
        await asyncio.gather(ping(), echo(1), echo(2))
    except FatalError:
        await clean_up()
        await clean_up()
    return "over"


@body()
@workflow
async def cancelled_members_clean_up() -> Any:
    """`asyncio.run` cancels what is left; its `finally` still awaits a step."""
    try:
        await asyncio.gather(ping(), finally_chain("a"))
    except FatalError:
        return "failed"
    return "fine"


@body()
@workflow
async def two_cancelled_members_clean_up() -> Any:
    await asyncio.gather(ping(), finally_chain("a"), finally_chain("b"))


@body()
@workflow
async def exceptions_as_values_of_chains() -> Any:
    found = await asyncio.gather(chain_of("a", 2), guarded_chain("b"), ping(), return_exceptions=True)
    return [str(item) if isinstance(item, Exception) else item for item in found]


@body()
@workflow
async def exceptions_as_values_passed_on() -> Any:
    found = await asyncio.gather(ping(), echo(1), return_exceptions=True)
    await ping()
    return len(found)


@body()
@workflow
async def gathers_with_sleeps() -> Any:
    found = await asyncio.gather(sleepy("a", 2), sleepy("b", 1), echo("c"))
    await send(found)
    return found


@body()
@workflow
async def gathers_only_sleeps() -> str:
    await asyncio.gather(sleep(3), sleep(1), sleep("2 days"))
    await ping()
    return "awake"


@body()
@workflow
async def ends_with_a_gather() -> Any:
    return await asyncio.gather(echo(1), chain_of("a", 2))


@body()
@workflow
async def gathers_nothing() -> Any:
    found = await asyncio.gather()
    await ping()
    return found


@body(4)
@workflow
async def gathers_in_a_loop(count: int) -> Any:
    total = []
    for number in range(0, count, 2):
        total.append(await asyncio.gather(echo(number), echo(number + 1)))
    return total


@body()
@workflow
async def strict_members() -> Any:
    """Each member looks at what it gets."""
    return await asyncio.gather(looks(1), looks(0))


@workflow
async def looks(value: int) -> str:
    if await verify(value):
        return await send(value)
    await clean_up(value)
    return "no"


@body()
@workflow
async def members_that_race_for_a_list() -> Any:
    order: list[str] = []
    await asyncio.gather(signs(order, "a"), signs(order, "b"), signs(order, "c"))
    await echo(order)
    return order


@workflow
async def signs(order: list[str], name: str) -> None:
    await ping()
    order.append(name)


@body()
@workflow
async def members_that_read_the_world() -> Any:
    return await asyncio.gather(reads_count(), reads_count(), count_up())


@workflow
async def reads_count() -> Any:
    await count_up()
    seen = steps.STATE["count"]
    await echo(seen)
    return seen


@body()
@workflow
async def failing_first_then_again() -> Any:
    """A gather in a retry loop of the body."""
    for attempt in range(2):
        try:
            return await asyncio.gather(send("a", text=attempt), chain_of(attempt, 2))
        except FatalError:
            await sleep("1 minute")
    return "given up"


@body()
@workflow
async def awaits_twice_in_a_task() -> Any:
    first, second = await asyncio.gather(two_looks(1), two_looks(2))
    return first + second


@workflow
async def two_looks(value: int) -> int:
    one = await echo(value) + 1
    two = await echo(one) + 1
    return one * two


# -- failures ----------------------------------------------------------------------------------------


@body()
@workflow
async def handler_that_fails() -> Any:
    try:
        await ping()
        await send("x")
    except FatalError:
        await clean_up("first")
        await clean_up("second")
        raise
    finally:
        await echo("finally")
    return "fine"


@body()
@workflow
async def nested_handlers() -> Any:
    try:
        try:
            await ping()
        except ValueError:
            return "never"
        finally:
            await clean_up("inner")
        await send("x")
    except FatalError as error:
        return [type(error.__cause__).__name__, str(error)]
    else:
        await echo("else")
    return "fine"


@body()
@workflow
async def inlined_failures() -> Any:
    return [await guarded_chain("a"), await guarded_chain("b")]


@body()
@workflow
async def inlined_finally() -> Any:
    try:
        return await finally_chain("a")
    except FatalError:
        return await finally_chain("b")


@body()
@workflow
async def return_in_finally() -> Any:
    try:
        await ping()
    finally:
        await clean_up()
        return "swallowed"  # noqa: B012, SIM107


@body()
@workflow
async def missing_attribute() -> Any:
    """The error is the body's, where Python raises it."""
    channel = await create_channel("x")
    await ping()
    try:
        await send(channel.nothing)
    except AttributeError as error:
        await clean_up(str(error))
        return "no such attribute"
    return "fine"


@body()
@workflow
async def missing_key() -> Any:
    member = await fetch_member(1)
    await count_up()
    await send(member["nothing"])
    await ping()


@body()
@workflow
async def missing_key_in_the_result() -> Any:
    member = await fetch_member(1)
    await ping()
    return {"value": member["roles"][7]}


@body()
@workflow
async def property_as_an_argument() -> Any:
    channel = await create_channel("x")
    await count_up()
    await send(channel.title)
    return channel.title


@body()
@workflow
async def result_that_cannot_be_stored() -> Any:
    await ping()
    return Opaque()


@body()
@workflow
async def argument_that_cannot_be_stored() -> Any:
    await ping()
    try:
        await send([Opaque()])
    except TypeError as error:
        return str(error)


class Opaque:
    pass


@body()
@workflow
async def wrong_arguments() -> Any:
    await ping()
    try:
        await send()  # type: ignore[call-arg]
    except TypeError as error:
        await echo(str(error))
    return "refused"


@body(0)
@workflow
async def error_of_an_operator_between_steps(value: int) -> Any:
    await ping()
    await echo(1 / value)
    await ping()


@body()
@workflow
async def suppresses() -> Any:
    with contextlib.suppress(FatalError):
        await ping()
        await send("x")
    await echo("after")
    return "suppressed"


@body()
@workflow
async def finally_with_a_note() -> Any:
    with noting("block"):
        try:
            await ping()
        finally:
            note("finally")
            await clean_up()
    return list(steps.NOTES)


# -- sleeps and loops --------------------------------------------------------------------------------


@body()
@workflow
async def sleeps_of_every_length() -> Any:
    await sleep(0)
    await sleep("5 seconds")
    await ping()
    await sleep("14 seconds")
    await sleep("14 seconds")
    await ping()
    await sleep("7 days")
    await ping()
    await sleep(1)
    return "awake"


@body()
@workflow
async def sleeps_first() -> Any:
    started = now()
    await sleep("1h")
    waited = now() - started
    await echo(round(waited.total_seconds()))
    await sleep("10 seconds")
    return "over"


@body()
@workflow
async def sleeps_last() -> None:
    await ping()
    await sleep("3 seconds")


@body(3)
@workflow
async def polls_until(limit: int) -> Any:
    seen = []
    while True:
        found = await count_up()
        seen.append(found)
        if found >= limit:
            return seen
        await sleep("1h")


@body()
@workflow
async def works_through_a_list() -> Any:
    done = []
    for number in await fetch_numbers(3):
        if number == 1:
            continue
        found = await plain_echo(number)
        done.append(found)
    await echo(done)
    return done


@body()
@workflow
async def chances() -> Any:
    await ping()
    if random() < 0.5:
        return await echo("low")
    await clean_up("high")
    return random()


@body()
@workflow
async def tasks_of_its_own() -> Any:
    """`create_task` of plain asyncio works; its awaits are strict."""

    async def side(name: str) -> Any:
        first = await echo(name)
        return await send(first)

    task = asyncio.create_task(side("a"))
    await ping()
    return await task


@body()
@workflow
async def task_that_is_left() -> Any:
    async def side() -> Any:
        try:
            await send("side")
            await send("again")
        finally:
            await clean_up("side")

    task = asyncio.create_task(side())
    await ping()
    return task is not None


@body()
@workflow
async def values_go_through_the_codec() -> Any:
    value = {"tuple": (1, 2), 3: {4}, "channel": Channel(1, "x"), "when": now(), "bytes": b"x"}
    found = await echo(value)
    back = await plain_echo(found)
    return back == value
