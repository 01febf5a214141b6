"""Boundaries: where and why the body of a workflow must be asked again, in words.

A body and the workflows that it inlines are read as the compiler has judged them; a stop of a trace is told
by the boundary that made it.

Not here: the judgement (`ckworkflow.compiler`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from ckworkflow.definition import Workflow
from ckworkflow.drawing.words import last_part

if TYPE_CHECKING:
    from types import CodeType, FunctionType

    from ckworkflow.tracing import Wait

__all__ = ["Boundary", "boundaries_of", "reachable", "tell"]

_POINTS_AT: Final = re.compile(
    r"^(?P<what>(?:\w+ )*`[^`]*`) \(line (?P<line>\d+)\) (?P<does>.+)$", re.DOTALL
)
"""A reason that is about another line than the await's own."""
_CALLED: Final = re.compile(r"(?<![\w.])([\w.]++)\(")
"""A name that is called. It begins where no name has begun before: else each of its letters would be tried as a start."""
_FENCE: Final = "what follows looks at the world"
_BOUNDED: Final = "a segment ends after"


@dataclass(frozen=True, slots=True)
class Boundary:
    """A place where a trace stops, or may stop.

    Attributes:
        workflow: Whose body it is in.
        file: Its file.
        line: The line of the await, or of the statement behind the fence.
        kind: A strict await, or a fence: all that was awaited before must be recorded.
        reason: Why, in words, as the compiler says it.
        code: The await as written; empty for a fence.
        conditional: Whether the values met at run time decide if it stops.
    """

    workflow: str
    file: str
    line: int
    kind: Literal["await", "fence"]
    reason: str
    code: str
    conditional: bool

    @property
    def sentence(self) -> str:
        """The reason behind its line: ``line 14: `if verified` looks at the result of verify_member``."""
        pointed = _POINTS_AT.match(self.reason)
        if pointed is None:
            return f"line {self.line}: {self.reason}"
        awaited = f" (awaited on line {self.line})" if int(pointed["line"]) != self.line else ""
        return f"line {pointed['line']}: {pointed['what']} {pointed['does']}{awaited}"


def reachable(workflow: Workflow[..., object]) -> list[Workflow[..., object]]:
    """Return a workflow and those that its body, or theirs, may inline."""
    found: list[Workflow[..., object]] = []
    ahead = [workflow]
    while ahead:
        one = ahead.pop(0)
        if one not in found:
            found.append(one)
            ahead += _called(one)
    return found


def _called(workflow: Workflow[..., object]) -> Iterator[Workflow[..., object]]:
    function: FunctionType = inspect.unwrap(workflow.function)
    names = set(_names(function.__code__))
    spaces = [function.__globals__, inspect.getclosurevars(function).nonlocals]
    for name in sorted(names):
        for space in spaces:
            value = space.get(name)
            if isinstance(value, Workflow):
                yield value
            elif inspect.ismodule(value):
                yield from (
                    inner for inner in map(vars(value).get, names) if isinstance(inner, Workflow)
                )


def _names(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for constant in code.co_consts:
        if inspect.iscode(constant):
            yield from _names(constant)


def boundaries_of(workflow: Workflow[..., object]) -> list[Boundary]:
    """Return the boundaries of one body, by line."""
    body = workflow.body

    def place(site_line: int) -> tuple[str, str, int]:
        return workflow.name, workflow.site.file, site_line

    found = [
        Boundary(*place(site.line), "await", site.reason, site.text, conditional=False)
        for site in body.awaits
        if not site.lazy
    ]
    found += [
        Boundary(*place(site.line), "fence", site.reason, "", conditional=site.conditional)
        for site in body.fences
    ]
    return sorted(found, key=lambda boundary: boundary.line)


def tell(wait: Wait, boundaries: Sequence[Boundary]) -> str:
    """Say why a trace has stopped, in the words of its boundary where it is known.

    Args:
        wait: Where it stopped.
        boundaries: Those of the body and of the workflows that it inlines, the body's own first.
    """
    if not wait.reason.startswith(_BOUNDED):
        kind = "fence" if wait.reason == _FENCE else "await"
        here = [b for b in boundaries if b.line == wait.line and b.kind == kind]
        named = [b for b in here if b.code and any(word in wait.reason for word in _words(b.code))]
        for boundary in (*named, *here):
            return boundary.sentence
    return f"line {wait.line}: {wait.reason}" if wait.line else wait.reason


def _words(code: str) -> list[str]:
    """The names that an await calls, as the reasons of the tracer have them."""
    return [last_part(name) for name in _CALLED.findall(code)]
