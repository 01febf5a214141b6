"""Random workflows, compared with plain asyncio: a grammar, what it is run in, and a command to run many.

`programs()` is the Hypothesis strategy: what it finds shrinks. From the command line,

    python -m tests.differential.programs --count 20000 --seed 1 --workers 2

writes that many programs by the same grammar with a plain random generator, prints totals, and cuts each program that
differs down to a small one. Number N of a seed is always the same program: `--only N` runs it alone.

`--kind children` has them all start runs of their own; `KINDS_OF_PROGRAMS` says what kinds there are, and how often each comes.

A program is deterministic and ends: a `while` has a counter, and while a list is looped over nothing makes lists longer.
By design, and so not written here: `__del__`, frames' locals. Arguments are encoded at the call by the reference, too.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import argparse
import ast
import contextlib
import functools
import gc
import linecache
import logging
import multiprocessing
import random
import re
import shutil
import signal
import tempfile
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import reject
from hypothesis import strategies as st

import services
from ckworkflow.definition import registry
from ckworkflow.model import NodeKind
from differential import program_steps, reference, simulator
from differential.comparison import Arena, Body, Choices
from differential.reference import DifferenceError
from differential.simulator import CannotFollowError, EngineRun, Kill, StuckError
from differential.world import World

# -- the grammar ----------------------------------------------------------------------------------
#
# `<int>`: an expression of that kind. `<@int>`: a name of that kind, else an expression. `<=int>`: a name to be bound.
# `<~int>`: a name that is bound already, made before the statement where there is none. `<!what>`: written by the
# method `_what`. The number is a weight; the first of a list is what Hypothesis shrinks to.

Choice = tuple[int, str]

EXPRESSIONS: dict[str, list[Choice]] = {
    "int": [
        (3, "1"), (1, "2"), (1, "0"), (12, "<@int>"),
        (4, "await bump()"), (3, "await echo(<int>)"), (1, "await add(<int>, <int>)"), (1, "await total(<list>)"), (1, "await gives('int')"),
        (3, "<@room>.id"), (2, "<@room>.cache['n']"), (1, "Room.cache['n']"), (1, "len(<@room>.tags)"), (2, "<@room>.next"),
        (2, "len(<@room>.shared)"), (1, "<@room>.size()"), (1, "<@room>.extra['id']"), (3, "<!payload>"),
        (3, "<@dict>['id']"), (1, "<@dict>.get('id')"), (1, "<@dict>.pop('id')"), (1, "<@dict>.setdefault('k', <int>)"),
        (2, "<@list>[0]"), (1, "<@list>[-1]"), (1, "<@list>.pop()"), (2, "len(<@list>)"), (1, "sum(<list>)"), (1, "max(<list>)"),
        (1, "len(<@rows>)"), (1, "len(<@rows>[0])"), (2, "<@pair>.left"), (1, "<@pair>[0]"), (2, "<@day>.year"),
        (1, "level()"), (3, "STATE['count']"), (1, "program_steps.LEVEL"), (1, "FLAG"), (1, "CONFIG.level"),
        (2, "(<int> + <int>)"), (1, "(-<int>)"), (2, "(<int> if <cond> else <int>)"), (2, "(<=int> := <int>)"),
        (2, "<!lambda int>"), (2, "<!call int>"), (3, "<!inline int>"),
    ],
    "text": [
        (3, "'a'"), (8, "<@text>"), (4, "await ping()"), (2, "await echo(<text>)"), (1, "await gives('text')"),
        (3, "<@room>.name"), (4, "<@room>.title"), (1, "<@room>.extra['name']"), (2, "<@hue>.value"), (1, "<@hue>.name"), (1, "<@hue>.loud"),
        (2, "<!format>"), (1, "str(<any>)"), (1, "note(<any>)"), (1, "(<text> + <text>)"), (2, "<@text>[0]"), (1, "<@text>.upper()"),
        (2, "<@dict>['name']"), (1, "STATE['key']"), (1, "CONFIG.key"), (1, "<@any>.__class__.__name__"), (1, "type(<@any>).__name__"),
        (1, "(<text> if <cond> else <text>)"), (1, "(<=text> := <text>)"), (1, "<!lambda text>"), (1, "<!call text>"), (2, "<!inline text>"),
    ],
    "list": [
        (3, "[<int>]"), (1, "[1, 2]"), (1, "[]"), (9, "<@list>"), (4, "await gives('list')"), (2, "await echo(<list>)"),
        (2, "<@room>.tags"), (2, "<@room>.shared"), (2, "shared()"), (2, "STATE['xs']"), (1, "<@dict>['xs']"),
        (3, "<!comprehension>"), (1, "list(<!generator>)"), (1, "sorted(<list>)"), (1, "(<list> + <list>)"), (1, "<@list>[:]"), (1, "[*<list>, <int>]"),
        (1, "list(map(lambda x: <!sync int>, <list>))"), (3, "<!gathered>"), (1, "(<list> if <cond> else <list>)"), (1, "(<=list> := <list>)"),
        (1, "list(Lines(2))"), (1, "<!lambda list>"), (1, "<!call list>"), (2, "<!inline list>"),
    ],
    "rows": [
        (3, "[]"), (5, "[<any>]"), (6, "<@rows>"), (2, "[<any>, <any>]"), (1, "[<list>, <list>]"), (2, "[<!twice>]"), (1, "[<part>]"), (1, "await echo(<rows>)"),
        (2, "await asyncio.gather(<!member>, <!member>)"), (1, "list(<@dict>.values())"), (1, "[[<int>], <list>]"), (1, "<!inline rows>"),
    ],
    "dict": [
        (4, "{'id': <int>, 'name': <text>}"), (2, "{'id': 1, 'name': 'a', 'xs': <list>}"), (8, "<@dict>"), (5, "await gives('dict')"), (2, "await echo(<dict>)"),
        (1, "<@room>.extra"), (1, "<@room>.cache"), (1, "{**<dict>}"), (1, "dict(<dict>)"), (1, "(<dict> | <dict>)"), (1, "{'id': 1, 'name': 'b', 'k': <any>}"),
        (1, "{k: <int> for k in ('id', 'name')}"), (1, "<!call dict>"), (2, "<!inline dict>"),
    ],
    "room": [
        (5, "await room()"), (8, "<@room>"), (1, "await room(<text>)"), (1, "await echo(<room>)"), (1, "Room(1, 'own', [1], {'id': 2, 'name': 'y'})"),
        (1, "(<room> if <cond> else <room>)"), (1, "<!call room>"), (3, "<!inline room>"),
    ],
    "hue": [(3, "await gives('hue')"), (4, "<@hue>"), (1, "Hue.RED"), (1, "await echo(<hue>)"), (1, "Hue(<@hue>.value)"), (1, "<!inline hue>")],
    "day": [(3, "await gives('day')"), (4, "<@day>"), (1, "date(2021, 2, 3)"), (1, "await echo(<day>)"), (1, "<@day>.replace(day=<int>)"), (1, "<!inline day>")],
    "pair": [(3, "await gives('pair')"), (4, "<@pair>"), (1, "Pair(<int>, <any>)"), (2, "await pair_of(<int>, <any>)"), (1, "<!inline pair>")],
    "none": [(3, "None"), (3, "await gives('none')"), (4, "<@none>"), (1, "await touch()"), (1, "<!inline none>")],
    "cond": [
        (3, "(<int> > <int>)"), (2, "(<int> == 1)"), (1, "(1 < <int> < 3)"), (3, "await verify(<any>)"), (1, "(<any> is None)"), (1, "(<@none> is None)"),
        (1, "('a' in <text>)"), (1, "(1 in <list>)"), (1, "('id' in <@dict>)"), (1, "(not <cond>)"), (1, "(<cond> and <cond>)"), (1, "(<cond> or <cond>)"),
        (1, "(<@hue> is Hue.RED)"), (1, "(<text> == 'a')"), (1, "bool(<any>)"), (1, "isinstance(<@any>, str)"), (1, "any(<!generator>)"), (2, "STATE['on']"),
        (1, "<@list>"), (1, "<@room>"), (2, "(<@rows>[0] is None)"), (1, "<@rows>[0]"), (2, "(<part> == <part>)"), (1, "<part>"), (1, "(<@list> == <list>)"), (1, "(<@list> is <@list>)"), (1, "(<@dict>.get('nothing') is None)"), (1, "True"),
    ],
    "missing": [(3, "<@dict>['nothing']"), (2, "<@none>.id"), (1, "<@room>.nothing"), (1, "<@list>[9]"), (1, "<@hue>.nothing")],
    "part": [
        (4, "<@room>.title"), (2, "<@room>.name"), (2, "<@room>.next"), (2, "<@room>.tags"), (2, "<@room>.shared"), (1, "<@room>.cache"), (3, "<@dict>['id']"),
        (1, "<@dict>['xs']"), (2, "<@hue>.value"), (1, "<@hue>.loud"), (2, "<@day>.year"), (2, "<@text>[0]"), (2, "<@list>[0]"), (2, "<@pair>.left"), (1, "<@pair>[1]"),
        (1, "<@rows>[0]"), (1, "<@any>.__class__.__name__"), (1, "<missing>"), (2, "len(<@list>)"), (1, "len(<@rows>[0])"), (1, "<@room>.size()"), (2, "<@room>.id"), (4, "<!inline none>"),
    ],
    "any": [
        (6, "<int>"), (5, "<text>"), (4, "<list>"), (2, "<rows>"), (4, "<dict>"), (4, "<room>"), (2, "<hue>"), (2, "<day>"), (2, "<pair>"), (2, "<none>"),
        (1, "<cond>"), (1, "<missing>"), (1, "(<any>, <any>)"), (12, "<part>"), (1, "[<part>, <part>]"), (1, "[<!twice>]"),
        (1, "{'k': <any>}"), (2, "<@rows>[0]"), (1, "<@pair>.right"),
    ],
}  # fmt: skip

KINDS = ["int", "text", "list", "rows", "dict", "room", "hue", "day", "pair", "none"]
BOUND: list[Choice] = [(6, "int"), (4, "text"), (4, "list"), (3, "rows"), (4, "dict"), (5, "room"), (2, "hue"), (1, "day"), (2, "pair"), (2, "none")]  # fmt: skip
LEAVES = {
    "int": ("1", "await bump()"), "text": ("'a'", "await ping()"), "list": ("[1, 2]", "await gives('list')"), "rows": ("[1]", "[[1]]"),
    "dict": ("{'id': 1, 'name': 'a'}", "await gives('dict')"), "room": ("Room(1, 'own', [1], {})", "await room()"), "hue": ("Hue.BLUE", "await gives('hue')"),
    "day": ("date(2021, 2, 3)", "await gives('day')"), "pair": ("Pair(1, 2)", "await gives('pair')"), "none": ("None", "await gives('none')"),
    "cond": ("True", "await verify(1)"), "any": ("'b'", "await ping()"), "missing": ("None.id", "await echo(None.id)"), "part": ("'c'", "await ping()"),
}  # fmt: skip

SIMPLE: list[Choice] = [
    (1, "pass"), (22, "<!assign>"), (6, "await echo(<any>)"), (7, "await echo(<part>)"), (3, "await echo(<any>, <part>)"), (1, "await echo(<any>, extra=<any>)"),
    (10, "await bump()"), (3, "await touch(<any>)"), (2, "await set_key('name')"), (4, "await grow(<int>)"), (5, "<=none> = <part>"),
    (6, "<!moment>"), (5, "<!race>"), (2, "<!group>"), (1, "<!pieces>"), (2, "<!echoed>"), (2, "<@rows>[0].append(<int>)"), (1, "<~dict>[<text>] += await bump()"), (1, "await switch()"), (1, "await raise_level()"),
    (1, "await flip()"), (1, "await spoil(<any>)"), (1, "await fails(<text>)"), (1, "await set_error()"), (1, "await sleep(5)"), (1, "await sleep('1 minute')"), (3, "<!timed>"), (1, "await asyncio.sleep(5)"),
    (1, "await helper(<any>)"), (3, "note('x')"), (1, "note(<any>)"), (1, "keep(<@list>)"), (2, "<!await_call>"), (2, "<!await_inline>"),
    (4, "<~int> += <int>"), (2, "<~text> += <text>"), (2, "<~list> += [<int>]"), (1, "<~rows> += [<any>]"), (2, "<~dict>['id'] += <int>"),
    (2, "<~dict>[STATE['key']] = <any>"), (1, "<~dict>[STATE['key']] += <int>"), (1, "<~dict>[<text>] = <any>"), (1, "<~list>[0] += <int>"),
    (3, "<~list>.append(<int>)"), (6, "<~rows>.append(<any>)"), (1, "<~rows>.append(shared())"), (1, "<~rows>.append(<list>)"), (1, "<~list>.extend(<list>)"),
    (1, "<~rows>.insert(0, <any>)"), (1, "<~list>[0] = <int>"), (1, "<~rows>[0] = <any>"), (2, "<~dict>['id'] = <any>"), (1, "<~dict>['xs'] = <list>"),
    (1, "del <~dict>['id']"), (1, "del <~list>[0]"), (1, "<~dict>.update({'id': <int>})"), (1, "<~room>.tags.append(<int>)"), (2, "<~room>.name = <text>"),
    (1, "<~room>.id += <int>"), (1, "<~room>.cache['n'] = <int>"), (1, "STATE['count'] += 1"), (2, "<=rows> = <=rows> = []"), (1, "<=list> = <=list> = <list>"),
    (1, "<=room> = <=room> = <room>"), (1, "<=dict> = <=dict> = <dict>"), (2, "<=int>, <=text> = <int>, <text>"), (1, "<=int>, *<=list> = <list>"),
    (1, "<=int>, <=none> = <pair>"), (1, "<~int>, <~int> = <~int>, <~int>"), (3, "<!unpacked>"), (2, "<!spawn>"), (2, "<!joined>"), (1, "<!raised>"), (1, "<!deleted>"),
    (3, "<!returned>"), (2, "<!jump>"), (2, "<!elapsed>"), (2, "<!later>"),
]  # fmt: skip
HOOKED: list[Choice] = [
    (3, "taken"), (4, "made"), (4, "deadline"), (5, "looped"), (5, "opened"), (4, "looked"), (3, "closed"), (3, "caught"), (2, "raced"), (2, "gathered"),
    (3, "let_go"), (2, "again"), (1, "named"), (2, "beside"),
]  # fmt: skip

CHILDREN: list[Choice] = [
    (5, "started"), (5, "awaited"), (4, "caught"), (3, "timed"), (3, "deadline"), (3, "asked"), (2, "gathered"), (3, "raced"), (2, "let_go"),
    (2, "many"), (1, "named"), (1, "grouped"), (1, "shielded"),
]  # fmt: skip
KINDS_OF_PROGRAMS: list[Choice] = [
    (6, "plain"), (4, "hooks"), (1, "requests"), (2, "children"), (2, "lives"), (2, "families"),
]  # fmt: skip
"""What is special in a program: `requests` has handlers of `CancelledError`, `families` has children, lives, and hooks."""
BEFORE = "before"
"""The parameter that is a run which a life before has started."""
MOST_LIVES = 3
LIVES = "lives"
"""The parameter that counts them."""
STILL = [
    (re.compile(r"STATE\['count'\] \+= 1"), "pass"), (re.compile(r"STATE\['xs'\]"), "[1, 2]"), (re.compile(r"Room\.cache"), "{'n': 0}"),
    (re.compile(r"\.cache\b"), ".extra"),
]  # fmt: skip
"""What a body itself changes in the world, or shares with it, and what stands there where several runs go on side by side."""

COMPOUND: list[Choice] = [
    (6, "if"), (3, "while"), (5, "for"), (7, "try"), (3, "with"), (3, "match"), (4, "def"), (5, "async def"),
]  # fmt: skip
ERRORS = ["KeyError", "AttributeError", "FatalError", "Exception", "(KeyError, IndexError)", "TypeError", "STATE['error']"]  # fmt: skip
LOOPED: list[Choice] = [(3, "range(2)"), (2, "await gives('list')"), (2, "[1, 2]"), (3, "<@list>"), (2, "<@list>[:3]"), (1, "shared()"), (1, "Lines(2)"), (1, "<@room>.tags"), (1, "<@room>.shared")]  # fmt: skip
WITH: list[Choice] = [
    (2, "with noting(<text>):"), (1, "with noting(<int>) as <=text>:"), (2, "with suppress(KeyError):"), (1, "with suppress(STATE['error']):"),
    (1, "async with async_noting(<int>):"), (1, "async with async_noting(<text>) as <=text>:"),
]  # fmt: skip
PATTERNS: list[tuple[str, list[Choice]]] = [
    ("int", [(2, "1"), (1, "0 | 1"), (1, "int(<=int>)"), (1, "<=int> if <cond>")]),
    ("dict", [(2, "{'id': <=int>}"), (1, "{CONFIG.key: <=text>}"), (1, "{'id': 1, **<=dict>}")]),
    ("list", [(2, "[<=int>, *_]"), (1, "[_, *<=list>]"), (1, "[]")]),
    ("room", [(2, "Room(id=<=int>)"), (1, "Room(title=<=text>)"), (1, "Room(name='general', tags=<=list>)"), (1, "Room(next=2)")]),
    ("hue", [(2, "Hue.RED"), (1, "Hue(value='red')")]),
    ("pair", [(1, "Pair(left=<=int>)"), (1, "(<=int>, _)")]),
    ("text", [(1, "'a'"), (1, "CONFIG.key"), (1, "str(<=text>)")]),
    ("none", [(1, "None")]),
    ("any", [(1, "<=none> if <cond>"), (1, "Room() | None"), (1, "str() | int()")]),
]  # fmt: skip
MEMBERS: list[tuple[int, str, str]] = [
    (3, "echo(<int>)", "int"), (2, "bump()", "int"), (2, "ping()", "text"), (3, "room()", "room"), (2, "gives('dict')", "dict"), (1, "gives('list')", "list"),
    (1, "gives('none')", "none"), (1, "echo(<any>)", "none"), (1, "gives('hue')", "hue"), (1, "helper(<text>)", "text"), (1, "sleep(2)", "none"), (1, "fails('g')", "none"),
]  # fmt: skip

GROWS = re.compile(r"append|extend|insert|\+=|<!(call|inline|await_call|await_inline|gathered|spawn|joined|unpacked|later|moment|race|group|pieces|echoed)|\.next|keep")  # fmt: skip
WAITS = re.compile(
    r"await|async|<!(inline|gathered|member|unpacked|spawn|joined|later|elapsed|jump|moment|race|group|pieces|echoed|payload)"
)
PLACE = re.compile(r"<([=@~!]?)([a-z_]+)(?: ([a-z]+))?>")
WORLD = re.compile(
    r"STATE|FLAG|LEVEL|CONFIG|Lines|shared|note|noting|level|cache|title|size|keep|loud|\.next\b(?!\()"
)
HOOKS = re.compile(r"create_hook\(|\.create\(")
FAMILY = re.compile(r"\bstart\(|continue_as_new\(")
LONGEST = 12
MODULE = """from differential.program_steps import *
from differential import program_steps
"""
FLIP = """
FLAG = 0


