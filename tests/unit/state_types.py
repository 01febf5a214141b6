"""Classes that put code between a field and what the object holds; in a module, where a worker could import them."""

from __future__ import annotations

import enum
import functools
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any, NamedTuple, Self


@dataclass
class Doubled:
    """The field itself is a property, and setting it changes the value."""

    value: int
    name: str = "ann"

    @property  # type: ignore[no-redef]
    def value(self) -> int:
        return self._value * 2

    @value.setter
    def value(self, value: int) -> None:
        self._value = value * 2


class Tripled:
    """A data descriptor as Python's documentation has it, but for the factor."""

    def __init__(self, *, default: int) -> None:
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = "_" + name

    def __get__(self, instance: object, owner: type) -> Any:
        return self._default if instance is None else getattr(instance, self._name)

    def __set__(self, instance: object, value: int) -> None:
        instance.__dict__[self._name] = 3 * int(value)


@dataclass
class Inventory:
    count: Tripled = Tripled(default=4)  # noqa: RUF009
    tags: list[str] = field(default_factory=list)


@dataclass
class Stock(Inventory):
    """It inherits the descriptor."""

    place: str = "here"


@dataclass(frozen=True)
class FrozenDoubled:
    value: int

    @property  # type: ignore[no-redef]
    def value(self) -> int:
        return self.__dict__["value"] * 2

    @value.setter
    def value(self, value: int) -> None:
        self.__dict__["value"] = value + 1


@dataclass
class Slotted:
    """Slots by hand, beside a property of the class below."""

    __slots__ = ("__hidden", "size")
    size: int

    def __post_init__(self) -> None:
        self.__hidden = self.size + 1

    @property
    def hidden(self) -> int:
        return self.__hidden


class SlottedDoubled(Slotted):
    """A slot that a property covers."""

    __slots__ = ()

    @property  # type: ignore[override]
    def size(self) -> int:
        return Slotted.size.__get__(self) * 2  # type: ignore[attr-defined]

    @size.setter
    def size(self, value: int) -> None:
        Slotted.size.__set__(self, value * 2)  # type: ignore[attr-defined]


@dataclass(slots=True)
class Plain:
    x: int
    _: KW_ONLY
    y: list[int] = field(default_factory=list)


@dataclass
class Cached:
    """What is cached is no field; its slot in the instance is."""

    base: int
    computed: int = field(init=False, repr=False)

    @functools.cached_property  # type: ignore[no-redef]
    def computed(self) -> int:  # noqa: F811  # what is tested
        return self.base * 10


@dataclass
class Rereading:
    """Every look at an attribute goes through the class."""

    value: int

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return found * 2 if name == "value" else found


@dataclass
class Lazy:
    """What is missing is made up by `__getattr__`."""

    value: int
    late: int = field(init=False)

    def __getattr__(self, name: str) -> int:
        if name == "late":
            return 7
        raise AttributeError(name)


@dataclass
class Rescaled:
    """Setting changes the value, init-only values are gone, and `__post_init__` works on the result."""

    value: int
    factor: InitVar[int] = 2

    def __post_init__(self, factor: int) -> None:
        self.value = self.value * factor

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value + 1)


class Pair(NamedTuple):
    x: int
    y: int


class DoubledPair(Pair):
    """A named tuple whose class covers an item, and changes what it is made of."""

    def __new__(cls, x: int, y: int) -> Self:
        return super().__new__(cls, x * 2, y * 2)

    @classmethod
    def _make(cls, iterable: Any) -> DoubledPair:
        return cls(*iterable)

    @property
    def x(self) -> int:
        return self[0] * 2


class Planet(enum.Enum):
    """`__new__` sets a value that is not what stands in the class."""

    EARTH = 3
    MARS = 4

    def __new__(cls, number: int) -> Self:
        made = object.__new__(cls)
        made._value_ = number * 100
        return made


class Code(str, enum.Enum):  # noqa: UP042  # code in the wild has these
    A = "a"

    def __str__(self) -> str:
        return "code"


class Bits(enum.IntFlag):
    READ = 1
    WRITE = 2


class Open(enum.Enum):
    """It makes members up."""

    ONE = 1

    @classmethod
    def _missing_(cls, value: object) -> Open:
        made = object.__new__(cls)
        made._name_, made._value_ = f"NUMBER_{value}", value
        return made
