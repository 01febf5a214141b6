"""The faults of the review by name that have no theme of their own, each in another form than in `faults.py`."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from ckworkflow import FatalError, sleep, step, workflow
from compiler.steps import (
    count_up,
    echo,
    note,
    noting,
    ping,
)
from differential import people
from differential.people import (
    body,
    count,
    fails,
    gives,
    one,
    raise_level,
    room,
)

flag = False
GLOBALS = ("flag",)


@step
async def own(self: Any, value: Any = 0) -> Any:
    """D36: its parameter is called `self`."""
    return [self, value]


def with_client(f: Any) -> Any:
    """D21: a decorator that gives an argument."""

    @functools.wraps(f)
    async def wrapper(*args: Any) -> Any:
        return await f("client", *args)

    return wrapper


@step
@with_client
async def deliver(client: Any, text: Any) -> Any:
    return [client, text]


# -- D2: names of the body's own ----------------------------------------------------------------------------


# Its own attributes.
@body()
@workflow
async def own_attributes() -> Any:
    await ping()
    return [own_attributes.name, own_attributes.__name__, own_attributes.__doc__]


# Recursion by two branches.
@body(2)
@workflow
async def two_branches(n: int) -> Any:
    if n == 0:
        return await one()
    return sum(await asyncio.gather(two_branches(n - 1), two_branches(n - 1)))


# Mutual recursion.
@workflow
async def odd(n: int) -> Any:
    await echo("odd", n)
    return False if n == 0 else await even(n - 1)


@body(3)
@workflow
async def even(n: int) -> Any:
    await echo("even", n)
    return True if n == 0 else await odd(n - 1)


# A parameter, a local and a nested function with the body's own name.
@body(1)
@workflow
async def named_as_its_parameter(named_as_its_parameter: int) -> Any:
    await echo(named_as_its_parameter)
    return named_as_its_parameter + 1


@body()
@workflow
async def named_as_a_local() -> Any:
    named_as_a_local = await one(3)
    await echo(named_as_a_local)
    return named_as_a_local


@body()
@workflow
async def named_as_a_nested_function() -> Any:
    async def named_as_a_nested_function() -> Any:
        return await one(4)

    return await named_as_a_nested_function()


# A class's workflows, private names, and a nested class.
class Shop:
    TAX = 2
    __secret = 5

    class Inner:
        NAME = "inner"

        @staticmethod
        @workflow
        async def deep() -> Any:
            await echo(Shop.Inner.NAME)
            return Shop.TAX

    @staticmethod
    @workflow
    async def buy(n: int) -> Any:
        price = await one(n) * Shop.TAX
        await echo(price)
        return price + Shop.__secret

    @staticmethod
    @workflow
    async def buy_twice() -> Any:
        return [await Shop.buy(1), await Shop.buy(2), await Shop.Inner.deep()]


body(3)(Shop.buy)
body()(Shop.buy_twice)
body()(Shop.Inner.deep)


# D4: workflows of a factory, with names of their own.
def make(n: int) -> Any:
    @workflow(name=f"kinds.made.{n}")
    async def made() -> Any:
        await echo(n)
        return [n, await ping()]

    return made


MADE = [make(n) for n in range(2)]


@body()
@workflow
async def two_of_a_factory() -> Any:
    return [await MADE[0](), await MADE[1](), await asyncio.gather(*[made() for made in MADE])]


# -- D15: errors of the call itself ----------------------------------------------------------------------------


# Too few arguments beside a missing part.
@body()
@workflow
async def unknown_keyword_beside_a_missing_part() -> Any:
    n = await gives("none")
    try:
        await ping(nothing=n.year)  # type: ignore[call-arg]
    except AttributeError:
        return await echo("attribute")
    except TypeError:
        return await echo("type")


# An unbound name behind a missing part.
@body(False)
@workflow
async def unbound_behind_a_missing_part(is_bound: bool) -> Any:
    n = await gives("none")
    if is_bound:
        late = 1
    try:
        await echo(n.year, late)
    except AttributeError:
        return await ping()
    except UnboundLocalError:
        return "unbound"


# What cannot be stored behind a missing part.
@body()
@workflow
async def unstorable_behind_a_missing_part() -> Any:
    n, m = await gives("none"), await gives("dict")
    try:
        await echo(n.year, count)
    except AttributeError:
        await echo("attribute")
    try:
        return [m["nothing"], len]
    except KeyError:
        return await ping()


# Two missing parts, the second of a strict result.
@body()
@workflow
async def second_of_a_strict_result() -> Any:
    m, n = await gives("dict"), await gives("none")
    if m and n is None:
        try:
            await echo(n.year, m["nothing"])
        except AttributeError:
            return await ping()


# -- D18: what a call is --------------------------------------------------------------------------------------


# A call closed before it is awaited.
@body()
@workflow
async def call_closed() -> Any:
    call = count_up()
    call.close()
    await ping()
    return [count(), asyncio.iscoroutine(call)]


# A call awaited twice.
@body()
@workflow
async def call_awaited_twice() -> Any:
    call = one()
    await call
    is_refused = False
    try:
        await call
    except RuntimeError:
        is_refused = True
    return [is_refused, await ping()]


# `ensure_future`, `loop.create_task`.
@body()
@workflow
async def tasks_of_every_maker() -> Any:
    loop = asyncio.get_running_loop()
    a, b = asyncio.ensure_future(room()), loop.create_task(gives("dict"))
    m = await b
    await count_up()
    return [(await a).title, m["id"]]


# A call in a container.
@body()
@workflow
async def calls_in_containers() -> Any:
    calls = {"a": one(1), "b": one(2)}
    b = await calls["b"]
    a = await calls.pop("a")
    return [a, b, list(calls)]


# A call returned by a nested function.
@body()
@workflow
async def call_of_a_nested_function() -> Any:
    def make_call(n: int) -> Any:
        return echo(n, count())

    call = make_call(1)
    await count_up()
    return [await call, await make_call(2)]


# -- D20: abandoned frames ---------------------------------------------------------------------------------------


# A nested function's `finally` beside a failing member.
@body()
@workflow
async def finally_of_a_member() -> Any:
    async def slow() -> None:
        try:
            await sleep(50)
            await ping()
        finally:
            note("slow")

    async def bad() -> None:
        await ping()
        raise ValueError("bad")

    try:
        await asyncio.gather(slow(), bad())
    except ValueError:
        await count_up()
    return count()


# A nested manager's exit runs once.
@body()
@workflow
async def manager_of_a_nested_function() -> Any:
    async def member() -> Any:
        with noting("member"):
            await count_up()
            await ping()
            return count()

    found = await member()
    await echo(found)
    return found


# A generator that is held over steps.
@body()
@workflow
async def generator_held_over_steps() -> Any:
    def turns() -> Any:
        yield [1, note("one")]
        yield [2, note("two")]

    t = turns()
    a = next(t)
    await count_up()
    b = next(t)
    t.close()
    await count_up()
    return [a, b, count()]


# -- D21, D36: signatures -------------------------------------------------------------------------------------------


@body()
@workflow
async def wrapped_step() -> Any:
    c = await room()
    return [await deliver("hi"), await deliver(c.title)]


@body()
@workflow
async def parameter_called_self() -> Any:
    c = await room()
    return [await own(self=c.name), await own(1, value=c.tags), await own(c.title)]


# -- D23: much of something --------------------------------------------------------------------------------------------


# A hundred terms.
@body()
@workflow
async def sum_of_many() -> Any:
    n = await one()
    return (
        n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n
        + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n
        + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n
        + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + n + count()
    )  # fmt: skip


# -- D24, D31: globals ----------------------------------------------------------------------------------------------------


# A global changed through `globals()` of its module.
@step
async def change_flag() -> None:
    globals()["flag"] = True


@body()
@workflow
async def global_changed_by_globals() -> Any:
    before = flag
    await change_flag()
    return [before, flag, await echo(flag)]


# A module's attribute through another name.
@body()
@workflow
async def module_under_another_name() -> Any:
    world = people
    await raise_level()
    await echo(world.LEVEL)
    await raise_level()
    return world.LEVEL


# A step under another name, in a table and as a default.
@body()
@workflow
async def steps_under_other_names() -> Any:
    table = {"up": count_up, "one": one}
    do = table["up"]

    async def twice(f: Any = do) -> Any:
        return [await f(), await f()]

    await do()
    found = await twice()
    return [found, await table["one"](5), count()]


# A step rebound in the body.
@body()
@workflow
async def step_rebound() -> Any:
    f = count_up
    await f()
    f = one
    await echo(await f())
    return count()


# -- D27 to D34: the small ones ----------------------------------------------------------------------------------------------


# D27 beside a number.
@body()
@workflow
async def bool_and_number_as_keys() -> Any:
    x = await gives("list")
    await echo(x[False], x[0], x[True])
    return [x[True], x[1]]


# D28: an enum's operator reads the world.
@body()
@workflow
async def operator_of_an_enum() -> Any:
    import enum

    class Op(enum.Enum):
        A = 1

        def __lt__(self, other: Any) -> bool:
            return count() > 0

    await count_up()
    first = Op.A < Op.A
    xs = [Op.A]
    await echo(first)
    return [first, xs[0] < Op.A]


# D29: a subclass of text whose operators read the world.
class Text(str):
    def __add__(self, other: Any) -> str:
        return f"{count()}{other}"

    def __getitem__(self, key: Any) -> str:
        return f"[{count()}]"


class Shown:
    def __str__(self) -> str:
        return Text("shown")


TEXT = Text("global")


@body()
@workflow
async def subclass_of_text() -> Any:
    x = str(Shown())
    await count_up()
    a = x + "!"
    await echo(a)
    await count_up()
    return [a, x[0], TEXT + "?", TEXT[1]]


# D33: an iterator that raises what ends other loops.
class Stops:
    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        raise self.error("stop")


@body()
@workflow
async def iterator_raises_stop_async() -> Any:
    try:
        for x in Stops(StopAsyncIteration):
            await echo(x)
    except StopAsyncIteration:
        return await ping()
    return "quiet"


class NoIter:
    def __iter__(self) -> Any:
        raise StopIteration("iter")


@body()
@workflow
async def iter_raises_stop() -> Any:
    try:
        for x in NoIter():
            await echo(x)
    except StopIteration:
        return await ping()
    except RuntimeError:
        return "runtime"


# D34: the compiler's own name.
@body(1)
@workflow
async def compilers_own_name(__ckw__: int) -> Any:
    await echo(__ckw__)
    return __ckw__ + await one()


@body()
@workflow
async def compilers_own_name_in_a_handler() -> Any:
    try:
        await fails("named")
    except FatalError as __ckw__:
        await echo(str(__ckw__))
    return await ping()


# D35: a traceback's line is the body's.
@body()
@workflow
async def line_of_an_error() -> Any:
    await ping()
    try:
        raise ValueError("here")
    except ValueError as error:
        tb = error.__traceback__
        return [tb.tb_lineno - tb.tb_frame.f_code.co_firstlineno, tb.tb_frame.f_code.co_name]


# D37: `as_completed`, in the order of completion.
@body()
@workflow
async def as_completed_in_order() -> Any:
    seen = []
    for done in asyncio.as_completed([asyncio.create_task(one(n)) for n in range(3)]):
        seen.append(await done)
        await echo(seen)
    return seen


# D37: `as_completed` of coroutines, whose order is that of a set: these are alike.
@body()
@workflow
async def as_completed_of_coroutines() -> Any:
    async def member() -> Any:
        return await one(7)

    seen = []
    for done in asyncio.as_completed([member(), member(), member()]):
        seen.append(await done)
        await echo(len(seen))
    return seen


# -- context variables, randomness, ids -------------------------------------------------------------------------------------------


@body()
@workflow
async def context_variables() -> Any:
    import contextvars

    var: Any = contextvars.ContextVar("var", default="none")
    var.set("root")

    async def member(value: str) -> Any:
        seen = var.get()
        var.set(value)
        await ping()
        return [seen, var.get()]

    found = await asyncio.gather(member("a"), member("b"))
    return [found, var.get()]


# A private helper class made in the body.
@body()
@workflow
async def own_class_with_a_property() -> Any:
    class Box:
        def __init__(self, value: Any) -> None:
            self.value = value

        @property
        def seen(self) -> Any:
            return [self.value, count()]

    box = Box(await room())
    await count_up()
    await echo(box.seen[1], box.value.title)
    return [box.seen[1], box.value.name]
