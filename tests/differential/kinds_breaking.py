"""Bodies with which people tried to break the compiler: cancelled and failing tasks, aliases of parts, loops that unpack.

Each was compared by hand first; those of `tasks` also run in two processes that interrupt each other.
"""

# ruff: noqa: PLE0643, F821, B018, B007, C400, E731, F841, PLR2004, PLW0603, PT015, S101, B011, PERF401, C416, RUF005, TRY002, BLE001, SIM105, EM101, TRY003, RET504, ARG001, PLR1714, C405, RUF015, FURB171

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from ckworkflow import FatalError, sleep, step, workflow
from compiler.steps import (
    NOTES,
    STATE,
    clean_up,
    count_up,
    echo,
    note,
    ping,
)
from differential import people
from differential.people import (
    Meter,
    Mirror,
    body,
    fails,
    gives,
    grow,
    house,
    passes_on,
    raise_level,
    room,
)


@step
async def meters() -> Any:
    return [Meter(), Meter()]


@step
async def meter_map() -> Any:
    return {"a": Meter(), "b": Meter()}


@step
async def meter() -> Any:
    return Meter()


@step
async def mirror() -> Any:
    return Mirror()


@body()
@workflow
async def a01_list_display_unpack() -> Any:
    m = await gives("meter")
    n = await gives("meter")
    for a, b in [m, n]:
        await echo(a, b)
        await count_up()


@body()
@workflow
async def a02_await_unpack() -> Any:
    for a, b in await meters():
        await echo(a, b)
        await count_up()


@body()
@workflow
async def a03_reversed_unpack() -> Any:
    ms = await meters()
    for a, b in reversed(ms):
        await echo(a, b)
        await count_up()


@body()
@workflow
async def a04_values_unpack() -> Any:
    ms = await meter_map()
    for a, b in ms.values():
        await echo(a, b)
        await count_up()


@body()
@workflow
async def a05_name_unpack() -> Any:
    ms = await meters()
    for a, b in ms:
        await echo(a, b)
        await count_up()


@body()
@workflow
async def a06_tuple_unpack() -> Any:
    m = await gives("meter")
    for a, b in (m, m):
        await count_up()
        await echo(a, b)


@body()
@workflow
async def b01_unpack_of_owned_mirror() -> Any:
    m = await gives("mirror")
    a, b = m
    await grow()
    await echo(a)


@body()
@workflow
async def b02_loop_of_owned_mirror_settled() -> Any:
    m = await gives("mirror")
    rows = []
    for xs in m:
        rows.append(xs)
    await grow()
    await echo(rows)


@body()
@workflow
async def b03_loop_of_owned_mirror_list() -> Any:
    m = await gives("mirror")
    for xs in [m]:
        for ys in xs:
            pass
    await grow()
    await echo(ys)


@body()
@workflow
async def b04_last_of_loop() -> Any:
    m = await gives("mirror")
    xs = None
    for xs in m:
        pass
    await grow()
    await echo(xs)
    await grow()
    return xs


@body()
@workflow
async def b05_nested_unpack() -> Any:
    m = await gives("mirror")
    n = [m]
    ((a, b),) = n
    await grow()
    await echo(a)


@body()
@workflow
async def c01_comprehension_stores_subscript() -> Any:
    await count_up()
    [0 for STATE["count"] in (7, 8)]
    await count_up()


@body()
@workflow
async def c02_comprehension_stores_attribute() -> Any:
    await count_up()
    ys = [0 for people.LEVEL in (7, 8)]
    await raise_level()
    return ys


@body()
@workflow
async def c03_gathered_comprehension_stores() -> Any:
    await count_up()
    await asyncio.gather(*[echo(1) for STATE["count"] in (7, 8)])
    await count_up()


@body()
@workflow
async def d01_star_star_int() -> Any:
    m = await gives("dict")
    opts = 5
    try:
        await echo(m["nothing"], **opts)
    except KeyError:
        return "key"
    except TypeError:
        return "type"


@body()
@workflow
async def d02_star_star_bad_keys() -> Any:
    m = await gives("dict")
    opts = {1: 2}
    try:
        await echo(m["nothing"], **opts)
    except KeyError:
        return "key"
    except TypeError:
        return "type"


