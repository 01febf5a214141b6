"""How cost grows with size: long runs, wide fan-outs, many sleepers; measured once per size.

A peer is measured as far as it can be: a raw chain carries all its rest in each message, so it ends at 1,000.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import peers
from peers import Ground
from report import Bar, Row, at_least, at_most, divide
from sides import Side
from workloads import DAY, MEGABYTE, WORKLOADS, fan_out, long_run


@dataclass(frozen=True)
class Plan:
    """One curve.

    Attributes:
        name: Of the curve, and of the workload in its rows.
        title: What is on the vertical axis.
        across: What is on the horizontal axis.
        sizes: Where it is measured.
        quick: The same for a look.
        peer_limit: The largest size for the peer.
        point: Measures one point: the figures of `lines`.
        lines: Names of the figures at each point.
        span: From which size to the last the first figure may grow by `bar`; 0: no such bar.
        bar: By how much.
    """

    name: str
    title: str
    across: str
    sizes: Sequence[int]
    quick: Sequence[int]
    peer_limit: int
    point: Callable[[Side, int], Sequence[float]]
    lines: Sequence[str]
    span: int
    bar: Bar | None


@dataclass(frozen=True)
class Curve:
    """What was measured: for each side and line, one figure a size.

    Attributes:
        name: Of the plan.
        title: Of the plan.
        across: Of the plan.
        broker: Under both.
        database: Under ours.
        lines: Points by `side, line`.
    """

    name: str
    title: str
    across: str
    broker: str
    database: str
    lines: Mapping[str, Sequence[tuple[int, float]]]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def _per_member(side: Side, width: int) -> list[float]:
    return [1e3 * fan_out(side, width)[0] / width]


def _sleeping(side: Side, count: int) -> list[float]:
    """Start so many more; the worker's memory is that of all so far."""
    seconds = side.call("sleepers", count=count, seconds=7 * DAY)["seconds"]
    return [side.memory() / MEGABYTE, count / seconds]


def _napping(side: Side, rounds: int) -> list[float]:
    """A round is a step and a sleep of a millisecond; processor time, since the sleeps are no cost."""
    before = side.processor_seconds()
    side.call("long", kind="naps", length=rounds)
    return [1e3 * (side.processor_seconds() - before) / (2 * rounds)]


FEW, SOME = 100, 1000
_LENGTHS = (5, 50, 200, 1000, 3000, 10_000)
PLANS: Sequence[Plan] = (
    Plan(
        "growth-chain", "ms per step of one traced chain", "steps", _LENGTHS, (5, 50, 200, 500), 1000,
        long_run("chain"), ["per step"], 50, at_most(1.2),
    ),
    Plan(
        "growth-loop", "ms per step of a loop that looks at each result", "steps", _LENGTHS, (5, 50, 200, 500),
        1000, long_run("loop"), ["per step"], 50, at_most(1.2),
    ),
    Plan(
        "growth-naps", "ms of processor per step or sleep of a loop that sleeps", "rounds",
        (50, 200, 1000, 3000, 10_000), (50, 200, 500), 0, _napping, ["per node"], 200, at_most(1.2),
    ),
    Plan(
        "growth-wide", "ms per member of one fan-out", "members", (10, 100, 1000, 3000, 10_000), (10, 100, 300, 1000),
        10_000, _per_member, ["per member"], 1000, at_most(1.2),
    ),
    Plan(
        "growth-sleepers", "sleeping runs", "sleeping runs", (1000, 10_000, 30_000, 100_000), (500, 1000, 2000),
        10_000, _sleeping, ["worker memory, MB", "starts, 1/s"], 0, None,
    ),
)  # fmt: skip


def draw(ground: Ground, plan: Plan, *, is_quick: bool, has_peers: bool) -> Curve:
    """Measure a curve: at each size ours, then the peer."""
    sizes = plan.quick if is_quick else plan.sizes
    workload = next(each for each in WORKLOADS if each.name == "wide")
    # In memory Celery reads the whole group again for each member: 10,000 would take hours.
    limit = min(plan.peer_limit, SOME) if ground.broker == "embedded" else plan.peer_limit
    lines: dict[str, list[tuple[int, float]]] = {}
    with contextlib.ExitStack() as stack:
        sides = {"ours": stack.enter_context(Side(peers.ours(ground, {}).make()))}
        if has_peers:
            for name, choices in peers.rivals(ground, workload, has_dbos=False).items():
                sides[name] = stack.enter_context(Side(choices[0].make()))
        before = 0
        for size in sizes:
            for name, side in sides.items():
                if name != "ours" and size > limit:
                    continue
                with side.turn():
                    figures = _point(plan, side, size, before)
                for label, value in zip(plan.lines, figures, strict=True):
                    lines.setdefault(f"{name}, {label}", []).append((size, value))
            before = size
    return Curve(plan.name, plan.title, plan.across, ground.broker, ground.database, lines)


def _point(plan: Plan, side: Side, size: int, before: int) -> list[float]:
    """Measure a point; a small one is the median of some, since a moment of somebody else's would show."""
    if plan.point is _sleeping:
        return list(plan.point(side, size - before))
    times = 1 if size > SOME else 5 if size < FEW else 3
    return [median(each) for each in zip(*[plan.point(side, size) for _ in range(times)], strict=True)]


def rows(plan: Plan, curve: Curve) -> Iterator[Row]:
    """What the bars say of a curve: growth from the span's first size to the last, or memory and rate at the end."""
    if plan.point is _sleeping:
        memory, rate = curve.lines["ours, worker memory, MB"], curve.lines["ours, starts, 1/s"]
        grown = memory[-1][1] - memory[0][1]
        yield _row(
            plan, curve, f"memory from {memory[0][0]:,} to {memory[-1][0]:,}", "MB", grown, at_most(1)
        )
        yield _row(plan, curve, f"starts up to {rate[-1][0]:,}", "1/s", rate[-1][1], at_least(1000))
        return
    points = dict(curve.lines[f"ours, {plan.lines[0]}"])
    *smaller, last = sorted(points)
    first = next((size for size in smaller if size >= plan.span), smaller[-1])
    growth = divide(points[last], points[first])
    yield _row(plan, curve, f"{plan.lines[0]}, {last:,} / {first:,}", "x", growth, plan.bar)


def _row(plan: Plan, curve: Curve, metric: str, unit: str, value: float, bar: Bar | None) -> Row:
    return Row(plan.name, metric, unit, curve.broker, curve.database, "", "", [value], [], bar)
