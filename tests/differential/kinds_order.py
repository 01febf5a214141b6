"""Order of evaluation: a read of the world before, between and behind the steps of one statement, in every position."""

from __future__ import annotations

from typing import Any

from ckworkflow import now, sleep, workflow
from compiler.steps import (
    STATE,
    count_up,
    double,
    echo,
    helper,
    note,
    ping,
)
from differential.people import (
    Counter,
    body,
    count,
    gives,
    one,
    room,
    set_key,
)

# -- displays and calls ---------------------------------------------------------------------------------


@body()
@workflow
async def list_display() -> Any:
    return [count(), await count_up(), count(), await count_up(), count()]


@body()
@workflow
async def tuple_display() -> Any:
    x = count(), await count_up(), STATE["count"]
    return x


@body()
@workflow
async def set_display() -> Any:
    return sorted({count(), await count_up() + 10, count() + 100})


# The key before its value.
@body()
@workflow
async def dict_display() -> Any:
    return {count(): await count_up(), count() + 10: await count_up(), "end": count()}


# `**` between the keys.
@body()
@workflow
async def dict_display_with_stars() -> Any:
    return {"a": count(), "b": await count_up(), "c": count(), **STATE["rows"]}


# `*` between the items.
@body()
@workflow
async def list_display_with_stars() -> Any:
    return [*STATE["xs"], await count_up(), *STATE["xs"]]


# Arguments of a step.
@body()
@workflow
async def arguments_of_a_step() -> Any:
    return await echo(count(), await count_up(), count(), k=count(), m=await count_up(), n=count())


# Arguments of a helper.
@body()
@workflow
async def arguments_of_a_helper() -> Any:
    return double(await count_up()) + double(count()) * await count_up()


# The callee before its arguments.
@body()
@workflow
async def callee_before_its_arguments() -> Any:
    table = [len, max]
    return table[count()]([await count_up(), 7, 8])


# The method before its arguments.
@body()
@workflow
async def method_before_its_arguments() -> Any:
    c = await room()
    return c.describe(str(await count_up())) + c.describe()


# A property as the callee's owner.
@body()
@workflow
async def owner_before_its_arguments() -> Any:
    c = await room()
    return c.title.replace("0", str(await count_up()))


# Starred arguments.
@body()
@workflow
async def starred_arguments() -> Any:
    return await echo(*STATE["xs"], await count_up(), *STATE["xs"], k=count())


# Nested calls of steps.
@body()
@workflow
async def nested_calls() -> Any:
    return await echo(count(), await echo(count(), await count_up()), count())


# A helper that notes between arguments.
@body()
@workflow
async def notes_between_arguments() -> Any:
    return await echo(note("a"), await count_up(), note("b"))


# -- operators ------------------------------------------------------------------------------------------


@body()
@workflow
async def sum_of_reads() -> Any:
    return count() + await count_up() * 10 + count() * 100


@body()
@workflow
async def left_before_right() -> Any:
    return [STATE["count"] - await count_up(), await count_up() - STATE["count"]]


@body()
@workflow
async def comparison_chain() -> Any:
    return count() < await count_up() <= count() < await count_up()


@body()
@workflow
async def comparison_chain_stops() -> Any:
    return [count() > await count_up() > await count_up(), count()]


@body()
@workflow
async def boolean_chain() -> Any:
    return count() or await count_up() and count() or await count_up()


@body()
@workflow
async def membership() -> Any:
    return [await count_up() in STATE["xs"], count() in [await count_up(), 1]]


@body()
@workflow
async def shared_list_plus_step() -> Any:
    return STATE["xs"] + [await count_up()] + STATE["xs"]


@body()
@workflow
async def unary_of_a_read() -> Any:
    return [-count(), await count_up(), -count(), not count()]


# The condition before its branches.
@body()
@workflow
async def conditional() -> Any:
    x = await count_up() if not count() else count()
    y = count() if await count_up() == 2 else "other"
    return [x, y]


# -- subscripts, attributes, slices ----------------------------------------------------------------------


# The value before the index.
@body()
@workflow
async def value_before_index() -> Any:
    return STATE["xs"][await count_up()] + STATE["xs"][count()]


# The container is read before, its length is read behind.
@body()
@workflow
async def container_before_await() -> Any:
    return len(STATE["xs"][: await count_up() + 5])


# The ends of a slice in their order.
@body()
@workflow
async def slice_in_order() -> Any:
    xs = list(range(10))
    return [xs[count() : await count_up() + 5 : count() + 1], xs[await one(-2) :]]


# An attribute of an awaited result, and a read.
@body()
@workflow
async def attribute_behind_an_await() -> Any:
    return [(await room()).title, await count_up(), (await room()).title]


# -- targets ---------------------------------------------------------------------------------------------


# The value before the target's index.
@body()
@workflow
async def value_before_the_target() -> Any:
    d = {0: "a", 1: "b"}
    d[count()] = await count_up()
    return [d[0], d[1]]


# D10: the target's index before the value of `+=`.
@body()
@workflow
async def index_before_the_value() -> Any:
    d = {0: 0, 1: 0}
    d[count()] += await count_up()
    d[STATE["count"]] += await count_up()
    return [d[0], d[1]]


