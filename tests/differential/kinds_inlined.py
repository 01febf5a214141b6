"""Inlined workflows: what they return, when it is worked out, and what their errors meet."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import Any

from ckworkflow import FatalError, now, sleep, workflow
from compiler.steps import (
    STATE,
    clean_up,
    count_up,
    echo,
    keep,
    ping,
)
from differential.people import (
    body,
    count,
    fails,
    gives,
    grow,
    one,
    room,
)


@workflow
async def part(what: str, key: Any) -> Any:
    m = await gives(what)
    return m[key]


@workflow
async def part_later(what: str, key: Any) -> Any:
    m = await gives(what)
    await ping()
    return m[key]


@workflow
async def title() -> Any:
    c = await room()
    return c.title


@workflow
async def attribute(what: str, name: str) -> Any:
    return getattr(await gives(what), name)


@workflow
async def year() -> Any:
    d = await gives("date")
    return d.year


@workflow
async def hue() -> Any:
    e = await gives("enum")
    return e.value


@workflow
async def nothing() -> None:
    await ping()


@workflow
async def nobody() -> Any:
    return None


@workflow
async def same_twice() -> Any:
    x = await echo([1])
    return [x, x]


@workflow
async def tags_twice() -> Any:
    c = await room()
    return {"a": c.tags, "b": c.tags}


@workflow
async def listed() -> Any:
    c = await room()
    return [c.title, c.name, c.tags]


@workflow
async def rooms(count_: int) -> Any:
    out = []
    for number in range(count_):
        out.append(await room(f"r{number}"))
    return out


@workflow
async def deep(levels: int) -> Any:
    if levels:
        return await deep(levels - 1)
    c = await room()
    return c.title


@workflow
async def handles_its_own() -> Any:
    m = await gives("dict")
    try:
        return m["nothing"]
    except KeyError:
        return "own"


@workflow
async def cleans_up() -> Any:
    m = await gives("dict")
    try:
        return m["id"]
    finally:
        await clean_up("inner")


# -- missing parts -------------------------------------------------------------------------------------


# D3a: uncaught; the next step must not run.
@body("dict", "nothing")
@body("list", 9)
@body("text", 5)
@body("none", 0)
@workflow
async def missing_uncaught(what: str, key: Any) -> Any:
    await part(what, key)
    await ping()


# D3a: handled by the caller.
@body("dict", "nothing")
@body("list", 9)
@workflow
async def missing_handled(what: str, key: Any) -> Any:
    try:
        await part(what, key)
    except LookupError as error:
        await echo(type(error).__name__)
    return await ping()


# D3a: bound and never used.
@body()
@workflow
async def missing_bound() -> Any:
    x = await part("dict", "nothing")
    await ping()


# D3a: in a loop.
@body()
@workflow
async def missing_in_a_loop() -> Any:
    found = []
    for key in ["id", "nothing", "sub"]:
        try:
            found.append(await part("dict", key))
        except KeyError:
            found.append(await ping())
    return found


# D3a: in a gather, the value unused.
@body()
@workflow
async def missing_in_a_gather() -> Any:
    a, b = await asyncio.gather(part("dict", "nothing"), ping())
    await echo(b)


# D3a: in a gather, handled.
@body()
@workflow
async def missing_in_a_handled_gather() -> Any:
    try:
        await asyncio.gather(part_later("dict", "nothing"), one(), ping())
    except KeyError:
        await echo("handled")
    return await ping()


# D3a: as a value of a gather.
@body()
@workflow
async def missing_as_a_value() -> Any:
    found = await asyncio.gather(part("dict", "nothing"), part("dict", "id"), return_exceptions=True)
    return [repr(found[0]), found[1]]


# D3a: handled where it arises.
@body()
@workflow
async def missing_handled_inside() -> Any:
    await echo(await handles_its_own())
    return await ping()


# With a finally inside.
@body()
@workflow
async def finally_inside() -> Any:
    x = await cleans_up()
    await echo(x)
    return x


# With a finally outside.
@body()
@workflow
async def finally_outside() -> Any:
    try:
        return await part("dict", "nothing")
    finally:
        await clean_up("outer")


# With a suppressing manager outside.
@body()
@workflow
async def suppressed_outside() -> Any:
    with contextlib.suppress(KeyError):
        await part("dict", "nothing")
        await echo("never")
    return await ping()


# -- values that only the body can work out ----------------------------------------------------------


# D3b: looked at.
@body()
@workflow
async def year_looked_at() -> Any:
    return await echo("yes") if await year() == 2020 else await echo("no")


@body()
@workflow
async def hue_looked_at() -> Any:
    match await hue():
        case "red":
            return await ping()


# D3b: passed on.
@body()
@workflow
async def year_passed_on() -> Any:
    y = await year()
    await echo(y)
    if await ping():
        return y + 1


# D3b: any attribute.
@body("rank", "name")
@body("point", "total")
@body("delta", "days")
@body("slots", "size")
@body("frozen", "names")
@body("ghost", "any")
@workflow
async def attribute_passed_on(what: str, name: str) -> Any:
    x = await attribute(what, name)
    await count_up()
    await echo(x)
    return x


# D3c: in time.
@body()
@workflow
async def property_in_time() -> Any:
    t = await title()
    await count_up()
    await echo(t)
    u = await title()
    await count_up()
    return [t, u]


# D3c: as an argument of a step at once.
@body()
@workflow
async def property_at_once() -> Any:
    await count_up()
    await echo(await title())
    await count_up()
    return await title()


# D3c: two of them side by side.
@body()
@workflow
async def properties_side_by_side() -> Any:
    a, b = await asyncio.gather(title(), title())
    await count_up()
    await echo(a)
    return [a, b]


# D3c: nested three deep.
@body()
@workflow
async def property_from_the_deep() -> Any:
    t = await deep(3)
    await count_up()
    return [t, await echo(t)]


# -- lists, dicts, None --------------------------------------------------------------------------------


# None of a workflow without `return`.
@body()
@workflow
async def nothing_returned() -> Any:
    x = await nothing()
    y = await nobody()
    if x is None and y is None:
        return await echo(x)


# None in a gather.
@body()
@workflow
async def nothing_gathered() -> Any:
    x, y = await asyncio.gather(nothing(), nobody())
    await echo(x, y)
    return [x is None, y is None]


# A list with a property in it.
@body()
@workflow
async def list_with_a_property() -> Any:
    found = await listed()
    await count_up()
    await echo(found[0])
    found[2].append(2)
    return found


# A list unpacked.
@body()
@workflow
async def list_unpacked() -> Any:
    t, name, tags = await listed()
    await count_up()
    await echo(t, tags)
    return [t, name]


# A list of results.
@body()
@workflow
async def list_of_results() -> Any:
    found = await rooms(2)
    await count_up()
    for c in found:
        await echo(c.title)
    return [c.name for c in found]


# D14: one object twice.
@body()
@workflow
async def one_object_twice() -> Any:
    a, b = await same_twice()
    a.append(await one(2))
    await echo(b)
    return [a is b, a, b]


# D14: a part twice.
@body()
@workflow
async def one_part_twice() -> Any:
    d = await tags_twice()
    d["a"].append(2)
    await ping()
    return [d["b"], d["a"] is d["b"]]


# D14: through two levels.
@workflow
async def hands_through() -> Any:
    found = await same_twice()
    return {"x": found[0], "all": found}


@body()
@workflow
async def one_object_through_two_levels() -> Any:
    d = await hands_through()
    d["x"].append(2)
    return d["all"][1]


# The caller's own list, given and returned.
@workflow
async def gives_back(xs: Any, more: Any) -> Any:
    xs.append(await echo(more))
    return xs


@body()
@workflow
async def own_list_given_and_returned() -> Any:
    xs: list[Any] = []
    ys = await gives_back(xs, "a")
    zs = await gives_back(ys, "b")
    zs.append("c")
    return [xs, xs is zs]


# A result given and returned.
@body()
@workflow
async def result_given_and_returned() -> Any:
    x = await gives("list")
    y = await gives_back(x, 4)
    await echo(y)
    return [x is y, x]


# The caller's dict, changed beside it.
@workflow
async def writes(box: dict[str, Any], key: str) -> None:
    box[key] = await echo(key)


@body()
@workflow
async def own_dict_written_by_members() -> Any:
    box: dict[str, Any] = {}
    await asyncio.gather(writes(box, "a"), writes(box, "b"))
    return sorted(box)


# An inlined workflow that reads the world.
@workflow
async def reads_the_world() -> Any:
    before = count()
    await count_up()
    return [before, count()]


@body()
@workflow
async def world_read_inside() -> Any:
    a = await reads_the_world()
    await count_up()
    b = await reads_the_world()
    return [a, b]


# An inlined workflow that keeps its parameter.
@workflow
async def keeps(xs: Any) -> Any:
    keep(xs)
    return xs


@body()
@workflow
async def parameter_kept_inside() -> Any:
    xs: list[Any] = []
    ys = await keeps(xs)
    await count_up()
    await echo(len(ys))
    return xs


# An inlined workflow that gives what the world shares.
@workflow
async def gives_the_shared() -> Any:
    await ping()
    return STATE["xs"]


@body()
@workflow
async def shared_list_from_inside() -> Any:
    xs = await gives_the_shared()
    await grow()
    return len(xs)


# An inlined workflow that gives a function.
@workflow
async def gives_a_function() -> Any:
    n = await one()

    def f() -> Any:
        return [n, count()]

    return f


@body()
@workflow
async def function_from_inside() -> Any:
    f = await gives_a_function()
    await count_up()
    await echo(f())
    await count_up()
    return f()


# -- how they are called -------------------------------------------------------------------------------


# Called, kept, awaited later.
@body()
@workflow
async def awaited_later() -> Any:
    call = title()
    await count_up()
    t = await call
    await count_up()
    return t


# As a task.
@body()
@workflow
async def as_a_task() -> Any:
    task = asyncio.create_task(title())
    await count_up()
    return [await task, count()]


# With default and keyword arguments.
@workflow
async def defaults(a: Any, b: Any = 2, *more: Any, c: Any = 3, **rest: Any) -> Any:
    return await echo([a, b, list(more), c, rest])


@body()
@workflow
async def called_in_every_way() -> Any:
    x = await one()
    return [
        await defaults(x), await defaults(1, x, 3, c=4, d=x), await defaults(b=x, a=0),
        await defaults(*[1, x], c=x),
    ]  # fmt: skip


# With wrong arguments: the error arises where the call stands.
@body()
@workflow
async def called_wrongly() -> Any:
    await ping()
    try:
        await title("too", "many")
    except TypeError:
        return await ping()


# An inlined workflow whose step fails, handled outside.
@workflow
async def failing() -> Any:
    await ping()
    await fails("inner")
    await echo("never")


@body()
@workflow
async def failure_from_inside() -> Any:
    try:
        await failing()
    except FatalError as error:
        await echo(error.code)
    return await ping()


# An inlined workflow that raises before it awaits.
@workflow
async def raises_at_once() -> Any:
    raise ValueError(count())


@body()
@workflow
async def error_before_an_await() -> Any:
    await count_up()
    try:
        await raises_at_once()
    except ValueError as error:
        return await echo(str(error))


# Recursion with a list.
@workflow
async def collect(n: int, out: Any) -> Any:
    if n:
        out.append(await one(n))
        return await collect(n - 1, out)
    return out


@body(3)
@workflow
async def recursion_with_a_list(n: int) -> Any:
    out: list[Any] = []
    found = await collect(n, out)
    return [found is out, found]


# A sleep inside, and the time that it leaves.
@workflow
async def naps() -> Any:
    before = now()
    await sleep(60)
    return (now() - before).total_seconds()


@body()
@workflow
async def sleep_inside() -> Any:
    seconds = await naps()
    await ping()
    return seconds >= 60


# Chosen at run time.
@body("a")
@body("b")
@workflow
async def chosen_at_run_time(which: str) -> Any:
    table = {"a": title, "b": year}
    found = await table[which]()
    await count_up()
    return await echo(found)


# Through `partial` and through a nested function.
@body()
@workflow
async def through_a_partial() -> Any:
    get = functools.partial(part, "dict")

    async def wrapped(key: str) -> Any:
        return await get(key)

    a = await wrapped("id")
    try:
        await wrapped("nothing")
    except KeyError:
        await echo(a)
    return a
