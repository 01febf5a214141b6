"""What a compiled body is, and what the compiler can say about it in words.

Plain values only. Not here: how any of it is found out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import TypeAlias

__all__ = ["AwaitSite", "Callee", "Classify", "CompiledBody", "FenceSite"]


class Callee(enum.Enum):
    """What the compiler must know about something that a body calls."""

    STEP = "a step"
    WORKFLOW = "a workflow"
    SLEEP = "sleep()"
    GATHER = "asyncio.gather()"
    PURE = "a recorded value"
    NOW = "now()"


Classify: TypeAlias = Callable[[object], Callee | None]


@dataclass(frozen=True, slots=True)
class AwaitSite:
    """One `await` of a body.

    Attributes:
        line: Its line in the file, from 1.
        column: Its column, from 0.
        text: The expression as written, shortened.
        lazy: Whether tracing goes on past it; else it is a boundary.
        reason: Why, in words.
    """

    line: int
    column: int
    text: str
    lazy: bool
    reason: str


@dataclass(frozen=True, slots=True)
class FenceSite:
    """One place where a trace waits for all that it awaited before.

    Attributes:
        line: The line of the statement that it guards.
        reason: What would look at the world there, in words.
        conditional: Whether the values met at run time decide if it waits.
    """

    line: int
    reason: str
    conditional: bool


@dataclass(frozen=True, slots=True)
class CompiledBody:
    """A workflow's body, ready to be traced.

    Attributes:
        function: The rewritten function, or the original one where `rewritten` is false.
        rewritten: Whether any await can be lazy.
        why_not: Why nothing was rewritten, in words; `None` when it was.
        awaits: Every await of the body, by line; those of nested functions are not among them.
        fences: Every fence, by line.
    """

    function: FunctionType
    rewritten: bool
    why_not: str | None
    awaits: tuple[AwaitSite, ...]
    fences: tuple[FenceSite, ...]
