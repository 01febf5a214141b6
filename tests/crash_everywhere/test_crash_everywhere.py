"""kill -9 at every write: whatever a worker was just about to write or had just written, nothing is lost.

Each experiment runs one workflow in a real worker process and kills that process at the k-th point (`points.py`):
before or after the commit of a transaction, a message published, taken or acknowledged. A new worker must
bring the run to the right end, soon; no step that is on record runs again; and a step runs twice only if its
worker died between its effect and the commit of its record (`oracle.py`).

On the embedded default and on Redis with PostgreSQL that is done for every k until the workflow ends before it is
reached; elsewhere for some, drawn by a seed that is printed (`CKWORKFLOW_SEED` sets it). With
`CKWORKFLOW_SOAK=1` (`make soak`) it is every k everywhere, and every k again with the next worker killed too.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial

import pytest

import totals
from crash_everywhere.experiments import Benches, Tally
from crash_everywhere.site import CLIENT, Combination
from effect_flows import FLOWS

IS_SOAK = os.environ.get("CKWORKFLOW_SOAK", "") not in {"", "0"}
SEED = int(os.environ["CKWORKFLOW_SEED"])
SAMPLES = 6
"""Kills on a combination that is only sampled."""
RECOVERY_POINTS = 12
"""A worker that brings back a run is killed, too, at one of so many points."""
SOAK_ROUNDS = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200 if IS_SOAK else 600)]

MAIN = [Combination("embedded", "sqlite"), Combination("redis", "postgres")]
OTHER = [
    Combination("embedded", "postgres"), Combination("redis", "sqlite"), Combination("redis", "postgres", "solo"),
    Combination("redis", "postgres", "prefork"), Combination("redis", "sqlite", "prefork"),
    Combination("rabbitmq", "postgres"), Combination("rabbitmq", "sqlite", "prefork"),
]  # fmt: skip

Record = Callable[[str, object], None]


def conclude(record_property: Record, row: str, tally: Tally, **counts: int) -> None:
    """Hand over what was counted, and fail if something was wrong."""
    totals.record(
        record_property, "crash everywhere", row, longest=tally.slowest, **counts,
        points=tally.points, steps_repeated_as_they_must=tally.repeated, wrong=len(tally.wrong),
    )  # fmt: skip
    assert not tally.wrong, f"seed {SEED}\n" + "\n\n".join(tally.wrong)


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
@pytest.mark.parametrize("combination", MAIN, ids=str)
def test_a_worker_killed_at_any_point_loses_nothing(
    benches: Benches, combination: Combination, flow: object, record_property: Record
) -> None:
    tally = benches.kill_everywhere(combination, flow)

    # A step is claimed and recorded: were fewer points seen than that, the counting would be blind.
    assert tally.points >= 2 * len(flow.effects)
    conclude(record_property, str(combination), tally, workflows=1)


@pytest.mark.parametrize("combination", MAIN, ids=str)
def test_a_worker_killed_while_it_brings_back_a_run_loses_nothing(
    benches: Benches, combination: Combination, record_property: Record
) -> None:
    tally = Tally()
    for flow in FLOWS.values():
        chance = random.Random(f"{SEED} {flow.name}")
        also = partial(chance.randint, 1, RECOVERY_POINTS)
        if IS_SOAK:
            for _ in range(SOAK_ROUNDS):
                tally.add(benches.kill_everywhere(combination, flow, also=also))
        else:
            number = chance.randint(1, benches.count(combination, flow))
            tally.add(benches.kill_at(combination, flow, [number, also()]))

    conclude(record_property, f"{combination}, killed again, seed {SEED}", tally, workflows=len(FLOWS))


@pytest.mark.parametrize("name", FLOWS if IS_SOAK else ["chord", "long_sleep"])
def test_a_program_killed_while_it_starts_a_run_has_started_it_or_not(
    benches: Benches, name: str, record_property: Record
) -> None:
    combination = MAIN[1]

    tally = benches.kill_everywhere(combination, FLOWS[name], role=CLIENT)

    conclude(record_property, f"{combination}, killed at the start", tally, workflows=1)


@pytest.mark.parametrize("combination", OTHER, ids=str)
def test_on_every_combination_a_killed_worker_loses_nothing(
    benches: Benches, combination: Combination, record_property: Record
) -> None:
    tally = Tally()
    chance = random.Random(f"{SEED} {combination}")
    flows = list(FLOWS.values()) if IS_SOAK else chance.sample(list(FLOWS.values()), SAMPLES)
    for flow in flows:
        if IS_SOAK:
            tally.add(benches.kill_everywhere(combination, flow))
        else:
            number = chance.randint(1, benches.count(combination, flow))
            tally.add(benches.kill_at(combination, flow, [number]))

    # Threads take turns as they like, so the last points of a count are not always there again.
    assert tally.points >= SAMPLES // 2
    how = "every point" if IS_SOAK else "sampled"
    conclude(record_property, f"{combination}, {how}, seed {SEED}", tally, workflows=len(flows))
