"""Comprehensions and generators: whose turns come when, and what they read between two steps."""

from __future__ import annotations

import functools
from typing import Any

from ckworkflow import workflow
from compiler.steps import (
    STATE,
    async_lines,
    clean_up,
    count_up,
    echo,
    ping,
)
from differential.people import (
    Cursor,
    Meter,
    body,
    cache,
    count,
    gives,
    grow,
    house,
    one,
    room,
    same,
)

# -- comprehensions --------------------------------------------------------------------------------------


# A step in each turn.
@body()
@workflow
async def step_in_each_turn() -> Any:
    found = [await one(n) for n in range(3)]
    await echo(found)
    return found


# A read of the world beside the step.
@body()
@workflow
async def read_beside_the_step() -> Any:
    return [[count(), await count_up(), count()] for _ in range(2)]


# A condition that reads the world.
@body()
@workflow
async def condition_reads_the_world() -> Any:
    return [await count_up() for _ in range(4) if count() < 2]


# A condition that awaits.
@body()
@workflow
async def condition_awaits() -> Any:
    return [n for n in range(4) if await one(n) % 2]


# A dict of steps: the key before the value.
@body()
@workflow
async def dict_of_steps() -> Any:
    found = {f"{n} {count()}": await count_up() for n in range(2)}
    await ping()
    return found


# A set of steps.
@body()
@workflow
async def set_of_steps() -> Any:
    return sorted({await one(n % 2) for n in range(3)})


# Nested loops.
@body()
@workflow
async def nested_loops() -> Any:
    return [await one(a * 10 + b) for a in range(2) for b in range(a + 1)]


# A comprehension in a comprehension.
@body()
@workflow
async def nested_comprehensions() -> Any:
    return [[await one(a + b) for b in range(2)] for a in range(2)]


# Over a result, with parts.
@body()
@workflow
async def over_the_rooms_of_a_result() -> Any:
    h = await house()
    titles = [r.title for r in h.rooms]
    await count_up()
    await echo(titles)
    return [titles, [r.title for r in h.rooms]]


# Over an awaited result.
@body()
@workflow
async def over_an_awaited_result() -> Any:
    return [await echo(x * 2) for x in await gives("list") if x != 2]


# Over the pairs of a result.
@body()
@workflow
async def over_pairs() -> Any:
    found = {k: v for k, v in await gives("pairs")}  # noqa: C416
    await echo(found["a"])
    return found


# A missing part in a turn.
@body()
@workflow
async def missing_part_in_a_turn() -> Any:
    m = await gives("dict")
    try:
        return [await echo(m[k]) for k in ["id", "nothing", "sub"]]
    except KeyError:
        return await ping()


# None in a list of results.
@body()
@workflow
async def none_among_results() -> Any:
    found = [await gives(what) for what in ["none", "int", "none"]]
    await ping()
    return [x is None for x in found]


# A shared list in each turn.
@body()
@workflow
async def shared_list_in_each_turn() -> Any:
    rows = [cache() for _ in range(2)]
    await grow()
    return [[len(row) for row in rows], rows[0] is rows[1]]


# A copy in each turn.
@body()
@workflow
async def copies_in_each_turn() -> Any:
    rows = [list(row) for row in STATE["rows"].values()]
    STATE["rows"]["a"].append(await one(9))
    await ping()
    return [rows, STATE["rows"]["a"]]


# A walrus that leaks.
@body()
@workflow
async def walrus_leaks() -> Any:
    found = [(last := await one(n)) for n in range(3)]
    await echo(last)
    return [last, found]


# A walrus in a condition.
@body()
@workflow
async def walrus_in_a_condition() -> Any:
    found = [y for n in range(3) if (y := await one(n * 2)) > 1]
    return [y, found]


# The loop's name does not leak.
@body()
@workflow
async def name_does_not_leak() -> Any:
    n = "outer"
    found = [await one(n) for n in range(2)]
    return [await echo(n), found]


# Lambdas that bind late.
@body()
@workflow
async def lambdas_in_a_comprehension() -> Any:
    fs = [lambda: [n, count()] for n in range(2)]
    await count_up()
    await echo(fs[0]())
    return [f() for f in fs]


# Over a foreign iterator.
@body()
@workflow
async def over_a_cursor() -> Any:
    return [[x, await count_up()] for x in Cursor(2)]


# Over a Meter.
@body()
@workflow
async def over_a_meter() -> Any:
    return [[x, await count_up()] for x in Meter()]


# Over the world's list, which grows.
@body()
@workflow
async def over_a_growing_list() -> Any:
    return [[x, await grow()][0] for x in STATE["xs"] if len(STATE["xs"]) < 5]


# An async comprehension.
@body()
@workflow
async def async_comprehension() -> Any:
    return [[n, await count_up()] async for n in async_lines(2)]


# Calls in a comprehension, awaited later.
@body()
@workflow
async def calls_awaited_later() -> Any:
    calls = [echo(n, count()) for n in range(2)]
    await count_up()
    return [await call for call in calls]


# Parts of a list of results.
@body()
@workflow
async def parts_of_a_list_of_results() -> Any:
    rooms = [await room(name) for name in ["a", "b"]]
    await count_up()
    await echo([r.name for r in rooms])
    await count_up()
    return {r.name: r.title for r in rooms}


