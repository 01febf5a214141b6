"""Processes that are taken for dead and are not, and those that die where nobody looks for them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

import engine_flows
from ckworkflow.engine import liveness
from ckworkflow.model import NodeStatus
from ckworkflow.store import processes
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
        desk.register(desk)
        desk.watch(max(2 * settings.lease, settings.look_again_after))
        desk.tick()


def test_a_step_claimed_by_a_process_that_was_reaped_comes_back_when_it_dies(desk: Desk) -> None:
    other = desk.another("other")
    run_id = desk.start(engine_flows.doubling, 3)
    desk.register(other, host="elsewhere")
    # It is stopped, so its row goes; then it goes on, takes a message before its next heartbeat, and is killed.
    desk.watch(2 * desk.engine.settings.silence)
    other.claim(run_id)

    let_time_pass(desk)

    assert desk.node(run_id).status is NodeStatus.PLANNED
    other.close()


@pytest.mark.parametrize("speaks", [True, False])
def test_what_a_process_claims_that_goes_on_while_it_is_reaped_is_not_taken_from_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, *, speaks: bool
) -> None:
    other = desk.another("other")
    run_id = desk.start(engine_flows.doubling, 3)
    desk.register(other, host="elsewhere")
    desk.watch(desk.engine.settings.silence - timedelta(seconds=1))

    def go_on(_owner: str) -> None:
        # It has just been found to be dead. Now it takes a message, and perhaps sends a heartbeat, too.
        if speaks:
            desk.clock.advance(timedelta(seconds=1))
            other.register(other)
        other.claim(run_id)

    monkeypatch.setattr(desk.engine.database, "end_sessions", go_on)
    desk.clock.advance(timedelta(seconds=1))
    liveness.reap_dead(desk.engine)

    assert (desk.node(run_id).status, desk.node(run_id).owner) == (NodeStatus.RUNNING, "other")
    rows = desk.engine.database.read(processes.list_processes)
    assert [row.process_id for row in rows] == (["other"] if speaks else [])
    other.close()


def test_a_process_that_speaks_while_it_is_reaped_loses_nothing_more(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = desk.another("other")
    run_id = desk.start(engine_flows.doubling, 3)
    desk.register(other, host="elsewhere")
    other.claim(run_id)
    desk.watch(desk.engine.settings.silence - timedelta(seconds=1))

    def speak(_owner: str) -> None:
        desk.clock.advance(timedelta(seconds=1))
        other.register(other)

    monkeypatch.setattr(desk.engine.database, "end_sessions", speak)
    desk.clock.advance(timedelta(seconds=1))
    liveness.reap_dead(desk.engine)

    assert (desk.node(run_id).status, desk.node(run_id).owner) == (NodeStatus.RUNNING, "other")
    other.close()


def test_after_an_outage_of_the_database_nobody_is_taken_for_dead_who_could_not_speak(
    desk: Desk,
) -> None:
    other = desk.another("other")
    run_id = desk.start(engine_flows.doubling, 3)
    desk.register(other, host="elsewhere")
    other.claim(run_id)
    # Both have beaten until the database went away, and the clock is the first to find that it is back.
    desk.watch(timedelta())
    desk.clock.advance(timedelta(minutes=10))

    desk.watch(desk.engine.settings.silence / 2)

    assert desk.node(run_id).status is NodeStatus.RUNNING
    other.close()
