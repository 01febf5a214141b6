"""Printing: texts, tables and JSON, made safe for a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

import click

__all__ = ["plain", "say", "table", "to_json"]

# What a terminal obeys instead of showing it (C0 without tab and line feed, DEL, C1), and what turns the direction of
# writing, or looks like the end of a line.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Write out what a terminal would obey: an error's text may hold what clears the screen, or worse."""
    return _CONTROLS.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004  # as `repr` has it


def say(text: str, *, err: bool = False) -> None:
    """Print a text to people, whatever is in it; `err`: to stderr."""
    click.echo(plain(text), err=err)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Set rows in columns."""
    lines = [[plain(cell) for cell in row] for row in (header, *rows)]
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
