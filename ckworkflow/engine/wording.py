"""Wording: what log lines and errors share in how they say things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["counted", "listed"]

_NAMED: Final = 5


def counted(count: int, noun: str) -> str:
    """Write a number and what it counts: `1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names: Sequence[str]) -> str:
    """Write names down: five at most, and how many more there are; `none` if there are none."""
    rest = len(names) - _NAMED
    return (", ".join(names[:_NAMED]) or "none") + (f" and {rest} more" if rest > 0 else "")
