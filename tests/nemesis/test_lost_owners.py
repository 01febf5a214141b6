"""Processes that are taken for dead and are not, and those that die where nobody looks for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import engine_flows
from ckworkflow.engine import presence
from ckworkflow.model import NodeStatus, RunId
from ckworkflow.store import processes
from ckworkflow.store.transaction import Transaction
from desk import Desk, ManualClock


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(f"sqlite:///{tmp_path / 'desk.sqlite3'}", ManualClock(), "here")
    yield desk
    desk.close()


def let_time_pass(desk: Desk) -> None:
    """Let as much time pass as it takes to take anybody for dead, and for any run to be looked at."""
    settings = desk.engine.settings
    for _ in range(10):
        desk.clock.advance(max(2 * settings.lease, settings.look_again_after))
        desk.register(desk)
        presence.bury_dead(desk.engine)
        desk.tick()


def test_a_step_claimed_by_a_process_that_was_buried_comes_back_when_it_dies(desk: Desk) -> None:
    other = desk.another("other")
    run_id = desk.start(engine_flows.doubling, 3)
    desk.register(other)
    # It is stopped, so its row goes; then it goes on, takes a message before its next beat, and is killed.
    desk.clock.advance(10 * 6 * desk.engine.settings.heartbeat)
    desk.register(desk)
    presence.bury_dead(desk.engine)
    other.claim(run_id)

    let_time_pass(desk)

    assert desk.node(run_id).status is NodeStatus.PLANNED
    other.close()


def test_what_a_process_claims_that_goes_on_while_it_is_buried_is_not_taken_from_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = desk.another("other")
    run_id = desk.start(engine_flows.doubling, 3)
    desk.register(other)
    desk.clock.advance(2 * desk.engine.settings.silence)
    owned_runs = processes.owned_runs

    def go_on(tx: Transaction, process_id: str) -> list[RunId]:
        # Its row has been read, and had lapsed. Now it beats, and takes a message.
        desk.clock.advance(timedelta(seconds=1))
        other.register(other)
        other.claim(run_id)
        return owned_runs(tx, process_id)

    monkeypatch.setattr(processes, "owned_runs", go_on)
    presence.bury_dead(desk.engine)

    assert (desk.node(run_id).status, desk.node(run_id).owner) == (NodeStatus.RUNNING, "other")
    assert [row.process_id for row in desk.engine.database.read(processes.list_processes)] == ["other"]
    other.close()


def test_after_an_outage_of_the_database_nobody_is_taken_for_dead_who_could_not_speak(
    desk: Desk,
) -> None:
    other = desk.another("other")
    run_id = desk.start(engine_flows.doubling, 3)
    desk.register(other)
    other.claim(run_id)
    # Both have beaten until the database went away, and the clock is the first to find that it is back.
    pulse = desk.engine.pulse
    pulse.beat(longest_gap=desk.engine.settings.silence)
    pulse.since = pulse.beaten_at = time.monotonic() - 600
    desk.clock.advance(2 * desk.engine.settings.silence)

    presence.bury_dead(desk.engine)

    assert desk.node(run_id).status is NodeStatus.RUNNING
    other.close()
