"""Classes of attrs for `test_codec`; in a module, where a worker could import them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import attr
import attrs

RUNS: list[str] = []


@attrs.frozen
class Author:
    name: str
    user_id: int


@attrs.define
class Warning:  # noqa: A001  # a word of moderators
    reasons: list[str]
    by: Author
    at: datetime = attrs.field(factory=lambda: datetime(2026, 1, 2, tzinfo=UTC))
    _secret: int = 3


@attrs.define(slots=False)
class Slotless:
    number: int
    note: str = "none"


@attrs.frozen(cache_hash=True)
class Hashed:
    name: str
    number: int


@attrs.frozen(cache_hash=True, slots=False)
class HashedDict:
    name: str


@attrs.define
class Base:
    name: str


@attrs.define
class Special(Base):
    size: int = 2

    @cached_property
    def length(self) -> int:
        return len(self.name)


@attr.s(auto_attribs=True)
class Old:
    a: int
    b: list[int] = attr.Factory(list)


def _double(value: Any) -> Any:
    RUNS.append("converter")
    return value * 2


def _check(*_: Any) -> None:
    RUNS.append("validator")


@attrs.define
class Doubled:
    number: int = attrs.field(converter=_double, validator=_check)

    def __attrs_post_init__(self) -> None:
        RUNS.append("post_init")


@attrs.define
class Grown:
    name: str
    size: int = 3
    tags: list[str] = attrs.field(factory=list)
    own: str = attrs.field(default=attrs.Factory(lambda self: self.name + "!", takes_self=True))


@attrs.define
class Failure(Exception):
    why: str
