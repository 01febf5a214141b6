"""Parts of results: what floats until it is used, is looked at too late or too early, or is not there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ckworkflow import workflow
from compiler.steps import (
    count_up,
    echo,
    ping,
)
from differential.people import (
    Frozen,
    Hue,
    Perm,
    Point,
    Room,
    body,
    gives,
    house,
    mark,
    one,
    room,
)

# -- plain data: a part that a claim can find --------------------------------------------------------


# An index from the end.
@body()
@workflow
async def last_item() -> Any:
    x = await gives("list")
    await echo(x[-1])
    return await ping()


# A slice is no constant index.
@body()
@workflow
async def slice_of_a_list() -> Any:
    x = await gives("list")
    await echo(x[1:])
    return x[:1]


# A slice of a text.
@body()
@workflow
async def slice_of_a_text() -> Any:
    s = await gives("text")
    await echo(s[1:])
    if await ping():
        return s[::-1]


# An index behind the end, handled by a step.
@body()
@workflow
async def index_behind_the_end() -> Any:
    x = await gives("list")
    try:
        await echo(x[9])
    except IndexError:
        await echo("handled")
    return await ping()


# A key where an index belongs.
@body()
@workflow
async def text_key_of_a_list() -> Any:
    x = await gives("list")
    try:
        await echo(x["a"])
    except TypeError as error:
        return str(error)


# D27: a bool is an index.
@body()
@workflow
async def bool_index() -> Any:
    x = await gives("list")
    await echo(x[True])
    return x[False]


# None as a key.
@body()
@workflow
async def none_as_a_key() -> Any:
    m = await gives("dict")
    try:
        await echo(m[None])
    except KeyError as error:
        return repr(error)


# A part of a part, all data.
@body()
@workflow
async def data_in_data() -> Any:
    m = await gives("dict")
    await echo(m["sub"]["list"][1])
    return m["sub"]["list"]


# A missing part of a part.
@body()
@workflow
async def missing_in_data() -> Any:
    m = await gives("dict")
    try:
        await echo(m["sub"]["none"]["deep"])
    except KeyError as error:
        await echo(error.args[0])
    return await ping()


# An item of a number.
@body()
@workflow
async def item_of_a_number() -> Any:
    n = await gives("int")
    try:
        await echo(n[0])
    except TypeError:
        return "type"


# Attributes of a number.
@body()
@workflow
async def attributes_of_a_number() -> Any:
    n = await gives("int")
    await echo(n.real, n.numerator)
    return n.bit_length()


# An item of bytes is a number.
@body()
@workflow
async def item_of_bytes() -> Any:
    b = await gives("bytes")
    await echo(b[0])
    return b[1]


# A tuple in a tuple.
@body()
@workflow
async def tuple_in_tuple() -> Any:
    t = await gives("tuple")
    await echo(t[1][0])
    return t[1]


# An attribute of a tuple.
@body()
@workflow
async def method_of_a_tuple() -> Any:
    t = await gives("tuple")
    await echo(t.index(1))
    return t.count(9)


# A variable index.
@body(1)
@workflow
async def variable_index(at: int) -> Any:
    x = await gives("list")
    await echo(x[at])
    at = 2
    return x[at]


# A computed key.
@body("d")
@workflow
async def computed_key(end: str) -> Any:
    m = await gives("dict")
    await echo(m[f"i{end}"])
    return await ping()


# A result as the key of another.
@body()
@workflow
async def result_as_a_key() -> Any:
    x = await gives("list")
    at = await one()
    await echo(x[at])
    return x[at + 1]


# -- parts that are code -----------------------------------------------------------------------------


# D1 with an enum that is a number.
@body()
@workflow
async def rank_value() -> Any:
    r = await gives("rank")
    await echo(r.value)
    return [r.name, r + 1, await ping()]


# An enum's name, then its property.
@body()
@workflow
async def property_of_an_enum() -> Any:
    e = await gives("enum")
    await count_up()
    await echo(e.shout)
    return e.name


# Identity of an enum's member.
@body()
@workflow
async def enum_member_is_itself() -> Any:
    e = await gives("enum")
    await echo(e.value)
    return e is Hue.RED


# A flag.
@body()
@workflow
async def flag_value() -> Any:
    f = await gives("flag")
    await echo(f.value)
    return Perm.READ in f


# The fields of a named tuple by name and by index.
@body()
@workflow
async def point_by_index() -> Any:
    p = await gives("point")
    await echo(p.x, p[1])
    return [p[-1], p._asdict()]


# A property of a named tuple.
@body()
@workflow
async def point_property() -> Any:
    p = await gives("point")
    await count_up()
    await echo(p.total)
    await count_up()
    return p.total


# A named tuple unpacked.
@body()
@workflow
async def point_unpacked() -> Any:
    x, y = await gives("point")
    await echo(y)
    return x


# A named tuple replaced.
@body()
@workflow
async def point_replaced() -> Any:
    p = await gives("point")
    q = p._replace(x=9)
    await echo(q)
    return [q.x, p.x, type(q) is Point]


# The parts of a time.
@body()
@workflow
async def parts_of_a_time() -> Any:
    d = await gives("datetime")
    await echo(d.hour, d.tzinfo is None)
    return d.date().isoformat()


# The days of a time span.
@body()
@workflow
async def days_of_a_span() -> Any:
    d = await gives("delta")
    await echo(d.days)
    if await ping():
        return d.seconds


# A UUID's parts.
@body()
@workflow
async def parts_of_a_uuid() -> Any:
    u = await gives("uuid")
    await echo(u.hex)
    return u.int


# A decimal's parts.
@body()
@workflow
async def parts_of_a_decimal() -> Any:
    d = await gives("decimal")
    await echo(d.real, d + 1)
    return str(d)


# Slots, and one that is not there.
@body()
@workflow
async def slot_that_is_missing() -> Any:
    s = await gives("slots")
    await echo(s.size)
    try:
        await echo(s.nothing)
    except AttributeError:
        return await ping()


# A slot assigned.
@body()
@workflow
async def slot_assigned() -> Any:
    s = await gives("slots")
    s.size = await one(9)
    await echo(s.size)
    return s.size


# A frozen dataclass.
@body()
@workflow
async def frozen_is_frozen() -> Any:
    f = await gives("frozen")
    await echo(f.names[0])
    try:
        f.id = 1
    except AttributeError:
        await ping()
    return f.id


# A frozen dataclass is a key.
@body()
@workflow
async def frozen_as_a_key() -> Any:
    f = await gives("frozen")
    seen = {f: "seen"}
    await ping()
    return seen[Frozen(6)]


# `__getattr__` sees the world.
@body()
@workflow
async def ghost_attribute() -> Any:
    g = await gives("ghost")
    await count_up()
    await echo(g.anything)
    await count_up()
    return [g.anything, g.name]


# `__getitem__` sees the world.
@body()
@workflow
async def meter_item() -> Any:
    m = await gives("meter")
    await count_up()
    await echo(m["k"])
    return m["k"]


# A property that raises, in an argument.
@body()
@workflow
async def broken_property() -> Any:
    c = await room()
    await count_up()
    try:
        await echo(c.broken)
    except ValueError as error:
        await echo(str(error))
    return await ping()


# A property that raises, uncaught and unused.
@body()
@workflow
async def broken_property_unused() -> Any:
    c = await room()
    c.broken
    await ping()


# A missing key as a statement: the next step must not run.
@body()
@workflow
async def missing_key_as_a_statement() -> Any:
    m = await gives("dict")
    m["nothing"]
    await ping()


# A missing key bound and never used.
@body()
@workflow
async def missing_key_bound() -> Any:
    m = await gives("dict")
    value = m["nothing"]
    await ping()


# A cached property is worked out once.
@body()
@workflow
async def cached_property_once() -> Any:
    c = await room()
    await echo(c.once)
    await count_up()
    return c.once


# A cached property read late.
@body()
@workflow
async def cached_property_late() -> Any:
    c = await room()
    await count_up()
    await echo(c.once)
    return c.once


# A method as a value.
@body()
@workflow
async def bound_method() -> Any:
    c = await room()
    f = c.describe
    await count_up()
    await echo(f("!"))
    return f()


# A method called in an argument.
@body()
@workflow
async def method_in_an_argument() -> Any:
    c = await room()
    await count_up()
    await echo(c.describe(mark="?"))
    return await ping()


# D13: a property that counts, in two calls.
@body()
@workflow
async def counting_in_two_calls() -> Any:
    c = await room()
    await echo(c.next)
    await echo(c.next)
    return c.tags


# D13: a property that counts, beside what it counts.
@body()
@workflow
async def counting_beside_its_list() -> Any:
    c = await room()
    return {"a": c.next, "n": c.tags}


# D13: the list first.
@body()
@workflow
async def list_before_counting() -> Any:
    c = await room()
    return [len(c.tags), c.next, len(c.tags)]


# D25: a note, a step, and a property in an argument.
@body()
@workflow
async def note_before_a_property() -> Any:
    c = await room()
    mark("once")
    await count_up()
    await echo(c.title)
    return c.title


# -- parts of parts that are code --------------------------------------------------------------------


# A property of an item.
@body()
@workflow
async def property_of_an_item() -> Any:
    h = await house()
    await count_up()
    await echo(h.rooms[0].title)
    return await ping()


# A dict in a dataclass.
@body()
@workflow
async def dict_in_a_dataclass() -> Any:
    h = await house()
    await echo(h.owner["name"], h.main.tags[0])
    return h.owner["ids"][1]


# A part renamed by another path.
@body()
@workflow
async def part_changed_by_another_path() -> Any:
    h = await house()
    first = h.rooms[0]
    first.name = "cellar"
    await echo(h.rooms[0].name)
    h.rooms[0] = h.main
    return [h.rooms[0].name, first.name]


# A list of a result that the body appends to.
@body()
@workflow
async def list_of_a_result_appended() -> Any:
    c = await room()
    c.tags.append(5)
    await echo(c.tags)
    c.tags.append(6)
    return c.tags


# An attribute of a result set, then its property.
@body()
@workflow
async def attribute_set() -> Any:
    c = await room()
    c.name = "renamed"
    await count_up()
    await echo(c.title)
    return c.name


# A key of a result set and deleted.
@body()
@workflow
async def key_set_and_deleted() -> Any:
    m = await gives("dict")
    m["new"] = await one()
    del m["id"]
    await echo(m)
    return sorted(m)


# A result stored in another.
@body()
@workflow
async def result_in_a_result() -> Any:
    m = await gives("dict")
    c = await room()
    m["room"] = c
    await echo(m["room"].name)
    c.name = "other"
    return m["room"].name


# `dataclasses.replace`.
@body()
@workflow
async def replaced_dataclass() -> Any:
    c = await room()
    d = replace(c, name="copy")
    await echo(d.name)
    d.tags.append(2)
    return c.tags


# -- what a result is --------------------------------------------------------------------------------


# D9: the class, the docs and the module of a result.
@body()
@workflow
async def dunder_of_a_result() -> Any:
    c = await room()
    await echo(c.__module__)
    return [c.__class__.__name__, c.__class__ is Room, c.__dict__, c.__hash__ is None]


# D9: the same of data.
@body("dict")
@body("text")
@body("none")
@workflow
async def dunder_of_data(what: str) -> Any:
    x = await gives(what)
    await echo(x.__class__.__name__)
    return [type(x).__name__, x.__class__ is type(x), x.__doc__ == type(x).__doc__]


# `type`, `isinstance`, `hasattr`, `getattr`.
@body()
@workflow
async def asked_what_it_is() -> Any:
    c = await room()
    await echo(type(c).__name__)
    return [
        isinstance(c, Room),
        hasattr(c, "nothing"),
        getattr(c, "name"),
        getattr(c, "nothing", 1),
        vars(c),
    ]


# `callable`, `id`, `is`, `repr` of a result.
@body()
@workflow
async def looked_at_by_builtins() -> Any:
    m = await gives("dict")
    other = m
    await ping()
    return [callable(m), id(m) == id(other), m is other, repr(m), str(m), len(m), bool(m)]


# A private name of the stand-in is no attribute of a result.
@body()
@workflow
async def stand_in_does_not_show() -> Any:
    c = await room()
    try:
        await echo(c._ckw_path)
    except AttributeError:
        return "none"


# -- where a part stands -----------------------------------------------------------------------------


# As a keyword argument, and in displays.
@body()
@workflow
async def part_as_a_keyword() -> Any:
    c = await room()
    await echo(value=c.title)
    await echo({"k": [c.title, (c.name,)]}, other={"x": c.tags})
    return await ping()


# Unpacked into a call.
@body()
@workflow
async def part_unpacked_into_a_call() -> Any:
    c = await room()
    await echo(*c.tags, k=c.name)
    return [*c.tags, c.title]


# In an f-string.
@body()
@workflow
async def part_in_an_f_string() -> Any:
    c = await room()
    await count_up()
    await echo(f"<{c.title:>12}> {c.name!r}")
    return f"{c.title}"


# In a condition.
@body()
@workflow
async def part_in_a_condition() -> Any:
    c = await room()
    await count_up()
    return await echo(1) if c.title == "general@1" else await echo(2)


# In a comparison chain.
@body()
@workflow
async def part_in_a_comparison() -> Any:
    m = await gives("dict")
    if 0 < m["id"] < await one(2):
        return await ping()
    return "other"


# Two missing parts: the first error wins.
@body()
@workflow
async def two_missing_parts() -> Any:
    m, n = await gives("dict"), await gives("none")
    try:
        await echo(m["nothing"], n.year)
    except KeyError:
        await echo("key")
    except AttributeError:
        await echo("attribute")
    try:
        await echo(n.year, m["nothing"])
    except KeyError:
        return "key"
    except AttributeError:
        return "attribute"


# D15: a missing part before another error of the same call.
@body()
@workflow
async def missing_part_before_an_error() -> Any:
    m = await gives("dict")
    try:
        await echo(m["nothing"], 1 / 0)
    except KeyError:
        return await ping()
    except ZeroDivisionError:
        return "zero"


# A part as the target of `+=`.
@body()
@workflow
async def part_added_to() -> Any:
    m = await gives("dict")
    m["id"] += await one(4)
    await echo(m["id"])
    c = await room()
    c.tags += [await one(5)]
    return [m["id"], c.tags]


# Parts of two results in one display.
@body()
@workflow
async def parts_of_two_results() -> Any:
    a, b = await room("a"), await room("b")
    await echo([a.title, b.title])
    await count_up()
    return {"a": a.title, "b": b.title, "c": [a.name, b.tags]}


# A part of a part of a result of a method.
@body()
@workflow
async def part_of_a_method() -> Any:
    m = await gives("dict")
    await echo(m.get("sub")["list"])
    await echo(m.pop("id"), m.get("id", "gone"))
    return m.setdefault("new", []) is m["new"]


# A part awaited: steps in the result of a helper.
@body()
@workflow
async def part_of_an_await() -> Any:
    await echo((await room()).title)
    await count_up()
    return (await room()).title, (await gives("list"))[-1]
