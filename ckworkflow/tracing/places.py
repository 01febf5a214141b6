"""Places in a body's file: the line that a call is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["line_of"]

_MACHINERY: Final = frozenset({"asyncio", "ckworkflow"})


def line_of(frame: FrameType | None) -> int:
    """The line outside asyncio and ckworkflow that a call is for; 0 if the loop itself makes it."""
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _MACHINERY:
        frame = frame.f_back
    return 0 if frame is None else frame.f_lineno
