"""Scripted faults, and the log of calls: what a test makes Discord do, and what Discord saw.

A fault is matched by method and route; the route is a template in which every `{name}` matches one
part (`/channels/{channel_id}/messages`), a concrete path, or `*`. The oldest fault that still has
`times` left takes the call.

Not here: how a fault is carried out (`api`).
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any

from ckworkflow.model import Json

from .wire import ERRORS, FakeDiscordError, Payload

_PARAMETER = re.compile(r"\{[^{}]*\}")


@dataclass(slots=True)
class Call:
    """One request as the fake received it. `status` is `None` while it is held or after a drop."""

    index: int
    method: str
    path: str
    route: str
    json: Json
    query: dict[str, str]
    at: float
    reason: str | None = None
    has_token: bool = False
    status: int | None = None
    dropped: bool = False

    def to_json(self) -> Payload:
        """Everything, as the control API sends it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Fault:
    """What to do to the next calls of one route. See `FakeDiscord.fail` for the fields."""

    id: int
    method: str
    route: str
    status: int | None = None
    code: int | None = None
    message: str | None = None
    times: int | None = 1
    skip: int = 0
    delay: float = 0.0
    retry_after: float | None = None
    is_global: bool = False
    cloudflare: bool = False
    drop: bool = False
    drop_after_commit: bool = False
    errors: Payload | None = None
    hits: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        if self.code is not None and self.code not in ERRORS and self.status is None:
            raise FakeDiscordError(f"The fake does not know code {self.code}: give status= beside it.")
        if self.drop_after_commit and (self.status or self.code):
            raise FakeDiscordError("drop_after_commit answers nothing: leave status= and code= out.")

    @property
    def answers(self) -> bool:
        """Whether the fault itself is the answer, so that nothing is committed."""
        return (
            self.status is not None
            or self.code is not None
            or self.retry_after is not None
            or self.cloudflare
        )

    def matches(self, method: str, route: str, path: str) -> bool:
        """Whether a call is meant."""
        if self.method not in ("*", method.upper()):
            return False
        wanted = _PARAMETER.sub("{}", self.route)
        return wanted in ("*", _PARAMETER.sub("{}", route), path)


class FaultBook:
    """The faults that are in force."""

    def __init__(self) -> None:
        self._faults: dict[int, Fault] = {}
        self._next_id = 1

    def add(self, method: str, route: str, **options: Any) -> Fault:
        """Script a fault; `options` are the fields of `Fault`."""
        if not route.startswith(("/", "*")):
            raise FakeDiscordError(f"A route begins with '/', such as '/users/@me'; got {route!r}.")
        fault = Fault(self._next_id, method.upper(), route, **options)
        self._faults[fault.id] = fault
        self._next_id += 1
        return fault

    def take(self, method: str, route: str, path: str) -> Fault | None:
        """The fault that this call gets, if any; counts it."""
        for fault in self._faults.values():
            if fault.released.is_set() or not fault.matches(method, route, path):
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            if fault.times is not None and fault.hits >= fault.times:
                continue
            fault.hits += 1
            return fault
        return None

    def get(self, fault_id: int) -> Fault:
        """The fault with this id."""
        return self._faults[fault_id]

    def release(self, fault_id: int | None = None) -> None:
        """End one fault or all of them; calls that they hold back go on at once."""
        for fault in [self._faults[fault_id]] if fault_id is not None else list(self._faults.values()):
            fault.released.set()
