"""The smallest body of each fault that a review of the compiler found (D1 to D18), to be compared like any other."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Generator
from dataclasses import dataclass
from datetime import date
from typing import Any, ClassVar

from ckworkflow import FatalError, step, workflow
from compiler.steps import STATE, count_up, echo, helper, note, ping, send
from differential.bodies import body


class Hue(enum.Enum):
    RED = "red"


@dataclass
class Room:
    name: str
    tags: list[int]
    cache: ClassVar[dict[str, int]] = {"n": 0}

    @property
    def title(self) -> str:
        return f"{self.name}@{STATE['count']}"

    @property
    def next(self) -> int:
        self.tags.append(len(self.tags))
        return len(self.tags)

    @property
    def shared(self) -> Any:
        return STATE["xs"]


@step
async def room() -> Room:
    return Room("general", [1])


@step
async def gives(what: str) -> Any:
    return {
        "text": "abc", "enum": Hue.RED, "date": date(2020, 1, 2), "none": None, "dict": {"id": 1}, "list": [1],
    }[what]  # fmt: skip


@step
async def grow() -> None:
    STATE["xs"].append(9)


# D1: an argument needs the body, and the body waits further on.


@body()
@workflow
async def d1_property_then_a_strict_await() -> str:
    c = await room()
    await echo(c.title)
    if await ping():
        return "end"
    return "other"


@body()
@workflow
async def d1_property_then_a_fence() -> str:
    c = await room()
    await echo(c.title)
    note("x")
    await ping()
    return "end"


@body()
@workflow
async def d1_missing_key_then_a_strict_await() -> str:
    m = await gives("dict")
    try:
        await echo(m["nothing"])
    except KeyError:
        await echo("handled")
    if await ping():
        return "end"
    return "other"


@body("text")
@body("list")
@workflow
async def d1_item_then_a_strict_await(what: str) -> str:
    s = await gives(what)
    await echo(s[0])
    if await ping():
        return "end"
    return "other"


@body()
@workflow
async def d1_enum_then_a_strict_await() -> str:
    e = await gives("enum")
    await echo(e.value)
    if await ping():
        return "end"
    return "other"


@body()
@workflow
async def d1_date_then_a_strict_await() -> str:
    d = await gives("date")
    await echo(d.year)
    if await ping():
        return "end"
    return "other"


@body()
@workflow
async def d1_none_then_a_strict_await() -> str:
    d = await gives("none")
    try:
        await echo(d.year)
    except AttributeError:
        return "handled" if await ping() else "never"
    return "other"


@body()
@workflow
async def d1_of_a_gather() -> str:
    c, _ = await asyncio.gather(room(), ping())
    await echo(c.title)
    if await ping():
        return "end"
    return "other"


# D2: names of the body's own.


@body(3)
@workflow
async def d2_recursion(n: int) -> Any:
    if n > 0:
        await echo(n)
        return await d2_recursion(n - 1)
    return d2_recursion.name.rpartition(".")[2]


class Flows:
    LIMIT = 2
    __hidden = 7

    @staticmethod
    @workflow
    async def flow() -> Any:
        for i in range(Flows.LIMIT):
            await echo(i)
        return Flows.__hidden

    @staticmethod
    @workflow
    async def other() -> Any:
        return await Flows.flow()


class same:  # noqa: N801
    @staticmethod
    @workflow
    async def same() -> Any:
        return await ping()


body()(Flows.flow)
body()(Flows.other)
body()(same.same)


# D3: a projection in what an inlined workflow returns.


@workflow
async def inner_missing() -> Any:
    m = await gives("dict")
    return m["nothing"]


@workflow
async def inner_title() -> Any:
    c = await room()
    return c.title


@workflow
async def inner_year() -> Any:
    d = await gives("date")
    return d.year


@body()
@workflow
async def d3_error_before_the_next_step() -> Any:
    try:
        await inner_missing()
    except KeyError:
        await echo("handled")
    await ping()


@body()
@workflow
async def d3_error_uncaught() -> Any:
    await inner_missing()
    await ping()


@body()
@workflow
async def d3_error_in_a_gather() -> Any:
    a, b = await asyncio.gather(inner_missing(), ping())
    await echo(b)


@body()
@workflow
async def d3_value_is_looked_at() -> Any:
    return "yes" if await inner_year() == 2020 else "no"


@body()
@workflow
async def d3_property_in_time() -> Any:
    t = await inner_title()
    await count_up()
    await count_up()
    await echo(t)


# D5 to D15.


@body()
@workflow
async def d5_rebinding_what_a_task_reads() -> Any:
    stop = False

    async def poll() -> str:
        for i in range(3):
            await echo(i)
            if stop:
                return f"stopped after {i}"
        return "never stopped"

    task = asyncio.create_task(poll())
    await ping()
    await ping()
    stop = True
    return await task


def cache() -> Any:
    return STATE["xs"]


@body()
@workflow
async def d6_a_shared_list_in_an_own_one() -> Any:
    rows: list[Any] = []
    rows.append(cache())
    await grow()
    return len(rows[0])


@body()
@workflow
async def d7_what_a_class_shares() -> Any:
    c = await room()
    xs = c.shared
    await grow()
    return len(xs)


@body()
@workflow
async def d8_two_names_for_one_list() -> Any:
    a: list[Any]
    b: list[Any]
    a = b = []
    a.append(await gives("none"))
    return b[0] is None


@body()
@workflow
async def d9_dunder_attributes() -> Any:
    c = await room()
    await echo(c.__class__.__name__)
    return c.__class__.__name__


@body()
@workflow
async def d10_index_before_the_await() -> Any:
    d = {0: 0, 1: 0}
    await count_up()
    d[STATE["count"]] += len(await ping())
    return [d[0], d[1]]


class Config:
    @property
    def key(self) -> str:
        return "b" if STATE["count"] else "a"


CONFIG = Config()


@body()
@workflow
async def d11_key_of_a_pattern() -> Any:
    await count_up()
    match {"a": 1, "b": 2}:
        case {CONFIG.key: value}:
            return value


@body()
@workflow
async def d12_missing_in_a_try_with_finally() -> Any:
    m = await gives("dict")
    try:
        return m["nothing"]
    except KeyError:
        await count_up()
        return "handled"
    finally:
        await echo("finally")


@body()
@workflow
async def d13_a_property_twice() -> Any:
    c = await room()
    return [c.next, c.next]


@workflow
async def gives_room() -> Room:
    return await room()


@body()
@workflow
async def d13_of_a_gathered_workflow() -> Any:
    a, _ = await asyncio.gather(gives_room(), ping())
    note("fence")
    await count_up()
    await echo(a.title)


@workflow
async def pair_of_one() -> Any:
    x = await echo([1])
    return [x, x]


@workflow
async def one_pair_twice() -> Any:
    pair = [await ping()]
    return [pair, pair]


@body()
@workflow
async def d14_one_object_twice() -> Any:
    r = await pair_of_one()
    r[0].append(2)
    q = await one_pair_twice()
    q[0].append(2)
    return [r, q]


@body()
@workflow
async def d15_too_many_arguments() -> Any:
    m = await gives("dict")
    try:
        await ping(m["nothing"])  # type: ignore[call-arg]
    except KeyError:
        return "key"
    except TypeError:
        return "type"


@body()
@workflow
async def d15_what_cannot_be_stored() -> Any:
    m = await gives("dict")
    try:
        await echo(m["nothing"], int)
    except KeyError:
        return "key"
    except Exception:
        return "other"


@body()
@workflow
async def d16_one_call_twice() -> Any:
    c = echo(1)
    return await asyncio.gather(c, c)


@body()
@workflow
async def d17_no_awaitable() -> Any:
    try:
        await asyncio.gather(5, send("x"), return_exceptions=True)  # type: ignore[call-overload]
    except TypeError:
        return "type"


@body()
@workflow
async def d18_tasks_of_calls() -> Any:
    task = asyncio.create_task(echo(1))
    async with asyncio.TaskGroup() as group:
        other = group.create_task(echo(2))
    unused = echo(3)
    unused.close()
    return [await task, other.result(), asyncio.iscoroutine(echo)]


@body()
@workflow
async def d19_a_group_of_errors() -> Any:
    await ping()
    raise ExceptionGroup("things", [ValueError("v"), KeyError("k")])


@body()
@workflow
async def d33_d27_low() -> Any:
    m = await gives("list")
    return m[False]


# Found by random programs and by people who tried to break it.


class Later:
    """An awaitable that is no coroutine: Python does not mind if it is made and not awaited."""

    def __await__(self) -> Generator[Any, Any, Any]:
        return helper(1).__await__()


@body()
@workflow
async def member_that_is_no_step_beside_an_await_in_an_argument() -> Any:
    """A gather begins its members when all their arguments are there."""
    if await echo(1):
        return await asyncio.gather(Later(), echo(await count_up()))
    return None


@step
async def fails() -> None:
    raise FatalError("no")


@body()
@workflow
async def step_of_a_cancelled_task_while_the_run_goes_on() -> Any:
    """What has not begun when its await is cancelled never begins."""

    async def beside() -> None:
        await count_up()

    try:
        if await echo(1):
            await ping()
        async with asyncio.TaskGroup() as group:
            group.create_task(beside())
            await echo(2)
            group.create_task(fails())
    except* FatalError:
        pass
    return [await echo(3), await echo(4)]


@body()
@workflow
async def gather_of_a_cancelled_task_while_the_run_goes_on() -> Any:
    async def beside() -> None:
        await asyncio.gather(count_up(), echo(0), helper(1))

    task = asyncio.create_task(beside())
    await echo(1)
    task.cancel()
    return [await echo(2), await echo(3)]


@body()
@workflow
async def task_cancelled_before_its_step_is_planned() -> Any:
    async def good() -> None:
        await count_up()

    await ping()
    task = asyncio.create_task(good())
    await asyncio.sleep(0)
    task.cancel()
    return await echo(1)
