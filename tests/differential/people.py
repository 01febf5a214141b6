"""What the bodies of `kinds_*.py` meet: values with code in them, state that others share, and who registers them.

A value here is of one of four sorts. A *plain* one is data. A *looking* one has code that sees the world
(`Meter`, `Room.title`). A *sharing* one hands out what the world holds (`Mirror`, `Room.shared`). A *keeping* one puts what
it is given where a step changes it (`Sink`).

The world is that of `compiler.steps`, `Room.cache` and `LEVEL`. It is made of lists and dicts only, because the
arena puts those back in place.
"""

from __future__ import annotations

import enum
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple, Self
from uuid import UUID

from ckworkflow import FatalError, step, workflow
from compiler import steps
from compiler.steps import NOTES, STATE, echo
from differential.comparison import Body

KINDS: dict[str, list[Body]] = defaultdict(list)
"""Every registered body, by its theme: the module's name without `kinds_`."""

HOOKS: dict[str, Callable[[], Any]] = {}
"""Functions that `asks` calls. Not put back: a replayed body hangs its own in anew."""

LEVEL = 0
"""An immutable global that `raise_level` rebinds."""


def body(*args: Any) -> Any:
    """Register a workflow to be compared, with what it is started with."""

    def register(definition: Any) -> Any:
        theme = definition.module.rpartition("kinds_")[2]
        name = "-".join([theme, definition.__name__, *map(str, args)])
        KINDS[theme].append(Body(name, definition, args))
        return definition

    return register


def reset() -> None:
    """Put the world back to what it is before a run."""
    global LEVEL
    steps.reset_world()
    STATE.update(key="a", rows={"a": [1], "b": [2]})
    Room.cache.clear()
    Room.cache.update(n=0)
    HOOKS.clear()
    LEVEL = 0


# -- values ------------------------------------------------------------------------------------------


class Hue(enum.Enum):
    RED = "red"
    BLUE = "blue"

    @property
    def shout(self) -> str:
        return f"{self.value}!{STATE['count']}"


class Rank(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Perm(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: int

    @property
    def total(self) -> int:
        return self.x + self.y + int(STATE["count"])


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

    @property
    def broken(self) -> Any:
        raise ValueError(f"broken at {STATE['count']}")

    @functools.cached_property
    def once(self) -> str:
        return f"once@{STATE['count']}"

    def describe(self, mark: str = "") -> str:
        return f"{self.name}{mark} of {STATE['count']}"


@dataclass(slots=True)
class Slots:
    size: int
    name: str = "slots"


@dataclass(frozen=True)
class Frozen:
    id: int
    names: tuple[str, ...] = ("a", "b")


@dataclass
class House:
    rooms: list[Room]
    main: Room
    owner: dict[str, Any]


@dataclass
class Ghost:
    """Has every attribute, and each sees the world."""

    name: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return f"{name}@{STATE['count']}"


@dataclass(eq=False)
class Meter:
    """Looks at the world whatever is done with it."""

    base: int = 0

    def read(self) -> int:
        return self.base + int(STATE["count"])

    def __int__(self) -> int:
        return self.read()

    def __index__(self) -> int:
        return self.read()

    def __bool__(self) -> bool:
        return self.read() > 0

    def __len__(self) -> int:
        return self.read()

    def __eq__(self, other: object) -> bool:
        return self.read() == other

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, other: Any) -> bool:
        return self.read() < other

    def __gt__(self, other: Any) -> bool:
        return self.read() > other

    def __add__(self, other: Any) -> int:
        return self.read() + int(other)

    def __radd__(self, other: Any) -> int:
        return self.read() + int(other) * 10

    def __mul__(self, other: Any) -> int:
        return self.read() * int(other)

    def __neg__(self) -> int:
        return -self.read()

    def __invert__(self) -> int:
        return self.read() + 1000

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return [key.start, key.stop, self.read()]
        return f"{key}@{self.read()}"

    def __contains__(self, item: Any) -> bool:
        return bool(item == self.read())

    def __iter__(self) -> Iterator[int]:
        for number in range(2):
            yield number + self.read()

    def __call__(self, *args: Any) -> list[Any]:
        return [*args, self.read()]

    def __str__(self) -> str:
        return f"meter {self.read()}"

    def __format__(self, spec: str) -> str:
        return f"{spec}{self.read()}"

    def __matmul__(self, other: Any) -> list[Any]:
        return [self.read(), other]


@dataclass(eq=False)
class Mirror:
    """Hands out one and the same list of the world whatever is done with it."""

    name: str = "mirror"

    @property
    def xs(self) -> Any:
        return STATE["xs"]

    def copy(self) -> Any:
        return STATE["xs"]

    def get(self, key: Any, default: Any = None) -> Any:
        return STATE["xs"]

    def keys(self) -> Any:
        return STATE["xs"]

    def pop(self) -> Any:
        return STATE["xs"]

    def __getitem__(self, key: Any) -> Any:
        return STATE["xs"]

    def __neg__(self) -> Any:
        return STATE["xs"]

    def __add__(self, other: Any) -> Any:
        return STATE["xs"]

    def __radd__(self, other: Any) -> Any:
        return STATE["xs"]

    def __or__(self, other: Any) -> Any:
        return STATE["xs"]

    def __lt__(self, other: Any) -> Any:
        return STATE["xs"]

    def __eq__(self, other: object) -> Any:
        return STATE["xs"]

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Any]:
        return iter([STATE["xs"], STATE["xs"]])

    def __enter__(self) -> Any:
        return STATE["xs"]

    def __exit__(self, *exc: object) -> None:
        return None

    def __call__(self) -> Any:
        return STATE["xs"]


