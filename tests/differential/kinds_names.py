"""Names: what else a list, a cell or a binding is known as when a step or a task changes it."""

from __future__ import annotations

import asyncio
from typing import Any

from ckworkflow import step, workflow
from compiler.steps import (
    STATE,
    count_up,
    echo,
    noting,
    ping,
)
from differential import people
from differential.people import (
    HOOKS,
    Counter,
    asks,
    body,
    count,
    gives,
    one,
    raise_level,
    room,
    same,
)

GLOBALS = ("MARKER", "LIMIT")
MARKER: Any = "start"
LIMIT = 1


@step
async def set_marker(value: Any) -> None:
    global MARKER
    MARKER = value


@step
async def raise_limit() -> None:
    global LIMIT
    LIMIT += 1


# -- rebinding what a task reads: D5 -----------------------------------------------------------------


# By `+=`.
@body()
@workflow
async def added_to_beside_a_task() -> Any:
    n = 0

    async def reader() -> Any:
        await ping()
        return n

    task = asyncio.create_task(reader())
    await ping()
    await ping()
    n += 1
    return await task


# By a loop's target.
@body()
@workflow
async def loop_target_beside_a_task() -> Any:
    i = -1

    async def reader() -> Any:
        await ping()
        return i

    task = asyncio.create_task(reader())
    for i in range(3):
        await echo(i)
    return await task


# By a tuple of targets.
@body()
@workflow
async def tuple_target_beside_a_task() -> Any:
    a, b = 1, 2

    async def reader() -> Any:
        await ping()
        return [a, b]

    task = asyncio.create_task(reader())
    await ping()
    await ping()
    a, b = b, a
    return await task


# By a walrus.
@body()
@workflow
async def walrus_beside_a_task() -> Any:
    flag = 0

    async def reader() -> Any:
        await ping()
        return flag

    task = asyncio.create_task(reader())
    await ping()
    await ping()
    if (flag := 5) > 4:
        await echo(flag)
    return await task


# By a capture of a pattern.
@body()
@workflow
async def capture_beside_a_task() -> Any:
    a = 0

    async def reader() -> Any:
        await ping()
        return a

    task = asyncio.create_task(reader())
    await ping()
    await ping()
    match [7]:
        case [a]:
            await echo(a)
    return await task


# By `del`.
@body()
@workflow
async def deleted_beside_a_task() -> Any:
    n = 1

    async def reader() -> Any:
        await ping()
        try:
            return n
        except NameError:
            return "gone"

    task = asyncio.create_task(reader())
    await ping()
    await ping()
    del n
    return await task


# By a second `def`.
@body()
@workflow
async def defined_again_beside_a_task() -> Any:
    def value() -> int:
        return 1

    async def reader() -> Any:
        await ping()
        return value()

    task = asyncio.create_task(reader())
    await ping()
    await ping()

    def value() -> int:  # noqa: F811
        return 2

    return await task


# By `with … as`.
@body()
@workflow
async def with_target_beside_a_task() -> Any:
    who = "nobody"

    async def reader() -> Any:
        await ping()
        return who

    task = asyncio.create_task(reader())
    await ping()
    await ping()
    with noting("room") as who:  # noqa: F811
        await echo(who)
    return await task


# By `except … as`, which deletes the name at its end.
@body()
@workflow
async def except_target_beside_a_task() -> Any:
    error: Any = None

    async def reader() -> Any:
        await ping()
        try:
            return str(error)
        except NameError:
            return "gone"

    task = asyncio.create_task(reader())
    await ping()
    try:
        await ping()
        raise ValueError("bad")
    except ValueError as error:
        await echo("handled")
    return await task


# By `import`.
@body()
@workflow
async def import_beside_a_task() -> Any:
    json: Any = None

    async def reader() -> Any:
        await ping()
        return json is None

    task = asyncio.create_task(reader())
    await ping()
    await ping()
    import json  # noqa: F811

    return await task


# By a class statement.
@body()
@workflow
async def class_beside_a_task() -> Any:
    Thing: Any = None

    async def reader() -> Any:
        await ping()
        return Thing is None

    task = asyncio.create_task(reader())
    await ping()
    await ping()

    class Thing:  # noqa: F811
        pass

    return await task


# By a result: the name is bound when the step is done.
@body()
@workflow
async def bound_to_a_result_beside_a_task() -> Any:
    found: Any = "nothing"

    async def reader() -> Any:
        await ping()
        return found

    task = asyncio.create_task(reader())
    found = await echo("found")
    await ping()
    return [await task, found]


# The task rebinds what the body reads.
@body()
@workflow
async def task_rebinds_by_nonlocal() -> Any:
    seen = 0

    async def writer() -> None:
        nonlocal seen
        await ping()
        seen = 1
        await ping()
        seen = 2

    task = asyncio.create_task(writer())
    await ping()
    first = seen
    await echo(first)
    await task
    return [first, seen]


