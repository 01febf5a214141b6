"""Exceptions: their classes, groups, causes and contexts, and what a handler and a run see of them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from ckworkflow import FatalError, sleep, workflow
from compiler.steps import (
    count_up,
    echo,
    ping,
)
from differential.people import (
    body,
    count,
    fails,
    gives,
    mark,
    one,
    room,
)


class Trouble(Exception):
    """An error of a user's own."""

    def __init__(self, what: str, code: int = 3) -> None:
        super().__init__(what, code)
        self.what, self.code = what, code


# -- which error wins ---------------------------------------------------------------------------------


# An operator's error before a failing step.
@body()
@workflow
async def error_before_a_failing_step() -> Any:
    await count_up()
    [][count()]
    await fails()


# A failing step before an operator's error.
@body()
@workflow
async def failing_step_before_an_error() -> Any:
    await fails("first")
    [][0]  # noqa: PLE0643


# A missing part in the arguments of a failing step.
@body()
@workflow
async def missing_part_for_a_failing_step() -> Any:
    m = await gives("dict")
    await fails(m["nothing"])


# A missing part before a sleep.
@body()
@workflow
async def missing_part_before_a_sleep() -> Any:
    m = await gives("dict")
    value = m["nothing"]
    await sleep(100)
    return value


# A missing part in a sleep's argument.
@body()
@workflow
async def missing_part_in_a_sleep() -> Any:
    m = await gives("dict")
    try:
        await sleep(m["nothing"])
    except KeyError:
        return await ping()


# A part as the time of a sleep.
@body()
@workflow
async def part_as_a_time() -> Any:
    d = await gives("delta")
    await sleep(d)
    await sleep(d.seconds)
    return d.days


# A bad time of a sleep.
@body()
@workflow
async def bad_time_of_a_sleep() -> Any:
    s = await gives("text")
    await count_up()
    try:
        await sleep(s)
    except ValueError as error:
        return [type(error).__name__, count()]


# An error in a condition.
@body()
@workflow
async def error_in_a_condition() -> Any:
    m = await gives("dict")
    try:
        if m["nothing"] > await one():
            return "never"
    except KeyError:
        return await ping()


# A deep part of None.
@body()
@workflow
async def part_of_none_in_a_chain() -> Any:
    n = await gives("none")
    try:
        return await echo(n.a.b["c"])
    except AttributeError as error:
        return str(error)


# An unstorable argument.
@body()
@workflow
async def unstorable_argument() -> Any:
    await count_up()
    try:
        await echo(object())
    except Exception as error:
        return [type(error).__name__, count()]


# An unstorable value of the run.
@body()
@workflow
async def unstorable_value() -> Any:
    await ping()
    return lambda: None


# -- what it looks like --------------------------------------------------------------------------------


# An error of a user's own.
@body()
@workflow
async def own_error() -> Any:
    await ping()
    raise Trouble("mine")


# The same handled, its attributes read.
@body()
@workflow
async def own_error_handled() -> Any:
    try:
        await ping()
        raise Trouble("mine", code=await one(9))
    except Trouble as error:
        await echo(error.what, error.code)
        return str(error)


# A failure's attributes.
@body()
@workflow
async def failure_looked_at() -> Any:
    try:
        await fails("look")
    except FatalError as error:
        await count_up()
        return [str(error), error.code, repr(error.__cause__), count()]


# A failure kept beyond its handler.
@body()
@workflow
async def failure_kept() -> Any:
    kept = None
    try:
        await fails("kept")
    except FatalError as error:
        kept = error
    await echo(str(kept))
    raise kept


# `raise … from`.
@body()
@workflow
async def raised_from() -> Any:
    try:
        await fails("cause")
    except FatalError as error:
        raise Trouble("effect") from error


# `raise … from None`.
@body()
@workflow
async def raised_from_none() -> Any:
    try:
        await fails("hidden")
    except FatalError:
        await ping()
        raise Trouble("shown") from None


# An implicit context.
@body()
@workflow
async def implicit_context() -> Any:
    m = await gives("dict")
    try:
        m["first"]
    except KeyError:
        await count_up()
        m["second"]


# An error in a `finally` replaces the other.
@body()
@workflow
async def error_in_finally() -> Any:
    m = await gives("dict")
    try:
        await fails("first")
    finally:
        await echo(m["nothing"])


# The context inside a handler's steps.
@body()
@workflow
async def context_of_an_error_in_a_handler() -> Any:
    try:
        raise ValueError("outer")
    except ValueError:
        try:
            await fails("inner")
        except FatalError as error:
            return repr(error.__context__)


# Notes of an error.
@body()
@workflow
async def error_with_notes() -> Any:
    try:
        await ping()
        error = ValueError("noted")
        error.add_note(f"at {count()}")
        raise error
    except ValueError as found:
        await echo(found.__notes__)
        return found.__notes__