@step
async def flip():
    global FLAG
    FLAG += 1
    return FLAG
"""


class Chooser:
    """Where a writer's decisions come from: a plain random generator."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, count: int) -> int:
        return self._rng.randrange(count)

    def several(self, make: Callable[[], None], low: int, high: int) -> None:
        for _ in range(self._rng.randint(low, high)):
            make()


class DrawnChooser(Chooser):
    """From Hypothesis, which can leave statements out again."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def pick(self, count: int) -> int:
        return self._draw(st.integers(0, count - 1)) if count > 1 else 0

    def several(self, make: Callable[[], None], low: int, high: int) -> None:
        self._draw(st.lists(st.builds(make), min_size=low, max_size=high))


@dataclass(frozen=True)
class Function:
    """A nested function, or a workflow: what it is called with and what it gives."""

    name: str
    params: tuple[str, ...]
    kind: str
    is_async: bool = True
    has_lives: bool = False


class Writer:
    """Writes one function; keeps in mind which names there are.

    Args:
        chooser: Decides.
        module: What the functions of a module share: how many statements are left, the last number of a name.
        workflows: What may be inlined.
    """

    def __init__(
        self, chooser: Chooser, module: Counter[str], workflows: Sequence[Function] = ()
    ) -> None:
        self.chooser, self.module, self.workflows = chooser, module, list(workflows)
        self.names: dict[str, list[str]] = {kind: [] for kind in KINDS}
        self.own: set[str] = set()
        self.outer: set[str] = set()
        self.functions: list[Function] = []
        self.tasks: list[tuple[str, str]] = []
        self.hooks: list[str] = []
        self.startable: list[Function] = []
        self.runs: list[tuple[str, str]] = []
        self.params: tuple[str, ...] | None = None
        self.lines: list[str] = []
        self.indent = 1
        self.awaits = self.binds = self.formats = True
        self.hoists = False
        self.is_frozen = False
        self.in_loop = self.in_handler = self.is_nested = False

    # -- decisions --------------------------------------------------------------------------------

    def choose(self, choices: Sequence[Choice]) -> str:
        at = self.chooser.pick(sum(choice[0] for choice in choices))
        for weight, found in choices:
            at -= weight
            if at < 0:
                return found
        raise AssertionError

    def one(self, items: Sequence[Any]) -> Any:
        return items[self.chooser.pick(len(items))]

    def chance(self, one_in: int) -> bool:
        return self.chooser.pick(one_in) == one_in - 1

    def allowed(self, choices: Sequence[Choice], deep: int) -> list[Choice]:
        return [choice for choice in choices if self.is_allowed(choice[1], deep)]

    def is_allowed(self, text: str, deep: int) -> bool:
        return (
            (self.awaits or not WAITS.search(text))
            and (self.binds or ":=" not in text)
            and (self.formats or "format" not in text)
            and (not self.is_frozen or not GROWS.search(text))
            and (deep > 0 or "<" not in text or text.startswith("<@"))
        )  # fmt: skip

    # -- names ------------------------------------------------------------------------------------

    def fresh(self, prefix: str) -> str:
        self.module[prefix] += 1
        return f"{prefix}{self.module[prefix]}"

    def bind(self, kind: str, *, is_new: bool = False) -> str:
        """A name to be bound, an old one as often as not."""
        known = self.names[kind]
        if known and not is_new and self.chance(2):
            return self.stored(self.one(known))
        name = self.fresh("xs" if kind == "list" else kind)
        self.own.add(name)
        known.append(name)
        return name

    def stored(self, name: str) -> str:
        if name not in self.own:
            self.outer.add(name)
        return name

    # -- expressions ------------------------------------------------------------------------------

    def fill(self, text: str, deep: int) -> str:
        """Write what stands at the places of a template: names that it binds at last."""
        parts: list[str] = PLACE.sub("\0", text).split("\0")
        places = list(PLACE.finditer(text))
        done = ["" for _ in places]
        for late in (False, True):
            for at, place in enumerate(places):
                if (place[1] == "=") is late:
                    done[at] = self.place(place[1], place[2], place[3], deep)
        return "".join(part + found for part, found in zip(parts, [*done, ""], strict=True))

    def place(self, how: str, what: str, kind: str | None, deep: int) -> str:
        if how == "!":
            method = getattr(self, f"_{what}")
            found: str = method(kind) if kind else method()
            return found
        if how == "=":
            return self.bind(what)
        known = self.names.get(what, [])
        if what == "any" and how:
            known = [name for names in self.names.values() for name in names]
        if how == "@":
            if known and not self.chance(8):
                return str(self.one(known))
            if not self.hoists or what not in self.names or self.chance(6):
                return self.leaf(what)
            how = "~"
            known = self.names[what]
        if how == "~":
            if not known:
                value = self.expression(what, 1)
                self.line(f"{self.bind(what, is_new=True)} = {value}")
                return self.names[what][-1]
            return self.stored(self.one(self.names[what]))
        return self.expression(what, deep - 1)

    def leaf(self, kind: str) -> str:
        plain, awaited = LEAVES[kind]
        return f"({awaited})" if self.awaits and not self.chance(3) else plain

    def expression(self, kind: str, deep: int = 2) -> str:
        choices = self.allowed(EXPRESSIONS[kind], deep)
        if not choices:
            return self.leaf(kind)
        text = self.choose(choices)
        filled = self.fill(text, deep)
        return f"({filled})" if text.startswith("await") else filled

    @contextlib.contextmanager
    def within(self, **flags: Any) -> Iterator[None]:
        before = {name: getattr(self, name) for name in flags}
        self.__dict__.update(flags)
        try:
            yield
        finally:
            self.__dict__.update(before)

    def _sync(self, kind: str) -> str:
        with self.within(awaits=False, binds=False, hoists=False):
            return self.expression(kind, 1)

    def _format(self) -> str:
        with self.within(formats=False):
            return f'f"{{ {self.expression("any", 1)} }}"'

    def _lambda(self, kind: str) -> str:
        return f"(lambda: {self._sync(kind)})()"

    def _call(self, kind: str) -> str:
        found = [f for f in self.functions if f.kind == kind and (self.awaits or not f.is_async)]
        if not found:
            return self.leaf(kind)
        function = self.one(found)
        text = f"{function.name}({', '.join(self.expression(param, 1) for param in function.params)})"
        return f"(await {text})" if function.is_async else text

    def _inline(self, kind: str) -> str:
        found = [f for f in self.workflows if f.kind == kind]
        return f"(await {self.called(self.one(found))})" if found else self.leaf(kind)

    def called(self, function: Function) -> str:
        return f"{function.name}({', '.join(self.expression(param, 1) for param in function.params)})"

    def _comprehension(self) -> str:
        return f"[{self._turns()}]"

    def _generator(self) -> str:
        with self.within(awaits=False, hoists=False):
            return f"({self._turns()})"

    def _turns(self) -> str:
        with self.within(binds=False, hoists=False):
            source = self.expression("list", 1)
            name = self.fresh("x")
            self.names["int"].append(name)
            self.own.add(name)
            element = self.expression("int", 1)
            condition = f" if {self.expression('cond', 1)}" if self.chance(4) else ""
            self.names["int"].remove(name)
        return f"{element} for {name} in {source}{condition}"

    def member(self) -> tuple[str, str]:
        if self.runs and self.chance(3):
            name, kind = self.one(self.runs)
            return f"{name}.return_value({self.one(['', '', 'timeout=60'])})", kind
        if self.hooks and self.chance(4):
            return f"{self.one(self.hooks)}.next({self.one(['', 'timeout=5', 'timeout=60'])})", "int"
        functions = [f for f in (*self.functions, *self.workflows) if f.is_async]
        if functions and self.chance(2):
            function = self.one(functions)
            return self.called(function), function.kind
        text = self.choose([(weight, f"{kind} {text}") for weight, text, kind in MEMBERS])
        kind, _, text = text.partition(" ")
        return self.fill(text, 1), kind

    def _member(self) -> str:
        return self.member()[0]

    def _gathered(self) -> str:
        with self.within(binds=False, hoists=False):
            what = self.chooser.pick(5)
            if what == 0:
                return f"(await asyncio.gather(echo({self.expression('int', 1)}), bump()))"
            if what == 1:
                name = self.fresh("x")
                return (
                    f"(await asyncio.gather(*[echo({name}) for {name} in {self.expression('list', 1)}]))"
                )
            if what == 2:
                return "(await asyncio.gather(*(bump() for _ in range(2))))"
            if what == 3:
                return f"(await asyncio.gather(*map(echo, {self.expression('list', 1)})))"
            members = f"{self._member()}, {self._member()}"
            name = self.fresh("x")
            return f"[len(type({name}).__name__) for {name} in (await asyncio.gather({members}, return_exceptions=True))]"

    # -- statements -------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def block(self, low: int = 1, high: int = 3) -> None:
        """A block of statements; the names that it binds are mostly forgotten after it."""
        known = {kind: list(names) for kind, names in self.names.items()}
        functions, tasks, hooks, runs = (
            list(self.functions),
            list(self.tasks),
            list(self.hooks),
            list(self.runs),
        )
        self.indent += 1
        start = len(self.lines)
        self.chooser.several(self.statement, low, high)
        if len(self.lines) == start:
            self.line("pass")
        self.indent -= 1
        self.functions, self.tasks, self.hooks, self.runs = functions, tasks, hooks, runs
        if not self.chance(6):
            self.names = known

    def statement(self) -> None:
        if self.module["left"] <= 0:
            return
        self.module["left"] -= 1
        if self.module["hooks"] and self.awaits and self.chance(3):
            self._hooked()
            return
        if self.startable and self.awaits and self.chance(2):
            getattr(self, "_run_" + self.choose(CHILDREN))()
            return
        if self.params is not None and self.chance(8):
            self._live_on()
            return
        if self.module["requests"] and self.awaits and self.indent < 4 and self.chance(8):
            self._hearing()
            return
        if self.indent < 4 and self.chance(4):
            what = self.choose(
                [choice for choice in COMPOUND if self.awaits or "async" not in choice[1]]
            )
            getattr(self, "_" + what.replace(" ", "_"))()
            return
        with self.within(hoists=True):
            self.line(self.fill(self.choose(self.allowed(SIMPLE, 2)), 3))

    def _assign(self) -> str:
        kind = self.choose(BOUND)
        value = self.expression(kind, 2)
        return f"{self.bind(kind)} = {value}"

    def _unpacked(self) -> str:
        (one, first), (two, second) = self.member(), self.member()
        value = f"await asyncio.gather({one}, {two})"
        return f"{self.bind(first)}, {self.bind(second, is_new=True)} = {value}"

    def _await_call(self) -> str:
        found = [f for f in self.functions if f.is_async]
        return f"await {self.called(self.one(found))}" if found else "await bump()"

    def _await_inline(self) -> str:
        return f"await {self.called(self.one(self.workflows))}" if self.workflows else "await ping()"

    def _spawn(self) -> str:
        found = [f for f in self.functions if f.is_async]
        name = self.fresh("task")
        if self.chance(6):
            self.tasks.append((name, "none"))
            self.own.add(name)
            return f"{name} = asyncio.create_task({self.member()[0]})"
        if found:
            function = self.one(found)
            text, kind = self.called(function), function.kind
        else:
            text, kind = f"helper({self.expression('int', 1)})", "int"
        self.tasks.append((name, kind))
        self.own.add(name)
        return f"{name} = asyncio.create_task({text})"

    def _joined(self) -> str:
        if not self.tasks:
            return "await ping()"
        name, kind = self.one(self.tasks)
        return f"{self.bind(kind)} = await {name}"

    def _later(self) -> str:
        """A call that is awaited in another statement."""
        member, kind = self.member()
        name = self.fresh("call")
        self.line(f"{name} = {member}")
        with self.within(hoists=False):
            self.statement()
        return f"{self.bind(kind)} = await {name}"

    def _twice(self) -> str:
        """One expression two times, in which it may not be evaluated once only."""
        part = self.expression(self.one(["part", "list", "rows"]), 1)
        return f"{part}, {part}" if ":=" not in part else part

    def _moment(self) -> str:
        """What is taken before a step changes the world, and looked at after it."""
        kind, taken = self.one([
            ("list", "<@room>.shared"), ("list", "shared()"), ("list", "STATE['xs']"), ("dict", "<@room>.cache"), ("dict", "Room.cache"), ("none", "<part>"), ("room", "<room>"),
            ("list", "(<list> if <cond> else shared())"), ("rows", "[shared()]"), ("list", "<list>"), ("int", "<int>"), ("rows", "<rows>"),
        ])  # fmt: skip
        value = self.fill(taken, 1)
        name = self.bind(kind)
        self.line(f"{name} = {value}")
        if self.chance(2):
            rows = self.place("~", "rows", None, 1)
            self.line(
                self.one(
                    [
                        f"{rows}.append({name})",
                        f"{rows} = [{name}]",
                        f"{rows}.insert(0, {name})",
                        f"{rows} += [{name}]",
                    ]
                )
            )
        change = [
            "await bump()",
            "await grow(7)",
            "await touch()",
            "await set_key('name')",
            "await bump()",
        ]
        self.line(self.one(change))
        if self.chance(3):
            self.statement()
        look = {
            "list": f"len({name})",
            "dict": f"{name}.get('n')",
            "rows": f"len({name}[0])",
            "none": name,
            "int": name,
            "room": f"{name}.title",
        }[kind]
        return self.one([f"await echo({look})", f"{self.bind('none')} = {look}", f"note({look})", f"await echo({name}, {look})"])  # fmt: skip

    def _race(self) -> str:
        """A task beside the body that binds and changes what it reads."""
        self._async_def()
        self.line(self._spawn())
        with self.within(hoists=False):
            self.chooser.several(self.statement, 1, 4)
        name, kind = self.tasks.pop()
        return f"{self.bind(kind)} = await {name}"

    def _group(self) -> str:
        self._async_def()
        function = self.functions[-1]
        group, task = self.fresh("group"), self.fresh("task")
        self.line(f"async with asyncio.TaskGroup() as {group}:")
        self.indent += 1
        self.line(f"{task} = {group}.create_task({self.called(function)})")
        with self.within(hoists=False):
            self.chooser.several(self.statement, 0, 2)
        self.line(f"{self.fresh('task')} = {group}.create_task({self.member()[0]})")
        self.indent -= 1
        return f"{self.bind(function.kind)} = {task}.result()"

    def _pieces(self) -> str:
        """One call, awaited in two members: as asyncio has it, it runs once."""
        call = self.fresh("call")
        self.line(f"{call} = {self.member()[0]}")
        return f"{self.bind('none')}, {self.bind('none', is_new=True)} = await asyncio.gather({call}, {call})"

    def _echoed(self) -> str:
        """A part in an argument, and a look at something else behind it."""
        self.line(self.fill("await echo(<part>)", 2))
        return self.one(["await verify(1)", "note('y')", f"{self.bind('none')} = await verify({self.expression('any', 1)})"])  # fmt: skip

    def _raised(self) -> str:
        return str(self.one([f"raise ValueError({self.expression('int', 1)})", "raise KeyError('k')", "raise" if self.in_handler else "raise AttributeError('a')", "raise ExceptionGroup('g', [ValueError(1), KeyError('k')])"]))  # fmt: skip

    def _deleted(self) -> str:
        known = [
            (kind, name) for kind, names in self.names.items() for name in names if name in self.own
        ]
        if not known:
            return "pass"
        kind, name = self.one(known)
        if not self.chance(3):
            self.names[kind].remove(name)
        return f"del {name}"

    def _returned(self) -> str:
        return f"return {self.result()}" if not self.is_nested or self.chance(2) else "pass"

    def _jump(self) -> str:
        if not self.in_loop:
            return f"return {self.result()}" if self.chance(3) else "await ping()"
        return str(self.one(["break", "continue"]))

    def _timed(self) -> str:
        """Something under a deadline."""
        seconds = self.one([1, 5, 60])
        what = self.chooser.pick(4)
        self.line("try:")
        self.indent += 1
        if what == 0:
            self.line(f"note(await asyncio.wait_for({self.member()[0]}, {seconds}))")
        elif what == 1:
            self.line(
                f"note(len((await asyncio.wait([asyncio.create_task({self.member()[0]})], timeout={seconds}))[0]))"
            )
        else:
            self.line(f"async with asyncio.timeout({seconds}):")
            self.block(1, 2)
        self.indent -= 1
        self.line("except TimeoutError:")
        self.indent += 1
        self.line(
            self.one(["note('late')", "await ping()", "await bump()"]) if self.awaits else "note('late')"
        )
        self.indent -= 1
        return "pass"

    def _elapsed(self) -> str:
        name = self.fresh("then")
        self.line(f"{name} = now()")
        self.line(f"await sleep({self.one([5, 60])})")
        return f"{self.bind('int')} = (now() - {name}) // timedelta(seconds=5)"

    # -- hooks --------------------------------------------------------------------------------------

    def _hooked(self) -> None:
        """A statement about a hook."""
        getattr(self, "_hook_" + self.choose(HOOKED))()

    def _payload(self) -> str:
        if not self.hooks:
            return self.leaf("int")
        name = self.one(self.hooks)
        return str(self.one([f"(await {name})", f"(await {name}.next(timeout=5))", f"len({name}.pending())"]))  # fmt: skip

    def creation(self) -> str:
        """A new hook."""
        token = self.one(["'a'", "'a'", "'b'", "'c'", "", "f'{\"b\"}'"])
        expires = self.one(["", "", "", "expires=5", "expires=60", "expires=now() + timedelta(seconds=30)"])  # fmt: skip
        maker = self.one(["create_hook", "create_hook", "numbers.create"])
        return f"{maker}({', '.join(filter(None, [token, expires]))})"

    def _hook_made(self) -> None:
        name = self.fresh("hook")
        self.line(f"{name} = {self.creation()}")
        self.own.add(name)
        self.hooks.append(name)

    def hook(self) -> str:
        """The name of a hook, which is made where there is none."""
        if not self.hooks or self.chance(8):
            self._hook_made()
        return str(self.hooks[-1] if self.chance(2) else self.one(self.hooks))

    def _hook_taken(self) -> None:
        name = self.hook()
        self.line(f"{self.bind('int')} = await {name}")

    def _hook_deadline(self) -> None:
        name, seconds = self.hook(), self.one([5, 60, "'1 minute'", 0])
        what = self.one([
            f"await {name}.next(timeout={seconds})", f"await asyncio.wait_for({name}.next(), 5)", f"await {name}.next(timeout=now() + timedelta(seconds=7))",
        ])  # fmt: skip
        self.line("try:")
        self.indent += 1
        if self.chance(4):
            self.line("async with asyncio.timeout(20):")
            self.indent += 1
            self.statement()
            self.line(f"{self.bind('int')} = {what}")
            self.indent -= 1
        else:
            self.line(f"{self.bind('int')} = {what}")
        self.indent -= 1
        self.line("except TimeoutError:")
        self.indent += 1
        self.line(self.one(["note('late')", "await ping()", "await bump()"]))
        self.indent -= 1
        if self.chance(4):
            self.line("finally:")
            self.block(1, 1)

    def _hook_looped(self) -> None:
        name, count = self.hook(), self.fresh("k")
        self.own.add(count)
        self.line(f"{count} = 0")
        self.line(f"async for {self.bind('int')} in {name}:")
        self.indent += 1
        self.line(f"{count} += 1")
        self.line(f"if {count} > {self.one([1, 2, 3])}:")
        self.line("    break")
        self.indent -= 1
        with self.within(in_loop=True):
            self.block(0, 2)
        self.last()

    def _hook_opened(self) -> None:
        name = self.fresh("hook")
        self.own.add(name)
        self.line(f"async with {self.creation()} as {name}:")
        hooks, self.hooks = self.hooks, [*self.hooks, name]
        if not self.chance(4):
            self.indent += 1
            self.one([self._hook_taken, self._hook_deadline, self._hook_looped])()
            self.indent -= 1
        self.block(1, 3)
        self.hooks = hooks
        if self.chance(4):
            self.line(f"note({name}.pending())")

    def _hook_looked(self) -> None:
        name = self.hook()
        self.line(
            self.one([
                f"{self.bind('list')} = {name}.pending()", f"note(len({name}.pending()))", f"await echo({name}.pending())", f"note({name}.pending())",
            ])
        )  # fmt: skip

    def _hook_closed(self) -> None:
        name = self.hook()
        self.line(f"await {name}.close()")
        if self.chance(2):
            self.line(f"{self.bind('list')} = {name}.pending()")

    def _hook_caught(self) -> None:
        self.line("try:")
        self.indent += 1
        self._hooked()
        self.indent -= 1
        name = self.fresh("error")
        self.line(f"except (HookConflictError, HookClosedError, HookExpiredError, HookPayloadError, TimeoutError) as {name}:")  # fmt: skip
        self.indent += 1
        self.line(self.one([f"note(type({name}).__name__)", f"await echo(type({name}).__name__)"]))
        self.indent -= 1

    def _hook_raced(self) -> None:
        name, done, rest = self.hook(), self.fresh("done"), self.fresh("rest")
        self.line(
            f"{done}, {rest} = await asyncio.wait([asyncio.create_task({name}.next()), asyncio.create_task({self.member()[0]})], "
            "return_when=asyncio.FIRST_COMPLETED)"
        )  # fmt: skip
        self.line(f"note(len({done}))")
        if not self.chance(3):
            task = self.fresh("task")
            self.line(f"for {task} in {rest}:")
            self.line(f"    {task}.cancel()")

    def _hook_gathered(self) -> None:
        name, other = self.hook(), self.fresh("x")
        self.line(
            self.one([
                f"{self.bind('list')} = await asyncio.gather({name}, {name}.next())", f"{self.bind('list')} = await asyncio.gather({name}, {self.member()[0]})",
                f"note([type({other}).__name__ for {other} in await asyncio.gather({name}.next(timeout=5), {self.member()[0]}, return_exceptions=True)])",
            ])
        )  # fmt: skip

    def _hook_let_go(self) -> None:
        """A task that waits, and is cancelled or awaited later."""
        name, task = self.hook(), self.fresh("task")
        self.own.add(task)
        self.line(f"{task} = asyncio.create_task({name}.next())")
        self.statement()
        end = self.chooser.pick(4)
        if end <= 1:
            self.line(f"note({task}.cancel())")
            if end:
                self.line(f"{self.bind('int')} = await {name}")
        elif end == 2:
            self.tasks.append((task, "int"))

    def _hook_again(self) -> None:
        """A hook under a token that the body had."""
        token, name = self.one(["'a'", "'b'"]), self.fresh("hook")
        self.own.add(name)
        self.line(f"{name} = create_hook({token})")
        self.hooks.append(name)
        self.statement()
        self.line(
            self.one([f"await {name}.close()", f"await {name}.__aexit__(None, None, None)", "pass"])
        )
        if self.chance(2):
            self.statement()
        self.line(f"{name} = {self.one(['create_hook', 'numbers.create'])}({token})")
        self._hook_taken()

    def _hook_named(self) -> None:
        name = self.hook()
        self.line(self.one([f"await echo({name}.token)", f"{self.bind('text')} = {name}.token", f"await echo({name}.expires_at)", f"note({name}.name)"]))  # fmt: skip

    def _hook_beside(self) -> None:
        """A task that takes all, beside the body."""
        self.hook()
        self._async_def()
        self.line(self._spawn())
        with self.within(hoists=False):
            self.chooser.several(self.statement, 1, 2)
        if self.chance(2):
            name, kind = self.tasks.pop()
            self.line(f"{self.bind(kind)} = await {name}")

    # -- children and lives ---------------------------------------------------------------------------

    def begin_run(self) -> tuple[str, str]:
        """A call that starts a run, and the kind of its result."""
        function = self.one(self.startable)
        args = "".join(f", {self.expression(param, 1)}" for param in function.params)
        return f"start({function.name}{args})", function.kind

    def _run_started(self) -> None:
        name = self.fresh("run")
        self.own.add(name)
        text, kind = self.begin_run()
        if self.chance(8):
            other = self.fresh("run")
            self.own.add(other)
            text, kind_of_other = f"asyncio.gather({text}, {(more := self.begin_run())[0]})", more[1]
            self.line(f"{name}, {other} = await {text}")
            self.runs.append((other, kind_of_other))
        else:
            self.line(f"{name} = await {f'asyncio.create_task({text})' if self.chance(8) else text}")
        self.runs.append((name, kind))

    def run(self) -> tuple[str, str]:
        """The name of a run, which is started where there is none, and the kind of its result."""
        if not self.runs or self.chance(6):
            self._run_started()
        found: tuple[str, str] = self.runs[-1] if self.chance(2) else self.one(self.runs)
        return found

    def _run_awaited(self) -> None:
        name, kind = self.run()
        value = self.bind(kind)
        self.line(f"{value} = await {name}.return_value()")
        if not self.chance(3):
            self.line(f"await echo({value})")

    def handled(self, errors: str) -> None:
        """What is done with an error of a run."""
        name = self.fresh("error")
        self.line(f"except {errors} as {name}:")
        self.indent += 1
        self.line(self.one([
            f"note(type({name}).__name__)", f"await echo(type({name}).__name__)", f"await echo(str({name}))", f"await echo(type({name}.__cause__).__name__)",
            f"{self.bind('text')} = str(getattr({name}, 'reason', None))",
        ]))  # fmt: skip
        self.indent -= 1

    def _run_caught(self) -> None:
        self.run()
        self.line("try:")
        self.indent += 1
        self.one([self._run_awaited, self._run_gathered, self._run_timed, self.statement])()
        if self.lines[-1].endswith("try:"):  # there were to be no more statements
            self.line("pass")
        self.indent -= 1
        self.handled(self.one(["(RunFailedError, RunCancelledError)", "(RunFailedError, RunCancelledError, TimeoutError)", "RunCancelledError", "Exception"]))  # fmt: skip
        if self.chance(4):
            self.line("finally:")
            self.block(1, 1)

    def _run_timed(self) -> None:
        name, kind = self.run()
        self.line("try:")
        self.indent += 1
        self.line(f"{self.bind(kind)} = await {name}.return_value(timeout={self.one([1, 5, 60, 0])})")
        self.indent -= 1
        self.handled("ReturnValueTimeoutError")

    def _run_deadline(self) -> None:
        name, kind = self.run()
        self.line("try:")
        self.indent += 1
        if self.chance(2):
            self.line(f"async with asyncio.timeout({self.one([1, 5, 60])}):")
            self.indent += 1
            if self.chance(2):
                self.statement()
            self.line(f"{self.bind(kind)} = await {name}.return_value()")
            self.indent -= 1
        else:
            self.line(f"{self.bind(kind)} = await asyncio.wait_for({name}.return_value(), 5)")
        self.indent -= 1
        self.handled("TimeoutError")

    def _run_asked(self) -> None:
        name, _ = self.run()
        why = self.one(["", "reason='enough'", "reason='no more'", "reason=str(<int>)"])
        call = f"await {name}.cancel({self.fill(why, 1)})"
        self.line(self.one([call, f"{self.bind('none')} = {call}", f"note({call})"]))
        if self.chance(3):
            self._run_caught()

    def _run_gathered(self) -> None:
        name, _ = self.run()
        other = self.fresh("x")
        self.line(self.one([
            f"{self.bind('rows')} = await asyncio.gather({name}.return_value(), {self.member()[0]})",
            f"note([type({other}).__name__ for {other} in await asyncio.gather({name}.return_value(), {self.member()[0]}, return_exceptions=True)])",
            f"{self.bind('rows')} = await asyncio.gather(*[{other}.return_value() for {other} in [{', '.join(each for each, _ in self.runs)}]])",
        ]))  # fmt: skip

    def _run_raced(self) -> None:
        (name, _), done, rest = self.run(), self.fresh("done"), self.fresh("rest")
        when = self.one(
            ["return_when=asyncio.FIRST_COMPLETED", "timeout=5", "return_when=asyncio.FIRST_EXCEPTION"]
        )
        self.line(f"{done}, {rest} = await asyncio.wait([asyncio.create_task({name}.return_value()), asyncio.create_task({self.member()[0]})], {when})")  # fmt: skip
        self.line(f"await echo(len({done}))")
        if not self.chance(3):
            task = self.fresh("task")
            self.line(f"for {task} in {rest}:")
            self.line(f"    {task}.cancel()")

    def _run_let_go(self) -> None:
        """A task that waits for a run, and is cancelled or awaited later."""
        (name, kind), task = self.run(), self.fresh("task")
        self.own.add(task)
        self.line(f"{task} = asyncio.create_task({name}.return_value())")
        self.statement()
        end = self.chooser.pick(4)
        if end <= 1:
            self.line(f"note({task}.cancel())")
            if end:
                self.line(f"{self.bind(kind)} = await {name}.return_value()")
        elif end == 2:
            self.tasks.append((task, kind))

    def before(self) -> None:
        """What a life does with a run that one before has started; mostly it passes it on, too."""
        self.line(f"if {BEFORE} is not None:")
        self.indent += 1
        known = {kind: list(names) for kind, names in self.names.items()}
        runs, tasks, self.runs = self.runs, list(self.tasks), [(BEFORE, "none")]
        self.one([
            self._run_caught, self._run_caught, self._run_timed, self._run_deadline, self._run_asked, self._run_let_go, self._run_raced, self._run_named,
        ])()  # fmt: skip
        self.line(
            f"await echo(len(await asyncio.gather({BEFORE}.return_value(), return_exceptions=True)))"
            if self.chance(3)
            else "pass"
        )
        self.indent -= 1
        self.names, self.runs, self.tasks = known, runs, tasks
        if not self.chance(3):
            self.line("else:")
            text, kind = self.begin_run()
            self.line(f"    {BEFORE} = await {text}")
            self.own.add(BEFORE)
            self.runs.append((BEFORE, kind))

    def _run_many(self) -> None:
        text, _ = self.begin_run()
        name, each = self.fresh("runs"), self.fresh("x")
        self.line(f"{name} = [await {text} for {each} in range({self.one([2, 3])})]")
        self.statement()
        self.line(self.one([
            f"{self.bind('rows')} = [await {each}.return_value() for {each} in {name}]",
            f"{self.bind('rows')} = await asyncio.gather(*[{each}.return_value() for {each} in {name}])",
            f"note([type({each}).__name__ for {each} in await asyncio.gather(*[{each}.return_value() for {each} in {name}], return_exceptions=True)])",
            f"note([await {each}.cancel(reason='all') for {each} in {name}])",
        ]))  # fmt: skip

    def _run_named(self) -> None:
        self.line(f"await echo({self.run()[0]}.run_id)")

    def _run_grouped(self) -> None:
        (name, _), group = self.run(), self.fresh("group")
        self.line(f"async with asyncio.TaskGroup() as {group}:")
        self.line(f"    {group}.create_task({name}.return_value())")
        self.line(f"    {group}.create_task({self.member()[0]})")

    def _run_shielded(self) -> None:
        name, kind = self.run()
        self.line("try:")
        self.line(
            f"    {self.bind(kind)} = await asyncio.wait_for(asyncio.shield({name}.return_value()), 5)"
        )
        self.handled("TimeoutError")

    def _hearing(self) -> None:
        """Something that hears of a request to cancel, and goes on or not."""
        self.line("try:")
        self.block(1, 2)
        name = self.fresh("error")
        self.line(f"except asyncio.CancelledError as {name}:")
        self.indent += 1
        self.line(
            self.one([f"await echo(str({name}))", f"note({name})", "await sleep(5)", "await ping()"])
        )
        end = self.chooser.pick(4)
        if end == 1:
            self.line("raise")
        elif end == 2:
            self.line("raise ValueError('instead')")
        elif end == 3:
            self.statement()
        self.indent -= 1
        if self.chance(3):
            self.line("finally:")
            with self.within(in_loop=False):
                self.block(1, 1)

    def _live_on(self) -> None:
        """Begin the next life, if there have not been too many."""
        assert self.params is not None
        cond = f" and {self.expression('cond', 1)}" if self.chance(2) else ""
        self.line(f"if {LIVES} < {self.one([1, 2, MOST_LIVES])}{cond}:")
        self.indent += 1
        if self.chance(6):
            self.statement()
        passed = [f"{LIVES} + 1"]
        if self.runs and not self.chance(3):
            passed.append(self.one(self.runs)[0])
        args = ", ".join([*(self.expression(param, 1) for param in self.params), *passed])
        if self.chance(6):
            name = self.fresh("again")
            self.line(f"{name} = continue_as_new({args})")
            if self.chance(3):
                self.statement()
            self.line(f"return {name}" if not self.chance(4) else "pass")
        else:
            self.line(f"return continue_as_new({args})")
        self.indent -= 1

    def result(self) -> str:
        """What is returned: mostly all that there is to see."""
        names = [name for names in self.names.values() for name in names]
        what = self.chooser.pick(4)
        if what <= 1 and names:
            chosen = names[-6:] if what else names[-2:]
            return f"[{', '.join(chosen)}]"
        return self.expression("any", 2)

    def _if(self) -> None:
        with self.within(hoists=True):
            self.line(f"if {self.expression('cond')}:")
        self.block()
        if self.chance(3):
            with self.within(hoists=False):  # nothing may stand before it
                self.line(f"elif {self.expression('cond')}:")
            self.block()
        if self.chance(2):
            self.line("else:")
            self.block()

    def _while(self) -> None:
        count = self.fresh("k")
        self.own.add(count)
        self.line(f"{count} = 0")
        limit = self.one([2, 3])
        if self.chance(2) and self.binds:
            self.line(f"while ({count} := {count} + 1) < {limit + 1} and {self.expression('cond')}:")
        else:
            self.line(f"while {count} < {limit} and {self.expression('cond')}:")
            self.indent += 1
            self.line(f"{count} += 1")
            self.indent -= 1
        with self.within(in_loop=True):
            self.block()
        self.last()

    def last(self) -> None:
        if self.chance(4):
            self.line("else:")
            self.block(1, 2)

    def _for(self) -> None:
        what = self.chooser.pick(5)
        source = self.fill(self.choose(self.allowed(LOOPED, 2)), 2)
        is_own = "range" in source or "gives" in source or "[" in source or "Lines" in source
        if what == 3:
            target = f"{self.bind('int')}, {self.bind('int', is_new=True)}"
            self.line(f"for {target} in enumerate({source}):")
        elif what == 4:
            source = self.place("@", "dict", None, 1)
            self.line(f"for {self.bind('text')}, {self.bind('none')} in list({source}.items()):")
            is_own = True
        else:
            self.line(f"for {self.bind('int')} in {source}:")
        with self.within(in_loop=True, is_frozen=self.is_frozen or not is_own):
            self.block()
        self.last()

    def _try(self) -> None:
        self.line("try:")
        self.block()
        handles = not self.chance(5)
        if handles:
            for kind in [self.one(ERRORS) for _ in range(1 + self.chance(4))]:
                name = self.fresh("error")
                self.line(f"except {kind} as {name}:")
                self.indent += 1
                what = self.chooser.pick(3)
                if what == 0:
                    self.line(f"{self.bind('text')} = type({name}).__name__")
                elif what == 1:
                    self.line(f"await echo(str({name}))" if self.awaits else f"note({name})")
                self.indent -= 1
                with self.within(in_handler=True):
                    self.block(1, 2)
            if self.chance(4):
                self.line("else:")
                self.block(1, 2)
        if not handles or self.chance(3):
            self.line("finally:")
            with self.within(in_loop=False):  # `continue` there would hide what was raised
                self.block(1, 2)

    def _with(self) -> None:
        self.line(self.fill(self.choose(self.allowed(WITH, 2)), 2))
        self.block()

    def _match(self) -> None:
        kind, patterns = self.one(PATTERNS)
        self.line(f"match {self.expression(kind, 1)}:")
        self.indent += 1
        known = {name: list(found) for name, found in self.names.items()}
        for _ in range(1 + self.chance(2)):
            # A pattern may bind a name once.
            text = self.choose(patterns)
            bound = PLACE.sub(lambda place: self.bind(place[2], is_new=not self.chance(3)) if place[1] == "=" else place[0], text)  # fmt: skip
            self.line(f"case {self.fill(bound, 2)}:")
            self.block(1, 2)
        if self.lines[-1].lstrip().startswith("case") is False and self.chance(2):
            self.line("case _:")
            self.block(1, 2)
        self.indent -= 1
        self.names = known

    def nested(self, *, is_async: bool) -> Writer:
        inner = Writer(self.chooser, self.module, self.workflows)
        inner.names = {kind: list(names) for kind, names in self.names.items()}
        inner.hooks, inner.runs, inner.startable = (
            list(self.hooks),
            list(self.runs),
            self.startable if is_async else [],
        )
        if not is_async:
            inner.runs = []
        inner.functions, inner.indent, inner.is_nested = list(self.functions), self.indent, True
        inner.awaits, inner.is_frozen = is_async, self.is_frozen
        return inner

    def _def(self) -> None:
        kind = self.one(["int", "text", "list"])
        name = self.fresh("f")
        if self.chance(3):
            self.line(f"{name} = lambda: {self._sync(kind)}")
        else:
            self.function(Function(name, (), kind, is_async=False), 2)
        self.functions.append(Function(name, (), kind, is_async=False))

    def _async_def(self) -> None:
        params = ("int",) if self.chance(3) else ()
        function = Function(self.fresh("g"), params, self.choose(BOUND))
        self.function(function, 3)
        self.functions.append(function)

    def function(self, function: Function, high: int) -> None:
        """A nested function; what it binds of the body's is `nonlocal`."""
        self.own.add(function.name)
        inner = self.nested(is_async=function.is_async)
        given = [inner.bind(param, is_new=True) for param in function.params]
        inner.chooser.several(lambda: inner.within_block(), 1, high)
        value = inner.expression(function.kind, 2)
        self.line(f"{'async ' * function.is_async}def {function.name}({', '.join(given)}):")
        if inner.outer:
            self.line(f"    nonlocal {', '.join(sorted(inner.outer))}")
            self.outer |= inner.outer - self.own
        self.lines.extend(inner.lines)
        self.line(f"    return {value}")

    def within_block(self) -> None:
        self.indent += 1
        self.statement()
        self.indent -= 1


