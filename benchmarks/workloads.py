"""What is done, at which size, what is measured of it, and the bar for it.

Each workload is done by the drivers of all sides under the same name with the same arguments (`drivers/`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from report import Bar, at_least, at_least_times, at_most, at_most_times, percentile

if TYPE_CHECKING:
    from sides import Side

DAY = 86_400.0
PACE = 0.02
"""Seconds between two timers: slow enough that their lateness is not the queue in front of the worker."""
RAW, DBOS = "raw", "dbos"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Metric:
    """One figure of a workload.

    Attributes:
        name: Of the figure.
        unit: Of the figure.
        bars: What ours must reach, by the peer beside which it is printed.
    """

    name: str
    unit: str
    bars: Mapping[str, Bar] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """One thing that is done by all sides in turn.

    Attributes:
        name: For `--only`.
        metrics: What `measure` returns, in order; the variants of a peer are told apart by the first.
        measure: Does it on a side, at a size, and returns the figures.
        quick: Size for a look.
        full: Size of the bar.
        is_rate: Whether more is better in the first metric.
        is_waiting: Whether its tasks wait, so that only pools with many slots are fair.
        peers: Who can do it at all.
        settings: Lines of `celeryconfig.py` that it needs on our side.
        is_fresh: Whether every round needs new processes, since it leaves something behind.
        is_extra: Whether a quick run leaves it out unless it is named.
    """

    name: str
    metrics: Sequence[Metric]
    measure: Callable[[Side, int], Sequence[float]]
    quick: int
    full: int
    is_rate: bool = False
    is_waiting: bool = False
    peers: Sequence[str] = (RAW, DBOS)
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_fresh: bool = False
    is_extra: bool = False


def _chains(side: Side, runs: int) -> list[float]:
    return [5 * runs / side.call("chains", runs=runs)["seconds"]]


def with_processor(
    measure: Callable[[Side, int], Sequence[float]], steps: int
) -> Callable[[Side, int], list[float]]:
    """Add the milliseconds of processor time per step: client and worker, not the servers.

    Steadier than any clock when somebody else is at work on the machine.

    Args:
        measure: The workload.
        steps: How many steps one of its size has.
    """

    def both(side: Side, size: int) -> list[float]:
        before = side.processor_seconds()
        figures = measure(side, size)
        return [*figures, 1e3 * (side.processor_seconds() - before) / (steps * size)]

    return both


def _lone(side: Side, times: int) -> list[float]:
    taken = side.call("lone", times=times, pause=0.1)["seconds"]
    return [1e3 * median(taken), 1e3 * percentile(taken, 0.95)]


def long_run(kind: str) -> Callable[[Side, int], list[float]]:
    """Milliseconds per step of one run of many steps: `chain`, or `loop` that looks at each result."""

    def measure(side: Side, length: int) -> list[float]:
        return [1e3 * side.call("long", kind=kind, length=length)["seconds"] / length]

    return measure


def _timed(side: Side, length: int) -> list[float]:
    """Milliseconds per step of a loop inside a deadline, and how many times that is what the loop takes outside: three times, in turn."""
    taken = {"loop": 0.0, "timed": 0.0}
    for _ in range(3):
        for kind in taken:
            taken[kind] += side.call("long", kind=kind, length=length)["seconds"]
    return [1e3 * taken["timed"] / (3 * length), taken["timed"] / taken["loop"]]


def fan_out(side: Side, width: int) -> list[float]:
    """Seconds of so many steps side by side and their join."""
    return [float(side.call("wide", width=width)["seconds"])]


def _timers(seconds: float, pace: float) -> Callable[[Side, int], list[float]]:
    def measure(side: Side, count: int) -> list[float]:
        late = side.call("timers", count=count, seconds=seconds, pace=pace)["late"]
        return [1e3 * median(late), 1e3 * percentile(late, 0.95), 1e3 * min(late)]

    return measure


def _awaits(side: Side, count: int) -> list[float]:
    return [float(side.call("awaits", count=count, seconds=0.1)["seconds"])]


WARM_SLEEPERS = 4000


def sleepers(side: Side, count: int) -> list[float]:
    """Starts a second, and by how many megabytes the worker has grown."""
    # What the first ones load is not the memory of the sleepers; nor is what SQLite keeps of a file, two megabytes
    # for each connection, however long the file is.
    side.call("sleepers", count=WARM_SLEEPERS, seconds=7 * DAY)
    before = side.memory()
    seconds = side.call("sleepers", count=count, seconds=7 * DAY)["seconds"]
    return [count / seconds, (side.memory() - before) / MEGABYTE]


def _taken(name: str) -> Callable[[Side, int], list[float]]:
    """Milliseconds of something that is done so many times, one after the other."""

    def measure(side: Side, times: int) -> list[float]:
        taken = side.call(name, times=times, pause=0.05)["seconds"]
        return [1e3 * median(taken), 1e3 * percentile(taken, 0.95)]

    return measure


def _resumes(side: Side, runs: int) -> list[float]:
    taken = side.call("resumes", runs=runs)
    return [runs / taken["seconds"], runs / taken["until_the_end"]]


def waiters(side: Side, count: int) -> list[float]:
    """Starts a second, and by how many megabytes the worker has grown."""
    side.call("waiters", count=WARM_SLEEPERS)
    before = side.memory()
    seconds = side.call("waiters", count=count)["seconds"]
    return [count / seconds, (side.memory() - before) / MEGABYTE]


def _idle(side: Side, seconds: int) -> list[float]:
    before = side.processor_seconds()
    time.sleep(seconds)
    return [100 * (side.processor_seconds() - before) / seconds]


_PROCESSOR = Metric("processor per step", "ms")
_LATE = (
    Metric("late, median", "ms", {RAW: at_most(10)}),
    Metric("late, p95", "ms", {RAW: at_most(100)}),
    Metric("late, least", "ms"),
)

WORKLOADS: Sequence[Workload] = (
    Workload(
        "chains",
        [Metric("steps", "1/s", {RAW: at_least_times(1.5), DBOS: at_least_times(4)}), _PROCESSOR],
        with_processor(_chains, 5), quick=200, full=1000, is_rate=True,
    ),
    Workload(
        "lone",
        [Metric("run of 5", "ms", {RAW: at_most(10)}), Metric("run of 5, p95", "ms")],
        _lone, quick=20, full=50,
    ),
    Workload(
        "long-chain", [Metric("per step", "ms", {RAW: at_most(1)}), _PROCESSOR],
        with_processor(long_run("chain"), 1), quick=300, full=1000
    ),
    Workload(
        "long-loop", [Metric("per step", "ms", {RAW: at_most(1)}), _PROCESSOR],
        with_processor(long_run("loop"), 1), quick=300, full=1000,
    ),
    Workload(
        "wide", [Metric("all", "s", {RAW: at_most_times(0.8)}), _PROCESSOR],
        with_processor(fan_out, 1), quick=300, full=1000,
    ),
    Workload("awaits", [Metric("all", "s", {RAW: at_most(0.5)})], _awaits, quick=200, full=200, is_waiting=True),
    Workload("timers", _LATE, _timers(2.0, PACE), quick=50, full=200, is_waiting=True),
    Workload(
        "timers-sql", _LATE, _timers(3.0, PACE), quick=50, full=200, is_waiting=True, peers=(RAW,),
        settings={"workflow_horizon": "1 second"},  # so that three seconds are as much beyond it as 7 days
    ),
    Workload(
        "timers-burst", [Metric(metric.name, metric.unit) for metric in _LATE], _timers(2.0, 0.0),
        quick=200, full=200, is_waiting=True, is_extra=True,
    ),
    Workload(
        "sleepers",
        [
            Metric("starts", "1/s", {RAW: at_least(1000)}),
            # Nothing; but the allocator's habits show in what is measured.
            Metric("worker grows by", "MB", {RAW: at_most(1)}),
        ],
        sleepers, quick=2000, full=10_000, is_rate=True, is_waiting=True, is_fresh=True,
    ),
    Workload(
        "resume", [Metric("to the next step", "ms", {RAW: at_most(20)}), Metric("to the next step, p95", "ms")],
        _taken("resume"), quick=50, full=200, peers=(),
    ),
    Workload("resumes", [Metric("payloads", "1/s", {RAW: at_least(1000)}), Metric("runs ended", "1/s")], _resumes, quick=500, full=2000, is_rate=True, peers=()),
    Workload(
        "waiters",
        [Metric("starts", "1/s", {RAW: at_least(1000)}), Metric("worker grows by", "MB", {RAW: at_most(1)})],
        waiters, quick=2000, full=100_000, is_rate=True, is_waiting=True, is_fresh=True, peers=(), is_extra=True,
    ),
    Workload(
        "cancel", [Metric("until it is", "ms", {RAW: at_most(50)}), Metric("until it is, p95", "ms")],
        _taken("cancel"), quick=50, full=200, peers=(),
    ),
    Workload(
        "stop", [Metric("until it is", "ms", {RAW: at_most(1000)}), Metric("until it is, p95", "ms")],
        _taken("stop"), quick=20, full=50, peers=(),
    ),
    Workload(
        "timed-loop", [Metric("per step", "ms"), Metric("of what it takes outside", "x", {RAW: at_most(1.1)})],
        _timed, quick=300, full=1000, peers=(),
    ),
    Workload("idle", [Metric("of one core", "%")], _idle, quick=3, full=10, is_waiting=True, is_extra=True),
)  # fmt: skip
