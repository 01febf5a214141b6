"""Results that share state with the world, and foreign classes whose operators look at it, share it or keep it."""

from __future__ import annotations

import asyncio
from typing import Any

from ckworkflow import workflow
from compiler.steps import (
    STATE,
    count_up,
    echo,
    keep,
    ping,
)
from differential.people import (
    Counter,
    Meter,
    Mirror,
    Room,
    Sink,
    body,
    cache,
    gives,
    grow,
    house,
    one,
    room,
    same,
    set_key,
    touch_class,
)

# -- what a helper gives is the world's: D6 ------------------------------------------------------------


# By append.
@body()
@workflow
async def shared_list_appended() -> Any:
    rows: list[Any] = []
    rows.append(cache())
    await grow()
    return len(rows[0])


# By insert.
@body()
@workflow
async def shared_list_inserted() -> Any:
    rows: list[Any] = []
    rows.insert(0, cache())
    await grow()
    return len(rows[0])


# By extend.
@body()
@workflow
async def shared_list_extended() -> Any:
    rows: list[Any] = []
    rows.extend([cache()])
    await grow()
    return len(rows[0])


# By update.
@body()
@workflow
async def shared_list_in_an_update() -> Any:
    box: dict[str, Any] = {}
    box.update(k=cache())
    await grow()
    return len(box["k"])


# By setdefault.
@body()
@workflow
async def shared_list_by_setdefault() -> Any:
    box: dict[str, Any] = {}
    box.setdefault("k", STATE["xs"])
    await grow()
    return len(box["k"])


# By a dunder call.
@body()
@workflow
async def shared_list_by_setitem() -> Any:
    box: dict[str, Any] = {}
    box.__setitem__("k", STATE["xs"])
    await grow()
    return len(box["k"])


# By `+=`.
@body()
@workflow
async def shared_list_added() -> Any:
    rows: list[Any] = []
    rows += [cache()]
    await grow()
    return len(rows[0])


# By a slice.
@body()
@workflow
async def shared_list_by_slice() -> Any:
    rows: list[Any] = []
    rows[:] = [cache()]
    await grow()
    return len(rows[0])


# By `|=`.
@body()
@workflow
async def shared_list_by_union() -> Any:
    box: dict[str, Any] = {}
    box |= {"k": cache()}
    await grow()
    return len(box["k"])


# By a comprehension.
@body()
@workflow
async def shared_list_in_a_comprehension() -> Any:
    rows = [cache() for _ in range(2)]
    await grow()
    return [len(row) for row in rows]


# By zip, sorted, dict, list, map.
@body()
@workflow
async def shared_list_through_builtins() -> Any:
    a = list(zip([1], [cache()], strict=True))
    b = dict([("k", cache())])  # noqa: C406
    c = list(map(same, [cache()]))
    d = sorted([cache()])
    await grow()
    return [len(a[0][1]), len(b["k"]), len(c[0]), len(d[0])]


# By min, max, next, getattr.
@body()
@workflow
async def shared_list_picked_by_builtins() -> Any:
    a = max([cache()], [0])
    b = next(iter([cache()]))
    c = [cache()].pop()
    d = {"k": cache()}.get("k")
    await grow()
    return [len(a), len(b), len(c), len(d)]


# In a loop's condition.
@body()
@workflow
async def shared_list_in_a_condition() -> Any:
    rows: list[Any] = []
    rows.append(cache())
    rounds = 0
    while len(rows[0]) < 4:
        await grow()
        rounds += 1
    return rounds


# Through an own object's attribute.
@body()
@workflow
async def shared_list_in_an_attribute() -> Any:
    holder = Counter()
    holder.seen = cache()
    await grow()
    return len(holder.seen)


# Unpacked, starred.
@body()
@workflow
async def shared_list_unpacked() -> Any:
    a, *b = [cache(), cache()]
    await grow()
    return [len(a), len(b[0])]


# A copy is not shared.
@body()
@workflow
async def copy_of_a_shared_list() -> Any:
    a = list(cache())
    b = cache()[:]
    c = [*cache()]
    await grow()
    return [len(a), len(b), len(c), len(cache())]


