"""Pairs: how a part of a result arises, and what is done with it; every row meets every column.

The compiler takes the source of a body from its file, so the bodies are written into one, and run from there.
"""

from __future__ import annotations

import asyncio
import tempfile
import textwrap
from pathlib import Path
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

IN_SCOPE = (
    asyncio,
    Any,
    workflow,
    count_up,
    echo,
    keep,
    note,
    noting,
    ping,
    body,
    count,
    gives,
    gives_part,
)
IN_SCOPE += (gives_room, gives_title, house, passes_on, room)  # what the bodies use

# A name, what it is, how the result is had, the part.
ARISE: list[tuple[str, str, str, str]] = [
    ("property", "a property", "c = await room()", "c.title"),
    ("counting_property", "a property that counts", "c = await room()", "c.next"),
    ("shared_list", "a list that the world shares", "c = await room()", "c.shared"),
    ("class_state", "what a class shares", "c = await room()", "c.cache"),
    ("own_list", "a list in a result", "c = await room()", "c.tags"),
    ("key", "a key", 'm = await gives("dict")', 'm["id"]'),
    ("missing_key", "a missing key", 'm = await gives("dict")', 'm["nothing"]'),
    ("character", "a character of a text", 's = await gives("text")', "s[0]"),
    ("enum_value", "the value of an enum", 'e = await gives("enum")', "e.value"),
    ("year", "the year of a date", 'd = await gives("date")', "d.year"),
    ("part_of_none", "a part of None", 'n = await gives("none")', "n.year"),
    ("namedtuple_field", "a field of a named tuple", 'p = await gives("point")', "p.x"),
    ("slot", "a slot", 's = await gives("slots")', "s.size"),
    ("nested_part", "a part of a part", "h = await house()", "h.rooms[1].name"),
    (
        "part_of_inlined",
        "a property of what an inlined workflow gives",
        "c = await gives_room()",
        "c.title",
    ),
    ("inlined_part", "a property that an inlined workflow returns", "t = await gives_title()", "t"),
    (
        "inlined_missing",
        "a missing key in an inlined workflow",
        'k = await gives_part("dict", "nothing")',
        "k",
    ),
    (
        "part_of_gather",
        "a property of a gathered result",
        "c, _ = await asyncio.gather(room(), ping())",
        "c.title",
    ),
]
# A name, what it is, the statements that follow.
THEN: list[tuple[str, str, str]] = [
    (
        "strict_await",
        "a strict await behind it",
        """
await echo(<part>)
if await ping():
    return "end"
return "other"
""",
    ),
    (
        "fence",
        "a fence behind it",
        """
await echo(<part>)
note("fence")
await count_up()
return <part>
""",
    ),
    (
        "held_over_a_step",
        "held over a step",
        """
value = <part>
await count_up()
await echo(value)
return value
""",
    ),
    (
        "read_in_a_task",
        "read in a task",
        """
async def reader() -> Any:
    await ping()
    return <part>

task = asyncio.create_task(reader())
await count_up()
return [await task, <part>]
""",
    ),
    (
        "appended",
        "appended to a list that a helper keeps",
        """
out: list[Any] = []
out.append(<part>)
keep(out)
await count_up()
return out
""",
    ),
    (
        "returned_in_a_try",
        "returned in a try with steps in its handler and its finally",
        """
try:
    return <part>
except (KeyError, AttributeError):
    await count_up()
    return "handled"
finally:
    await echo("finally")
""",
    ),
    (
        "gathered",
        "an argument in a gather",
        """
await asyncio.gather(echo(<part>), count_up())
return await echo(<part>)
""",
    ),
    (
        "in_a_loop",
        "in a loop that changes the world",
        """
for number in range(2):
    await echo(number, <part>)
    await count_up()
return <part>
""",
    ),
    (
        "in_a_comprehension",
        "in a comprehension of awaits",
        """
found = [await echo([number, <part>]) for number in range(2)]
await count_up()
return [found, <part>]
""",
    ),
    (
        "given_to_inlined",
        "given to an inlined workflow",
        """
given = await passes_on(<part>)
await count_up()
return [given, <part>]
""",
    ),
    (
        "matched",
        "matched behind a step",
        """
await count_up()
match {"part": <part>}:
    case {"part": [first, *_]}:
        return ["list", await echo(first)]
    case {"part": str() | int() as part}:
        return ["plain", await echo(part)]
    case _:
        return await ping()
""",
    ),
    (
        "in_a_with",
        "in a with",
        """
with noting("room"):
    await echo(<part>)
    await count_up()
return await echo(<part>)
""",
    ),
    (
        "bound_by_walrus",
        "bound by a walrus",
        """
if (value := <part>) and await ping():
    await count_up()
    await echo(value)
return [value, count()]
""",
    ),
    (
        "in_a_lambda",
        "late in a lambda",
        """
get = lambda: <part>  # noqa: E731
await count_up()
await echo(get())
return [get(), await ping()]
""",
    ),
    (
        "twice_in_one_call",
        "twice in one call",
        """
await echo([<part>, <part>], key=<part>)
await count_up()
return {"a": <part>, "b": [<part>]}
""",
    ),
    (
        "handled",
        "handled, with a step in the handler",
        """
try:
    await echo(<part>)
except (KeyError, AttributeError) as error:
    await echo(type(error).__name__)
    await count_up()
return await ping()
""",
    ),
]


def written_out() -> str:
    """The module of all pairs."""
    bodies = [
        f"# {title.capitalize()}: {what}.\n@body()\n@workflow\nasync def {name}_{then}() -> Any:\n"
        + textwrap.indent(f"{given}\n{text.replace('<part>', part).strip()}", "    ")
        for name, title, given, part in ARISE
        for then, what, text in THEN
    ]
    return "from __future__ import annotations\n\n\n" + "\n\n\n".join(bodies) + "\n"


_folder = tempfile.TemporaryDirectory(prefix="ckworkflow-pairs-")  # as long as this process lives
_file = Path(_folder.name, "pairs.py")
_file.write_text(written_out())
exec(compile(_file.read_text(), str(_file), "exec"), globals())
