"""Control flow: loops, handlers, managers and patterns between steps, with parts of results in them."""

from __future__ import annotations

import contextlib
from typing import Any

from ckworkflow import FatalError, workflow
from compiler.steps import (
    STATE,
    async_lines,
    async_noting,
    count_up,
    echo,
    noting,
    ping,
)
from differential.people import (
    CONFIG,
    HOOKS,
    Cursor,
    Hue,
    Point,
    Rank,
    Room,
    body,
    count,
    fails,
    gives,
    grow,
    house,
    mark,
    one,
    room,
)

# -- loops -----------------------------------------------------------------------------------------------


# `while … else`, left by its condition.
@body()
@workflow
async def while_else() -> Any:
    while count() < 2:
        await count_up()
    else:
        await echo("else", count())
    return count()


# `while … else`, left by `break`.
@body()
@workflow
async def while_else_broken() -> Any:
    n = 0
    while True:
        n += await one()
        if n == 2:
            break
    else:
        await echo("never")
    return await echo(n)


# `for … else` with `continue`.
@body()
@workflow
async def for_else_continue() -> Any:
    for n in range(3):
        if n == 1:
            continue
        await echo(n)
    else:
        await echo("else")
    return n


# `for` over a result.
@body()
@workflow
async def for_over_a_result() -> Any:
    for x in await gives("list"):
        await echo(x)
    return x


# `for` over pairs of a result.
@body()
@workflow
async def for_over_pairs() -> Any:
    for key, value in await gives("pairs"):
        await echo({key: value})
    return [key, value]


# `for` over a part of a result.
@body()
@workflow
async def for_over_a_part() -> Any:
    h = await house()
    for r in h.rooms:
        await count_up()
        await echo(r.title)
    return r.name


# `for` over what is not iterable.
@body()
@workflow
async def for_over_a_number() -> Any:
    n = await gives("int")
    try:
        for x in n:
            await echo(x)
    except TypeError:
        return await ping()


# `for` over nothing.
@body()
@workflow
async def for_over_nothing() -> Any:
    for x in await gives("empty"):
        await echo(x)
    else:
        x = await ping()
    return x


# `for` over the world's list, which grows.
@body()
@workflow
async def for_over_a_growing_list() -> Any:
    seen = []
    for x in STATE["xs"]:
        seen.append(x)
        if len(seen) < 4:
            await grow()
    return seen


# `for` over a foreign iterator.
@body()
@workflow
async def for_over_a_cursor() -> Any:
    seen = []
    for x in Cursor(3):
        seen.append(x)
        await count_up()
    return seen


# `for` over a generator function.
@body()
@workflow
async def for_over_a_generator() -> Any:
    def turns() -> Any:
        for n in range(2):
            yield [n, count()]

    seen = []
    for x in turns():
        seen.append(x)
        await count_up()
    return seen


# `for` over `enumerate`, `zip`, `reversed`, `items`.
@body()
@workflow
async def for_over_builtins() -> Any:
    xs = await gives("list")
    for i, x in enumerate(xs):
        await echo(i, x)
    for a, b in zip(xs, reversed(xs), strict=True):
        await echo(a, b)
    for k, v in {"a": x, "b": 1}.items():
        await echo(k, v)
    return [i, a, b, k, v]


# A target that is a subscript.
@body()
@workflow
async def for_into_a_subscript() -> Any:
    box: dict[str, Any] = {}
    for box["k"] in [1, 2]:
        await echo(box)
    return box


# A loop in a loop, with `break` and `continue`.
@body()
@workflow
async def loop_in_a_loop() -> Any:
    seen = []
    for i in range(3):
        for j in range(3):
            if j > i:
                break
            if (i + j) % 2:
                continue
            seen.append(await echo(i * 10 + j))
    return seen


# `async for` over a helper's generator.
@body()
@workflow
async def async_for() -> Any:
    seen = []
    async for n in async_lines(2):
        seen.append(n)
        await count_up()
    else:
        await ping()
    return seen


# `return` out of a loop in a `try`.
@body()
@workflow
async def return_out_of_a_loop() -> Any:
    for n in range(3):
        try:
            if await one(n) == 1:
                return n
        finally:
            await echo("finally", n)


# `continue` through a `finally`.
@body()
@workflow
async def continue_through_finally() -> Any:
    seen = []
    for n in range(3):
        try:
            if n == 1:
                continue
            seen.append(await one(n))
        finally:
            await count_up()
    return [seen, count()]


# `break` through a `with`.
@body()
@workflow
async def break_through_a_with() -> Any:
    while True:
        with noting("loop"):
            if await count_up() > 1:
                break
    return await ping()


# A result that ends a loop.
@body()
@workflow
async def polls_for_a_part() -> Any:
    c = await room()
    rounds = 0
    while c.title != "general@2":
        rounds += 1
        await count_up()
    return rounds