# A view follows its dict.
@body()
@workflow
async def view_of_a_shared_dict() -> Any:
    keys = STATE["rows"].keys()
    items = STATE["rows"].items()
    await set_key("z")
    STATE["rows"]["c"] = [await one()]
    return [list(keys), len(items)]


# An iterator over a shared list.
@body()
@workflow
async def iterator_over_a_shared_list() -> Any:
    it = iter(cache())
    first = next(it)
    await grow()
    return [first, *it]


# A shared list returned at the end.
@body()
@workflow
async def shared_list_returned() -> Any:
    rows = [cache()]
    await grow()
    return rows


# A shared list given to a step twice.
@body()
@workflow
async def shared_list_given_twice() -> Any:
    xs = cache()
    await echo(xs)
    await grow()
    await echo(xs)
    await grow()
    return xs


# -- own values that the world keeps --------------------------------------------------------------------


# By a helper.
@body()
@workflow
async def own_list_kept() -> Any:
    xs: list[Any] = []
    keep(xs)
    await count_up()
    await echo(xs)
    return xs


# In another own container.
@body()
@workflow
async def own_list_kept_in_a_container() -> Any:
    inner: list[Any] = []
    outer = [inner]
    keep(outer)
    await count_up()
    return [len(outer), inner]


# After the append of a result.
@body()
@workflow
async def own_list_kept_after_an_append() -> Any:
    xs: list[Any] = []
    xs.append(await one())
    keep(xs)
    await count_up()
    xs.append(await one(5))
    await count_up()
    return xs


# By a helper called in an argument.
@body()
@workflow
async def own_list_kept_in_an_argument() -> Any:
    xs: list[Any] = []
    await echo(keep(xs))
    await count_up()
    await echo(len(xs))
    return xs


# By the world's list itself.
@body()
@workflow
async def own_list_put_into_the_world() -> Any:
    xs: list[Any] = []
    STATE["kept"].append(xs)
    await count_up()
    return len(xs)


# By a slice of the world's list.
@body()
@workflow
async def own_list_put_in_by_a_slice() -> Any:
    xs: list[Any] = []
    STATE["kept"][0:0] = [xs]
    await count_up()
    return len(xs)


# A part of a result is kept.
@body()
@workflow
async def part_of_a_result_kept() -> Any:
    c = await room()
    keep(c.tags)
    await count_up()
    await echo(c.tags)
    return len(c.tags)


# By the foreign class: append, item, `+=`, `<<`, `in`, `==`, attribute, call.
@body()
@workflow
async def sink_append() -> Any:
    sink, xs = Sink(), [0]
    sink.append(xs)
    await count_up()
    return len(xs)


@body()
@workflow
async def sink_item() -> Any:
    sink, xs = Sink(), [0]
    sink["k"] = xs
    await count_up()
    return len(xs)


@body()
@workflow
async def sink_index() -> Any:
    sink, xs = Sink(), [0]
    sink[xs]
    await count_up()
    return len(xs)


@body()
@workflow
async def sink_in_place() -> Any:
    sink, xs = Sink(), [0]
    sink += xs
    await count_up()
    return len(xs)


@body()
@workflow
async def sink_shift() -> Any:
    sink, xs = Sink(), [0]
    sink << xs
    await count_up()
    return len(xs)


@body()
@workflow
async def sink_contains() -> Any:
    sink, xs = Sink(), [0]
    found = xs in sink
    await count_up()
    return [found, len(xs)]


@body()
@workflow
async def sink_equals() -> Any:
    sink, xs = Sink(), [0]
    found = sink == xs
    await count_up()
    return [found, len(xs)]


@body()
@workflow
async def sink_attribute() -> Any:
    sink, xs = Sink(), [0]
    sink.slot = xs
    await count_up()
    return len(xs)


@body()
@workflow
async def sink_call() -> Any:
    sink, xs = Sink(), [0]
    sink(xs)
    await count_up()
    return len(xs)


# The same, by a result.
@body()
@workflow
async def sink_of_a_step() -> Any:
    sink = await gives("sink")
    xs = [0]
    sink.append(xs)
    sink["k"] = xs
    await count_up()
    await echo(xs)
    return len(xs)