# -- groups ----------------------------------------------------------------------------------------------


# D19: a group as the run's error.
@body()
@workflow
async def group_as_the_outcome() -> Any:
    await ping()
    raise ExceptionGroup("many", [Trouble("a"), ExceptionGroup("deep", [KeyError("k")])])


# A group taken apart.
@body()
@workflow
async def group_taken_apart() -> Any:
    seen = []
    try:
        await ping()
        raise ExceptionGroup("many", [Trouble("a"), KeyError("k"), ValueError("v")])
    except* (KeyError, ValueError) as group:
        seen.append([repr(e) for e in group.exceptions])
        await echo(seen)
    except* Trouble as group:
        seen.append([e.code for e in group.exceptions])
        await count_up()
    return [seen, count()]


# A group with a rest.
@body()
@workflow
async def group_with_a_rest() -> Any:
    try:
        try:
            await ping()
            raise ExceptionGroup("many", [Trouble("a"), KeyError("k")])
        except* KeyError:
            await echo("key")
    except ExceptionGroup as rest:
        return [repr(e) for e in rest.exceptions]


# A failing step is caught by `except*`.
@body()
@workflow
async def failure_in_a_star_handler() -> Any:
    try:
        await fails("star")
    except* FatalError as group:
        await echo(str(group.exceptions[0]))
    return await ping()


# `subgroup` and `split` between steps.
@body()
@workflow
async def group_split() -> Any:
    group = ExceptionGroup("many", [KeyError("k"), ValueError(count())])
    await count_up()
    match group.split(KeyError):
        case (keys, others):
            await echo(len(keys.exceptions), len(others.exceptions))
            return repr(others.exceptions[0])


# A group of two failing tasks.
@body()
@workflow
async def group_of_failing_tasks() -> Any:
    async def bad(n: int) -> None:
        await one(n)
        raise Trouble(str(n))

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(bad(1))
            group.create_task(bad(2))
    except* Trouble as found:
        await echo(len(found.exceptions) >= 1)


# -- who handles it --------------------------------------------------------------------------------------


# A nested function handles it.
@body()
@workflow
async def nested_function_handles() -> Any:
    async def careful(key: str) -> Any:
        m = await gives("dict")
        try:
            return await echo(m[key])
        except KeyError as error:
            await count_up()
            return repr(error)

    return [await careful("id"), await careful("nothing"), count()]


# A nested function's error passes through.
@body()
@workflow
async def nested_function_raises() -> Any:
    async def careless() -> Any:
        n = await gives("none")
        return n.year

    try:
        await careless()
    except AttributeError:
        return await ping()


# A generator function's error.
@body()
@workflow
async def error_in_a_generator() -> Any:
    def turns() -> Any:
        yield count()
        raise Trouble("generator", count())

    seen = []
    try:
        for x in turns():
            seen.append(x)
            await count_up()
    except Trouble as error:
        return [seen, error.code]


# A manager sees the error.
@body()
@workflow
async def manager_sees_the_error() -> Any:
    @contextlib.contextmanager
    def seeing() -> Any:
        try:
            yield
        except KeyError as error:
            mark(f"{error!r} at {count()}")

    m = await gives("dict")
    with seeing():
        await count_up()
        await echo(m["nothing"])
    return await ping()


# An async manager with steps in it.
@body()
@workflow
async def async_manager_with_steps() -> Any:
    @contextlib.asynccontextmanager
    async def resource() -> Any:
        r = await room()
        try:
            yield r
        finally:
            await echo("closed", r.title)

    async with resource() as r:
        await count_up()
        await echo(r.title)
    return count()


# A `BaseException` handler.
@body()
@workflow
async def handles_everything() -> Any:
    m = await gives("dict")
    try:
        await echo(m["nothing"])
    except BaseException as error:
        return [repr(error), await ping()]


# A bare handler that raises again.
@body()
@workflow
async def bare_handler() -> Any:
    try:
        try:
            await fails("bare")
        except:  # noqa: E722
            await count_up()
            raise
    except FatalError:
        return count()


# StopIteration of `next` in a body.
@body()
@workflow
async def next_of_an_empty_iterator() -> Any:
    xs = await gives("empty")
    it = iter(xs)
    try:
        await echo(next(it))
    except StopIteration:
        return await echo(next(it, "default"))


# StopIteration out of a body is a RuntimeError.
@body()
@workflow
async def stop_iteration_escapes() -> Any:
    await ping()
    raise StopIteration("out")


# `assert` with a part.
@body()
@workflow
async def failed_assertion() -> Any:
    c = await room()
    await count_up()
    assert c.title == "general@0", c.title


# Cancelled by itself.
@body()
@workflow
async def raises_cancelled() -> Any:
    try:
        await ping()
        raise asyncio.CancelledError("mine")
    except asyncio.CancelledError as error:
        return [repr(error), await ping()]
