"""Loops at run time: a fence before each turn, unless the loop runs over an exact builtin.

`next()` of a list is Python's own; `next()` of anything else is code that could see the world, and
the steps that the body awaited in the turn before must be recorded first.

Not here: which loops need it (`flow`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Iterator
from typing import Any, Final, Protocol

__all__ = ["FencedTurns", "Fences"]

_EXACT: Final = frozenset(
    {
        list,
        tuple,
        dict,
        str,
        bytes,
        range,
        set,
        frozenset,
        type({}.keys()),
        type({}.values()),
        type({}.items()),
    }
)


class Fences(Protocol):
    """The part of the rewritten code's `__ckw__` that loops need."""

    def fence(self) -> Awaitable[object]:
        """Wait until all that the task awaited is recorded."""

    def foreign(self, *values: object) -> bool:
        """Whether any value is more than plain builtin data."""


class FencedTurns:
    """What `for x in xs` becomes: `async for x in FencedTurns(ops, xs, …)`.

    Args:
        ops: Where to wait, and whom to ask about values.
        iterable: What is iterated; `iter()` is called at the first turn, after its fence.
        sources: Values that must be exact builtins for the turns to go unfenced; empty: `iterable`.
        watched: Whether every turn is fenced whatever is iterated.
        deep: Whether the elements must be plain too.
    """

    __slots__ = ("_fenced", "_iterable", "_iterator", "_ops")

    def __init__(
        self,
        ops: Fences,
        iterable: Iterable[Any],
        *,
        sources: tuple[object, ...] = (),
        watched: bool = False,
        deep: bool = False,
    ) -> None:
        of = sources or (iterable,)
        self._ops = ops
        self._fenced = (
            watched or any(type(source) not in _EXACT for source in of) or (deep and ops.foreign(*of))
        )
        self._iterable = iterable
        self._iterator: Iterator[Any] | None = None

    def __aiter__(self) -> FencedTurns:
        return self

    async def __anext__(self) -> Any:
        if self._fenced:
            await self._ops.fence()
        if self._iterator is None:
            self._iterator = iter(self._iterable)
        try:
            return next(self._iterator)
        except StopIteration:
            raise StopAsyncIteration from None