@body()
@workflow
async def d03_star_star_double() -> Any:
    m = await gives("dict")
    opts = {"a": 2}
    try:
        await echo(m["nothing"], a=1, **opts)
    except KeyError:
        return "key"
    except TypeError:
        return "type"


@body()
@workflow
async def d04_property_then_double_keyword() -> Any:
    c = await room()
    opts = {"a": 2}
    await count_up() if False else None
    try:
        await echo(c.broken, a=1, **opts)
    except ValueError:
        return "value"
    except TypeError:
        return "type"


@body()
@workflow
async def e01_alias_of_a_part() -> Any:
    x = await room()
    y = x
    await echo(x.next)
    await echo(y)


@body()
@workflow
async def e02_list_of_a_part() -> Any:
    x = await room()
    rows = [x]
    await echo(x.next)
    return rows


@body()
@workflow
async def e03_append_of_a_part() -> Any:
    rows = []
    x = await room()
    rows.append(x)
    await echo(x.next)
    await echo(rows)
    return x


@body()
@workflow
async def e04_alias_return() -> Any:
    x = await room()
    y = [x]
    return [x.next, y]


@body()
@workflow
async def e05_alias_before_and_fenced() -> Any:
    x = await room()
    y = x
    note("f")
    await echo(x.next)
    await echo(y)
    return y


@body()
@workflow
async def e06_gathered_list() -> Any:
    x, z = await asyncio.gather(room(), room("b"))
    both = (x, z)
    await echo(x.next, z.name)
    await echo(both)


@body()
@workflow
async def e07_same_argument() -> Any:
    x = await room()
    await echo(x, x.next)
    await echo(x)


@body()
@workflow
async def e08_same_argument_other_order() -> Any:
    x = await room()
    await echo(x.next, x)
    await echo(x)


@workflow
async def asserts() -> Any:
    await count_up()
    assert False


@workflow
async def divides() -> Any:
    await count_up()
    1 / 0


@workflow
async def indexes() -> Any:
    await count_up()
    return [][0]


@body()
@workflow
async def f01_gathered_assert() -> Any:
    try:
        await asyncio.gather(asserts(), echo(1))
    except AssertionError:
        await count_up()


@body()
@workflow
async def f02_gathered_division() -> Any:
    try:
        await asyncio.gather(divides(), echo(1))
    except ZeroDivisionError:
        await count_up()


@body()
@workflow
async def f03_task_assert() -> Any:
    t = asyncio.create_task(asserts())
    try:
        await t
    except AssertionError:
        await count_up()


@body()
@workflow
async def f04_group_assert() -> Any:
    try:
        async with asyncio.TaskGroup() as g:
            g.create_task(asserts())
            g.create_task(echo(5))
    except* AssertionError:
        await count_up()


@body()
@workflow
async def f05_gather_exceptions() -> Any:
    r = await asyncio.gather(asserts(), echo(1), return_exceptions=True)
    note(type(r[0]).__name__)
    await count_up()


@body()
@workflow
async def f06_inlined_assert() -> Any:
    try:
        await asserts()
    except AssertionError:
        note("caught")
    await count_up()


@workflow
async def reraises() -> Any:
    try:
        int("x")
    except ValueError:
        await count_up()
        raise


@body()
@workflow
async def f07_gathered_reraise() -> Any:
    try:
        await asyncio.gather(reraises(), echo(1))
    except ValueError:
        await count_up()


@workflow
async def guarded() -> Any:
    try:
        await echo("a")
        await echo("b")
    except asyncio.CancelledError:
        await echo("cleanup")
        raise


@body()
@workflow
async def g01_cancel_a_task() -> Any:
    t = asyncio.create_task(guarded())
    await ping()
    t.cancel()
    try:
        await t
    except asyncio.CancelledError:
        return "cancelled"
    return "done"


@body()
@workflow
async def g02_cancel_by_failing_sibling() -> Any:
    try:
        async with asyncio.TaskGroup() as g:
            g.create_task(guarded())
            g.create_task(asserts())
    except* AssertionError:
        note("failed")


