"""Names, values, calls and times as people read them, whatever shows them.

Not here: what a terminal needs (`ckworkflow.cli.printing`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from ckworkflow import codec
from ckworkflow.foreign import suppressed

if TYPE_CHECKING:
    from ckworkflow.model import Json

__all__ = [
    "call",
    "last_part",
    "moment",
    "relative",
    "short_span",
    "shorten",
    "span",
    "value",
]

_UNITS: Final = (("day", 86_400), ("hour", 3_600), ("minute", 60))
_COARSE: Final = 2


def span(length: timedelta, *, units: int | None = None) -> str:
    """Say a time span: `7 days`, `1 hour 30 minutes`, `0.5 seconds`.

    Args:
        length: Not negative.
        units: How many units at most, from the largest; `None` says it exactly.
    """
    left, parts = length.total_seconds(), []
    for name, size in _UNITS:
        count = int(left // size)
        left -= count * size
        if count:
            parts.append(_counted(count, name))
    if units is not None:
        left = round(left, 1) if left < 10 and not parts else round(left)  # noqa: PLR2004  # "3.2 seconds", "42 seconds"
    if left or not parts:
        parts.append(_counted(left, "second"))
    return " ".join(parts[:units])


def short_span(length: timedelta) -> str:
    """Say a time span in a few letters, to a millisecond at best: `0.012s`, `1m 5s`, `7d 0h`."""
    seconds = max(length.total_seconds(), 0.0)
    if seconds < 60:  # noqa: PLR2004  # a minute
        return f"{seconds:.3f}s"
    whole = round(seconds)
    days, hours, minutes, rest = whole // 86_400, whole // 3_600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest}s"


def _counted(count: float, name: str) -> str:
    number = f"{count:.6f}".rstrip("0").rstrip(".")
    return f"{number} {name}" + ("" if count == 1 else "s")


def moment(at: datetime | None) -> str:
    """Say a time, UTC; `-` for none."""
    return "-" if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def relative(at: datetime, now: datetime) -> str:
    """Say how far a time is from now: `in 6 days 23 hours`, `3 seconds ago`."""
    if at >= now:
        return f"in {span(at - now, units=_COARSE)}"
    return f"{span(now - at, units=_COARSE)} ago"


def last_part(name: str) -> str:
    """Return what people call a step or a workflow: `greet_user` of `workflows.greet.greet_user`."""
    return name.rpartition(".")[2]


def value(tree: Json, *, ref: Callable[[Json], object] | None = None) -> str:
    """Say a stored value as Python would; where its class cannot be had, as it is stored."""
    with suppressed():  # rebuilding and showing a value runs code of its class
        return repr(codec.decode(tree, ref=ref))
    return codec.dumps(tree)


def call(name: str, tree: Any, *, ref: Callable[[Json], object] | None = None) -> str:
    """Say a call with its stored arguments: `greet_user('42', again=True)`."""
    args = [value(arg, ref=ref) for arg in tree["args"]]
    args += [f"{key}={value(arg, ref=ref)}" for key, arg in tree["kwargs"].items()]
    return f"{last_part(name)}({', '.join(args)})"


def shorten(text: str, width: int) -> str:
    """Cut a text to one line of at most this many characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
