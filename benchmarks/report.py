"""Arithmetic of the report: medians, ratios, and whether a bar is met.

A ratio is always ours divided by the peer's, in the unit of the row: above 1 is better for a rate, below 1 for a
time. Pure: measuring is elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Bar:
    """What a figure must reach.

    Attributes:
        limit: The number.
        is_least: Whether the figure must be at least the limit; else at most.
        is_ratio: Whether the ratio to the peer is judged; else our own figure.
    """

    limit: float
    is_least: bool
    is_ratio: bool

    def text(self, unit: str) -> str:
        """Return the bar in words, such as `>= 1.5 x` or `<= 10 ms`."""
        sign = ">=" if self.is_least else "<="
        return f"{sign} {figure(self.limit)} {'x' if self.is_ratio else unit}"

    def verdict(self, value: float) -> str:
        """Return `met`, or by how much the bar is missed, as a share of it."""
        if math.isnan(value):
            return "not measured"
        if value >= self.limit if self.is_least else value <= self.limit:
            return "met"
        if self.limit == 0:
            return f"missed by {figure(value)}"
        if value > 2 * self.limit:
            return f"missed, {figure(value / self.limit)} x the bar"
        return f"missed by {abs(value - self.limit) / self.limit:.0%}"


def at_least(limit: float) -> Bar:
    """Our figure must be at least this."""
    return Bar(limit, is_least=True, is_ratio=False)


def at_most(limit: float) -> Bar:
    """Our figure must be at most this."""
    return Bar(limit, is_least=False, is_ratio=False)


def at_least_times(limit: float) -> Bar:
    """Our figure must be at least this many times the peer's."""
    return Bar(limit, is_least=True, is_ratio=True)


def at_most_times(limit: float) -> Bar:
    """Our figure must be at most this many times the peer's."""
    return Bar(limit, is_least=False, is_ratio=True)


@dataclass(frozen=True)
class Row:
    """One figure of ours beside one of a peer, over the rounds of one run.

    Attributes:
        workload: What was done.
        metric: What was measured of it.
        unit: Of the figures.
        broker: Under both.
        database: Under ours.
        peer: Its name; empty when a figure of ours stands alone.
        setting: The variant of the peer that was compared with.
        ours: One figure a round.
        theirs: One figure a round.
        bar: What to reach, if anything.
    """

    workload: str
    metric: str
    unit: str
    broker: str
    database: str
    peer: str
    setting: str
    ours: Sequence[float]
    theirs: Sequence[float]
    bar: Bar | None = None

    @property
    def our_median(self) -> float:
        """The median of our rounds."""
        return middle(self.ours)

    @property
    def their_median(self) -> float:
        """The median of the peer's rounds."""
        return middle(self.theirs)

    @property
    def ratio(self) -> float:
        """Our median divided by theirs; `nan` without a peer."""
        return divide(self.our_median, self.their_median)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and highest ratio of any one round."""
        ratios = [divide(one, other) for one, other in zip(self.ours, self.theirs, strict=False)]
        return (min(ratios), max(ratios)) if ratios else (math.nan, math.nan)

    @property
    def verdict(self) -> str:
        """Whether the bar is met."""
        if self.bar is None:
            return ""
        return self.bar.verdict(self.ratio if self.bar.is_ratio else self.our_median)

    def to_json(self) -> dict[str, Any]:
        """Return everything, the derived figures too; what was not measured is `None`."""
        low, high = self.spread
        derived = {
            "our_median": self.our_median,
            "their_median": self.their_median,
            "ratio": self.ratio,
            "ratio_low": low,
            "ratio_high": high,
        }
        return {
            **asdict(self),
            **{name: None if math.isnan(value) else value for name, value in derived.items()},
            "bar_text": self.bar.text(self.unit) if self.bar else None,
            "verdict": self.verdict,
        }


def row_from_json(data: dict[str, Any]) -> Row:
    """Return the row that `to_json` wrote."""
    names = Row.__dataclass_fields__
    bar = Bar(**data["bar"]) if data["bar"] else None
    return Row(**{**{name: data[name] for name in names}, "bar": bar})


def middle(values: Sequence[float]) -> float:
    """Return the median; `nan` of nothing."""
    return median(values) if values else math.nan


def divide(one: float, other: float) -> float:
    """Return the ratio; `nan` where there is none."""
    return one / other if other else math.nan


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share (0 to 1) of the values does not exceed (nearest rank); `nan` of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def figure(value: float) -> str:
    """Return a number with three digits that matter."""
    if math.isnan(value):
        return "-"
    if value and abs(value) < WHOLE:
        return f"{value:.3g}"
    return f"{value:,.0f}"


WHOLE = 100
"""From here on a figure is printed without decimals."""
COLUMNS = ("workload", "metric", "broker", "database", "ours", "peer", "ratio", "bar", "verdict")
GROUND = ("broker", "database")
WIDTHS = (15, 22, 8, 10, 8, 34, 18, 12, 16)


def cells(row: Row) -> list[str]:
    """Return a row as texts, in the order of `COLUMNS`."""
    low, high = row.spread
    peer = f"{figure(row.their_median)} ({row.peer}, {row.setting})" if row.peer else ""
    ratio = "" if math.isnan(row.ratio) else f"{row.ratio:.2f} ({low:.2f}-{high:.2f})"
    metric = f"{row.metric}, {row.unit}"
    bar = row.bar.text(row.unit) if row.bar else ""
    return [
        row.workload, metric, row.broker, row.database, figure(row.our_median), peer, ratio, bar, row.verdict,
    ]  # fmt: skip


def line(texts: Sequence[str]) -> str:
    """Return texts as one line of the printed table."""
    return "  ".join(text.ljust(width) for text, width in zip(texts, WIDTHS, strict=True)).rstrip()


def markdown(rows: Sequence[Row]) -> str:
    """Return rows of one broker and database as a table for `docs/performance.md`, which names these above it."""
    shown = [COLUMNS, *[cells(row) for row in rows]]
    lines = [
        f"| {' | '.join(text for name, text in zip(COLUMNS, texts, strict=True) if name not in GROUND)} |"
        for texts in shown
    ]
    lines.insert(1, f"|{'---|' * (len(COLUMNS) - len(GROUND))}")
    return "\n".join(lines)