@body()
@workflow
async def g03_cancel_from_sibling_workflow() -> Any:
    async def killer(t):
        await ping()
        t.cancel()

    t = asyncio.create_task(guarded())
    r = await asyncio.gather(killer(t), t, return_exceptions=True)
    return [repr(x) for x in r]


@body()
@workflow
async def g04_end_cancels() -> Any:
    t = asyncio.create_task(guarded())
    await ping()
    return 1


@body()
@workflow
async def g05_end_cancels_by_error() -> Any:
    t = asyncio.create_task(guarded())
    await ping()
    assert False


class Span(timedelta):
    def total_seconds(self) -> float:
        return 1.0 + STATE["count"]


SPAN = Span(seconds=5)


@body("1 second")
@workflow
async def h03_sleep_of_parameter(d: Any) -> Any:
    await count_up()
    await sleep(d)
    await count_up()


@body(0)
@body(1)
@workflow
async def i01_loop_may_not_run(n: int) -> Any:
    for i in range(n):
        x = [i]
    await ping()
    try:
        await echo(x)
    except UnboundLocalError:
        await echo("unbound")


@body()
@workflow
async def i02_while_true_else() -> Any:
    k = 0
    while True:
        k = k + 1
        await count_up()
        if k < 3:
            continue
        break
    else:
        await echo("never")
    await echo(k)


@body()
@workflow
async def i03_try_part() -> Any:
    try:
        x = await room()
    except FatalError:
        await echo("failed")
    try:
        await echo(x.name)
    except UnboundLocalError:
        await echo("unbound")


@body(0)
@body(1)
@workflow
async def i04_part_unbound_return(n: int) -> Any:
    if n:
        x = await room()
    await count_up()
    return x.title


@body()
@workflow
async def i05_match_bind() -> Any:
    v = await gives("list")
    match v:
        case [a, *rest]:
            pass
        case _:
            a = rest = None
    await count_up()
    await echo(a, rest)
    rest.append(3)
    await echo(rest)


@body()
@workflow
async def j01_loop_rebinding_iterable() -> Any:
    xs = [1, 2, 3]
    for x in xs:
        await echo(x)
        xs = [9]
        xs.append(x)
    await echo(xs)


@body()
@workflow
async def j02_loop_appending() -> Any:
    xs = [1, 2]
    for x in xs:
        await count_up()
        if len(xs) < 5:
            xs.append(x)
        await echo(xs)
    else:
        await ping()
    return xs


@body([1, 2, 3])
@workflow
async def j03_loop_continue_break(xs: Any) -> Any:
    for i, x in enumerate(xs):
        try:
            if i == 1:
                continue
            await echo(x)
            if i == 2:
                break
        finally:
            await count_up()
    else:
        await echo("else")
    await echo(i)


@body([[1, 2], [3, 4]])
@workflow
async def j04_nested_loops(xs: Any) -> Any:
    for x in xs:
        for y in x:
            await echo(y)
            await count_up()
        else:
            await echo(x)


@body()
@workflow
async def j05_loop_over_step_dicts() -> Any:
    d = await gives("dict")
    for k, v in d.items():
        await echo(k, v)
        await count_up()
    for k in d:
        await echo(k)


@body()
@workflow
async def j06_inner_loop_of_shared() -> Any:
    for xs in [[1], STATE["xs"]]:
        for x in xs:
            await echo(x)
            if len(STATE["xs"]) < 6:
                await grow()


@body()
@workflow
async def j07_inner_named_shared() -> Any:
    xs = STATE["xs"]
    rows = [[1], xs]
    for row in rows:
        for x in row:
            await grow() if x == 1 else None
            await echo(x)
            if x == 9:
                return rows


@body()
@workflow
async def j08_shared_in_display_loop() -> Any:
    xs = STATE["xs"]
    for row in [xs]:
        await grow()
        await echo(row)


@body()
@workflow
async def j09_shared_zip() -> Any:
    xs = STATE["xs"]
    ys = [1, 2, 3, 4, 5]
    for x, y in zip(xs, ys):
        await grow()
        await echo(x, y)


@body()
@workflow
async def j10_ghost_part() -> Any:
    g = await gives("ghost")
    await echo(g.a, g.b)
    await count_up()
    return [g.a, g.name]