# A gather's members rebind one name.
@body()
@workflow
async def members_rebind_one_name() -> Any:
    last = "nobody"

    async def member(name: str) -> None:
        nonlocal last
        await echo(name)
        last = name

    await asyncio.gather(member("a"), member("b"))
    return await echo(last)


# A nested function rebinds between steps.
@body()
@workflow
async def helper_rebinds_between_steps() -> Any:
    n = 0

    def up() -> int:
        nonlocal n
        n += 1
        return n

    await echo(up())
    await echo(n)
    up()
    await echo(n, up())
    return n


# A name of the body that a step in the same process reads.
@body()
@workflow
async def rebinding_what_the_world_reads() -> Any:
    n = 1
    HOOKS["n"] = lambda: n
    a = await asks("n")
    n = 2
    b = await asks("n")
    n = 3
    return [a, b, n]


# The same, lazily awaited: the rebinding must not run ahead.
@body()
@workflow
async def rebinding_ahead_of_the_world() -> Any:
    n = 1
    HOOKS["n"] = lambda: n
    await asks("n")
    n = 2
    await asks("n")
    for n in range(5, 7):
        await asks("n")
    return await asks("n")


# A generator that reads a name late.
@body()
@workflow
async def generator_reads_a_name_late() -> Any:
    n = 1
    values = (n * k for k in range(3))
    first = next(values)
    await ping()
    n = 10
    await ping()
    return [first, *values]


# Late binding in a loop of lambdas.
@body()
@workflow
async def late_binding() -> Any:
    fs = []
    for i in range(3):
        fs.append(lambda: i)
        await echo(fs[0]())
    return [f() for f in fs]


# Early binding by a default.
@body()
@workflow
async def early_binding() -> Any:
    fs = []
    for i in range(3):
        fs.append(lambda i=i: i)
        await echo(fs[0]())
    return [f() for f in fs]


# -- two names for one object: D8 and its neighbours --------------------------------------------------


# A chain of targets, and an append of None.
@body()
@workflow
async def chained_targets() -> Any:
    a: list[Any]
    b: list[Any]
    a = b = []
    a.append(await gives("none"))
    if b[0] is None:
        return await echo(b)


# A plain alias.
@body()
@workflow
async def alias_of_an_own_list() -> Any:
    a: list[Any] = []
    b = a
    a.append(await gives("none"))
    await ping()
    return [b[0] is None, len(b)]


# An alias by a walrus.
@body()
@workflow
async def alias_by_walrus() -> Any:
    a: list[Any] = (b := [])
    a.append(await gives("none"))
    return b[0] is None


# An alias by a tuple of targets.
@body()
@workflow
async def alias_by_tuple() -> Any:
    a, b = (xs := [], xs)
    a.append(await gives("none"))
    return [b[0] is None, xs is a]


# An alias by a star.
@body()
@workflow
async def alias_by_star() -> Any:
    xs: list[Any] = []
    first, *rest = [xs, xs]
    first.append(await one())
    await ping()
    return [rest[0], xs]


# An alias in a dict.
@body()
@workflow
async def alias_in_a_dict() -> Any:
    xs: list[Any] = []
    box = {"xs": xs}
    xs.append(await gives("none"))
    return box["xs"][0] is None


# An alias by a conditional expression.
@body(True)
@workflow
async def alias_by_condition(first: bool) -> Any:
    a: list[Any] = []
    b: list[Any] = []
    c = a if first else b
    c.append(await gives("none"))
    return [len(a), len(b), a[0] is None]


# An alias by `or`.
@body()
@workflow
async def alias_by_or() -> Any:
    a: list[Any] = []
    b = a or [0]
    c = a and [1]
    c.append(await one())
    return [a, b]


# An alias by a capture of a pattern.
@body()
@workflow
async def alias_by_capture() -> Any:
    xs: list[Any] = []
    match {"k": xs}:
        case {"k": list() as ys}:
            ys.append(await gives("none"))
    return xs[0] is None


# An alias by a nested function's result.
@body()
@workflow
async def alias_by_a_function() -> Any:
    xs: list[Any] = []

    def mine() -> list[Any]:
        return xs

    mine().append(await gives("none"))
    return xs[0] is None


# An alias by a default argument.
@body()
@workflow
async def alias_by_a_default() -> Any:
    xs: list[Any] = []

    def add(value: Any, into: list[Any] = xs) -> int:
        into.append(value)
        return len(into)

    await echo(add(await one()))
    await echo(add(await one(2)))
    return xs


# An alias by a loop's target.
@body()
@workflow
async def alias_by_a_loop() -> Any:
    a: list[Any] = []
    for b in [a, a]:
        b.append(await gives("none"))
    return [x is None for x in a]


# An alias by a list in a list.
@body()
@workflow
async def alias_by_multiplication() -> Any:
    rows = [[]] * 2
    rows[0].append(await gives("none"))
    return rows[1][0] is None


