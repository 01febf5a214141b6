"""A run that sleeps beyond the horizon holds no worker memory: thousands of them are rows.

A worker's memory is read when it has nothing to do, and again when so many runs sleep, each time once it stays as
it is. The runs are started through the API, in another process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import totals
from scale.conftest import EMBEDDED, SERVERS
from scale.stage import IS_SOAK, Stage, size
from scale.usage import MEGABYTE, settled_memory_of

SLEEPERS = size("SLEEPERS", short=20_000, full=100_000)
WARM = 4_000
"""What the first ones load is not the memory of the sleepers; nor is the page cache of each SQLite connection, two
megabytes at most, which is full with a file of that size."""
TOLERANCE_MEGABYTES = 1.0

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(900 if IS_SOAK else 180)]


@pytest.mark.parametrize("place", [SERVERS, *([EMBEDDED] if IS_SOAK else [])])
def test_a_worker_with_thousands_of_sleeping_runs_holds_what_it_holds_idle(
    make_stage: Callable[..., Stage], place: str, record_property: Any
) -> None:
    stage = make_stage(place)
    worker, client = stage.start_worker(), stage.start_client()
    client.start_all("scaling:sleeper", [[7]] * WARM)
    client.result(client.start("scaling:loop", "warm", 50, 100))
    idle = settled_memory_of(worker.pid)

    client.start_all("scaling:sleeper", [[7]] * SLEEPERS)

    held = settled_memory_of(worker.pid)
    notes = []
    if place == EMBEDDED:
        # It has helped to write the file back while it grew, and what that took is with its allocator still.
        notes = [f"{held - idle:+d} bytes where they were started; then the worker was started anew"]
        stage.home.kill(worker)
        worker = stage.start_worker()
        client.result(client.start("scaling:loop", "warm again", 50, 100))
        held = settled_memory_of(worker.pid)
    assert stage.counts("sleeper") == {"running": WARM + SLEEPERS}
    totals.record(
        record_property, "memory of sleeping runs", place, sleeping=SLEEPERS,
        notes=[
            (f"worker {idle / MEGABYTE:.2f} MB idle, {held / MEGABYTE:.2f} MB with {SLEEPERS} sleeping: "
            f"{held - idle:+d} bytes, {(held - idle) / SLEEPERS:.1f} a run"),
            *notes,
        ],
    )  # fmt: skip
    assert held - idle < TOLERANCE_MEGABYTES * MEGABYTE
