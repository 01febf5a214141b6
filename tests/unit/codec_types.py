"""Classes of the kinds that the codec stores; in a module, where a worker could import them."""

from __future__ import annotations

import enum
from collections import namedtuple
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Colour(enum.Enum):
    RED = 1
    GREEN = (2, 3)
    ROSE = 1  # noqa: PIE796  # an alias is what is tested


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    YES = "yes"


class Rights(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class Point(NamedTuple):
    x: int
    y: float = 0.5


Old = namedtuple("Old", ["a", "b"])  # noqa: PYI024  # code in the wild has these


@dataclass
class Member:
    name: str
    roles: list[int] = field(default_factory=list)
    colour: Colour = Colour.RED

    class Badge(NamedTuple):
        title: str


@dataclass(frozen=True, slots=True)
class Frozen:
    at: datetime
    member: Member | None = None


@dataclass
class Doubling:
    """Its `__post_init__` must not run a second time."""

    value: int
    factor: InitVar[int] = 2
    made: int = field(init=False)
    unset: int = field(init=False)

    def __post_init__(self, factor: int) -> None:
        self.value *= factor
        self.made = self.value + 1


@dataclass
class Box(Generic[T]):
    item: T


@dataclass
class Fault(Exception):
    reason: str


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    __hash__ = None  # type: ignore[assignment]


class Shout(str):
    """A subclass of a builtin, whose class JSON would lose."""

    __slots__ = ()