@body()
@workflow
async def j11_unpacked_meter_plain() -> Any:
    m = await gives("meter")
    a, b = m
    await count_up()
    c, d = m
    return [a, b, c, d]


@body()
@workflow
async def j12_star_meter_in_call() -> Any:
    m = await gives("meter")
    await count_up()
    await echo(*m)
    await count_up()
    await echo(*m)


@body()
@workflow
async def j13_gather_over_meter() -> Any:
    m = await gives("meter")
    await count_up()
    await asyncio.gather(*[echo(x) for x in m])
    await count_up()
    await asyncio.gather(*(echo(x) for x in m))


@body()
@workflow
async def j14_gather_over_list_of_meters() -> Any:
    m = await meters()
    await count_up()
    await asyncio.gather(*[echo(a, b) for a, b in m])
    await count_up()
    await asyncio.gather(*[echo(a, b) for a, b in m])


async def lines():
    try:
        yield 1
        yield 2
    finally:
        NOTES.append(f"closed {STATE['count']}")


@body()
@workflow
async def k01_left_generator() -> Any:
    g = lines()
    async for x in g:
        await echo(x)
        break
    await count_up()
    await count_up()


@body()
@workflow
async def k02_closed_twice() -> Any:
    g = lines()
    await anext(g)
    await count_up()
    await g.aclose()
    await g.aclose()
    await count_up()


@workflow
async def leaves() -> Any:
    g = lines()
    await anext(g)
    await count_up()


@body()
@workflow
async def k03_inlined_left() -> Any:
    await leaves()
    await count_up()
    await asyncio.gather(leaves(), leaves())


@body()
@workflow
async def l01_wait_first() -> Any:
    ts = {asyncio.create_task(echo(i)) for i in range(3)}
    done, pending = await asyncio.wait(ts, return_when=asyncio.FIRST_COMPLETED)
    for p in pending:
        p.cancel()
    await count_up()
    return [sorted(t.result() for t in done), len(pending)]


@workflow
async def asserts_late() -> Any:
    await count_up()
    await count_up()
    assert STATE is None


@body()
@workflow
async def l03_shield() -> Any:
    t = asyncio.ensure_future(asyncio.shield(guarded()))
    await ping()
    t.cancel()
    try:
        await t
    except asyncio.CancelledError:
        await count_up()
    return "x"


class Holder:
    @staticmethod
    @workflow
    async def own(x: Any = 1) -> Any:
        __a = await gives("dict")
        await echo(__a["id"])
        for __k in [1, 2]:
            await echo(__k)
        return __a["id"]


body()(Holder.own)


class _Under:
    @staticmethod
    @workflow
    async def under() -> Any:
        __m = await gives("list")
        __xs = [1]
        for __x in __xs:
            await echo(__x)
        await echo(__m[0])
        return [__m[1], __class__.__name__]


body()(_Under.under)


@body()
@workflow
async def m01_frozen_set_member() -> Any:
    s = await gives("set")
    for x in s:
        await echo(x)
        await count_up()


@body()
@workflow
async def m02_two_parts() -> Any:
    x = await room()
    z = await house()
    await echo(z.main.name, z.owner["ids"][0])
    return [x.name, z.main.next, z.main.tags]


@body()
@workflow
async def m03_two_names_parts_return() -> Any:
    x = await room()
    z = await room("b")
    return [x.name, z.title]


@body()
@workflow
async def m04_return_in_finally() -> Any:
    x = await room()
    try:
        await count_up()
    finally:
        return x.title


@body()
@workflow
async def m05_return_part_with_task() -> Any:
    async def bg():
        try:
            await sleep("1 hour")
        finally:
            note("bg ends")

    t = asyncio.create_task(bg())
    await ping()
    x = await room()
    return x.title


@body()
@workflow
async def m06_part_in_loop() -> Any:
    for i in range(3):
        x = await room()
        await echo(x.next, i)
    return x.tags


@body()
@workflow
async def m07_part_handler() -> Any:
    x = await gives("none")
    try:
        await echo(x.year)
    except AttributeError as e:
        await echo(str(e))
    finally:
        await count_up()


