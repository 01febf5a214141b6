"""The table of REST routes, and what a route is given.

A route is a plain function `(world, request) -> JSON or None` (None: 204). It never awaits, so what
it does to the world is one commit: a fault can fall before or after it, never into it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ckworkflow.model import Json

from .wire import ApiError, Payload, invalid_form

if TYPE_CHECKING:
    from .state import World

Handler = Callable[["World", "Request"], Json]
H = TypeVar("H", bound=Handler)
_PARAMETER = re.compile(r"\{(\w+)\}")


@dataclass(slots=True)
class Request:
    """One call, already parsed."""

    method: str
    path: str
    params: dict[str, str]
    query: dict[str, str]
    json: Any
    files: list[tuple[str, str, bytes]] = field(default_factory=list)
    reason: str | None = None

    def id(self, name: str) -> int:
        """A snowflake from the path; 50035 if it is none."""
        text = self.params[name]
        if not text.isdecimal():
            raise invalid_form(name, "NUMBER_TYPE_COERCE", f'Value "{text}" is not snowflake.')
        return int(text)

    @property
    def body(self) -> Payload:
        """The JSON object of the request; 50109 if it is none."""
        if self.json is None:
            return {}
        if not isinstance(self.json, dict):
            raise ApiError(50109)
        return self.json

    def limit(self, default: int, most: int) -> int:
        """The query's `limit`, within what Discord allows."""
        text = self.query.get("limit", str(default))
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise invalid_form("limit", "NUMBER_TYPE_MAX", f"int value should be between 1 and {most}.")
        return int(text)


@dataclass(frozen=True, slots=True)
class Route:
    """One entry of the table. `needs_token` is false where an interaction's token is the key."""

    method: str
    template: str
    pattern: re.Pattern[str]
    handler: Handler
    needs_token: bool


class Router:
    """Routes in the order in which they are tried: `/users/@me` before `/users/{user_id}`."""

    def __init__(self) -> None:
        self.routes: list[Route] = []

    def __call__(self, method: str, template: str, *, needs_token: bool = True) -> Callable[[H], H]:
        """Register a function as a route."""
        pattern = re.compile(_PARAMETER.sub(r"(?P<\1>[^/]+)", template))

        def register(handler: H) -> H:
            self.routes.append(Route(method, template, pattern, handler, needs_token))
            return handler

        return register

    def include(self, other: Router) -> None:
        """Take over another table's routes."""
        self.routes += other.routes

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route of a call and the parts of its path."""
        for route in self.routes:
            match = route.pattern.fullmatch(path) if route.method == method else None
            if match:
                return route, match.groupdict()
        return None
