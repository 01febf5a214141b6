"""The world of random programs (`differential.programs`): steps, what they return, and what they change.

A program imports all of this. What a step gives depends on its arguments and on the world alone; `reset_world()` puts
the world back. Shared lists stop growing at some length, so that a loop over one of them ends.

Where several runs go on side by side the world stands `still`: each is compared by itself, and none sees what another does.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, ClassVar, NamedTuple

from ckworkflow import (
    FatalError,
    HookClosedError,
    HookConflictError,
    HookExpiredError,
    HookPayloadError,
    ReturnValueTimeoutError,
    RunCancelledError,
    RunFailedError,
    continue_as_new,
    create_hook,
    define_hook,
    now,
    sleep,
    start,
    step,
    workflow,
)
from differential.world import World

__all__ = [
    "CONFIG", "NOTES", "STATE", "Any", "FatalError", "HookClosedError", "HookConflictError", "HookExpiredError", "HookPayloadError", "Hue", "Lines", "Pair", "ReturnValueTimeoutError", "Room", "RunCancelledError", "RunFailedError", "add", "async_noting", "asyncio", "bump",
    "continue_as_new", "create_hook", "date", "echo", "fails", "gives", "grow", "helper", "keep", "level", "note", "noting", "now", "numbers", "pair_of", "ping",
    "raise_level", "room", "set_error", "set_key", "shared", "sleep", "spoil", "start", "step", "suppress", "switch",
    "timedelta", "total", "touch", "verify", "workflow",
]  # fmt: skip

STATE: dict[str, Any] = {}
NOTES: list[str] = []
LEVEL = 0
LONGEST = 6
TOKENS = ("a", "b", "c")
"""The tokens that programs choose for their hooks."""

is_still = False
"""Whether nothing changes the world, and what it shares is handed out as a copy."""

numbers = define_hook("numbers", int)


class Hue(enum.Enum):
    RED = "red"
    BLUE = "blue"

    @property
    def loud(self) -> str:
        return f"{self.value}{STATE['count']}"


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Room:
    """A result with fields, code, and state that its class shares with the world."""

    id: int
    name: str
    tags: list[Any]
    extra: dict[str, Any]
    cache: ClassVar[dict[str, int]] = {"n": 0}

    @property
    def title(self) -> str:
        return f"{self.name}@{STATE['count']}"

    @property
    def next(self) -> int:
        if len(self.tags) < LONGEST:
            self.tags.append(len(self.tags))
        return len(self.tags)

    @property
    def shared(self) -> Any:
        return shared()

    def size(self) -> int:
        return len(self.tags) + int(STATE["count"])


class Config:
    @property
    def key(self) -> str:
        return str(STATE["key"])

    @property
    def level(self) -> int:
        return int(STATE["count"])


CONFIG = Config()


def reset_world() -> None:
    """Put the world back to what it is before a run."""
    global LEVEL
    STATE.clear()
    STATE.update(count=0, on=False, key="id", xs=[1, 2], kept=[], error=KeyError)
    NOTES.clear()
    Room.cache.clear()
    Room.cache.update(n=0)
    LEVEL = 0


reset_world()


def world_of(module: dict[str, Any]) -> World:
    """The world, with the global that a step of the program's own changes."""
    return World([STATE, NOTES, Room.cache], [(globals(), "LEVEL"), (module, "FLAG")])


# -- steps ----------------------------------------------------------------------------------------


@step
async def ping() -> str:
    return "pong"


@step
async def echo(value: Any = None, *rest: Any, **options: Any) -> Any:
    return value


@step
async def room(name: Any = "general") -> Room:
    return Room(7, str(name), [1], {"id": 5, "name": "x"})


@step
async def gives(what: str) -> Any:
    return {
        "text": "abc", "hue": Hue.RED, "day": date(2020, 1, 2), "none": None, "dict": {"id": 1, "name": "m", "xs": [3]}, "list": [1, 2],
        "pair": Pair(1, "r"), "int": 4,
    }[what]  # fmt: skip


@step
def add(left: int, right: int) -> int:
    return left + right


@step
async def total(numbers: list[int]) -> int:
    return sum(number for number in numbers if isinstance(number, int))


@step
async def verify(value: Any) -> bool:
    return bool(value)


@step
async def pair_of(left: Any, right: Any) -> Pair:
    return Pair(left, right)


@step
async def bump() -> int:
    if is_still:
        return 1
    STATE["count"] += 1
    for known in (STATE["xs"], *STATE["kept"]):
        if len(known) < LONGEST:
            known.append(STATE["count"])
    return int(STATE["count"])


@step
async def touch(number: Any = 1) -> None:
    Room.cache["n"] += not is_still


@step
async def set_key(key: Any = "name") -> None:
    if not is_still:
        STATE["key"] = key


@step
async def set_error() -> None:
    if not is_still:
        STATE["error"] = AttributeError


@step
async def grow(number: Any = 9) -> None:
    if len(STATE["xs"]) < LONGEST and not is_still:
        STATE["xs"].append(number)


@step
async def switch() -> bool:
    STATE["on"] = not STATE["on"] and not is_still
    return bool(STATE["on"])


@step
async def raise_level() -> int:
    global LEVEL
    LEVEL += not is_still
    return LEVEL


@step
async def spoil(value: Any) -> None:
    if isinstance(value, list):
        value.append("spoiled")
    elif isinstance(value, dict):
        value["spoiled"] = True


@step
async def fails(why: Any = "no") -> None:
    STATE["count"] += not is_still
    raise FatalError(f"failed: {why}", code=50007, kind="dm_blocked")


# -- code outside of steps that looks at the world ------------------------------------------------


def note(text: object) -> str:
    write(f"{text} {STATE['count']}")
    return f"{text}/{STATE['count']}"


def write(text: str) -> None:
    if not is_still:
        NOTES.append(text)


def level() -> int:
    return int(STATE["count"])


def shared() -> list[Any]:
    found: list[Any] = STATE["xs"]
    return list(found) if is_still else found


def keep(value: Any) -> None:
    if isinstance(value, list) and len(STATE["kept"]) < LONGEST and not is_still:
        STATE["kept"].append(value)


async def helper(value: Any = None) -> Any:
    """A coroutine function that is neither a step nor nested."""
    write(f"helper {STATE['count']}")
    return await echo(value)


class Lines:
    """An iterable whose turns see the world."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            yield number + int(STATE["count"])


@contextlib.contextmanager
def noting(name: Any) -> Iterator[str]:
    write(f"enter {name} {STATE['count']}")
    try:
        yield f"{name}{STATE['count']}"
    finally:
        write(f"exit {name} {STATE['count']}")


@contextlib.asynccontextmanager
async def async_noting(name: Any) -> AsyncIterator[str]:
    write(f"enter {name} {STATE['count']}")
    try:
        yield f"{name}{STATE['count']}"
    finally:
        write(f"exit {name} {STATE['count']}")