@body()
@workflow
async def m08_cached_property() -> Any:
    x = await room()
    await echo(x.once)
    await count_up()
    return x.once


@body()
@workflow
async def m09_cached_property_alias() -> Any:
    x = await room()
    y = x
    await echo(x.once)
    await count_up()
    return y


@body()
@workflow
async def n01_conditional_alias() -> Any:
    xs = []
    ys = xs
    await grow()
    ys.append(await ping())
    await echo(xs)
    return ys


@body()
@workflow
async def n02_dict_alias() -> Any:
    xs = []
    d = {"k": xs}
    xs.append(1)
    await echo(d)
    xs.append(await ping())
    await echo(d)
    return d


@body()
@workflow
async def n03_loop_alias() -> Any:
    out = []
    for row in [[1], [2]]:
        out.append(row)
    for row in out:
        await echo(row)
        await grow()
    return out


@body()
@workflow
async def n04_mirror_star() -> Any:
    m = await gives("mirror")
    ms = [m]
    for a in ms:
        b = a
    c, _ = b
    await grow()
    await echo(c)


@body()
@workflow
async def n05_mirror_enumerate() -> Any:
    m = await gives("mirror")
    for i, a in enumerate(m):
        pass
    await grow()
    await echo(a)


@body()
@workflow
async def n06_mirror_zip() -> Any:
    m = await gives("mirror")
    n = [1, 2]
    for a, i in zip(m, n):
        pass
    await grow()
    await echo(a, n)


@body()
@workflow
async def o01_huge_int_repr() -> Any:
    await count_up()
    try:
        x = f"{1:q}"
    except ValueError:
        await count_up()
    return 1


@body()
@workflow
async def o02_error_looks_back() -> Any:
    try:
        await count_up()
        {}["x"]
    except KeyError:
        return STATE["count"]


@body()
@workflow
async def o03_error_finally_return() -> Any:
    try:
        await count_up()
        {}["x"]
    finally:
        return [1]


@workflow
async def tidy() -> Any:
    try:
        await sleep("1 hour")
    finally:
        await clean_up()


@body()
@workflow
async def a01_end_cancels_sleeping_task_with_cleanup() -> Any:
    t = asyncio.create_task(tidy())
    await ping()
    return 1


@body()
@workflow
async def a02_cancel_and_await() -> Any:
    t = asyncio.create_task(tidy())
    await ping()
    t.cancel()
    try:
        await t
    except asyncio.CancelledError:
        await echo("cancelled")
    return 1


@body()
@workflow
async def a03_failing_group() -> Any:
    try:
        async with asyncio.TaskGroup() as g:
            g.create_task(tidy())
            g.create_task(fails())
    except* FatalError:
        note("failed")
    await echo("after")


@workflow
async def recovers() -> Any:
    try:
        await fails()
    except FatalError:
        await clean_up()
        raise


@workflow
async def recovers_value() -> Any:
    try:
        int("x")
    except ValueError:
        await clean_up()
        raise


@workflow
async def tidies() -> Any:
    try:
        [][0]
    finally:
        await clean_up()


@body()
@workflow
async def b01_recover_in_gather() -> Any:
    try:
        await asyncio.gather(recovers(), echo(1))
    except FatalError:
        await echo("after")


@body()
@workflow
async def b02_recover_in_task() -> Any:
    t = asyncio.create_task(recovers())
    await asyncio.wait([t])
    await echo("after")


@body()
@workflow
async def b03_recover_value_task() -> Any:
    t = asyncio.create_task(recovers_value())
    await asyncio.wait([t])
    await echo("after")


@body()
@workflow
async def b04_tidies_gather() -> Any:
    r = await asyncio.gather(tidies(), return_exceptions=True)
    await echo("after")


@body()
@workflow
async def b05_tidies_root() -> Any:
    try:
        [][0]
    finally:
        await clean_up()


@body()
@workflow
async def b06_tidies_gather_alone_uncaught() -> Any:
    await asyncio.gather(tidies(), echo(1))


@workflow
async def suppresses() -> Any:
    try:
        await sleep("1 hour")
    except asyncio.CancelledError:
        await clean_up("x")
    await echo("more")