def written(chooser: Chooser, kind: str | None = None) -> str:
    """The text of a module with a workflow `body`; of a kind that is chosen, or of this one."""
    module: Counter[str] = Counter()
    what = Writer(chooser, module).choose(KINDS_OF_PROGRAMS)
    what = kind or what
    module["children"], module["lives"] = (
        int(what in {"children", "families"}),
        int(what in {"lives", "families"}),
    )
    module["requests"] = int(what in {"requests", "children", "lives", "families"})
    may_hook = what == "hooks" or (what in {"lives", "families"} and chooser.pick(2) == 1)
    module["hooks"] = int(may_hook)
    texts: list[str] = []
    workflows: list[Function] = []
    startable: list[Function] = []

    def inlined() -> None:
        first = Writer(chooser, module)
        function = Function(first.fresh("inner"), _params(chooser), first.choose([*BOUND, (8, "none")]))
        texts.append(_function(first, function, workflows, left=5 - chooser.pick(5)))
        workflows.append(function)

    def started() -> None:
        first = Writer(chooser, module)
        if chooser.pick(3) == 2:
            first.startable = list(startable)
        has_lives = bool(module["lives"]) and chooser.pick(3) == 2
        function = Function(
            first.fresh("child"),
            _params(chooser),
            first.choose([*BOUND, (8, "none")]),
            has_lives=has_lives,
        )
        # Its tokens are those of the others: they are rivals.
        module["hooks"] = int(may_hook and chooser.pick(2) == 1)
        texts.append(_function(first, function, workflows, left=4 - chooser.pick(4), is_started=True))
        module["hooks"] = int(may_hook)
        startable.append(function)
        if not has_lives and chooser.pick(4) == 3:
            workflows.append(function)

    chooser.several(inlined, 0, 0 if chooser.pick(3) == 2 else 2)
    if module["children"]:
        chooser.several(started, 1, 2)
    writer = Writer(chooser, module)
    writer.startable = startable
    body = Function(
        "body", ("dict", "list") if writer.chance(3) else (), "any", has_lives=bool(module["lives"])
    )
    texts.append(_function(writer, body, workflows, left=12 - chooser.pick(9)))
    text = "\n\n".join(texts)
    if FAMILY.search(text):
        for pattern, instead in STILL:
            text = pattern.sub(instead, text)
    flip = FLIP if not FAMILY.search(text) else FLIP.replace("FLAG += 1", "FLAG += 0")
    return ast.unparse(ast.parse(MODULE + flip * ("flip(" in text or "FLAG" in text) + text)) + "\n"


