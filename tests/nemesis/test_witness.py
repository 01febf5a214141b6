"""The witness itself: what it must not take for a fault, and what it must."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import effect_flows
import effects
from ckworkflow import FatalError
from ckworkflow.context import StepContext, current_step
from ckworkflow.definition import registry
from ckworkflow.engine.advance import advance
from ckworkflow.engine.claims import Claimed
from ckworkflow.model import NodeStatus, RunId, RunStatus
from crash_everywhere.site import Reader
from desk import Desk, ManualClock
from nemesis.cluster import Cluster
from nemesis.witness import Witness

pytestmark = pytest.mark.slow  # a server


@pytest.fixture
def desk(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv(effects.VARIABLE, str(tmp_path))
    desk = Desk(postgres_url, ManualClock(), "host:1:here")
    yield desk
    desk.close()


@pytest.fixture
def witness(desk: Desk, postgres_url: str, tmp_path: Path) -> Iterator[Witness]:
    reader = Reader(postgres_url)
    nothing = {"started": set(), "cancelled": set(), "troubles": [], "outages": [], "counts": Counter()}
    # What is left of a cluster whose processes are in the hand of the test.
    cluster = SimpleNamespace(reader=reader, effects_folder=tmp_path, **nothing)
    yield Witness(cast("Cluster", cluster))
    reader.close()


def begin(desk: Desk, run_id: RunId, node_id: str) -> Claimed:
    """Claim a step and have its effect, as its function does."""
    claimed = desk.claim(run_id, node_id)
    row = claimed.row
    key = f"{run_id}/{row.node_id}/{row.name}"
    context = StepContext(
        run_id,
        claimed.workflow,
        row.node_id,
        row.name,
        row.attempt,
        1,
        key,
        desk.clock(),
        cast("Any", None),
    )
    token = current_step.set(context)
    try:
        effects.effect(*claimed.args[:1])
    finally:
        current_step.reset(token)
    return cast("Claimed", claimed)


def fail_beside_a_sibling(desk: Desk) -> tuple[RunId, Claimed]:
    """Bring a run to its end by a failure while another step of it has had its effect and is not recorded."""
    run_id = desk.start(effect_flows.failed_run)
    sibling, refused = begin(desk, run_id, "0.1:1"), begin(desk, run_id, "0.2:1")
    error = FatalError("the step refuses", code=50007)
    if desk.fail(refused, error, registry.require_step(refused.row.name)).must_advance:
        advance(desk.engine, run_id)
    assert desk.run(run_id).status is RunStatus.FAILED
    return run_id, sibling


def test_a_step_that_outlives_its_run_is_waited_for(desk: Desk, witness: Witness) -> None:
    """Seed 860144: it was judged between its effect and its record."""
    run_id, sibling = fail_beside_a_sibling(desk)

    (line,) = witness.unfinished()

    assert line.startswith(f"{run_id} 0.1:1 {sibling.row.name} abandoned 1 ")
    witness.judge()
    (wrong,) = witness.wrong
    assert "attempt 1 of 0.1:1 had its effect, is None, and None is on record" in wrong

    witness.wrong.clear()
    desk.succeed(sibling, 1)

    assert witness.unfinished() == []
    witness.judge()
    assert witness.wrong == []


def test_a_step_that_outlives_its_run_and_dies_is_on_record_as_lost(
    desk: Desk, witness: Witness
) -> None:
    run_id = desk.start(effect_flows.failed_run)
    other = desk.another("host:2:other")
    begin(other, run_id, "0.1:1")
    refused = begin(desk, run_id, "0.2:1")
    error = FatalError("the step refuses", code=50007)
    desk.fail(refused, error, registry.require_step(refused.row.name))
    advance(desk.engine, run_id)
    assert witness.unfinished()

    desk.lose(other)

    assert witness.unfinished() == []
    assert desk.node(run_id, "0.1:1").status is NodeStatus.ABANDONED
    attempts = witness._cluster.reader.all(
        "SELECT node_id, attempt, outcome FROM attempts WHERE outcome = 'lost'"
    )
    assert attempts == [("0.1:1", 1, "lost")]
    other.close()