@body()
@workflow
async def c01_suppressed_cancel() -> Any:
    t = asyncio.create_task(suppresses())
    await ping()
    t.cancel()
    await t
    await echo("end")


@body()
@workflow
async def c02_suppressed_cancel_at_end() -> Any:
    t = asyncio.create_task(suppresses())
    await ping()


@workflow
async def two() -> Any:
    try:
        await echo("a")
        await echo("b")
    except asyncio.CancelledError:
        note("cancelled")
        raise


@body()
@workflow
async def c03_cancel_running_ahead() -> Any:
    t = asyncio.create_task(two())
    await ping()
    t.cancel()
    await asyncio.wait([t])
    await count_up()
    return t.cancelled()


@workflow
async def three() -> Any:
    x = 1
    try:
        await echo("a")
        x = 2
        await echo("b")
    finally:
        await echo("c", x)


@body()
@workflow
async def c04_cancel_finally() -> Any:
    t = asyncio.create_task(three())
    await ping()
    t.cancel()
    await asyncio.wait([t])
    return t.cancelled()


@body()
@workflow
async def c05_end_two() -> Any:
    t = asyncio.create_task(three())
    await ping()
    return 1


@body()
@workflow
async def c06_gather_cancelled() -> Any:
    g = asyncio.gather(three(), two())
    await ping()
    g.cancel()
    try:
        await g
    except asyncio.CancelledError:
        await echo("x")


@body()
@workflow
async def c07_nested_gather_cancelled() -> Any:
    async def inner():
        await asyncio.gather(three(), two())

    t = asyncio.create_task(inner())
    await ping()
    t.cancel()
    await asyncio.wait([t])
    await echo("end")


@body()
@workflow
async def c08_first_failure_returns() -> Any:
    try:
        await asyncio.gather(three(), fails())
    except FatalError:
        return "failed"


@workflow
async def w(x: Any) -> Any:
    await count_up()
    return await echo(x)


@body()
@workflow
async def f01_dict_keys_deep() -> Any:
    ms = await gives("frozen")
    for x in [ms]:
        await echo(x)
    for i, x in enumerate([ms]):
        await echo(i, x)


@body()
@workflow
async def f02_display_names() -> Any:
    a = [1, 2]
    b = [3, 4]
    for x, y in (a, b):
        await echo(x, y)
        await count_up()
        b.append(5) if False else None


@body()
@workflow
async def f03_display_changed_inner() -> Any:
    a = [1, 2]
    b = [3]
    try:
        for x, y in [a, b]:
            await echo(x, y)
            b.append(4)
    except ValueError:
        await echo("unpack")
    return [a, b]


@body()
@workflow
async def f04_shared_list_unpack() -> Any:
    xs = STATE["xs"]
    try:
        for x, y in [xs, xs]:
            await echo(x, y)
            await grow()
    except ValueError:
        await echo("too many")


@body()
@workflow
async def f05_unpack_shared_in_values() -> Any:
    d = {"a": STATE["xs"], "b": STATE["xs"]}
    try:
        for x, y in d.values():
            await echo(x, y)
            await grow()
    except ValueError:
        await echo("too many")


@body()
@workflow
async def f06_reversed_mirror_items() -> Any:
    m = await gives("mirror")
    rows = [m, m]
    try:
        for x, y in reversed(rows):
            await echo(x)
            await grow()
    except ValueError:
        await echo("too many")


@body()
@workflow
async def a01_always_fence_over_a_mirror() -> Any:
    m = await gives("mirror")
    await ping()
    a, people.HOOKS["x"] = m
    await grow()
    await echo(a)


@body()
@workflow
async def a02_loop_header_fenced() -> Any:
    m = await gives("mirror")
    await ping()
    a = None
    for a, people.HOOKS["x"] in [m]:
        pass
    await grow()
    await echo(a)


@body(Mirror())
@workflow
async def a03_parameter(m: Any) -> Any:
    if await ping():
        a, b = m
    else:
        a = b = 1
    await grow()
    await echo(m, [1])
    return 1