def _params(chooser: Chooser) -> tuple[str, ...]:
    found = ("list", "int", "dict", "room")[chooser.pick(8) % 4 : chooser.pick(2) + 3]
    return found[: chooser.pick(3)]


def _function(
    writer: Writer,
    function: Function,
    workflows: Sequence[Function],
    *,
    left: int,
    is_started: bool = False,
) -> str:
    writer.workflows = list(workflows)
    writer.module["left"] = left
    given = [writer.bind(param, is_new=True) for param in function.params]
    more = [f"{LIVES}=0"] * function.has_lives
    if function.has_lives:
        writer.params = function.params
    if function.has_lives and writer.startable:
        more.append(f"{BEFORE}=None")
        writer.before()
    if is_started and not writer.chance(3):
        wait = f"await sleep({writer.one([5, 60, repr('1 hour'), repr('1 day')])})"
        writer.line(writer.one([wait, "try:"]))
        if writer.lines[-1].endswith("try:"):
            writer.line(f"    {wait}")
            writer.line(writer.one(["finally:", "except asyncio.CancelledError:"]))
            writer.block(1, 2)
            if writer.chance(2) and "finally" not in writer.lines[-1]:
                writer.line(
                    "    raise" if any("except asyncio" in line for line in writer.lines) else "    pass"
                )
    for _ in range(left):
        if writer.module["left"] <= 0:
            break
        writer.chooser.several(writer.statement, 1, 6)
    if function.has_lives:
        writer._live_on()
    value = writer.result() if function.kind == "any" else writer.expression(function.kind, 2)
    if function.kind == "none" and not writer.chance(3):
        value = writer.expression("part", 2)
    head = f"@workflow\nasync def {function.name}({', '.join([*given, *more])}):"
    return "\n".join([head, *writer.lines, f"    return {value}"])