# A Sink as the target of a loop and of a tuple.
@body()
@workflow
async def sink_as_a_target() -> Any:
    sink, xs = Sink(), [0]
    for sink.slot in [xs]:
        await count_up()
    sink["k"], other = xs, 1
    await count_up()
    return [xs, other]


# -- what a class shares: D7 -------------------------------------------------------------------------


# A class's dict through an instance.
@body()
@workflow
async def class_dict_held() -> Any:
    c = await room()
    held = c.cache
    await touch_class()
    await echo(held["n"])
    await touch_class()
    return held["n"]


# A class's dict through the class.
@body()
@workflow
async def class_dict_of_the_class() -> Any:
    held = Room.cache
    await touch_class()
    await echo(held)
    return [held["n"], (await room()).cache["n"]]


# A class's dict through a gathered result.
@body()
@workflow
async def class_dict_of_a_gathered_result() -> Any:
    a, _ = await asyncio.gather(room(), ping())
    held = a.cache
    await touch_class()
    return held["n"]


# A class's dict through an element of a result.
@body()
@workflow
async def class_dict_of_an_element() -> Any:
    h = await house()
    held = h.rooms[1].cache
    await touch_class()
    return held["n"]


# A class's dict through a parameter.
@workflow
async def looks_at_the_class(c: Any) -> Any:
    held = c.cache
    await touch_class()
    return held["n"]


@body()
@workflow
async def class_dict_of_a_parameter() -> Any:
    return await looks_at_the_class(await room())


# A property that gives shared state, in a condition.
@body()
@workflow
async def shared_property_in_a_condition() -> Any:
    c = await room()
    rounds = 0
    while len(c.shared) < 4:
        await grow()
        rounds += 1
    return rounds


# A shared list of a result, bound once and looked at in a condition.
@body()
@workflow
async def shared_list_held_in_a_condition() -> Any:
    c = await room()
    xs = c.shared
    rounds = 0
    while len(xs) < 4:
        await grow()
        rounds += 1
    return rounds


# By every way that a Mirror has.
@body()
@workflow
async def mirror_attribute() -> Any:
    m = await gives("mirror")
    xs = m.xs
    await grow()
    return len(xs)


@body()
@workflow
async def mirror_item() -> Any:
    m = await gives("mirror")
    xs = m["k"]
    await grow()
    return len(xs)


@body()
@workflow
async def mirror_unary() -> Any:
    m = await gives("mirror")
    xs = -m
    await grow()
    return len(xs)


@body()
@workflow
async def mirror_binary() -> Any:
    m = await gives("mirror")
    xs, ys, zs = m + 1, 1 + m, m | {}
    await grow()
    return [len(xs), len(ys), len(zs)]


@body()
@workflow
async def mirror_compared() -> Any:
    m = await gives("mirror")
    xs, ys = m < 1, m == 1
    await grow()
    return [len(xs), len(ys)]


@body()
@workflow
async def mirror_unpacked() -> Any:
    m = await gives("mirror")
    xs, ys = m
    await grow()
    return [len(xs), len(ys)]


@body()
@workflow
async def mirror_starred() -> Any:
    m = await gives("mirror")
    xs = [*m]
    await grow()
    return [len(xs), len(xs[0])]


@body()
@workflow
async def mirror_looped_over() -> Any:
    m = await gives("mirror")
    for xs in m:
        await grow()
        await echo(len(xs))
    return [len(ys) for ys in m]


@body()
@workflow
async def mirror_methods_of_a_dict() -> Any:
    m = await gives("mirror")
    a, b, c = m.get("k"), m.copy(), m.keys()
    await grow()
    return [len(a), len(b), len(c)]


@body()
@workflow
async def mirror_methods_of_a_list() -> Any:
    m = await gives("mirror")
    a = m.pop()
    await grow()
    return len(a)


@body()
@workflow
async def mirror_in_a_with() -> Any:
    m = await gives("mirror")
    with m as xs:
        await grow()
        await echo(len(xs))
    return len(xs)


@body()
@workflow
async def mirror_called() -> Any:
    m = await gives("mirror")
    xs = m()
    await grow()
    return len(xs)