@body(Mirror())
@workflow
async def a04_parameter_unpack(m: Any) -> Any:
    x = await verify_(1)
    if x:
        pass
    a, b = m
    await grow()
    await echo(a)


@step
async def verify_(x: Any) -> Any:
    return x


@body([1, 2])
@workflow
async def a05_class_keeps_itself(xs: Any) -> Any:
    s = await gives("sink")
    rows = [1]
    if await verify_(rows):
        pass
    s == rows
    await count_up()
    await echo(rows)


@body()
@workflow
async def b01_finally_in_loop_with_break() -> Any:
    for i in [1, 2, 3]:
        try:
            await echo(i)
            if i == 2:
                break
        finally:
            await count_up()
    for j in [1, 2]:
        try:
            continue
        finally:
            await echo(j)
    return [i, j]


@body()
@workflow
async def b02_while_assert() -> Any:
    n = 0
    try:
        while n < 3:
            n = n + 1
            await count_up()
            assert n < 2, f"n is {n}"
    except AssertionError as e:
        await echo(str(e))
    return n


@body()
@workflow
async def b03_dict_iteration_changed() -> Any:
    xs = [1]
    for x in xs:
        ys = xs
        if x < 4:
            ys.append(x + 1)
        await echo(x)
    return xs


@body()
@workflow
async def b04_global_bound_in_match() -> Any:
    global LEVEL_HERE
    await count_up()
    match [1, 2]:
        case [a, LEVEL_HERE]:
            pass
    await echo(LEVEL_HERE)


LEVEL_HERE = 0


@body()
@workflow
async def b05_except_name_rebinding() -> Any:
    e = [1]
    try:
        {}["x"]
    except KeyError as e:
        await count_up()
    try:
        await echo(e)
    except UnboundLocalError:
        await echo("gone")


@body()
@workflow
async def c01_part_of_gathered_twice() -> Any:
    a, b = await asyncio.gather(room(), room("b"))
    await echo(a.title, b.title, [a.next, a.next], {"k": b.tags})
    await echo(a)
    return b


@body()
@workflow
async def c02_part_in_branch() -> Any:
    a = await room()
    k = 1
    if k:
        await echo(a.title)
    return a.title


@body()
@workflow
async def c03_part_return_in_loop() -> Any:
    for i in [1, 2]:
        a = await room(f"r{i}")
        if i == 2:
            return [a.title, i]


@workflow
async def inner_part(x: Any) -> Any:
    a = await room(x)
    await count_up()
    return [a.title, a]


@body()
@workflow
async def c04_inlined_part() -> Any:
    r = await inner_part("x")
    await echo(r)
    s, t = await asyncio.gather(inner_part("y"), inner_part("z"))
    return [r, s, t]


@body()
@workflow
async def c05_del_and_part() -> Any:
    a = await room()
    b = a
    del a
    try:
        await echo(b.next)
        await echo(a)
    except UnboundLocalError:
        await echo(b)


@body()
@workflow
async def c06_loop_alias_of_part() -> Any:
    rows = []
    for i in [1, 2]:
        a = await room()
        rows.append(a)
        await echo(a.next)
    return rows


@body()
@workflow
async def d01_assert_root_with_task() -> Any:
    async def bg() -> None:
        await count_up()
        await count_up()

    t = asyncio.create_task(bg())
    await ping()
    assert not [1]


@body()
@workflow
async def d02_error_then_task() -> Any:
    t = asyncio.create_task(passes_on(1))
    try:
        await ping()
        [][1]
    except IndexError:
        t.cancel()
    await asyncio.wait([t])
    return t.cancelled()


@body()
@workflow
async def e01_star_star_with_own_keys() -> Any:
    o = {"a": 1}
    await count_up()
    await echo(1, **o)
    o = await gives("dict")
    await echo(2, **o)
    try:
        await echo(3, **await gives("int"))
    except TypeError:
        await echo("t")


@workflow
async def ab() -> Any:
    try:
        await echo("a")
        await echo("b")
    except asyncio.CancelledError:
        if await clean_up() is None:
            raise


@body()
@workflow
async def tg01() -> Any:
    try:
        async with asyncio.TaskGroup() as g:
            g.create_task(ab())
            g.create_task(fails())
    except* FatalError:
        note("failed")
    await echo("after")