@st.composite
def programs(draw: st.DrawFn, kind: str | None = None) -> str:
    """Programs that shrink; of this kind."""
    try:
        return written(DrawnChooser(draw), kind)
    except SyntaxError:
        reject()


def program(seed: int, number: int, kind: str | None = None) -> str:
    """Program `number` of a seed; of this kind."""
    return written(Chooser(random.Random(f"{seed}/{number}")), kind)


# -- the arena ------------------------------------------------------------------------------------

OVERLAP = "a step had begun when the body let go of it"
NOT_AWAITED = "a call that is never awaited, which ends a run and not a program of asyncio"
_UNFIT = {NOT_AWAITED: "unawaited", OVERLAP: "overlapping"}
ARGS: tuple[Any, ...] = ({"id": 7, "name": "given", "xs": [5]}, [3, 4])
TURN_LIMIT = 300
"""How often bodies are asked in one run before it is said to spin; the longest programs need some dozens."""
EVENT_LIMIT = 600
MOST_RUNS = 8
"""How many runs, each of which comes to these limits, may come of one program before it is said to spin: `start` in a loop of one that starts
others."""
TIME_LIMIT = 15.0
"""Processor time of a program under plain asyncio, in seconds."""
ENGINE_TIME_LIMIT = 120.0
"""And of all its runs in the engine, which take up to 3 s on a quick machine. One that is four times slower, and full, is no endless program."""
MOST_STEPS = 24


