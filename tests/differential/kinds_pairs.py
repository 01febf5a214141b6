"""Pairs: how a part of a result arises, and what is done with it. Each is written out, so that the source is there.

The rows are the parts, the columns what follows; every row meets every column.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ckworkflow import workflow
from compiler.steps import count_up, echo, keep, note, noting, ping
from differential.people import (
    body,
    count,
    gives,
    gives_part,
    gives_room,
    gives_title,
    house,
    passes_on,
    room,
)

# -- a property --------------------------------------------------------------------------------------


# A property: a strict await behind it.
@body()
@workflow
async def property_strict_await() -> Any:
    c = await room()
    await echo(c.title)
    if await ping():
        return "end"
    return "other"


# A property: a fence behind it.
@body()
@workflow
async def property_fence() -> Any:
    c = await room()
    await echo(c.title)
    note("fence")
    await count_up()
    return c.title


# A property: held over a step.
@body()
@workflow
async def property_held_over_a_step() -> Any:
    c = await room()
    value = c.title
    await count_up()
    await echo(value)
    return value


# A property: read in a task.
@body()
@workflow
async def property_read_in_a_task() -> Any:
    c = await room()

    async def reader() -> Any:
        await ping()
        return c.title

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, c.title]


# A property: appended to a list that a helper keeps.
@body()
@workflow
async def property_appended() -> Any:
    c = await room()
    out: list[Any] = []
    out.append(c.title)
    keep(out)
    await count_up()
    return out


# A property: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def property_returned_in_a_try() -> Any:
    c = await room()
    try:
        return c.title
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A property: an argument in a gather.
@body()
@workflow
async def property_gathered() -> Any:
    c = await room()
    await asyncio.gather(echo(c.title), count_up())
    return await echo(c.title)


# A property: in a loop that changes the world.
@body()
@workflow
async def property_in_a_loop() -> Any:
    c = await room()
    for number in range(2):
        await echo(number, c.title)
        await count_up()
    return c.title


# A property: in a comprehension of awaits.
@body()
@workflow
async def property_in_a_comprehension() -> Any:
    c = await room()
    found = [await echo([number, c.title]) for number in range(2)]
    await count_up()
    return [found, c.title]


# A property: given to an inlined workflow.
@body()
@workflow
async def property_given_to_inlined() -> Any:
    c = await room()
    given = await passes_on(c.title)
    await count_up()
    return [given, c.title]


# A property: matched behind a step.
@body()
@workflow
async def property_matched() -> Any:
    c = await room()
    await count_up()
    match {"part": c.title}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A property: in a with.
@body()
@workflow
async def property_in_a_with() -> Any:
    c = await room()
    with noting("room"):
        await echo(c.title)
        await count_up()
    return await echo(c.title)


# A property: bound by a walrus.
@body()
@workflow
async def property_bound_by_walrus() -> Any:
    c = await room()
    if (value := c.title) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A property: late in a lambda.
@body()
@workflow
async def property_in_a_lambda() -> Any:
    c = await room()
    get = lambda: c.title  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A property: twice in one call.
@body()
@workflow
async def property_twice_in_one_call() -> Any:
    c = await room()
    await echo([c.title, c.title], key=c.title)
    await count_up()
    return {"a": c.title, "b": [c.title]}


# A property: handled, with a step in the handler.
@body()
@workflow
async def property_handled() -> Any:
    c = await room()
    try:
        await echo(c.title)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a property that counts --------------------------------------------------------------------------


# A property that counts: a strict await behind it.
@body()
@workflow
async def counting_property_strict_await() -> Any:
    c = await room()
    await echo(c.next)
    if await ping():
        return "end"
    return "other"


# A property that counts: a fence behind it.
@body()
@workflow
async def counting_property_fence() -> Any:
    c = await room()
    await echo(c.next)
    note("fence")
    await count_up()
    return c.next


# A property that counts: held over a step.
@body()
@workflow
async def counting_property_held_over_a_step() -> Any:
    c = await room()
    value = c.next
    await count_up()
    await echo(value)
    return value


# A property that counts: read in a task.
@body()
@workflow
async def counting_property_read_in_a_task() -> Any:
    c = await room()

    async def reader() -> Any:
        await ping()
        return c.next

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, c.next]


# A property that counts: appended to a list that a helper keeps.
@body()
@workflow
async def counting_property_appended() -> Any:
    c = await room()
    out: list[Any] = []
    out.append(c.next)
    keep(out)
    await count_up()
    return out


# A property that counts: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def counting_property_returned_in_a_try() -> Any:
    c = await room()
    try:
        return c.next
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A property that counts: an argument in a gather.
@body()
@workflow
async def counting_property_gathered() -> Any:
    c = await room()
    await asyncio.gather(echo(c.next), count_up())
    return await echo(c.next)


# A property that counts: in a loop that changes the world.
@body()
@workflow
async def counting_property_in_a_loop() -> Any:
    c = await room()
    for number in range(2):
        await echo(number, c.next)
        await count_up()
    return c.next


# A property that counts: in a comprehension of awaits.
@body()
@workflow
async def counting_property_in_a_comprehension() -> Any:
    c = await room()
    found = [await echo([number, c.next]) for number in range(2)]
    await count_up()
    return [found, c.next]


# A property that counts: given to an inlined workflow.
@body()
@workflow
async def counting_property_given_to_inlined() -> Any:
    c = await room()
    given = await passes_on(c.next)
    await count_up()
    return [given, c.next]


# A property that counts: matched behind a step.
@body()
@workflow
async def counting_property_matched() -> Any:
    c = await room()
    await count_up()
    match {"part": c.next}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A property that counts: in a with.
@body()
@workflow
async def counting_property_in_a_with() -> Any:
    c = await room()
    with noting("room"):
        await echo(c.next)
        await count_up()
    return await echo(c.next)


# A property that counts: bound by a walrus.
@body()
@workflow
async def counting_property_bound_by_walrus() -> Any:
    c = await room()
    if (value := c.next) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A property that counts: late in a lambda.
@body()
@workflow
async def counting_property_in_a_lambda() -> Any:
    c = await room()
    get = lambda: c.next  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A property that counts: twice in one call.
@body()
@workflow
async def counting_property_twice_in_one_call() -> Any:
    c = await room()
    await echo([c.next, c.next], key=c.next)
    await count_up()
    return {"a": c.next, "b": [c.next]}


# A property that counts: handled, with a step in the handler.
@body()
@workflow
async def counting_property_handled() -> Any:
    c = await room()
    try:
        await echo(c.next)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a list that the world shares --------------------------------------------------------------------


# A list that the world shares: a strict await behind it.
@body()
@workflow
async def shared_list_strict_await() -> Any:
    c = await room()
    await echo(c.shared)
    if await ping():
        return "end"
    return "other"


# A list that the world shares: a fence behind it.
@body()
@workflow
async def shared_list_fence() -> Any:
    c = await room()
    await echo(c.shared)
    note("fence")
    await count_up()
    return c.shared


# A list that the world shares: held over a step.
@body()
@workflow
async def shared_list_held_over_a_step() -> Any:
    c = await room()
    value = c.shared
    await count_up()
    await echo(value)
    return value


# A list that the world shares: read in a task.
@body()
@workflow
async def shared_list_read_in_a_task() -> Any:
    c = await room()

    async def reader() -> Any:
        await ping()
        return c.shared

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, c.shared]


# A list that the world shares: appended to a list that a helper keeps.
@body()
@workflow
async def shared_list_appended() -> Any:
    c = await room()
    out: list[Any] = []
    out.append(c.shared)
    keep(out)
    await count_up()
    return out


# A list that the world shares: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def shared_list_returned_in_a_try() -> Any:
    c = await room()
    try:
        return c.shared
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A list that the world shares: an argument in a gather.
@body()
@workflow
async def shared_list_gathered() -> Any:
    c = await room()
    await asyncio.gather(echo(c.shared), count_up())
    return await echo(c.shared)


# A list that the world shares: in a loop that changes the world.
@body()
@workflow
async def shared_list_in_a_loop() -> Any:
    c = await room()
    for number in range(2):
        await echo(number, c.shared)
        await count_up()
    return c.shared


# A list that the world shares: in a comprehension of awaits.
@body()
@workflow
async def shared_list_in_a_comprehension() -> Any:
    c = await room()
    found = [await echo([number, c.shared]) for number in range(2)]
    await count_up()
    return [found, c.shared]


# A list that the world shares: given to an inlined workflow.
@body()
@workflow
async def shared_list_given_to_inlined() -> Any:
    c = await room()
    given = await passes_on(c.shared)
    await count_up()
    return [given, c.shared]


# A list that the world shares: matched behind a step.
@body()
@workflow
async def shared_list_matched() -> Any:
    c = await room()
    await count_up()
    match {"part": c.shared}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A list that the world shares: in a with.
@body()
@workflow
async def shared_list_in_a_with() -> Any:
    c = await room()
    with noting("room"):
        await echo(c.shared)
        await count_up()
    return await echo(c.shared)


# A list that the world shares: bound by a walrus.
@body()
@workflow
async def shared_list_bound_by_walrus() -> Any:
    c = await room()
    if (value := c.shared) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A list that the world shares: late in a lambda.
@body()
@workflow
async def shared_list_in_a_lambda() -> Any:
    c = await room()
    get = lambda: c.shared  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A list that the world shares: twice in one call.
@body()
@workflow
async def shared_list_twice_in_one_call() -> Any:
    c = await room()
    await echo([c.shared, c.shared], key=c.shared)
    await count_up()
    return {"a": c.shared, "b": [c.shared]}


# A list that the world shares: handled, with a step in the handler.
@body()
@workflow
async def shared_list_handled() -> Any:
    c = await room()
    try:
        await echo(c.shared)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- what a class shares -----------------------------------------------------------------------------


# What a class shares: a strict await behind it.
@body()
@workflow
async def class_state_strict_await() -> Any:
    c = await room()
    await echo(c.cache)
    if await ping():
        return "end"
    return "other"


# What a class shares: a fence behind it.
@body()
@workflow
async def class_state_fence() -> Any:
    c = await room()
    await echo(c.cache)
    note("fence")
    await count_up()
    return c.cache


# What a class shares: held over a step.
@body()
@workflow
async def class_state_held_over_a_step() -> Any:
    c = await room()
    value = c.cache
    await count_up()
    await echo(value)
    return value


# What a class shares: read in a task.
@body()
@workflow
async def class_state_read_in_a_task() -> Any:
    c = await room()

    async def reader() -> Any:
        await ping()
        return c.cache

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, c.cache]


# What a class shares: appended to a list that a helper keeps.
@body()
@workflow
async def class_state_appended() -> Any:
    c = await room()
    out: list[Any] = []
    out.append(c.cache)
    keep(out)
    await count_up()
    return out


# What a class shares: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def class_state_returned_in_a_try() -> Any:
    c = await room()
    try:
        return c.cache
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# What a class shares: an argument in a gather.
@body()
@workflow
async def class_state_gathered() -> Any:
    c = await room()
    await asyncio.gather(echo(c.cache), count_up())
    return await echo(c.cache)


# What a class shares: in a loop that changes the world.
@body()
@workflow
async def class_state_in_a_loop() -> Any:
    c = await room()
    for number in range(2):
        await echo(number, c.cache)
        await count_up()
    return c.cache


# What a class shares: in a comprehension of awaits.
@body()
@workflow
async def class_state_in_a_comprehension() -> Any:
    c = await room()
    found = [await echo([number, c.cache]) for number in range(2)]
    await count_up()
    return [found, c.cache]


# What a class shares: given to an inlined workflow.
@body()
@workflow
async def class_state_given_to_inlined() -> Any:
    c = await room()
    given = await passes_on(c.cache)
    await count_up()
    return [given, c.cache]


# What a class shares: matched behind a step.
@body()
@workflow
async def class_state_matched() -> Any:
    c = await room()
    await count_up()
    match {"part": c.cache}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# What a class shares: in a with.
@body()
@workflow
async def class_state_in_a_with() -> Any:
    c = await room()
    with noting("room"):
        await echo(c.cache)
        await count_up()
    return await echo(c.cache)


# What a class shares: bound by a walrus.
@body()
@workflow
async def class_state_bound_by_walrus() -> Any:
    c = await room()
    if (value := c.cache) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# What a class shares: late in a lambda.
@body()
@workflow
async def class_state_in_a_lambda() -> Any:
    c = await room()
    get = lambda: c.cache  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# What a class shares: twice in one call.
@body()
@workflow
async def class_state_twice_in_one_call() -> Any:
    c = await room()
    await echo([c.cache, c.cache], key=c.cache)
    await count_up()
    return {"a": c.cache, "b": [c.cache]}


# What a class shares: handled, with a step in the handler.
@body()
@workflow
async def class_state_handled() -> Any:
    c = await room()
    try:
        await echo(c.cache)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a list in a result ------------------------------------------------------------------------------


# A list in a result: a strict await behind it.
@body()
@workflow
async def own_list_strict_await() -> Any:
    c = await room()
    await echo(c.tags)
    if await ping():
        return "end"
    return "other"


# A list in a result: a fence behind it.
@body()
@workflow
async def own_list_fence() -> Any:
    c = await room()
    await echo(c.tags)
    note("fence")
    await count_up()
    return c.tags


# A list in a result: held over a step.
@body()
@workflow
async def own_list_held_over_a_step() -> Any:
    c = await room()
    value = c.tags
    await count_up()
    await echo(value)
    return value


# A list in a result: read in a task.
@body()
@workflow
async def own_list_read_in_a_task() -> Any:
    c = await room()

    async def reader() -> Any:
        await ping()
        return c.tags

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, c.tags]


# A list in a result: appended to a list that a helper keeps.
@body()
@workflow
async def own_list_appended() -> Any:
    c = await room()
    out: list[Any] = []
    out.append(c.tags)
    keep(out)
    await count_up()
    return out


# A list in a result: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def own_list_returned_in_a_try() -> Any:
    c = await room()
    try:
        return c.tags
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A list in a result: an argument in a gather.
@body()
@workflow
async def own_list_gathered() -> Any:
    c = await room()
    await asyncio.gather(echo(c.tags), count_up())
    return await echo(c.tags)


# A list in a result: in a loop that changes the world.
@body()
@workflow
async def own_list_in_a_loop() -> Any:
    c = await room()
    for number in range(2):
        await echo(number, c.tags)
        await count_up()
    return c.tags


# A list in a result: in a comprehension of awaits.
@body()
@workflow
async def own_list_in_a_comprehension() -> Any:
    c = await room()
    found = [await echo([number, c.tags]) for number in range(2)]
    await count_up()
    return [found, c.tags]


# A list in a result: given to an inlined workflow.
@body()
@workflow
async def own_list_given_to_inlined() -> Any:
    c = await room()
    given = await passes_on(c.tags)
    await count_up()
    return [given, c.tags]


# A list in a result: matched behind a step.
@body()
@workflow
async def own_list_matched() -> Any:
    c = await room()
    await count_up()
    match {"part": c.tags}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A list in a result: in a with.
@body()
@workflow
async def own_list_in_a_with() -> Any:
    c = await room()
    with noting("room"):
        await echo(c.tags)
        await count_up()
    return await echo(c.tags)


# A list in a result: bound by a walrus.
@body()
@workflow
async def own_list_bound_by_walrus() -> Any:
    c = await room()
    if (value := c.tags) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A list in a result: late in a lambda.
@body()
@workflow
async def own_list_in_a_lambda() -> Any:
    c = await room()
    get = lambda: c.tags  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A list in a result: twice in one call.
@body()
@workflow
async def own_list_twice_in_one_call() -> Any:
    c = await room()
    await echo([c.tags, c.tags], key=c.tags)
    await count_up()
    return {"a": c.tags, "b": [c.tags]}


# A list in a result: handled, with a step in the handler.
@body()
@workflow
async def own_list_handled() -> Any:
    c = await room()
    try:
        await echo(c.tags)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a key -------------------------------------------------------------------------------------------


# A key: a strict await behind it.
@body()
@workflow
async def key_strict_await() -> Any:
    m = await gives("dict")
    await echo(m["id"])
    if await ping():
        return "end"
    return "other"


# A key: a fence behind it.
@body()
@workflow
async def key_fence() -> Any:
    m = await gives("dict")
    await echo(m["id"])
    note("fence")
    await count_up()
    return m["id"]


# A key: held over a step.
@body()
@workflow
async def key_held_over_a_step() -> Any:
    m = await gives("dict")
    value = m["id"]
    await count_up()
    await echo(value)
    return value


# A key: read in a task.
@body()
@workflow
async def key_read_in_a_task() -> Any:
    m = await gives("dict")

    async def reader() -> Any:
        await ping()
        return m["id"]

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, m["id"]]


# A key: appended to a list that a helper keeps.
@body()
@workflow
async def key_appended() -> Any:
    m = await gives("dict")
    out: list[Any] = []
    out.append(m["id"])
    keep(out)
    await count_up()
    return out


# A key: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def key_returned_in_a_try() -> Any:
    m = await gives("dict")
    try:
        return m["id"]
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A key: an argument in a gather.
@body()
@workflow
async def key_gathered() -> Any:
    m = await gives("dict")
    await asyncio.gather(echo(m["id"]), count_up())
    return await echo(m["id"])


# A key: in a loop that changes the world.
@body()
@workflow
async def key_in_a_loop() -> Any:
    m = await gives("dict")
    for number in range(2):
        await echo(number, m["id"])
        await count_up()
    return m["id"]


# A key: in a comprehension of awaits.
@body()
@workflow
async def key_in_a_comprehension() -> Any:
    m = await gives("dict")
    found = [await echo([number, m["id"]]) for number in range(2)]
    await count_up()
    return [found, m["id"]]


# A key: given to an inlined workflow.
@body()
@workflow
async def key_given_to_inlined() -> Any:
    m = await gives("dict")
    given = await passes_on(m["id"])
    await count_up()
    return [given, m["id"]]


# A key: matched behind a step.
@body()
@workflow
async def key_matched() -> Any:
    m = await gives("dict")
    await count_up()
    match {"part": m["id"]}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A key: in a with.
@body()
@workflow
async def key_in_a_with() -> Any:
    m = await gives("dict")
    with noting("room"):
        await echo(m["id"])
        await count_up()
    return await echo(m["id"])


# A key: bound by a walrus.
@body()
@workflow
async def key_bound_by_walrus() -> Any:
    m = await gives("dict")
    if (value := m["id"]) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A key: late in a lambda.
@body()
@workflow
async def key_in_a_lambda() -> Any:
    m = await gives("dict")
    get = lambda: m["id"]  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A key: twice in one call.
@body()
@workflow
async def key_twice_in_one_call() -> Any:
    m = await gives("dict")
    await echo([m["id"], m["id"]], key=m["id"])
    await count_up()
    return {"a": m["id"], "b": [m["id"]]}


# A key: handled, with a step in the handler.
@body()
@workflow
async def key_handled() -> Any:
    m = await gives("dict")
    try:
        await echo(m["id"])
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a missing key -----------------------------------------------------------------------------------


# A missing key: a strict await behind it.
@body()
@workflow
async def missing_key_strict_await() -> Any:
    m = await gives("dict")
    await echo(m["nothing"])
    if await ping():
        return "end"
    return "other"


# A missing key: a fence behind it.
@body()
@workflow
async def missing_key_fence() -> Any:
    m = await gives("dict")
    await echo(m["nothing"])
    note("fence")
    await count_up()
    return m["nothing"]


# A missing key: held over a step.
@body()
@workflow
async def missing_key_held_over_a_step() -> Any:
    m = await gives("dict")
    value = m["nothing"]
    await count_up()
    await echo(value)
    return value


# A missing key: read in a task.
@body()
@workflow
async def missing_key_read_in_a_task() -> Any:
    m = await gives("dict")

    async def reader() -> Any:
        await ping()
        return m["nothing"]

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, m["nothing"]]


# A missing key: appended to a list that a helper keeps.
@body()
@workflow
async def missing_key_appended() -> Any:
    m = await gives("dict")
    out: list[Any] = []
    out.append(m["nothing"])
    keep(out)
    await count_up()
    return out


# A missing key: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def missing_key_returned_in_a_try() -> Any:
    m = await gives("dict")
    try:
        return m["nothing"]
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A missing key: an argument in a gather.
@body()
@workflow
async def missing_key_gathered() -> Any:
    m = await gives("dict")
    await asyncio.gather(echo(m["nothing"]), count_up())
    return await echo(m["nothing"])


# A missing key: in a loop that changes the world.
@body()
@workflow
async def missing_key_in_a_loop() -> Any:
    m = await gives("dict")
    for number in range(2):
        await echo(number, m["nothing"])
        await count_up()
    return m["nothing"]


# A missing key: in a comprehension of awaits.
@body()
@workflow
async def missing_key_in_a_comprehension() -> Any:
    m = await gives("dict")
    found = [await echo([number, m["nothing"]]) for number in range(2)]
    await count_up()
    return [found, m["nothing"]]


# A missing key: given to an inlined workflow.
@body()
@workflow
async def missing_key_given_to_inlined() -> Any:
    m = await gives("dict")
    given = await passes_on(m["nothing"])
    await count_up()
    return [given, m["nothing"]]


# A missing key: matched behind a step.
@body()
@workflow
async def missing_key_matched() -> Any:
    m = await gives("dict")
    await count_up()
    match {"part": m["nothing"]}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A missing key: in a with.
@body()
@workflow
async def missing_key_in_a_with() -> Any:
    m = await gives("dict")
    with noting("room"):
        await echo(m["nothing"])
        await count_up()
    return await echo(m["nothing"])


# A missing key: bound by a walrus.
@body()
@workflow
async def missing_key_bound_by_walrus() -> Any:
    m = await gives("dict")
    if (value := m["nothing"]) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A missing key: late in a lambda.
@body()
@workflow
async def missing_key_in_a_lambda() -> Any:
    m = await gives("dict")
    get = lambda: m["nothing"]  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A missing key: twice in one call.
@body()
@workflow
async def missing_key_twice_in_one_call() -> Any:
    m = await gives("dict")
    await echo([m["nothing"], m["nothing"]], key=m["nothing"])
    await count_up()
    return {"a": m["nothing"], "b": [m["nothing"]]}


# A missing key: handled, with a step in the handler.
@body()
@workflow
async def missing_key_handled() -> Any:
    m = await gives("dict")
    try:
        await echo(m["nothing"])
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a character of a text ---------------------------------------------------------------------------


# A character of a text: a strict await behind it.
@body()
@workflow
async def character_strict_await() -> Any:
    s = await gives("text")
    await echo(s[0])
    if await ping():
        return "end"
    return "other"


# A character of a text: a fence behind it.
@body()
@workflow
async def character_fence() -> Any:
    s = await gives("text")
    await echo(s[0])
    note("fence")
    await count_up()
    return s[0]


# A character of a text: held over a step.
@body()
@workflow
async def character_held_over_a_step() -> Any:
    s = await gives("text")
    value = s[0]
    await count_up()
    await echo(value)
    return value


# A character of a text: read in a task.
@body()
@workflow
async def character_read_in_a_task() -> Any:
    s = await gives("text")

    async def reader() -> Any:
        await ping()
        return s[0]

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, s[0]]


# A character of a text: appended to a list that a helper keeps.
@body()
@workflow
async def character_appended() -> Any:
    s = await gives("text")
    out: list[Any] = []
    out.append(s[0])
    keep(out)
    await count_up()
    return out


# A character of a text: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def character_returned_in_a_try() -> Any:
    s = await gives("text")
    try:
        return s[0]
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A character of a text: an argument in a gather.
@body()
@workflow
async def character_gathered() -> Any:
    s = await gives("text")
    await asyncio.gather(echo(s[0]), count_up())
    return await echo(s[0])


# A character of a text: in a loop that changes the world.
@body()
@workflow
async def character_in_a_loop() -> Any:
    s = await gives("text")
    for number in range(2):
        await echo(number, s[0])
        await count_up()
    return s[0]


# A character of a text: in a comprehension of awaits.
@body()
@workflow
async def character_in_a_comprehension() -> Any:
    s = await gives("text")
    found = [await echo([number, s[0]]) for number in range(2)]
    await count_up()
    return [found, s[0]]


# A character of a text: given to an inlined workflow.
@body()
@workflow
async def character_given_to_inlined() -> Any:
    s = await gives("text")
    given = await passes_on(s[0])
    await count_up()
    return [given, s[0]]


# A character of a text: matched behind a step.
@body()
@workflow
async def character_matched() -> Any:
    s = await gives("text")
    await count_up()
    match {"part": s[0]}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A character of a text: in a with.
@body()
@workflow
async def character_in_a_with() -> Any:
    s = await gives("text")
    with noting("room"):
        await echo(s[0])
        await count_up()
    return await echo(s[0])


# A character of a text: bound by a walrus.
@body()
@workflow
async def character_bound_by_walrus() -> Any:
    s = await gives("text")
    if (value := s[0]) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A character of a text: late in a lambda.
@body()
@workflow
async def character_in_a_lambda() -> Any:
    s = await gives("text")
    get = lambda: s[0]  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A character of a text: twice in one call.
@body()
@workflow
async def character_twice_in_one_call() -> Any:
    s = await gives("text")
    await echo([s[0], s[0]], key=s[0])
    await count_up()
    return {"a": s[0], "b": [s[0]]}


# A character of a text: handled, with a step in the handler.
@body()
@workflow
async def character_handled() -> Any:
    s = await gives("text")
    try:
        await echo(s[0])
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- the value of an enum ----------------------------------------------------------------------------


# The value of an enum: a strict await behind it.
@body()
@workflow
async def enum_value_strict_await() -> Any:
    e = await gives("enum")
    await echo(e.value)
    if await ping():
        return "end"
    return "other"


# The value of an enum: a fence behind it.
@body()
@workflow
async def enum_value_fence() -> Any:
    e = await gives("enum")
    await echo(e.value)
    note("fence")
    await count_up()
    return e.value


# The value of an enum: held over a step.
@body()
@workflow
async def enum_value_held_over_a_step() -> Any:
    e = await gives("enum")
    value = e.value
    await count_up()
    await echo(value)
    return value


# The value of an enum: read in a task.
@body()
@workflow
async def enum_value_read_in_a_task() -> Any:
    e = await gives("enum")

    async def reader() -> Any:
        await ping()
        return e.value

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, e.value]


# The value of an enum: appended to a list that a helper keeps.
@body()
@workflow
async def enum_value_appended() -> Any:
    e = await gives("enum")
    out: list[Any] = []
    out.append(e.value)
    keep(out)
    await count_up()
    return out


# The value of an enum: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def enum_value_returned_in_a_try() -> Any:
    e = await gives("enum")
    try:
        return e.value
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# The value of an enum: an argument in a gather.
@body()
@workflow
async def enum_value_gathered() -> Any:
    e = await gives("enum")
    await asyncio.gather(echo(e.value), count_up())
    return await echo(e.value)


# The value of an enum: in a loop that changes the world.
@body()
@workflow
async def enum_value_in_a_loop() -> Any:
    e = await gives("enum")
    for number in range(2):
        await echo(number, e.value)
        await count_up()
    return e.value


# The value of an enum: in a comprehension of awaits.
@body()
@workflow
async def enum_value_in_a_comprehension() -> Any:
    e = await gives("enum")
    found = [await echo([number, e.value]) for number in range(2)]
    await count_up()
    return [found, e.value]


# The value of an enum: given to an inlined workflow.
@body()
@workflow
async def enum_value_given_to_inlined() -> Any:
    e = await gives("enum")
    given = await passes_on(e.value)
    await count_up()
    return [given, e.value]


# The value of an enum: matched behind a step.
@body()
@workflow
async def enum_value_matched() -> Any:
    e = await gives("enum")
    await count_up()
    match {"part": e.value}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# The value of an enum: in a with.
@body()
@workflow
async def enum_value_in_a_with() -> Any:
    e = await gives("enum")
    with noting("room"):
        await echo(e.value)
        await count_up()
    return await echo(e.value)


# The value of an enum: bound by a walrus.
@body()
@workflow
async def enum_value_bound_by_walrus() -> Any:
    e = await gives("enum")
    if (value := e.value) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# The value of an enum: late in a lambda.
@body()
@workflow
async def enum_value_in_a_lambda() -> Any:
    e = await gives("enum")
    get = lambda: e.value  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# The value of an enum: twice in one call.
@body()
@workflow
async def enum_value_twice_in_one_call() -> Any:
    e = await gives("enum")
    await echo([e.value, e.value], key=e.value)
    await count_up()
    return {"a": e.value, "b": [e.value]}


# The value of an enum: handled, with a step in the handler.
@body()
@workflow
async def enum_value_handled() -> Any:
    e = await gives("enum")
    try:
        await echo(e.value)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- the year of a date ------------------------------------------------------------------------------


# The year of a date: a strict await behind it.
@body()
@workflow
async def year_strict_await() -> Any:
    d = await gives("date")
    await echo(d.year)
    if await ping():
        return "end"
    return "other"


# The year of a date: a fence behind it.
@body()
@workflow
async def year_fence() -> Any:
    d = await gives("date")
    await echo(d.year)
    note("fence")
    await count_up()
    return d.year


# The year of a date: held over a step.
@body()
@workflow
async def year_held_over_a_step() -> Any:
    d = await gives("date")
    value = d.year
    await count_up()
    await echo(value)
    return value


# The year of a date: read in a task.
@body()
@workflow
async def year_read_in_a_task() -> Any:
    d = await gives("date")

    async def reader() -> Any:
        await ping()
        return d.year

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, d.year]


# The year of a date: appended to a list that a helper keeps.
@body()
@workflow
async def year_appended() -> Any:
    d = await gives("date")
    out: list[Any] = []
    out.append(d.year)
    keep(out)
    await count_up()
    return out


# The year of a date: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def year_returned_in_a_try() -> Any:
    d = await gives("date")
    try:
        return d.year
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# The year of a date: an argument in a gather.
@body()
@workflow
async def year_gathered() -> Any:
    d = await gives("date")
    await asyncio.gather(echo(d.year), count_up())
    return await echo(d.year)


# The year of a date: in a loop that changes the world.
@body()
@workflow
async def year_in_a_loop() -> Any:
    d = await gives("date")
    for number in range(2):
        await echo(number, d.year)
        await count_up()
    return d.year


# The year of a date: in a comprehension of awaits.
@body()
@workflow
async def year_in_a_comprehension() -> Any:
    d = await gives("date")
    found = [await echo([number, d.year]) for number in range(2)]
    await count_up()
    return [found, d.year]


# The year of a date: given to an inlined workflow.
@body()
@workflow
async def year_given_to_inlined() -> Any:
    d = await gives("date")
    given = await passes_on(d.year)
    await count_up()
    return [given, d.year]


# The year of a date: matched behind a step.
@body()
@workflow
async def year_matched() -> Any:
    d = await gives("date")
    await count_up()
    match {"part": d.year}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# The year of a date: in a with.
@body()
@workflow
async def year_in_a_with() -> Any:
    d = await gives("date")
    with noting("room"):
        await echo(d.year)
        await count_up()
    return await echo(d.year)


# The year of a date: bound by a walrus.
@body()
@workflow
async def year_bound_by_walrus() -> Any:
    d = await gives("date")
    if (value := d.year) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# The year of a date: late in a lambda.
@body()
@workflow
async def year_in_a_lambda() -> Any:
    d = await gives("date")
    get = lambda: d.year  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# The year of a date: twice in one call.
@body()
@workflow
async def year_twice_in_one_call() -> Any:
    d = await gives("date")
    await echo([d.year, d.year], key=d.year)
    await count_up()
    return {"a": d.year, "b": [d.year]}


# The year of a date: handled, with a step in the handler.
@body()
@workflow
async def year_handled() -> Any:
    d = await gives("date")
    try:
        await echo(d.year)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a part of None ----------------------------------------------------------------------------------


# A part of None: a strict await behind it.
@body()
@workflow
async def part_of_none_strict_await() -> Any:
    n = await gives("none")
    await echo(n.year)
    if await ping():
        return "end"
    return "other"


# A part of None: a fence behind it.
@body()
@workflow
async def part_of_none_fence() -> Any:
    n = await gives("none")
    await echo(n.year)
    note("fence")
    await count_up()
    return n.year


# A part of None: held over a step.
@body()
@workflow
async def part_of_none_held_over_a_step() -> Any:
    n = await gives("none")
    value = n.year
    await count_up()
    await echo(value)
    return value


# A part of None: read in a task.
@body()
@workflow
async def part_of_none_read_in_a_task() -> Any:
    n = await gives("none")

    async def reader() -> Any:
        await ping()
        return n.year

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, n.year]


# A part of None: appended to a list that a helper keeps.
@body()
@workflow
async def part_of_none_appended() -> Any:
    n = await gives("none")
    out: list[Any] = []
    out.append(n.year)
    keep(out)
    await count_up()
    return out


# A part of None: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def part_of_none_returned_in_a_try() -> Any:
    n = await gives("none")
    try:
        return n.year
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A part of None: an argument in a gather.
@body()
@workflow
async def part_of_none_gathered() -> Any:
    n = await gives("none")
    await asyncio.gather(echo(n.year), count_up())
    return await echo(n.year)


# A part of None: in a loop that changes the world.
@body()
@workflow
async def part_of_none_in_a_loop() -> Any:
    n = await gives("none")
    for number in range(2):
        await echo(number, n.year)
        await count_up()
    return n.year


# A part of None: in a comprehension of awaits.
@body()
@workflow
async def part_of_none_in_a_comprehension() -> Any:
    n = await gives("none")
    found = [await echo([number, n.year]) for number in range(2)]
    await count_up()
    return [found, n.year]


# A part of None: given to an inlined workflow.
@body()
@workflow
async def part_of_none_given_to_inlined() -> Any:
    n = await gives("none")
    given = await passes_on(n.year)
    await count_up()
    return [given, n.year]


# A part of None: matched behind a step.
@body()
@workflow
async def part_of_none_matched() -> Any:
    n = await gives("none")
    await count_up()
    match {"part": n.year}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A part of None: in a with.
@body()
@workflow
async def part_of_none_in_a_with() -> Any:
    n = await gives("none")
    with noting("room"):
        await echo(n.year)
        await count_up()
    return await echo(n.year)


# A part of None: bound by a walrus.
@body()
@workflow
async def part_of_none_bound_by_walrus() -> Any:
    n = await gives("none")
    if (value := n.year) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A part of None: late in a lambda.
@body()
@workflow
async def part_of_none_in_a_lambda() -> Any:
    n = await gives("none")
    get = lambda: n.year  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A part of None: twice in one call.
@body()
@workflow
async def part_of_none_twice_in_one_call() -> Any:
    n = await gives("none")
    await echo([n.year, n.year], key=n.year)
    await count_up()
    return {"a": n.year, "b": [n.year]}


# A part of None: handled, with a step in the handler.
@body()
@workflow
async def part_of_none_handled() -> Any:
    n = await gives("none")
    try:
        await echo(n.year)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a field of a named tuple ------------------------------------------------------------------------


# A field of a named tuple: a strict await behind it.
@body()
@workflow
async def namedtuple_field_strict_await() -> Any:
    p = await gives("point")
    await echo(p.x)
    if await ping():
        return "end"
    return "other"


# A field of a named tuple: a fence behind it.
@body()
@workflow
async def namedtuple_field_fence() -> Any:
    p = await gives("point")
    await echo(p.x)
    note("fence")
    await count_up()
    return p.x


# A field of a named tuple: held over a step.
@body()
@workflow
async def namedtuple_field_held_over_a_step() -> Any:
    p = await gives("point")
    value = p.x
    await count_up()
    await echo(value)
    return value


# A field of a named tuple: read in a task.
@body()
@workflow
async def namedtuple_field_read_in_a_task() -> Any:
    p = await gives("point")

    async def reader() -> Any:
        await ping()
        return p.x

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, p.x]


# A field of a named tuple: appended to a list that a helper keeps.
@body()
@workflow
async def namedtuple_field_appended() -> Any:
    p = await gives("point")
    out: list[Any] = []
    out.append(p.x)
    keep(out)
    await count_up()
    return out


# A field of a named tuple: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def namedtuple_field_returned_in_a_try() -> Any:
    p = await gives("point")
    try:
        return p.x
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A field of a named tuple: an argument in a gather.
@body()
@workflow
async def namedtuple_field_gathered() -> Any:
    p = await gives("point")
    await asyncio.gather(echo(p.x), count_up())
    return await echo(p.x)


# A field of a named tuple: in a loop that changes the world.
@body()
@workflow
async def namedtuple_field_in_a_loop() -> Any:
    p = await gives("point")
    for number in range(2):
        await echo(number, p.x)
        await count_up()
    return p.x


# A field of a named tuple: in a comprehension of awaits.
@body()
@workflow
async def namedtuple_field_in_a_comprehension() -> Any:
    p = await gives("point")
    found = [await echo([number, p.x]) for number in range(2)]
    await count_up()
    return [found, p.x]


# A field of a named tuple: given to an inlined workflow.
@body()
@workflow
async def namedtuple_field_given_to_inlined() -> Any:
    p = await gives("point")
    given = await passes_on(p.x)
    await count_up()
    return [given, p.x]


# A field of a named tuple: matched behind a step.
@body()
@workflow
async def namedtuple_field_matched() -> Any:
    p = await gives("point")
    await count_up()
    match {"part": p.x}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A field of a named tuple: in a with.
@body()
@workflow
async def namedtuple_field_in_a_with() -> Any:
    p = await gives("point")
    with noting("room"):
        await echo(p.x)
        await count_up()
    return await echo(p.x)


# A field of a named tuple: bound by a walrus.
@body()
@workflow
async def namedtuple_field_bound_by_walrus() -> Any:
    p = await gives("point")
    if (value := p.x) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A field of a named tuple: late in a lambda.
@body()
@workflow
async def namedtuple_field_in_a_lambda() -> Any:
    p = await gives("point")
    get = lambda: p.x  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A field of a named tuple: twice in one call.
@body()
@workflow
async def namedtuple_field_twice_in_one_call() -> Any:
    p = await gives("point")
    await echo([p.x, p.x], key=p.x)
    await count_up()
    return {"a": p.x, "b": [p.x]}


# A field of a named tuple: handled, with a step in the handler.
@body()
@workflow
async def namedtuple_field_handled() -> Any:
    p = await gives("point")
    try:
        await echo(p.x)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a slot ------------------------------------------------------------------------------------------


# A slot: a strict await behind it.
@body()
@workflow
async def slot_strict_await() -> Any:
    s = await gives("slots")
    await echo(s.size)
    if await ping():
        return "end"
    return "other"


# A slot: a fence behind it.
@body()
@workflow
async def slot_fence() -> Any:
    s = await gives("slots")
    await echo(s.size)
    note("fence")
    await count_up()
    return s.size


# A slot: held over a step.
@body()
@workflow
async def slot_held_over_a_step() -> Any:
    s = await gives("slots")
    value = s.size
    await count_up()
    await echo(value)
    return value


# A slot: read in a task.
@body()
@workflow
async def slot_read_in_a_task() -> Any:
    s = await gives("slots")

    async def reader() -> Any:
        await ping()
        return s.size

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, s.size]


# A slot: appended to a list that a helper keeps.
@body()
@workflow
async def slot_appended() -> Any:
    s = await gives("slots")
    out: list[Any] = []
    out.append(s.size)
    keep(out)
    await count_up()
    return out


# A slot: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def slot_returned_in_a_try() -> Any:
    s = await gives("slots")
    try:
        return s.size
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A slot: an argument in a gather.
@body()
@workflow
async def slot_gathered() -> Any:
    s = await gives("slots")
    await asyncio.gather(echo(s.size), count_up())
    return await echo(s.size)


# A slot: in a loop that changes the world.
@body()
@workflow
async def slot_in_a_loop() -> Any:
    s = await gives("slots")
    for number in range(2):
        await echo(number, s.size)
        await count_up()
    return s.size


# A slot: in a comprehension of awaits.
@body()
@workflow
async def slot_in_a_comprehension() -> Any:
    s = await gives("slots")
    found = [await echo([number, s.size]) for number in range(2)]
    await count_up()
    return [found, s.size]


# A slot: given to an inlined workflow.
@body()
@workflow
async def slot_given_to_inlined() -> Any:
    s = await gives("slots")
    given = await passes_on(s.size)
    await count_up()
    return [given, s.size]


# A slot: matched behind a step.
@body()
@workflow
async def slot_matched() -> Any:
    s = await gives("slots")
    await count_up()
    match {"part": s.size}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A slot: in a with.
@body()
@workflow
async def slot_in_a_with() -> Any:
    s = await gives("slots")
    with noting("room"):
        await echo(s.size)
        await count_up()
    return await echo(s.size)


# A slot: bound by a walrus.
@body()
@workflow
async def slot_bound_by_walrus() -> Any:
    s = await gives("slots")
    if (value := s.size) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A slot: late in a lambda.
@body()
@workflow
async def slot_in_a_lambda() -> Any:
    s = await gives("slots")
    get = lambda: s.size  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A slot: twice in one call.
@body()
@workflow
async def slot_twice_in_one_call() -> Any:
    s = await gives("slots")
    await echo([s.size, s.size], key=s.size)
    await count_up()
    return {"a": s.size, "b": [s.size]}


# A slot: handled, with a step in the handler.
@body()
@workflow
async def slot_handled() -> Any:
    s = await gives("slots")
    try:
        await echo(s.size)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a part of a part --------------------------------------------------------------------------------


# A part of a part: a strict await behind it.
@body()
@workflow
async def nested_part_strict_await() -> Any:
    h = await house()
    await echo(h.rooms[1].name)
    if await ping():
        return "end"
    return "other"


# A part of a part: a fence behind it.
@body()
@workflow
async def nested_part_fence() -> Any:
    h = await house()
    await echo(h.rooms[1].name)
    note("fence")
    await count_up()
    return h.rooms[1].name


# A part of a part: held over a step.
@body()
@workflow
async def nested_part_held_over_a_step() -> Any:
    h = await house()
    value = h.rooms[1].name
    await count_up()
    await echo(value)
    return value


# A part of a part: read in a task.
@body()
@workflow
async def nested_part_read_in_a_task() -> Any:
    h = await house()

    async def reader() -> Any:
        await ping()
        return h.rooms[1].name

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, h.rooms[1].name]


# A part of a part: appended to a list that a helper keeps.
@body()
@workflow
async def nested_part_appended() -> Any:
    h = await house()
    out: list[Any] = []
    out.append(h.rooms[1].name)
    keep(out)
    await count_up()
    return out


# A part of a part: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def nested_part_returned_in_a_try() -> Any:
    h = await house()
    try:
        return h.rooms[1].name
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A part of a part: an argument in a gather.
@body()
@workflow
async def nested_part_gathered() -> Any:
    h = await house()
    await asyncio.gather(echo(h.rooms[1].name), count_up())
    return await echo(h.rooms[1].name)


# A part of a part: in a loop that changes the world.
@body()
@workflow
async def nested_part_in_a_loop() -> Any:
    h = await house()
    for number in range(2):
        await echo(number, h.rooms[1].name)
        await count_up()
    return h.rooms[1].name


# A part of a part: in a comprehension of awaits.
@body()
@workflow
async def nested_part_in_a_comprehension() -> Any:
    h = await house()
    found = [await echo([number, h.rooms[1].name]) for number in range(2)]
    await count_up()
    return [found, h.rooms[1].name]


# A part of a part: given to an inlined workflow.
@body()
@workflow
async def nested_part_given_to_inlined() -> Any:
    h = await house()
    given = await passes_on(h.rooms[1].name)
    await count_up()
    return [given, h.rooms[1].name]


# A part of a part: matched behind a step.
@body()
@workflow
async def nested_part_matched() -> Any:
    h = await house()
    await count_up()
    match {"part": h.rooms[1].name}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A part of a part: in a with.
@body()
@workflow
async def nested_part_in_a_with() -> Any:
    h = await house()
    with noting("room"):
        await echo(h.rooms[1].name)
        await count_up()
    return await echo(h.rooms[1].name)


# A part of a part: bound by a walrus.
@body()
@workflow
async def nested_part_bound_by_walrus() -> Any:
    h = await house()
    if (value := h.rooms[1].name) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A part of a part: late in a lambda.
@body()
@workflow
async def nested_part_in_a_lambda() -> Any:
    h = await house()
    get = lambda: h.rooms[1].name  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A part of a part: twice in one call.
@body()
@workflow
async def nested_part_twice_in_one_call() -> Any:
    h = await house()
    await echo([h.rooms[1].name, h.rooms[1].name], key=h.rooms[1].name)
    await count_up()
    return {"a": h.rooms[1].name, "b": [h.rooms[1].name]}


# A part of a part: handled, with a step in the handler.
@body()
@workflow
async def nested_part_handled() -> Any:
    h = await house()
    try:
        await echo(h.rooms[1].name)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a property of what an inlined workflow gives ----------------------------------------------------


# A property of what an inlined workflow gives: a strict await behind it.
@body()
@workflow
async def part_of_inlined_strict_await() -> Any:
    c = await gives_room()
    await echo(c.title)
    if await ping():
        return "end"
    return "other"


# A property of what an inlined workflow gives: a fence behind it.
@body()
@workflow
async def part_of_inlined_fence() -> Any:
    c = await gives_room()
    await echo(c.title)
    note("fence")
    await count_up()
    return c.title


# A property of what an inlined workflow gives: held over a step.
@body()
@workflow
async def part_of_inlined_held_over_a_step() -> Any:
    c = await gives_room()
    value = c.title
    await count_up()
    await echo(value)
    return value


# A property of what an inlined workflow gives: read in a task.
@body()
@workflow
async def part_of_inlined_read_in_a_task() -> Any:
    c = await gives_room()

    async def reader() -> Any:
        await ping()
        return c.title

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, c.title]


# A property of what an inlined workflow gives: appended to a list that a helper keeps.
@body()
@workflow
async def part_of_inlined_appended() -> Any:
    c = await gives_room()
    out: list[Any] = []
    out.append(c.title)
    keep(out)
    await count_up()
    return out


# A property of what an inlined workflow gives: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def part_of_inlined_returned_in_a_try() -> Any:
    c = await gives_room()
    try:
        return c.title
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A property of what an inlined workflow gives: an argument in a gather.
@body()
@workflow
async def part_of_inlined_gathered() -> Any:
    c = await gives_room()
    await asyncio.gather(echo(c.title), count_up())
    return await echo(c.title)


# A property of what an inlined workflow gives: in a loop that changes the world.
@body()
@workflow
async def part_of_inlined_in_a_loop() -> Any:
    c = await gives_room()
    for number in range(2):
        await echo(number, c.title)
        await count_up()
    return c.title


# A property of what an inlined workflow gives: in a comprehension of awaits.
@body()
@workflow
async def part_of_inlined_in_a_comprehension() -> Any:
    c = await gives_room()
    found = [await echo([number, c.title]) for number in range(2)]
    await count_up()
    return [found, c.title]


# A property of what an inlined workflow gives: given to an inlined workflow.
@body()
@workflow
async def part_of_inlined_given_to_inlined() -> Any:
    c = await gives_room()
    given = await passes_on(c.title)
    await count_up()
    return [given, c.title]


# A property of what an inlined workflow gives: matched behind a step.
@body()
@workflow
async def part_of_inlined_matched() -> Any:
    c = await gives_room()
    await count_up()
    match {"part": c.title}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A property of what an inlined workflow gives: in a with.
@body()
@workflow
async def part_of_inlined_in_a_with() -> Any:
    c = await gives_room()
    with noting("room"):
        await echo(c.title)
        await count_up()
    return await echo(c.title)


# A property of what an inlined workflow gives: bound by a walrus.
@body()
@workflow
async def part_of_inlined_bound_by_walrus() -> Any:
    c = await gives_room()
    if (value := c.title) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A property of what an inlined workflow gives: late in a lambda.
@body()
@workflow
async def part_of_inlined_in_a_lambda() -> Any:
    c = await gives_room()
    get = lambda: c.title  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A property of what an inlined workflow gives: twice in one call.
@body()
@workflow
async def part_of_inlined_twice_in_one_call() -> Any:
    c = await gives_room()
    await echo([c.title, c.title], key=c.title)
    await count_up()
    return {"a": c.title, "b": [c.title]}


# A property of what an inlined workflow gives: handled, with a step in the handler.
@body()
@workflow
async def part_of_inlined_handled() -> Any:
    c = await gives_room()
    try:
        await echo(c.title)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a property that an inlined workflow returns -----------------------------------------------------


# A property that an inlined workflow returns: a strict await behind it.
@body()
@workflow
async def inlined_part_strict_await() -> Any:
    t = await gives_title()
    await echo(t)
    if await ping():
        return "end"
    return "other"


# A property that an inlined workflow returns: a fence behind it.
@body()
@workflow
async def inlined_part_fence() -> Any:
    t = await gives_title()
    await echo(t)
    note("fence")
    await count_up()
    return t


# A property that an inlined workflow returns: held over a step.
@body()
@workflow
async def inlined_part_held_over_a_step() -> Any:
    t = await gives_title()
    value = t
    await count_up()
    await echo(value)
    return value


# A property that an inlined workflow returns: read in a task.
@body()
@workflow
async def inlined_part_read_in_a_task() -> Any:
    t = await gives_title()

    async def reader() -> Any:
        await ping()
        return t

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, t]


# A property that an inlined workflow returns: appended to a list that a helper keeps.
@body()
@workflow
async def inlined_part_appended() -> Any:
    t = await gives_title()
    out: list[Any] = []
    out.append(t)
    keep(out)
    await count_up()
    return out


# A property that an inlined workflow returns: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def inlined_part_returned_in_a_try() -> Any:
    t = await gives_title()
    try:
        return t
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A property that an inlined workflow returns: an argument in a gather.
@body()
@workflow
async def inlined_part_gathered() -> Any:
    t = await gives_title()
    await asyncio.gather(echo(t), count_up())
    return await echo(t)


# A property that an inlined workflow returns: in a loop that changes the world.
@body()
@workflow
async def inlined_part_in_a_loop() -> Any:
    t = await gives_title()
    for number in range(2):
        await echo(number, t)
        await count_up()
    return t


# A property that an inlined workflow returns: in a comprehension of awaits.
@body()
@workflow
async def inlined_part_in_a_comprehension() -> Any:
    t = await gives_title()
    found = [await echo([number, t]) for number in range(2)]
    await count_up()
    return [found, t]


# A property that an inlined workflow returns: given to an inlined workflow.
@body()
@workflow
async def inlined_part_given_to_inlined() -> Any:
    t = await gives_title()
    given = await passes_on(t)
    await count_up()
    return [given, t]


# A property that an inlined workflow returns: matched behind a step.
@body()
@workflow
async def inlined_part_matched() -> Any:
    t = await gives_title()
    await count_up()
    match {"part": t}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A property that an inlined workflow returns: in a with.
@body()
@workflow
async def inlined_part_in_a_with() -> Any:
    t = await gives_title()
    with noting("room"):
        await echo(t)
        await count_up()
    return await echo(t)


# A property that an inlined workflow returns: bound by a walrus.
@body()
@workflow
async def inlined_part_bound_by_walrus() -> Any:
    t = await gives_title()
    if (value := t) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A property that an inlined workflow returns: late in a lambda.
@body()
@workflow
async def inlined_part_in_a_lambda() -> Any:
    t = await gives_title()
    get = lambda: t  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A property that an inlined workflow returns: twice in one call.
@body()
@workflow
async def inlined_part_twice_in_one_call() -> Any:
    t = await gives_title()
    await echo([t, t], key=t)
    await count_up()
    return {"a": t, "b": [t]}


# A property that an inlined workflow returns: handled, with a step in the handler.
@body()
@workflow
async def inlined_part_handled() -> Any:
    t = await gives_title()
    try:
        await echo(t)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a missing key in an inlined workflow ------------------------------------------------------------


# A missing key in an inlined workflow: a strict await behind it.
@body()
@workflow
async def inlined_missing_strict_await() -> Any:
    k = await gives_part("dict", "nothing")
    await echo(k)
    if await ping():
        return "end"
    return "other"


# A missing key in an inlined workflow: a fence behind it.
@body()
@workflow
async def inlined_missing_fence() -> Any:
    k = await gives_part("dict", "nothing")
    await echo(k)
    note("fence")
    await count_up()
    return k


# A missing key in an inlined workflow: held over a step.
@body()
@workflow
async def inlined_missing_held_over_a_step() -> Any:
    k = await gives_part("dict", "nothing")
    value = k
    await count_up()
    await echo(value)
    return value


# A missing key in an inlined workflow: read in a task.
@body()
@workflow
async def inlined_missing_read_in_a_task() -> Any:
    k = await gives_part("dict", "nothing")

    async def reader() -> Any:
        await ping()
        return k

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, k]


# A missing key in an inlined workflow: appended to a list that a helper keeps.
@body()
@workflow
async def inlined_missing_appended() -> Any:
    k = await gives_part("dict", "nothing")
    out: list[Any] = []
    out.append(k)
    keep(out)
    await count_up()
    return out


# A missing key in an inlined workflow: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def inlined_missing_returned_in_a_try() -> Any:
    k = await gives_part("dict", "nothing")
    try:
        return k
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A missing key in an inlined workflow: an argument in a gather.
@body()
@workflow
async def inlined_missing_gathered() -> Any:
    k = await gives_part("dict", "nothing")
    await asyncio.gather(echo(k), count_up())
    return await echo(k)


# A missing key in an inlined workflow: in a loop that changes the world.
@body()
@workflow
async def inlined_missing_in_a_loop() -> Any:
    k = await gives_part("dict", "nothing")
    for number in range(2):
        await echo(number, k)
        await count_up()
    return k


# A missing key in an inlined workflow: in a comprehension of awaits.
@body()
@workflow
async def inlined_missing_in_a_comprehension() -> Any:
    k = await gives_part("dict", "nothing")
    found = [await echo([number, k]) for number in range(2)]
    await count_up()
    return [found, k]


# A missing key in an inlined workflow: given to an inlined workflow.
@body()
@workflow
async def inlined_missing_given_to_inlined() -> Any:
    k = await gives_part("dict", "nothing")
    given = await passes_on(k)
    await count_up()
    return [given, k]


# A missing key in an inlined workflow: matched behind a step.
@body()
@workflow
async def inlined_missing_matched() -> Any:
    k = await gives_part("dict", "nothing")
    await count_up()
    match {"part": k}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A missing key in an inlined workflow: in a with.
@body()
@workflow
async def inlined_missing_in_a_with() -> Any:
    k = await gives_part("dict", "nothing")
    with noting("room"):
        await echo(k)
        await count_up()
    return await echo(k)


# A missing key in an inlined workflow: bound by a walrus.
@body()
@workflow
async def inlined_missing_bound_by_walrus() -> Any:
    k = await gives_part("dict", "nothing")
    if (value := k) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A missing key in an inlined workflow: late in a lambda.
@body()
@workflow
async def inlined_missing_in_a_lambda() -> Any:
    k = await gives_part("dict", "nothing")
    get = lambda: k  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A missing key in an inlined workflow: twice in one call.
@body()
@workflow
async def inlined_missing_twice_in_one_call() -> Any:
    k = await gives_part("dict", "nothing")
    await echo([k, k], key=k)
    await count_up()
    return {"a": k, "b": [k]}


# A missing key in an inlined workflow: handled, with a step in the handler.
@body()
@workflow
async def inlined_missing_handled() -> Any:
    k = await gives_part("dict", "nothing")
    try:
        await echo(k)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()


# -- a property of a gathered result -----------------------------------------------------------------


# A property of a gathered result: a strict await behind it.
@body()
@workflow
async def part_of_gather_strict_await() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    await echo(c.title)
    if await ping():
        return "end"
    return "other"


# A property of a gathered result: a fence behind it.
@body()
@workflow
async def part_of_gather_fence() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    await echo(c.title)
    note("fence")
    await count_up()
    return c.title


# A property of a gathered result: held over a step.
@body()
@workflow
async def part_of_gather_held_over_a_step() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    value = c.title
    await count_up()
    await echo(value)
    return value


# A property of a gathered result: read in a task.
@body()
@workflow
async def part_of_gather_read_in_a_task() -> Any:
    c, _ = await asyncio.gather(room(), ping())

    async def reader() -> Any:
        await ping()
        return c.title

    task = asyncio.create_task(reader())
    await count_up()
    return [await task, c.title]


# A property of a gathered result: appended to a list that a helper keeps.
@body()
@workflow
async def part_of_gather_appended() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    out: list[Any] = []
    out.append(c.title)
    keep(out)
    await count_up()
    return out


# A property of a gathered result: returned in a try with steps in its handler and its finally.
@body()
@workflow
async def part_of_gather_returned_in_a_try() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    try:
        return c.title
    except (KeyError, AttributeError):
        await count_up()
        return "handled"
    finally:
        await echo("finally")


# A property of a gathered result: an argument in a gather.
@body()
@workflow
async def part_of_gather_gathered() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    await asyncio.gather(echo(c.title), count_up())
    return await echo(c.title)


# A property of a gathered result: in a loop that changes the world.
@body()
@workflow
async def part_of_gather_in_a_loop() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    for number in range(2):
        await echo(number, c.title)
        await count_up()
    return c.title


# A property of a gathered result: in a comprehension of awaits.
@body()
@workflow
async def part_of_gather_in_a_comprehension() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    found = [await echo([number, c.title]) for number in range(2)]
    await count_up()
    return [found, c.title]


# A property of a gathered result: given to an inlined workflow.
@body()
@workflow
async def part_of_gather_given_to_inlined() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    given = await passes_on(c.title)
    await count_up()
    return [given, c.title]


# A property of a gathered result: matched behind a step.
@body()
@workflow
async def part_of_gather_matched() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    await count_up()
    match {"part": c.title}:
        case {"part": [first, *_]}:
            return ["list", await echo(first)]
        case {"part": str() | int() as part}:
            return ["plain", await echo(part)]
        case _:
            return await ping()


# A property of a gathered result: in a with.
@body()
@workflow
async def part_of_gather_in_a_with() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    with noting("room"):
        await echo(c.title)
        await count_up()
    return await echo(c.title)


# A property of a gathered result: bound by a walrus.
@body()
@workflow
async def part_of_gather_bound_by_walrus() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    if (value := c.title) and await ping():
        await count_up()
        await echo(value)
    return [value, count()]


# A property of a gathered result: late in a lambda.
@body()
@workflow
async def part_of_gather_in_a_lambda() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    get = lambda: c.title  # noqa: E731
    await count_up()
    await echo(get())
    return [get(), await ping()]


# A property of a gathered result: twice in one call.
@body()
@workflow
async def part_of_gather_twice_in_one_call() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    await echo([c.title, c.title], key=c.title)
    await count_up()
    return {"a": c.title, "b": [c.title]}


# A property of a gathered result: handled, with a step in the handler.
@body()
@workflow
async def part_of_gather_handled() -> Any:
    c, _ = await asyncio.gather(room(), ping())
    try:
        await echo(c.title)
    except (KeyError, AttributeError) as error:
        await echo(type(error).__name__)
        await count_up()
    return await ping()
