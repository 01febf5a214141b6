"""A fan-out, a chain and a loop of thousands of steps end, and the last steps cost what the first have cost.

The steps themselves measure their worker: at the same places of each run, however busy the machine is. Cost is
processor time, not time on the wall, and in units of a piece of work that is done beside it: a machine whose
neighbours wake up takes half as long again for the same instructions. What a worker needs once (imports, compiled
statements, threads) a small run has brought before.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest

import totals
from scale.conftest import PLACES
from scale.stage import Stage, size
from scale.usage import MEGABYTE

LENGTH = size("STEPS", short=2_000, full=10_000)
SAMPLES = 40
WARM_LENGTH = 400
MOST_MEGABYTES = {"chain": 6, "loop": 6, "fan_out": 16}
"""From a tenth of the run to its end, at full size: less than a kilobyte for each step of a chain or a loop, where what
one segment holds comes and goes. A fan-out is traced as a whole, its rows are read when the clock looks at the run, and a
hundred threads run it: what those have allocated stays with the process."""
MOST_TIMES_THE_COST = 2.0
"""A cost that grows with the run, and makes up a sixth of it in the first quarter, doubles it in the last."""
TIMEOUT_SECONDS = 150.0

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(200)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("workflow", ["chain", "loop", "fan_out"])
def test_thousands_of_steps_end_with_flat_memory_and_flat_cost(
    make_stage: Callable[..., Stage], place: str, workflow: str, record_property: Any
) -> None:
    stage = make_stage(place)
    stage.start_worker()
    client = stage.start_client()
    name = f"scaling:{workflow}"
    client.result(client.start(name, "warm", WARM_LENGTH, WARM_LENGTH), TIMEOUT_SECONDS)

    answer = client.result(client.start(name, "long", LENGTH, LENGTH // SAMPLES), TIMEOUT_SECONDS)

    samples = stage.home.journal("sample", label="long")
    assert answer == LENGTH
    assert [sample["done"] for sample in samples] == [
        *range(LENGTH // SAMPLES, LENGTH + 1, LENGTH // SAMPLES),
        LENGTH + 1,
    ]  # each step has run once
    warm = stage.home.journal("sample", label="warm")[-1]
    grown = (samples[-1]["memory"] - samples[SAMPLES // 10 - 1]["memory"]) / MEGABYTE
    quarters = [samples[0:10], samples[9:20], samples[19:30], samples[29:40]]
    milliseconds = [1e3 * _used(quarter) / _steps(quarter) for quarter in quarters]
    costs = [
        _used(quarter) / _steps(quarter) / statistics.median(sample["unit"] for sample in quarter)
        for quarter in quarters
    ]
    # What comes after the last of them: of a fan-out, the step that is given all results.
    rest = samples[-1]["processor"] - samples[-2]["processor"]
    totals.record(
        record_property, "long runs", f"{workflow}, {place}", steps=LENGTH,
        notes=[
            (f"worker +{grown:.1f} MB from a tenth to the end (at its peak +"
            f"{(max(s['memory'] for s in samples) - samples[SAMPLES // 10 - 1]['memory']) / MEGABYTE:.1f}; "
            f"{warm['memory'] / MEGABYTE:.0f} MB before); processor time per step in each quarter: "
            f"{', '.join(f'{cost:.2f}' for cost in milliseconds)} ms, "
            f"in units of known work: {', '.join(f'{cost:.2f}' for cost in costs)}")
        ],
    )  # fmt: skip
    print(
        [
            (
                s["done"],
                round(s["memory"] / MEGABYTE, 1),
                round(s["processor"], 2),
                round(1e3 * s["unit"], 2),
            )
            for s in samples
        ]
    )
    assert grown < MOST_MEGABYTES[workflow]
    assert costs[-1] < MOST_TIMES_THE_COST * costs[0]
    assert rest < (samples[-2]["processor"] - samples[0]["processor"]) / 4


def _used(samples: list[dict[str, Any]]) -> float:
    """Seconds of processor from the first of these samples to the last."""
    return samples[-1]["processor"] - samples[0]["processor"]


def _steps(samples: list[dict[str, Any]]) -> int:
    return samples[-1]["done"] - samples[0]["done"]