class SpinningError(Exception):
    """The engine asks the body again and again."""


class _SpinsError(BaseException):
    """Goes through the engine like the end of its process."""


class CountingWorld(World):
    """The world, which also counts how often a body is asked."""

    turns = replays = 0
    turn_limit = TURN_LIMIT
    is_hidden = False

    def forget(self) -> None:
        super().forget()
        self.turns = self.replays = 0
        self.is_hidden = False

    def look(self) -> Any:
        return None if self.is_hidden else super().look()

    def told(self, key: tuple[str, str]) -> Any:
        found = super().told(key)
        self.replays += key[1] == "start" and found is not None
        return found

    def begin(self) -> Any:
        self.turns += 1
        if self.turns > self.turn_limit:
            raise _SpinsError
        return super().begin()


class _Arena(Arena):
    """Compares what the world is like after a run only where no body was evaluated twice.

    By design it may be, and then does again what it does to the world itself; what it saw is compared all the same.
    """

    def worker(self, **options: Any) -> simulator.SimWorker:
        """The worker, which does not forget that a run has ended before its script has."""
        worker = super().worker(**options)
        if "_has_ended" not in worker.__dict__:
            ask, ended = worker._has_ended, set()

            def has_ended(run_id: Any) -> bool:
                if run_id not in ended and ask(run_id):
                    ended.add(run_id)
                return run_id in ended

            worker.__dict__["_has_ended"] = has_ended
        return worker

    def engine(self, body: Body, **options: Any) -> EngineRun | None:
        world = self.world
        assert isinstance(world, CountingWorld)
        found = super().engine(body, **options)
        world.is_hidden = world.replays > 0
        return found


class Unfit(Exception):  # noqa: N818
    """A program that says nothing: too long."""