@body()
@workflow
async def mirror_matched() -> Any:
    m = await gives("mirror")
    match m:
        case Mirror(xs=held):
            await grow()
            return len(held)


# A Mirror that the body made.
@body()
@workflow
async def own_mirror() -> Any:
    m = Mirror()
    xs, ys, zs = m.xs, m[0], -m
    await grow()
    await echo(len(xs))
    await grow()
    return [len(xs), len(ys), len(zs)]


# Through `and`, `or` and a condition.
@body()
@workflow
async def mirror_through_operators() -> Any:
    m = Mirror()
    a = m.xs or [0]
    b = m and m.copy()
    c = m.get(1) if a else b
    await grow()
    return [len(a), len(b), len(c)]


# -- operators that look: each between two steps ------------------------------------------------------


# Arithmetic.
@body()
@workflow
async def meter_arithmetic() -> Any:
    m = Meter()
    await count_up()
    first = [m + 1, 1 + m, m * 3, -m, ~m, m @ 1]
    await count_up()
    await echo(m + 1, -m)
    return [first, m + 1]


# Comparison.
@body()
@workflow
async def meter_compared() -> Any:
    m = Meter()
    await count_up()
    if m == 1:
        await echo("one")
    await count_up()
    return [m == 2, m != 2, m > 1, 1 < m < 3, 2 in m]


# Truth.
@body()
@workflow
async def meter_truth() -> Any:
    m = Meter()
    await count_up()
    if m and not (not m):
        await echo("true")
    return bool(m) and await ping()


# Its length, its number, its text.
@body()
@workflow
async def meter_converted() -> Any:
    m = Meter()
    await count_up()
    await echo(len(m), int(m), str(m), f"{m:x}")
    await count_up()
    return [len(m), int(m), f"{m}", "%s" % m]  # noqa: UP031


# As an index.
@body()
@workflow
async def meter_as_an_index() -> Any:
    m, xs = Meter(), [10, 11, 12]
    await count_up()
    await echo(xs[m])
    await count_up()
    return [xs[m], xs[:m], list(range(m))]


# In a loop, and by unpacking.
@body()
@workflow
async def meter_looped_over() -> Any:
    m = Meter()
    seen = []
    for n in m:
        seen.append(n)
        await count_up()
    a, b = m
    return [seen, a, b, [*m], max(m)]


# `sum`, `sorted`, `max` call its operators.
@body()
@workflow
async def meter_in_builtins() -> Any:
    m = Meter()
    await count_up()
    await echo(sum([m, 1]))
    await count_up()
    return [sum([m, 1]), max(m, 0) is m, any([m]), [1, 2].index(m), [2, 2].count(m)]


# As an argument that a helper calls.
@body()
@workflow
async def meter_called() -> Any:
    m = Meter()
    await count_up()
    await echo(m(1))
    await count_up()
    return m(*[1, 2])


# In a slice and in a subscript of its own.
@body()
@workflow
async def meter_subscripts() -> Any:
    m = Meter()
    await count_up()
    await echo(m[1:2])
    await count_up()
    return [m["a"], m[:1]]


# In an assignment with an operator.
@body()
@workflow
async def meter_in_place() -> Any:
    n: Any = 1
    m = Meter()
    await count_up()
    n += m
    await echo(n)
    await count_up()
    n = m - 1 if False else m * 2
    return n


# A Meter of a step, in the condition of a `while`.
@body()
@workflow
async def meter_in_a_while() -> Any:
    m = await gives("meter")
    rounds = 0
    while m < 3:
        await count_up()
        rounds += 1
    return rounds


# Two Meters compared with a result between them.
@body()
@workflow
async def meter_around_an_await() -> Any:
    m = Meter()
    return [m + await count_up(), m * await count_up(), [m[0], await count_up(), m[0]]]


# A Meter in an assertion.
@body()
@workflow
async def meter_asserted() -> Any:
    m = Meter()
    await count_up()
    assert m == 1, f"{m}"
    await count_up()
    try:
        assert m == 1, f"{m}"
    except AssertionError as error:
        return str(error)