# An alias by an attribute of an own object.
@body()
@workflow
async def alias_by_an_attribute() -> Any:
    holder = Counter()
    seen = holder.seen
    seen.append(await one())
    await echo(holder.seen)
    holder.seen.append(await one(2))
    return seen


# An own list aliased through a helper.
@body()
@workflow
async def alias_through_a_helper() -> Any:
    a: list[Any] = []
    b = same(a)
    a.append(await gives("none"))
    return b[0] is None


# `+=` changes in place, `+` does not.
@body()
@workflow
async def added_in_place() -> Any:
    a: list[Any] = [1]
    b = a
    a += [await one(2)]
    await echo(b)
    a = a + [await one(3)]
    return [a, b]


# An own list given to a task.
@body()
@workflow
async def own_list_in_a_task() -> Any:
    xs: list[Any] = []

    async def filler() -> None:
        for n in range(2):
            xs.append(await one(n))

    task = asyncio.create_task(filler())
    await ping()
    seen = len(xs)
    await echo(seen)
    await task
    return [seen, xs]


# An own list given to an inlined workflow.
@workflow
async def fills(xs: list[Any]) -> Any:
    xs.append(await one())
    return xs


@body()
@workflow
async def own_list_in_an_inlined_workflow() -> Any:
    xs: list[Any] = []
    ys = await fills(xs)
    await ping()
    xs.append(2)
    return [xs, ys, xs is ys]


# A list that is appended to while it is looped over.
@body()
@workflow
async def appended_while_looped_over() -> Any:
    xs = [1]
    for x in xs:
        if x < 3:
            xs.append(await one(x + 1))
    return xs


# A list sliced into itself.
@body()
@workflow
async def slice_assigned() -> Any:
    xs = [1, 2, 3]
    ys = xs
    xs[1:2] = [await one(8), await one(9)]
    await echo(ys)
    del xs[0]
    return ys


# -- globals -----------------------------------------------------------------------------------------


# A global that a step rebinds.
@body()
@workflow
async def global_rebound_by_a_step() -> Any:
    await set_marker("changed")
    await echo(MARKER)
    await set_marker("again")
    return MARKER


# A global read in a loop's condition.
@body()
@workflow
async def global_in_a_condition() -> Any:
    rounds = 0
    while LIMIT < 3:
        rounds += 1
        await raise_limit()
    return rounds


# A global that the body rebinds itself.
@body()
@workflow
async def global_rebound_by_the_body() -> Any:
    global MARKER
    await echo(MARKER)
    MARKER = await echo("mine")
    await ping()
    return MARKER


# D24: a global of another module.
@body()
@workflow
async def global_of_another_module() -> Any:
    await raise_level()
    await echo(people.LEVEL)
    await raise_level()
    return people.LEVEL


# D24 in a loop.
@body()
@workflow
async def global_of_another_module_in_a_loop() -> Any:
    rounds = 0
    while people.LEVEL < 2:
        await raise_level()
        rounds += 1
        if rounds > 5:
            break
    return rounds


# A shadowed builtin.
@body()
@workflow
async def shadowed_builtin() -> Any:
    def len(value: Any) -> str:  # noqa: A001
        return f"len at {count()}"

    xs = await gives("list")
    await count_up()
    await echo(len(xs))
    return len(xs)


# A name that is unbound on one way.
@body()
@workflow
async def unbound_on_one_way() -> Any:
    if await gives("none"):
        value = 1
    try:
        await echo(value)
    except UnboundLocalError:
        return await ping()


# A name deleted and bound again.
@body()
@workflow
async def deleted_and_bound_again() -> Any:
    x = await one()
    await echo(x)
    del x
    try:
        await echo(x)  # noqa: F821
    except UnboundLocalError:
        x = await one(2)
    return x


# Two names swapped between steps.
@body()
@workflow
async def names_swapped() -> Any:
    a, b = await one(1), await one(2)
    a, b = b, a
    await echo(a)
    a, b = b, await echo(a)
    return [a, b]


# A name rebound to a part of itself.
@body()
@workflow
async def walks_down() -> Any:
    m = await gives("dict")
    m = m["sub"]
    m = m["list"]
    await echo(m)
    m = m[0]
    return await echo(m)


# A name rebound in one branch, read after both.
@body("list")
@body("none")
@workflow
async def rebound_in_a_branch(what: str) -> Any:
    x = await gives("dict")
    if await gives(what):
        x = await room()
    await echo(x)
    return x


# A class body between steps.
@body()
@workflow
async def class_body_between_steps() -> Any:
    await count_up()

    class Here:
        seen = count()
        both = [seen, STATE["count"]]

    await count_up()
    return [Here.seen, Here.both]


# A default argument between steps.
@body()
@workflow
async def default_between_steps() -> Any:
    await count_up()

    def f(seen: int = count()) -> int:
        return seen * 10 + count()

    await count_up()
    return await echo(f())