@dataclass
class Bench:
    """Where programs are run: their files, and a database that is replaced when a run has failed in it.

    Attributes:
        folder: For the files.
        runs: How many runs there were of each mode.
        faults: How many steps of a program are made to fail, each in a run of its own.
        kills: How many runs of a program have a death in them.
        databases: Makes an empty database; `None`: it is a file in the folder.
        end: How the last program ends under plain asyncio when nothing fails: `result`, or the type of the error.
    """

    folder: Path
    runs: Counter[str] = field(default_factory=Counter)
    faults: int = 3
    kills: int = 1
    databases: Callable[[], contextlib.AbstractContextManager[str]] | None = None
    end: str = ""
    _number: int = 0
    _arena: Arena | None = None
    _database: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def arena(self) -> Arena:
        if self._arena is None:
            self._number += 1
            module: dict[str, Any] = {"FLAG": 0}
            known = program_steps.world_of(module)
            world = CountingWorld(known._roots, known._globals)

            def reset() -> None:
                program_steps.reset_world()
                world._globals[-1][0]["FLAG"] = 0

            url = f"sqlite:///{self.folder / f'runs{self._number}.sqlite3'}"
            if self.databases is not None:
                url = self._database.enter_context(self.databases())
            self._arena = _Arena(url, reset, world, counts=self.runs)
        return self._arena

    def close(self) -> None:
        """Give the database up."""
        if self._arena is not None:
            self._arena.close()
            self._database.close()
            for file in self.folder.glob("runs*"):
                file.unlink()
        self._arena = None

    @contextlib.contextmanager
    def loaded(self, text: str) -> Iterator[Body]:
        """Import a program from a file, and forget it."""
        self._number += 1
        name = f"program{self._number}"
        try:
            code = compile(text, str(self.folder / f"{name}.py"), "exec", dont_inherit=True)
        except SyntaxError as error:  # a `nonlocal` without a binding, a pattern that is never reached
            raise Unfit(str(error)) from error
        path = self.folder / f"{name}.py"
        path.write_text(text)
        module = types.ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module
        known = {**registry.workflows}, {**registry.steps}
        try:
            registry.workflows.clear()  # the reference goes through all of them at each run
            module.__dict__.setdefault("FLAG", 0)
            exec(code, module.__dict__)
            self.arena().world._globals[-1] = (module.__dict__, "FLAG")
            workflow = module.__dict__["body"]
            count = workflow.function.__code__.co_argcount - len(workflow.function.__defaults__ or ())
            yield Body(name, workflow, ARGS[:count])
        finally:
            for workflow in registry.workflows.values():
                reference._originals.pop(workflow, None)
            registry.workflows.clear()
            registry.workflows.update(known[0])
            registry.steps.clear()
            registry.steps.update(known[1])
            del sys.modules[name]
            linecache.cache.pop(str(path), None)
            path.unlink()

    def check(self, text: str, *, seed: int = 0) -> None:
        """Run a program in all modes.

        Raises:
            DifferenceError: The engine does what plain asyncio does not.
            SpinningError: It does not come to an end.
            Unfit: The program is not for this.
        """
        mode = ["plain"]
        different: DifferenceError | None = None
        try:
            with _time_limit(TIME_LIMIT) as limit, self.loaded(text) as body:
                self._check(body, random.Random(seed), mode, text, limit)
        except (Unfit, SyntaxError):
            raise
        except _NoEndError as error:
            self.close()
            if mode[0] == "plain":
                raise Unfit(str(error)) from None
            raise SpinningError(f"[{mode[0]}] {error}") from None
        except DifferenceError as error:
            if "NotAwaitedError" in str(error):  # asyncio only warns of it
                raise Unfit(NOT_AWAITED) from error
            different = error
        except BaseException as error:
            self.close()
            if isinstance(error, RecursionError) and "in comparison" in str(error):
                raise Unfit("a list or dict of the world that holds itself") from error
            if isinstance(error, _SpinsError) or (
                isinstance(error, StuckError) and "after" in str(error)
            ):
                raise SpinningError(f"[{mode[0]}] {error!r}") from None
            if isinstance(error, CannotFollowError | StuckError):
                raise DifferenceError(f"[{mode[0]}] {type(error).__name__}: {error}") from error
            raise
        if different is None:
            return
        # Not in the handler: what a body raises there would have this error for its context.
        if "plain asyncio has ended, and the engine ran" in str(different) and self._overlaps(
            text, seed
        ):
            raise Unfit(OVERLAP)
        raise different

    def _overlaps(self, text: str, seed: int) -> bool:
        """Whether the engine differs only by steps that asyncio had begun, too, when the body let go of them."""
        arena = self.arena()
        arena.allows_overlap = True
        try:
            with _time_limit(TIME_LIMIT) as limit, self.loaded(text) as body:
                self._check(body, random.Random(seed), ["plain"], text, limit)
        except (Exception, _NoEndError):  # noqa: BLE001  # whatever it is, it is told by the first run
            self.close()
            return False
        finally:
            arena.allows_overlap = False
        return True

    def _check(
        self, body: Body, rng: random.Random, mode: list[str], text: str, limit: Callable[[float], None]
    ) -> None:
        has_hooks = HOOKS.search(text) is not None
        if FAMILY.search(text):
            mode[0] = "live"
            limit(ENGINE_TIME_LIMIT)
            with _standing_still():
                self._check_family(body, rng, mode, has_hooks=has_hooks)
            return
        arena = self.arena()
        try:
            lead = arena.plain(body, chooser=Choices())
        except DifferenceError as error:
            raise Unfit(str(error)) from error
        mode[0] = "live"
        limit(ENGINE_TIME_LIMIT)
        self.end = str(lead.outcome.get("error", {}).get("type", "result"))
        try:
            assert arena.world.look() == arena.world.look()
        except RecursionError as error:
            raise Unfit("a list or dict of the world that holds itself") from error
        if len(lead.steps) > MOST_STEPS:
            raise Unfit("too many steps")
        events, simulator.EVENT_LIMIT = simulator.EVENT_LIMIT, EVENT_LIMIT

        def run(kind: str, **options: Any) -> EngineRun | None:
            mode[0] = kind
            if has_hooks and "sends" not in options:
                options["sends"] = rng.choice((0.05, 0.2, 0.4))
            return arena.compare(body, kind, tokens=program_steps.TOKENS, **options)

        try:
            live = run("live", bodies_kept=64, script=lead.moves, sends=0.0 if has_hooks else None)
            if any("." in node for node in lead.steps) or rng.random() < 0.2:
                run("kept", bodies_kept=64, seed=rng.randrange(1000))  # there is more than one order
            run("replayed", bodies_kept=0, seed=rng.randrange(1000))
            if has_hooks:
                self._check_hooked(run, rng, live, text)
            nodes = list(lead.steps)
            for number, node in enumerate(
                nodes if len(nodes) <= self.faults else rng.sample(nodes, self.faults)
            ):
                kind = "error" if rng.random() < 0.1 else "fatal"
                run(
                    "faults",
                    bodies_kept=64 * (number % 2),
                    faults={node: kind},
                    seed=rng.randrange(1000),
                )
            assert live is not None
            for number in range(2):
                kill = None
                if rng.random() < 0.3:
                    kill = Kill(rng.randint(1, live.transactions), is_committed=rng.random() < 0.5)
                at = rng.randint(1, live.transactions)
                run(
                    "cancels",
                    bodies_kept=64 * (number % 2),
                    # Of two requests the body is told of the first.
                    cancel_at=[at, rng.randint(at, live.transactions + 3)] if rng.random() < 0.3 else at,
                    kill=kill,
                    seed=rng.randrange(1000),
                )
            for number in range(self.kills):
                at = rng.randint(1, live.transactions)
                kill = Kill(at, is_committed=rng.random() < 0.5, keeps_messages=rng.random() < 0.5)
                run("kills", bodies_kept=rng.choice([0, 64]), kill=kill, seed=rng.randrange(1000))
        finally:
            simulator.EVENT_LIMIT = events

    def _check_family(self, body: Body, rng: random.Random, mode: list[str], *, has_hooks: bool) -> None:
        """A run that starts others, or begins its life anew: nobody leads here, and each run is compared by itself."""
        events, simulator.EVENT_LIMIT = simulator.EVENT_LIMIT, MOST_RUNS * EVENT_LIMIT
        world = self.arena().world
        assert isinstance(world, CountingWorld)
        world.turn_limit = MOST_RUNS * TURN_LIMIT

        def run(kind: str, **options: Any) -> EngineRun | None:
            mode[0] = kind
            sends = rng.choice((0.05, 0.2, 0.4)) if has_hooks else None
            options = {"sends": sends, "seed": rng.randrange(1000), **options}
            return self.arena().compare(
                body, kind, tokens=program_steps.TOKENS, is_family=True, **options
            )

        try:
            live = run("live", bodies_kept=64, sends=0.0 if has_hooks else None)
            assert live is not None
            self.end = str(live.outcome.get("error", {}).get("type", "result"))
            steps = sorted(
                {row.node_id for life in live.family for row in life.rows if row.kind is NodeKind.STEP}
            )
            if sum(len(life.rows) for life in live.family) > 4 * MOST_STEPS:
                raise Unfit("too many steps")
            last = live.transactions
            run("kept", bodies_kept=64)
            run("replayed", bodies_kept=0)
            if rng.random() < 0.3:
                run("strict", bodies_kept=0, is_compiled=False)
            for number, node in enumerate(rng.sample(steps, min(len(steps), self.faults, 2))):
                kind = "error" if rng.random() < 0.1 else "fatal"
                run("faults", bodies_kept=64 * (number % 2), faults={node: kind})
            for number in range(2):
                at = rng.randint(1, last)
                kill = (
                    Kill(rng.randint(1, last), is_committed=rng.random() < 0.5)
                    if rng.random() < 0.3
                    else None
                )
                again = [rng.randint(at, last + 9) for _ in range(2)] if number == 1 else []
                run("cancels", bodies_kept=64 * (number % 2), cancel_at=[at, *again], kill=kill)
            for _ in range(self.kills):
                kill = Kill(
                    rng.randint(1, last),
                    is_committed=rng.random() < 0.5,
                    keeps_messages=rng.random() < 0.5,
                )
                run("kills", bodies_kept=rng.choice([0, 64]), kill=kill)
            kill = (
                Kill(rng.randint(1, last), is_committed=rng.random() < 0.5)
                if rng.random() < 0.5
                else None
            )
            cancel_at = rng.randint(1, last) if rng.random() < 0.3 else None
            with self.arena().unruly(interrupts=0.3, doubles=0.2, drops=0.1):
                run("turns", bodies_kept=64, process_count=2, kill=kill, cancel_at=cancel_at)
        finally:
            simulator.EVENT_LIMIT, world.turn_limit = events, TURN_LIMIT

    def _check_hooked(
        self, run: Callable[..., EngineRun | None], rng: random.Random, live: EngineRun | None, text: str
    ) -> None:
        """What payloads add: they come at any moment, to either of two processes, and to bodies that never run ahead."""
        assert live is not None
        for kept in (64, 0):
            run("strict", bodies_kept=kept, is_compiled=False, seed=rng.randrange(1000))
            run("sends", bodies_kept=kept, seed=rng.randrange(1000))
        at = Kill(rng.randint(1, live.transactions), is_committed=rng.random() < 0.5)
        for kill in (None, at):
            # A body that looks at the world of two processes sees what the other does between its reading and its telling.
            interrupts = 0.0 if WORLD.search(text) else 0.3
            with self.arena().unruly(interrupts=interrupts, doubles=0.2, drops=0.1):
                run("turns", bodies_kept=64, process_count=2, kill=kill, seed=rng.randrange(1000))