# -- handlers --------------------------------------------------------------------------------------------


# `else` of a `try`.
@body()
@workflow
async def try_else() -> Any:
    try:
        m = await gives("dict")
        m["id"]
    except KeyError:
        await echo("never")
    else:
        await echo("else")
    finally:
        await count_up()
    return count()


# An error in the `else` is not handled there.
@body()
@workflow
async def error_in_else() -> Any:
    m = await gives("dict")
    try:
        try:
            await ping()
        except KeyError:
            return "inner"
        else:
            await echo(m["nothing"])
    except KeyError:
        return await echo("outer")


# Handlers in their order.
@body()
@workflow
async def handlers_in_order() -> Any:
    m = await gives("dict")
    try:
        await echo(m["nothing"])
    except IndexError:
        await echo("index")
    except (KeyError, TypeError) as error:
        await echo("key", error.args)
    except LookupError:
        await echo("lookup")
    return await ping()


# A handler that raises anew.
@body()
@workflow
async def handler_raises() -> Any:
    m = await gives("dict")
    try:
        try:
            await echo(m["nothing"])
        except KeyError as error:
            await ping()
            raise ValueError("from") from error
    except ValueError as error:
        return [str(error), repr(error.__cause__)]


# A handler that raises the same.
@body()
@workflow
async def handler_raises_again() -> Any:
    m = await gives("dict")
    try:
        await echo(m["nothing"])
    except KeyError:
        await count_up()
        raise
    finally:
        await echo(count())


# A `return` in a `finally`.
@body()
@workflow
async def return_in_finally() -> Any:
    m = await gives("dict")
    try:
        return m["nothing"]
    finally:
        return await echo("finally")


# A `finally` that changes what is returned: it is evaluated before.
@body()
@workflow
async def returned_before_the_finally() -> Any:
    c = await room()
    try:
        return c.title
    finally:
        await count_up()


# The same with a name and with a list.
@body()
@workflow
async def list_returned_before_the_finally() -> Any:
    out = [await one()]
    try:
        return out
    finally:
        out.append(await one(2))


# Two `finally`s.
@body()
@workflow
async def finally_in_finally() -> Any:
    c = await room()
    try:
        try:
            await echo(c.title)
        finally:
            await count_up()
            await echo(c.title)
    finally:
        await count_up()
    return c.title


# A step fails in a `try` in a loop.
@body()
@workflow
async def retries_by_hand() -> Any:
    for n in range(3):
        try:
            if n < 2:
                await fails(str(n))
            return await one(n)
        except FatalError as error:
            await echo(error.code)


# An error in a handler of a handler.
@body()
@workflow
async def handler_in_a_handler() -> Any:
    m = await gives("dict")
    try:
        m["nothing"]
    except KeyError:
        try:
            await echo(m["neither"])
        except KeyError as error:
            return [error.args[0], repr(error.__context__)]


# An error's name is gone behind its handler.
@body()
@workflow
async def error_name_is_gone() -> Any:
    error: Any = "before"
    try:
        await fails()
    except FatalError as error:
        await echo(str(error))
    try:
        return error
    except UnboundLocalError:
        return await ping()


# D11: a handler's class that the world changes.
@body()
@workflow
async def class_of_a_handler() -> Any:
    try:
        await count_up()
        raise KeyError("k")
    except CONFIG.error:
        return await echo("caught")


# D11: a handler's class in a local name that a task rebinds.
@body()
@workflow
async def class_of_a_handler_in_a_name() -> Any:
    kind: type[Exception] = ValueError

    def change() -> None:
        nonlocal kind
        kind = ZeroDivisionError

    HOOKS["change"] = change
    try:
        await ping()
        change()
        1 / 0
    except kind:
        return await echo("caught")


# An error of an operator behind a lazy step.
@body()
@workflow
async def operator_error_behind_a_step() -> Any:
    try:
        await count_up()
        1 / 0
    except ZeroDivisionError:
        return count()


# -- managers --------------------------------------------------------------------------------------------


# Managers of a helper, with a part held over.
@body()
@workflow
async def nested_managers() -> Any:
    c = await room()
    with noting("a"), noting("b"):
        await echo(c.title)
        async with async_noting("c") as name:
            await count_up()
            await echo(name)
    return c.title


# `suppress` of a missing part.
@body()
@workflow
async def suppressed_missing_part() -> Any:
    m = await gives("dict")
    with contextlib.suppress(KeyError):
        await echo(m["nothing"])
        await echo("never")
    return await ping()


# `return` of a part out of a manager.
@body()
@workflow
async def part_returned_out_of_a_with() -> Any:
    c = await room()
    with noting("a"):
        await count_up()
        return c.title


# `return` of a missing part out of `suppress`.
@body()
@workflow
async def missing_returned_out_of_suppress() -> Any:
    m = await gives("dict")
    with contextlib.suppress(KeyError):
        return m["nothing"]
    return await ping()


