"""Thousands of runs sleep in SQL, everything is killed, the broker is flushed: every timer fires once, and in time.

Runs are started that end their sleep at times that lie after the kill; then worker and client die by kill -9, and
the broker loses every message. Some timers come due while nothing runs. The others come due afterwards, spread so that a second has fewer of them than the worker can run:
what is tested is when they fire, not how fast steps run.

What a user is promised, and what is asserted: each timer fires once, and none before its time; one that comes due
while a worker is up fires within a second, and one that was due before within a second of the worker's start. Of many
thousands that were all due before, the last must wait for its turn: in the full form, where a tenth of the timers is due,
that much more time is given as 500 a second need.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

import totals
from scale.conftest import PLACES
from scale.stage import IS_SOAK, Stage, size

TIMERS = size("TIMERS", short=1_000, full=10_000)
OVERDUE = TIMERS // 10
"""So many come due while nothing runs."""
SLEEPERS = TIMERS // 20
"""And so many sleep on for a year; to start them tells how long it takes to start the others."""
A_SECOND = 200
RESTART_SECONDS = 5.0 + OVERDUE / 60
"""From the last of those to the first of the others: for a worker to come up and run what was due."""
HORIZON_SECONDS = 1.0
BAR_SECONDS = 1.0

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600 if IS_SOAK else 120)]


@pytest.mark.parametrize("place", PLACES)
def test_every_timer_fires_once_and_in_time_after_all_was_killed(
    make_stage: Callable[..., Stage], place: str, record_property: Any
) -> None:
    stage = make_stage(place, horizon=HORIZON_SECONDS)
    worker, client = stage.start_worker(), stage.start_client()
    client.start_all("scaling:sleeper", [[365]] * 10)
    began = time.monotonic()
    client.start_all("scaling:sleeper", [[365]] * (SLEEPERS - 10))
    each = (time.monotonic() - began) / (SLEEPERS - 10)
    begin_at = time.time() + HORIZON_SECONDS + 2 + 1.5 * each * TIMERS
    overdue = [begin_at + number / OVERDUE for number in range(OVERDUE)]
    first = overdue[-1] + RESTART_SECONDS
    due = [*overdue, *[first + number / A_SECOND for number in range(TIMERS - OVERDUE)]]
    client.start_all(
        "scaling:timer",
        [[number, datetime.fromtimestamp(until, UTC)] for number, until in enumerate(due)],
    )
    assert time.time() + HORIZON_SECONDS < begin_at, "this machine starts runs too unevenly for the test"
    assert stage.home.journal("fired") == []

    stage.home.kill(worker)
    stage.home.kill(client.process)
    stage.flush_broker()
    stage.wait(lambda: time.time() > overdue[-1], "timers that are due", seconds=120)
    spawned_at = time.time()
    stage.start_worker()

    stage.wait(
        lambda: stage.count_of_notes() > TIMERS and stage.counts("timer").get("completed") == TIMERS,
        "the end of all timers",
        seconds=due[-1] - time.time() + 60,
    )  # fmt: skip
    fired = stage.home.journal("fired")
    assert Counter(Counter(note["number"] for note in fired).values()) == {1: TIMERS}
    assert {note["attempt"] for note in fired} == {1}
    assert stage.counts("sleeper") == {"running": SLEEPERS}
    on_record = stage.due_times("timer")
    assert sorted(on_record) == pytest.approx(due, abs=1e-5)
    ready_at = stage.home.journal("ready")[-1]["at"]
    at = {note["number"]: note["at"] for note in fired}
    assert min(at[number] - until for number, until in enumerate(due)) >= 0
    late = sorted(at[number] - until for number, until in enumerate(due) if until >= ready_at)
    missed = [at[number] for number, until in enumerate(due) if until < ready_at]
    assert len(missed) >= OVERDUE
    starts = [ready_at, *sorted(missed)]
    pause = max(after - before for before, after in pairwise(starts))
    totals.record(
        record_property, "timers after a restart", place, timers=TIMERS,
        notes=[
            (f"consuming {ready_at - spawned_at:.1f} s after the processes began; {len(missed)} that were due by then: "
            f"first {(starts[1] - ready_at) * 1000:.0f} ms later, last {starts[-1] - ready_at:.2f} s "
            f"({len(missed) / (starts[-1] - ready_at):.0f} a second), longest pause {pause * 1000:.0f} ms"),
            (f"{len(late)} that came due after that, {A_SECOND} a second: late by {late[len(late) // 2] * 1000:.0f} ms "
            f"(median), {late[int(len(late) * 0.99)] * 1000:.0f} ms (p99), {late[-1] * 1000:.0f} ms (most)"),
        ],
    )  # fmt: skip
    assert starts[-1] - ready_at < BAR_SECONDS + (OVERDUE / 500 if IS_SOAK else 0)
    assert pause < BAR_SECONDS
    assert late[-1] < BAR_SECONDS