# D10 with a helper that notes.
@body()
@workflow
async def noting_index() -> Any:
    d = {"i/0": 0, "i/1": 0}
    d[note("i")] += await count_up()
    return d


# D10 with a world's key.
@body()
@workflow
async def world_key_as_the_index() -> Any:
    d = {"a": 0, "b": 0}
    await set_key("b")
    d[STATE["key"]] += await one()
    return d


# The old value before the step.
@body()
@workflow
async def old_value_before_the_step() -> Any:
    STATE["count"] += await count_up()
    await echo(count())
    return count()


# A local's old value before the step.
@body()
@workflow
async def local_before_the_step() -> Any:
    n = 1

    def change() -> int:
        nonlocal n
        n = 100
        return 5

    n += await one() + change()
    return n


# An attribute's old value before the step.
@body()
@workflow
async def attribute_before_the_step() -> Any:
    holder = Counter()
    holder.n += await one() + holder.up()
    return holder.n


# A list's `+=` of a step.
@body()
@workflow
async def shared_list_added_in_place() -> Any:
    xs = STATE["xs"]
    xs += [await count_up()]
    return [xs, xs is STATE["xs"]]


# The targets from left to right.
@body()
@workflow
async def targets_from_left_to_right() -> Any:
    xs = [0, 0, 0, 0]
    i, xs[i] = 1, await one(7)
    j = xs[j] = await one(2)
    return [i, j, xs]


# Tuple targets with reads of the world.
@body()
@workflow
async def tuple_targets_read_the_world() -> Any:
    d: dict[Any, Any] = {}
    d[count()], d[count() + 1] = await count_up(), count()
    return sorted(d.items())


# The iterable before the target.
@body()
@workflow
async def starred_targets() -> Any:
    first, *d = await gives("list")
    (a, b), c = [await one(1), count()], await count_up()
    return [first, d, a, b, c]


# A deletion's index.
@body()
@workflow
async def deletion_behind_a_step() -> Any:
    d = {0: "a", 1: "b"}
    await count_up()
    del d[count()]
    return list(d)


# An annotation in a body is not evaluated; a default is.
@body()
@workflow
async def annotated_assignment() -> Any:
    await count_up()
    x: Any = [count(), await count_up(), count()]
    return x


# -- texts -----------------------------------------------------------------------------------------------


@body()
@workflow
async def f_string() -> Any:
    return f"{count()} {await count_up()} {count()} {STATE['count']!r:>{await count_up() + 3}} {count()}"


@body()
@workflow
async def percent_format() -> Any:
    return "%s %s %s" % (count(), await count_up(), count())  # noqa: UP031


@body()
@workflow
async def format_call() -> Any:
    return f"{count()} {await count_up()} {count()}"


@body()
@workflow
async def join_of_reads() -> Any:
    return "-".join([str(count()), str(await count_up()), str(count())])


# -- walrus, lambda, nested functions ---------------------------------------------------------------------


@body()
@workflow
async def walrus_in_order() -> Any:
    return [x := count(), await count_up(), x, (x := count()), x]


@body()
@workflow
async def lambda_default_in_order() -> Any:
    f = lambda a=count(): [a, count()]  # noqa: E731
    return [await count_up(), f(), await count_up(), f()]


@body()
@workflow
async def decorator_and_default_in_order() -> Any:
    def deco(n: int) -> Any:
        return lambda f: lambda: [n, f(), count()]

    await count_up()

    @deco(count())
    def f(a: Any = note("default")) -> Any:
        return a

    await count_up()
    return f()


# -- statements ------------------------------------------------------------------------------------------


# `return` of a read behind a lazy step.
@body()
@workflow
async def return_reads() -> Any:
    await count_up()
    return STATE["count"]


# `raise` of a read behind a lazy step.
@body()
@workflow
async def raise_reads() -> Any:
    await count_up()
    raise ValueError(count())


# `assert` of a read behind a lazy step.
@body()
@workflow
async def assert_reads() -> Any:
    await count_up()
    assert count() == 1
    await count_up()
    return count()


# A log line between two steps.
@body()
@workflow
async def note_between_steps() -> Any:
    await count_up()
    note("first")
    await count_up()
    note("second")


# Time between steps.
@body()
@workflow
async def time_between_steps() -> Any:
    a = now()
    await sleep(30)
    b = now()
    await sleep(30)
    return [(b - a).total_seconds() >= 30, (now() - b).total_seconds() >= 30]


# A wait, then a read.
@body()
@workflow
async def read_behind_a_sleep() -> Any:
    await count_up()
    await sleep(10)
    await count_up()
    return [count(), await ping(), count()]


# A helper's coroutine between steps.
@body()
@workflow
async def helper_coroutine_between_steps() -> Any:
    await count_up()
    x = await helper(count())
    await count_up()
    return [x, await helper(count())]


# A call made early and awaited late: its arguments are read early.
@body()
@workflow
async def called_early_awaited_late() -> Any:
    call = echo(count(), note("call"))
    await count_up()
    x = await call
    return [x, count()]
