"""Values, times and tables as the commands print them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from ckworkflow import codec

if TYPE_CHECKING:
    from ckworkflow.model import Json

__all__ = ["call", "last_part", "moment", "relative", "shorten", "span", "table", "to_json", "value"]

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
    try:
        return repr(codec.decode(tree, ref=ref))
    except Exception:  # noqa: BLE001  # rebuilding and showing a value runs code of its class
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


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Set rows in columns."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def to_json(data: object) -> str:
    """Say it to programs."""
    return json.dumps(data, indent=2, default=_plain)


def _plain(found: object) -> str:
    if isinstance(found, datetime):
        return found.astimezone(UTC).isoformat()
    msg = f"{found!r} has no JSON form"
    raise TypeError(msg)