# A comprehension as the argument of a step.
@body()
@workflow
async def comprehension_as_an_argument() -> Any:
    h = await house()
    await echo([r.title for r in h.rooms], {r.name for r in h.rooms} == {"hall", "attic"})
    await count_up()
    return await echo({r.name: r.tags for r in h.rooms})


# Unpacked into a call.
@body()
@workflow
async def comprehension_unpacked() -> Any:
    return await echo(*[await one(n) for n in range(3)], k=count())


# -- generators --------------------------------------------------------------------------------------------


# A generator expression that is consumed between steps.
@body()
@workflow
async def consumed_between_steps() -> Any:
    turns = ([n, count()] for n in range(3))
    seen = [next(turns)]
    await count_up()
    seen.append(next(turns))
    await count_up()
    return [*seen, *turns]


# Its first iterable is evaluated at once.
@body()
@workflow
async def first_iterable_at_once() -> Any:
    turns = (x for x in list(STATE["xs"]))
    await grow()
    return list(turns)


# The second iterable is evaluated late.
@body()
@workflow
async def second_iterable_late() -> Any:
    turns = ([a, b] for a in [1, 2] for b in list(STATE["xs"]))
    first = next(turns)
    await grow()
    return [first, len(list(turns))]


# A generator given to a builtin.
@body()
@workflow
async def given_to_a_builtin() -> Any:
    h = await house()
    await count_up()
    return [
        sum(len(r.tags) for r in h.rooms), any(r.title == "attic@1" for r in h.rooms),
        sorted(r.title for r in h.rooms), ",".join(r.name for r in h.rooms), max(r.title for r in h.rooms),
    ]  # fmt: skip


# A generator given to a step through `list`.
@body()
@workflow
async def given_to_a_step() -> Any:
    h = await house()
    await echo(list(r.title for r in h.rooms), tuple(r.name for r in h.rooms))  # noqa: C400
    return await count_up()


# A generator given to a helper that keeps it.
@body()
@workflow
async def given_to_a_helper() -> Any:
    n = 1
    turns = same(n * k + count() for k in range(3))
    first = next(turns)
    await count_up()
    n = 100
    return [first, list(turns)]


# A generator of awaits, consumed by `async for`.
@body()
@workflow
async def generator_of_awaits() -> Any:
    turns = (await one(n) + count() for n in range(2))
    seen = []
    async for x in turns:
        seen.append(x)
        await count_up()
    return seen


# A generator of a shadowed name.
@body()
@workflow
async def generator_of_a_rebound_name() -> Any:
    xs = [1, 2]
    turns = (x for x in xs)
    xs = [await one(9)]
    return [list(turns), xs]


# `map` and `filter` consumed between steps.
@body()
@workflow
async def map_between_steps() -> Any:
    turns = map(lambda n: [n, count()], range(3))  # noqa: C417
    kept = filter(lambda n: n > count(), [0, 1, 2, 3])
    first = next(turns)
    await count_up()
    return [first, list(turns), list(kept)]


# `zip` and `enumerate` consumed between steps.
@body()
@workflow
async def zip_between_steps() -> Any:
    turns = zip(STATE["xs"], range(10), strict=False)
    numbered = enumerate(STATE["xs"])
    first = next(turns)
    await grow()
    return [first, list(turns), list(numbered)]


# A generator function that the body sends to.
@body()
@workflow
async def sent_to() -> Any:
    def talker() -> Any:
        got = yield count()
        while True:
            got = yield [got, count()]

    t = talker()
    seen = [next(t)]
    await count_up()
    seen.append(t.send(await one(5)))
    await count_up()
    seen.append(t.send("end"))
    t.close()
    return seen


# `yield from`.
@body()
@workflow
async def yields_from() -> Any:
    def inner() -> Any:
        yield count()
        yield count()

    def outer() -> Any:
        yield from inner()
        yield "end"

    seen = []
    for x in outer():
        seen.append(x)
        await count_up()
    return seen


# An async generator function with steps.
@body()
@workflow
async def async_generator_with_steps() -> Any:
    async def turns() -> Any:
        for n in range(2):
            yield [await one(n), count()]
        await ping()

    seen = []
    async for x in turns():
        seen.append(x)
        await count_up()
    return seen


# D22: an async generator left by `break`, closed by hand.
@body()
@workflow
async def async_generator_closed() -> Any:
    async def turns() -> Any:
        try:
            yield await one(1)
            yield await one(2)
        finally:
            await clean_up("generator")

    source = turns()
    async for x in source:
        break
    await source.aclose()
    return [x, await ping()]


# `sorted` with a key that reads the world.
@body()
@workflow
async def sorted_by_the_world() -> Any:
    xs = await gives("list")
    await count_up()
    first = sorted(xs, key=lambda x: -x * count())
    await count_up()
    return [first, max(xs, key=lambda x: (x + count()) % 3)]


# `functools.reduce` with a function that reads the world.
@body()
@workflow
async def reduced() -> Any:
    xs = await gives("list")
    await count_up()
    return await echo(functools.reduce(lambda a, b: a + b * count(), xs))


# An iterator shared by two loops.
@body()
@workflow
async def iterator_in_two_loops() -> Any:
    it = iter(await gives("list"))
    for x in it:
        await echo(x)
        break
    return [x, [await echo(y) for y in it]]


# `iter` with a sentinel.
@body()
@workflow
async def iter_with_a_sentinel() -> Any:
    seen = []
    for x in iter(count, 2):
        seen.append(x)
        await count_up()
    return seen