# An exit stack.
@body()
@workflow
async def exit_stack() -> Any:
    with contextlib.ExitStack() as stack:
        for n in range(2):
            stack.enter_context(noting(str(n)))
            await count_up()
        stack.callback(mark, "callback")
    return await ping()


# A manager that the body defines.
@body()
@workflow
async def own_manager() -> Any:
    class Manager:
        def __enter__(self) -> int:
            return count()

        def __exit__(self, *exc: object) -> bool:
            mark(f"exit {count()} {exc[0] and exc[0].__name__}")
            return True

    await count_up()
    with Manager() as seen:
        await count_up()
        raise ValueError("swallowed")
    return [seen, await ping()]


# D32: a manager's exit is its class's.
@body()
@workflow
async def exit_on_the_instance() -> Any:
    class Manager:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *exc: object) -> None:
            mark("class")

    m = Manager()
    m.__exit__ = lambda *exc: True  # type: ignore[method-assign]
    try:
        with m:
            await ping()
            raise ValueError("not swallowed")
    except ValueError:
        return "raised"


# -- patterns --------------------------------------------------------------------------------------------


# A pattern of a result's class.
@body()
@workflow
async def class_pattern() -> Any:
    await count_up()
    match await room():
        case Room(title=t, tags=[first]):
            await echo(t, first)
            return t


# A pattern that reads a property twice.
@body()
@workflow
async def property_in_two_patterns() -> Any:
    c = await room()
    match c:
        case Room(next=5):
            return "five"
        case Room(next=n):
            await echo(n)
            return c.tags


# A mapping with a rest.
@body()
@workflow
async def mapping_pattern() -> Any:
    match await gives("dict"):
        case {"id": 2}:
            return "two"
        case {"id": n, **rest}:
            await echo(n)
            return rest


# A guard that awaits.
@body()
@workflow
async def guard_that_awaits() -> Any:
    match await gives("list"):
        case [x, *_] if await one(x) == 2:
            return "two"
        case [x, y, *rest] if await one(y) == 2:
            return await echo([x, rest])


# A value of a dotted name in a pattern.
@body()
@workflow
async def value_pattern() -> Any:
    await count_up()
    match "b":
        case CONFIG.key:
            return await ping()
        case _:
            return "other"


# D11: the key of a mapping pattern.
@body()
@workflow
async def key_of_a_pattern() -> Any:
    await count_up()
    match {"a": await one(1), "b": await one(2)}:
        case {CONFIG.key: v}:
            return await echo(v)


# An enum's member in a pattern.
@body()
@workflow
async def enum_pattern() -> Any:
    match await gives("enum"):
        case Hue.BLUE:
            return "blue"
        case Hue.RED | Rank.LOW:
            return await ping()


# A capture that stays after a failed pattern.
@body()
@workflow
async def capture_of_a_failed_pattern() -> Any:
    x: Any = 0
    match await gives("list"):
        case [x, 9, _]:
            return "nine"
        case [_, _, _] as whole:
            await echo(whole)
    return x


# A pattern over a tuple of results.
@body()
@workflow
async def pattern_over_a_tuple() -> Any:
    match (await one(), await gives("enum")):
        case (1, Hue.RED as e):
            return await echo(e)


# A pattern over a foreign class's `__match_args__`.
@body()
@workflow
async def positional_class_pattern() -> Any:
    match await gives("point"):
        case Point(3, y):
            await echo(y)
            return y


# -- conditions ------------------------------------------------------------------------------------------


# Short circuits around steps.
@body()
@workflow
async def short_circuits() -> Any:
    a = await one(0) and await echo("never")
    b = await one(0) or await echo("b")
    c = await gives("none") is None and await echo("c")
    return [a, b, c]


# A conditional expression of steps.
@body()
@workflow
async def conditional_expression() -> Any:
    m = await gives("dict")
    x = await echo("yes") if m["id"] == 1 else await echo("no")
    return await echo(x if count() else [x])


# A chain of `elif`s that look at results and at the world.
@body()
@workflow
async def elif_chain() -> Any:
    if await one(0):
        return "a"
    elif count():
        return "b"
    elif await count_up() == 2:
        return "c"
    elif count() == 1:
        return await echo("d")


# `not`, `is`, `in` of results.
@body()
@workflow
async def operators_of_results() -> Any:
    m, x = await gives("dict"), await gives("list")
    await ping()
    return [not m, m is not x, "id" in m, 9 not in x, x == [1, 2, 3], x < [2]]


# An assertion of a result.
@body()
@workflow
async def assertion_of_a_result() -> Any:
    m = await gives("dict")
    assert m["id"] == 1
    try:
        assert m["id"] == 2, await echo("message")
    except AssertionError as error:
        return str(error)