@dataclass(eq=False)
class Sink:
    """Keeps what it is given: `count_up` appends to it."""

    name: str = "sink"

    def append(self, value: Any) -> None:
        steps.keep(value)

    def __setitem__(self, key: Any, value: Any) -> None:
        steps.keep(value)

    def __getitem__(self, key: Any) -> Any:
        steps.keep(key)
        return 0

    def __iadd__(self, value: Any) -> Self:
        steps.keep(value)
        return self

    def __lshift__(self, value: Any) -> Sink:
        steps.keep(value)
        return self

    def __contains__(self, value: Any) -> bool:
        steps.keep(value)
        return False

    def __eq__(self, value: object) -> bool:
        steps.keep(value)  # type: ignore[arg-type]
        return False

    __hash__ = None  # type: ignore[assignment]

    @property
    def slot(self) -> int:
        return 0

    @slot.setter
    def slot(self, value: Any) -> None:
        steps.keep(value)

    def __call__(self, value: Any) -> None:
        steps.keep(value)


# -- steps -------------------------------------------------------------------------------------------


@step
async def room(name: str = "general") -> Room:
    return Room(name, [1])


@step
async def house() -> House:
    return House(
        [Room("hall", [1]), Room("attic", [2])], Room("main", [3]), {"name": "Ann", "ids": [7, 8]}
    )


@step
async def gives(what: str) -> Any:
    return {
        "text": "abc", "enum": Hue.RED, "rank": Rank.HIGH, "flag": Perm.READ | Perm.WRITE, "none": None,
        "dict": {"id": 1, "sub": {"list": [4, 5]}}, "list": [1, 2, 3], "lists": [[1], [2]], "int": 7, "tuple": (1, (2, 3)),
        "date": date(2020, 1, 2), "datetime": datetime(2020, 1, 2, 3, tzinfo=UTC), "delta": timedelta(days=3, seconds=4),
        "point": Point(3, 4), "slots": Slots(5), "frozen": Frozen(6), "ghost": Ghost("g"), "bytes": b"ab",
        "decimal": Decimal("1.50"), "uuid": UUID(int=5), "float": 2.5, "meter": Meter(), "mirror": Mirror(), "sink": Sink(),
        "true": True, "empty": [], "pairs": [("a", 1), ("b", 2)], "set": {1},
    }[what]  # fmt: skip


@step
async def grow() -> None:
    """Change the list that the world shares."""
    STATE["xs"].append(9)


@step
async def touch_class() -> None:
    """Change what a class shares."""
    Room.cache["n"] += 1


@step
async def set_key(key: str) -> None:
    STATE["key"] = key


@step
async def raise_level() -> int:
    global LEVEL
    LEVEL += 1
    return LEVEL


@step
async def asks(name: str) -> Any:
    """Call what a body has hung in, in this process."""
    return HOOKS[name]()


@step
async def one(value: int = 1) -> int:
    return value


@step
async def fails(text: str = "fails") -> None:
    raise FatalError(text, code=7)


# -- outside code ------------------------------------------------------------------------------------


def count() -> int:
    """See the world."""
    return int(STATE["count"])


def cache() -> Any:
    """Give the list that the world shares."""
    return STATE["xs"]


def same(value: Any) -> Any:
    """Give back what it is given."""
    return value


def mark(text: object) -> None:
    """Leave a note that does not read the world."""
    NOTES.append(str(text))


class Cursor:
    """An iterator whose turns see the world."""

    def __init__(self, turns: int) -> None:
        self.left = turns

    def __iter__(self) -> Cursor:
        return self

    def __next__(self) -> int:
        if not self.left:
            raise StopIteration
        self.left -= 1
        return count()


class Config:
    """Its attributes follow the world."""

    @property
    def key(self) -> str:
        return "b" if count() else "a"

    @property
    def error(self) -> type[Exception]:
        return KeyError if count() else ValueError

    @property
    def kind(self) -> type[Any]:
        return str if count() else int


CONFIG = Config()


# -- inlined workflows -------------------------------------------------------------------------------


@workflow
async def gives_room() -> Room:
    return await room()


@workflow
async def gives_title() -> Any:
    c = await room()
    return c.title


@workflow
async def gives_part(what: str, key: Any) -> Any:
    m = await gives(what)
    return m[key]


@workflow
async def passes_on(value: Any) -> Any:
    return await echo(value)


@dataclass
class Counter:
    """Made in a body, and nobody else's."""

    n: int = 0
    seen: list[Any] = field(default_factory=list)

    def up(self) -> int:
        self.n += 1
        return self.n


reset()