@workflow
async def abc() -> Any:
    try:
        await echo("a")
        await ping()
        await echo("c")
    except asyncio.CancelledError:
        if await clean_up() is None:
            raise


@body()
@workflow
async def tg02() -> Any:
    try:
        async with asyncio.TaskGroup() as g:
            g.create_task(abc())
            g.create_task(fails())
    except* FatalError:
        note("failed")
    await echo("after")


@body()
@workflow
async def tg03() -> Any:
    try:
        await asyncio.gather(abc(), fails())
    except FatalError:
        note("end")
    return 1


@body()
@workflow
async def tg04() -> Any:
    async def killer(t: Any) -> None:
        try:
            await fails()
        except FatalError:
            t.cancel()

    t = asyncio.create_task(abc())
    k = asyncio.create_task(killer(t))
    await asyncio.wait([t, k])
    await echo("end")


@workflow
async def loopy() -> Any:
    try:
        for x in [1, 2, 3]:
            await echo(x)
    finally:
        if await ping():
            await clean_up()
            note("x")


@body()
@workflow
async def tg05() -> Any:
    try:
        async with asyncio.TaskGroup() as g:
            g.create_task(loopy())
            g.create_task(loopy())
            g.create_task(fails())
    except* FatalError:
        note("failed")
    await echo("after")


@workflow
async def raises_late() -> Any:
    if await ping():
        raise ValueError("x")


@body()
@workflow
async def tg06() -> Any:
    try:
        async with asyncio.TaskGroup() as g:
            g.create_task(abc())
            g.create_task(raises_late())
    except* ValueError:
        note("failed")
    await echo("after")


@body()
@workflow
async def tg07_nested_strict() -> Any:
    async def inner() -> Any:
        try:
            await echo("a")
            await ping()
            await echo("c")
        except asyncio.CancelledError:
            await clean_up()
            raise

    try:
        async with asyncio.TaskGroup() as g:
            g.create_task(inner())
            g.create_task(fails())
    except* FatalError:
        note("failed")
    await echo("after")


@body()
@workflow
async def tg08_smallest() -> Any:
    await asyncio.gather(abc(), fails(), return_exceptions=True)


@workflow
async def three_steps() -> Any:
    await echo("a")
    await ping()
    await echo("c")


@body()
@workflow
async def tg09_no_handler() -> Any:
    try:
        async with asyncio.TaskGroup() as g:
            g.create_task(three_steps())
            g.create_task(fails())
    except* FatalError:
        note("failed")
    await echo("after")


@body()
@workflow
async def tg10_gather_end() -> Any:
    await asyncio.gather(abc(), fails())


@workflow
async def passes_a_title() -> None:
    found = await room()
    await echo(found.title)


# A part that has no value raises before a task beside goes on; the process dies in between.
@body()
@workflow
async def missing_part_beside_a_task() -> Any:
    async def beside() -> Any:
        return await echo("beside")

    task = asyncio.create_task(beside())
    number = await count_up()
    rows = await echo([])
    await echo(number, rows[0])
    return await task


# A part that is code runs in its turn, beside a sibling whose step changes what it looks at.
@body()
@workflow
async def property_beside_a_sibling_that_changes_the_world() -> None:
    await asyncio.gather(count_up(), passes_a_title())


@workflow
async def counts_up() -> None:
    await count_up()


# An argument that is the world's, before an await among the arguments: it is stored when both are there.
@body()
@workflow
async def shared_argument_before_an_await() -> None:
    found = await room()
    await echo(found.shared, await counts_up())


@body()
@workflow
async def shared_name_before_an_await() -> None:
    found = (await room()).shared
    if await ping():
        await echo(found, await count_up())


# Their sleeps end in one moment: both are recorded, and the body hears of the first and lets go of the second.
@body()
@workflow
async def sleeps_of_a_group_that_end_in_one_moment() -> list[str]:
    async def sleeps() -> None:
        await sleep(5)
        raise ValueError("slept")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(sleeps())
            group.create_task(sleeps())
    except ExceptionGroup as caught:
        return [str(error) for error in caught.exceptions]
    return []
