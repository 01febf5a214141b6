"""How the commands say values, and read what was typed; no process needed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ckworkflow.cli import printing
from ckworkflow.drawing import words
from ckworkflow.drawing.boundaries import Boundary


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (timedelta(), "0 seconds"),
        (timedelta(seconds=1), "1 second"),
        (timedelta(seconds=0.25), "0.25 seconds"),
        (timedelta(hours=1, minutes=30), "1 hour 30 minutes"),
        (timedelta(days=7), "7 days"),
        (timedelta(days=1, microseconds=1), "1 day 0.000001 seconds"),
    ],
)
def test_a_span_is_said_exactly(length: timedelta, said: str) -> None:
    assert words.span(length) == said


@pytest.mark.parametrize(
    ("away", "said"),
    [
        (timedelta(seconds=3.21), "in 3.2 seconds"),
        (timedelta(seconds=42.4), "in 42 seconds"),
        (timedelta(days=6, hours=23, minutes=59, seconds=59), "in 6 days 23 hours"),
        (timedelta(minutes=-5), "5 minutes ago"),
    ],
)
def test_a_time_is_said_from_now(away: timedelta, said: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert words.relative(now + away, now) == said


def test_a_value_whose_class_is_gone_is_said_as_it_is_stored() -> None:
    tree = {"$": "dataclass", "v": {"class": "gone:Gone", "fields": {}}}
    assert "gone:Gone" in words.value(tree)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("`if ok` (line 14) looks at `ok`", "line 14: `if ok` looks at `ok` (awaited on line 9)"),
        ("`if await f()` (line 9) looks at it", "line 9: `if await f()` looks at it"),
        ("leaving `with x` (line 8) may tell", "line 8: leaving `with x` may tell (awaited on line 9)"),
        ("`x` is also a parameter (line 3)", "line 9: `x` is also a parameter (line 3)"),
    ],
)
def test_a_boundary_names_the_line_that_looks(reason: str, said: str) -> None:
    assert Boundary("w", "f", 9, "await", reason, "await f()", conditional=False).sentence == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain\ttext\nof ä and 🎈", "plain\ttext\nof ä and 🎈"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\rb\x00\x7f\x9b", r"a\x0db\x00\x7f\x9b"),
        ("\u202etxt\u2066\u2028", r"\u202etxt\u2066\u2028"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, said: str) -> None:
    assert printing.plain(text) == said
    assert printing.plain(said) == said


def test_the_columns_of_a_table_stand_in_line_whatever_is_in_them() -> None:
    lines = printing.table(("A", "B"), [("\x1b[2J", "x"), ("longer than", "y")])

    assert [line.rindex(end) for line, end in zip(lines, "Bxy", strict=True)] == [13, 13, 13]