@contextlib.contextmanager
def _standing_still() -> Iterator[None]:
    program_steps.is_still = True
    try:
        yield
    finally:
        program_steps.is_still = False


# -- making a program smaller ---------------------------------------------------------------------


def verdict(bench: Bench, text: str, *, seed: int = 0) -> tuple[str, str]:
    """What becomes of a program: a short name, and the whole story."""
    try:
        bench.check(text, seed=seed)
    except (Unfit, SyntaxError) as error:
        return _UNFIT.get(str(error), "unfit"), str(error)
    except SpinningError as error:
        return f"spinning {str(error).split(']')[0]}]", str(error)
    except DifferenceError as error:
        found = str(error)
        mode = re.search(r"\[(\w+)\]", found)
        story = found.split("\n")[1] if "\n" in found else found
        kind = next((name for name in _STORIES if name in story), story[:40])
        return f"different [{mode[1] if mode else ''}] {kind}", found
    except Exception as error:
        return f"crash {type(error).__name__}", repr(error)
    return "same", ""


_STORIES = ["the engine ends with", "does not wait for", "the engine ran", "still waits", "leaves the world", "left over", "CannotFollow", "StuckError", "happened after", "goes on with", "has ended"]  # fmt: skip


class _NoEndError(BaseException):
    """A program takes too long. No `Exception`: the program would catch it and go on."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[Callable[[float], None]]:
    """Limit the processor time: on a busy machine a program may well take ten times as long by the clock. Gives what sets another limit."""

    def late(*_: object) -> None:
        raise _NoEndError(f"no end after {seconds} s")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, 1), signal.SIGALRM: (signal.ITIMER_REAL, 20)}
    before = {number: signal.signal(number, late) for number in timers}

    def limit(to: float) -> None:
        nonlocal seconds
        seconds = to
        for timer, times in timers.values():
            # Again and again: a bare `except` catches even this.
            signal.setitimer(timer, times * seconds, 1.0)

    limit(seconds)
    try:
        yield limit
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def reduced(text: str, fails: Callable[[str], bool], *, seconds: float = 60.0) -> str:
    """Leave out and simplify what is not needed for a program to fail."""
    until = time.monotonic() + seconds
    seen = {text}
    is_smaller = True
    while is_smaller:
        is_smaller = False
        number = 0
        while time.monotonic() < until:
            candidate = _candidate(text, number)
            if candidate is None:
                break
            if candidate not in seen and len(candidate) < len(text) + 8:
                seen.add(candidate)
                if fails(candidate):
                    text, is_smaller = candidate, True
                    continue
            number += 1
    return text


def _candidate(text: str, number: int) -> str | None:
    """Smaller program `number` of a program: statements left out first, then expressions made simpler."""
    tree = ast.parse(text)
    for change in _changes(tree):
        if number == 0:
            change()
            with contextlib.suppress(Exception):
                return ast.unparse(ast.fix_missing_locations(tree)) + "\n"
            return text
        number -= 1
    return None


def _changes(tree: ast.Module) -> Iterator[Callable[[], None]]:
    for node in ast.walk(tree):
        for _, block in ast.iter_fields(node):
            if not (isinstance(block, list) and block and isinstance(block[0], ast.stmt)):
                continue
            for at in range(len(block) - 1, -1, -1):
                if isinstance(block[at], ast.ImportFrom | ast.Pass):
                    continue
                filler: list[ast.stmt] = [ast.Pass()] if len(block) == 1 else []
                yield lambda block=block, at=at, filler=filler: block.__setitem__(
                    slice(at, at + 1), filler
                )
                for part in ("body", "orelse", "finalbody"):
                    inner = getattr(block[at], part, None)
                    if inner and not isinstance(block[at], ast.FunctionDef | ast.AsyncFunctionDef):
                        yield lambda block=block, at=at, inner=inner: block.__setitem__(
                            slice(at, at + 1), inner
                        )
    for node in ast.walk(tree):
        for part in ("orelse", "finalbody", "handlers", "cases", "decorator_list", "args"):
            several = getattr(node, part, None)
            if (
                isinstance(several, list)
                and several
                and not isinstance(node, ast.Call | ast.AsyncFunctionDef)
            ):
                for at in range(len(several)):
                    yield lambda several=several, at=at: several.pop(at)
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.expr) and name not in {"target", "func", "cls"}:
                for simple in _simpler(value):
                    yield lambda node=node, name=name, simple=simple: setattr(node, name, simple)
            elif (
                isinstance(value, list)
                and value
                and isinstance(value[0], ast.expr)
                and name != "targets"
            ):
                for at, item in enumerate(value):
                    yield lambda value=value, at=at: value.pop(at)
                    for simple in _simpler(item):
                        yield lambda value=value, at=at, simple=simple: value.__setitem__(at, simple)


def _simpler(value: ast.expr) -> Iterator[ast.expr]:
    if isinstance(value, ast.Constant | ast.Name):
        if isinstance(value, ast.Name) and isinstance(value.ctx, ast.Load):
            yield ast.Constant(1)
        return
    if isinstance(getattr(value, "ctx", None), ast.Store | ast.Del):
        return
    yield ast.Constant(1)
    for inner in ast.iter_child_nodes(value):
        if isinstance(inner, ast.expr) and not isinstance(getattr(inner, "ctx", None), ast.Store):
            yield inner


# -- many programs --------------------------------------------------------------------------------


@dataclass
class Totals:
    """What came of many programs."""

    programs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    stories: list[str] = field(default_factory=list)
    writing: float = 0.0


def run_many(
    seed: int, numbers: Sequence[int], *, most: int, seconds: float, faults: int = 5, kills: int = 2,
    kind: str | None = None, is_on_postgres: bool = False,
) -> Totals:  # fmt: skip
    """Run these programs of a seed, and make those that differ smaller."""
    logging.disable(logging.CRITICAL)
    gc.set_threshold(20_000, 20, 100)
    warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines that are never awaited
    totals, what = Totals(), kind
    kept: Counter[str] = Counter()
    root = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="programs", dir=root))
    bench = Bench(folder, totals.runs, faults, kills)
    server = services.own_postgres() if is_on_postgres else None
    if server is not None:
        bench.databases = functools.partial(services.empty_postgres_database, server.url)
    try:
        for count, number in enumerate(numbers):
            begun = time.perf_counter()
            try:
                text = program(seed, number, what)
            except SyntaxError as error:
                text = f"raise SyntaxError({str(error)!r})"
                print(f"--only {number} is no Python: {error}")
            totals.writing += time.perf_counter() - begun
            kind, story = verdict(bench, text, seed=number)
            totals.programs += 1
            totals.outcomes[kind.split(" ")[0]] += 1
            if count % 200 == 199:
                bench.close()
            if kind in {"same", "unfit", *_UNFIT.values()} or kept[kind] >= most:
                continue
            kept[kind] += 1
            runs, bench.runs = bench.runs, Counter()
            bench.close()
            wanted = (kind, bench.end)

            def fails(other: str, wanted: tuple[str, str] = wanted, at: int = number) -> bool:
                return (verdict(bench, other, seed=at)[0], bench.end) == wanted

            small = reduced(text, fails, seconds=seconds)
            found = verdict(bench, small, seed=number)[1] or story
            bench.close()
            bench.runs = runs
            totals.stories.append(
                f"## {kind}: --seed {seed} --only {number}{f' --kind {what}' if what else ''}\n\n{small}\n{found}\n"
            )
            print(totals.stories[-1], flush=True)
    finally:
        bench.close()
        if server is not None:
            server.close()
        shutil.rmtree(folder, ignore_errors=True)
    return totals


def main() -> int:
    parser = argparse.ArgumentParser(description="Random workflows, compared with plain asyncio.")
    parser.add_argument("--count", type=int, default=2_000, help="how many programs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only", type=int, help="this program alone; printed, too")
    parser.add_argument(
        "--most",
        type=int,
        default=5,
        help="how many of one kind of difference are made smaller, by process",
    )
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="the longest time to make one smaller"
    )
    parser.add_argument(
        "--faults", type=int, default=5, help="how many steps of a program are made to fail, in turn"
    )
    parser.add_argument(
        "--kills", type=int, default=2, help="how many runs of a program have a death in them"
    )
    kinds = [kind for _, kind in KINDS_OF_PROGRAMS]
    parser.add_argument("--kind", choices=kinds, help="programs of this kind alone")
    parser.add_argument(
        "--postgres",
        action="store_true",
        dest="is_on_postgres",
        help="on a PostgreSQL server of its own",
    )
    options = parser.parse_args()
    begun = time.perf_counter()
    if options.only is not None:
        print(program(options.seed, options.only, options.kind))
        shares: list[Sequence[int]] = [[options.only]]
    else:
        shares = [range(at, options.count, options.workers) for at in range(options.workers)]
    jobs = [(options.seed, share) for share in shares]
    known = {
        name: getattr(options, name)
        for name in ("most", "seconds", "faults", "kills", "kind", "is_on_postgres")
    }
    if len(jobs) == 1:
        parts = [run_many(*jobs[0], **known)]
    else:
        with multiprocessing.get_context("spawn").Pool(len(jobs)) as pool:
            waiting = [pool.apply_async(run_many, job, known) for job in jobs]
            parts = [job.get() for job in waiting]
    took = time.perf_counter() - begun
    outcomes, runs = Counter[str](), Counter[str]()
    for part in parts:
        outcomes += part.outcomes
        runs += part.runs
    told = ", ".join(f"{count} {name}" for name, count in outcomes.most_common())
    by_mode = ", ".join(f"{count} {name}" for name, count in runs.items())
    print(
        f"{sum(part.programs for part in parts)} programs of seed {options.seed} in {took:.0f} s: {told}"
    )
    print(
        f"{sum(runs.values())} runs: {by_mode}; {sum(part.writing for part in parts):.1f} s of writing programs"
    )
    return 1 if set(outcomes) - {"same", "unfit", *_UNFIT.values()} else 0


if __name__ == "__main__":
    # As a module of that name, so that other processes find it.
    from differential import programs as _programs

    sys.exit(_programs.main())
