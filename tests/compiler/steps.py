"""Steps and outside code for the bodies of `bodies.py`.

A step's result depends on its arguments and on `STATE` alone, so a body gives the same wherever it runs.
`FAULTS` makes steps fail for good; `CALLS` says what ran. `reset_world()` puts everything back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ckworkflow import FatalError, step

STATE: dict[str, Any] = {}
CALLS: list[tuple[Any, ...]] = []
FAULTS: set[str | tuple[Any, ...]] = set()
NOTES: list[str] = []
LIMIT = 3
ROLES = ("admin", "member")
lock = threading.Lock()


def reset_world() -> None:
    """Put the world back to what it is before a run."""
    STATE.clear()
    STATE.update(on=False, count=0, xs=[1, 2], kept=[])
    CALLS.clear()
    FAULTS.clear()
    NOTES.clear()


def enter(name: str, *args: object) -> None:
    """Note a call, and let it fail if it is to."""
    CALLS.append((name, *args))
    if name in FAULTS or (name, *args) in FAULTS:
        raise FatalError(f"{name} failed", code=13)


@dataclasses.dataclass
class Channel:
    """What a step may return."""

    id: int
    name: str

    @property
    def title(self) -> str:
        """Code of a user's that sees the world."""
        return f"{self.name} {STATE['count']}"


@step
async def ping() -> str:
    enter("ping")
    return "pong"


@step
async def echo(value: Any = None, *rest: Any, **options: Any) -> Any:
    enter("echo", repr((value, rest, options)))
    return value


@step
def plain_echo(value: Any) -> Any:
    enter("plain_echo", repr(value))
    return value


@step
async def send(to: Any, text: Any = "hello") -> str:
    enter("send", repr(to), repr(text))
    return f"{text} to {to}"


@step
async def create_channel(name: str) -> Channel:
    enter("create_channel", name)
    return Channel(len(name), name)


@step
async def fetch_member(user_id: int) -> dict[str, Any]:
    enter("fetch_member", user_id)
    return {"id": user_id, "roles": ["a", "b"], "ok": user_id > 0}


@step
async def fetch_numbers(count: int) -> list[int]:
    enter("fetch_numbers", count)
    return list(range(count))


@step
async def verify(value: Any) -> bool:
    enter("verify", repr(value))
    return bool(value)


@step
async def turn_on() -> None:
    enter("turn_on")
    STATE["on"] = True


@step
async def count_up() -> int:
    enter("count_up")
    STATE["count"] += 1
    STATE["xs"].append(STATE["count"])
    for kept in STATE["kept"]:
        kept.append(STATE["count"])
    result: int = STATE["count"]
    return result


@step
async def spoil(value: Any) -> None:
    """Change what it was given."""
    enter("spoil")
    if isinstance(value, list):
        value.append("spoiled")
    elif isinstance(value, dict):
        value["spoiled"] = True


@step
async def clean_up(what: Any = None) -> None:
    enter("clean_up", repr(what))


# Outside code that a body may touch.


def note(text: object) -> str:
    """A helper that sees the world and changes it."""
    NOTES.append(f"{text} {STATE['count']}")
    return f"{text}/{STATE['count']}"


def double(number: int) -> int:
    return number * 2 + int(STATE["count"])


def keep(value: list[Any]) -> None:
    """Keep what it is given: `count_up` changes it."""
    STATE["kept"].append(value)


async def helper(value: Any) -> Any:
    """A plain coroutine function: not a step."""
    NOTES.append(f"helper {STATE['count']}")
    return await echo(value)


class Lines:
    """An iterable of a user's, whose turns see the world."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            yield number + int(STATE["count"])


async def async_lines(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number + int(STATE["count"])


@contextlib.contextmanager
def noting(name: str) -> Iterator[str]:
    NOTES.append(f"enter {name} {STATE['count']}")
    try:
        yield name
    finally:
        NOTES.append(f"exit {name} {STATE['count']}")


@contextlib.asynccontextmanager
async def async_noting(name: str) -> AsyncIterator[str]:
    NOTES.append(f"enter {name} {STATE['count']}")
    try:
        yield name
    finally:
        NOTES.append(f"exit {name} {STATE['count']}")


reset_world()
