"""Who is dead: each row of the table in docs/operations.md, on machines and clocks of the test's own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

import engine_flows
from ckworkflow.engine.detector import FailureDetector, Sign
from ckworkflow.engine.identity import Identity, Look, Standing
from ckworkflow.model import NodeStatus
from desk import Desk

SILENCE, LONGEST_GAP, EACH_SECOND = 30, 10, 1
HERE = Identity("here", "bot pid:[1] machine:a", "boot 1", 1, "10")
NEIGHBOUR = replace(HERE, process_id="neighbour", pid=2)
ELSEWHERE = replace(HERE, process_id="elsewhere", host="worker pid:[1] machine:b", boot_id="boot 2")


class Machine:
    """A detector, and the world that it looks at."""

    def __init__(self, here: Identity = HERE) -> None:
        self.seconds = 1000.0
        self.look_of = Look(Standing.RUNNING, 1)
        self.mark: object = "row 1"
        self.asked: list[str] = []
        self.detector = FailureDetector(
            timedelta(seconds=SILENCE), timedelta(seconds=LONGEST_GAP), clock=lambda: self.seconds,
            here=lambda: here, ask=self._ask,
        )  # fmt: skip

    def _ask(self, process: Identity) -> Look:
        self.asked.append(process.process_id)
        return self.look_of

    def finds_dead(self, process: Identity, *, after: float = 0) -> bool:
        """Let time pass and look once."""
        self.seconds += after
        return bool(self.detector.look([Sign(process, self.mark)]))

    def seconds_until_death(self, process: Identity, *, most: int = 100_000) -> int:
        """Look each second until a process is found to be dead."""
        assert not self.finds_dead(process)
        return next(second for second in range(1, most) if self.finds_dead(process, after=EACH_SECOND))

    def lives_for(self, process: Identity, seconds: int) -> bool:
        return not any(self.finds_dead(process, after=EACH_SECOND) for _ in range(seconds))


@pytest.fixture
def machine() -> Machine:
    return Machine()


# --- under the same kernel -----------------------------------------------------------------------------


def test_a_busy_process_lives_as_long_as_it_uses_the_processor(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    def ticks() -> Iterator[int]:
        for second in range(3600):
            machine.look_of = Look(Standing.RUNNING, second)
            yield second

    assert not any(machine.finds_dead(NEIGHBOUR, after=EACH_SECOND) for _ in ticks())
    (told,) = caplog.records
    assert told.levelno == logging.WARNING
    assert "neighbour (pid 2 of this machine) has not renewed its row for 30 s" in told.getMessage()


def test_a_process_without_a_sign_of_life_hangs_after_ten_minutes(machine: Machine) -> None:
    assert machine.seconds_until_death(NEIGHBOUR) == 20 * SILENCE


def test_a_stopped_process_is_dead_after_a_silence(machine: Machine) -> None:
    machine.look_of = Look(Standing.STOPPED)
    assert machine.seconds_until_death(NEIGHBOUR) == SILENCE


def test_only_the_time_counts_in_which_a_process_was_stopped(machine: Machine) -> None:
    assert machine.lives_for(NEIGHBOUR, 10 * SILENCE)  # busy
    machine.look_of = Look(Standing.STOPPED)  # a profiler looks at it
    assert machine.seconds_until_death(NEIGHBOUR) == SILENCE


def test_a_stopped_process_that_goes_on_has_its_whole_silence_again(machine: Machine) -> None:
    machine.look_of = Look(Standing.STOPPED)
    assert machine.lives_for(NEIGHBOUR, SILENCE)
    machine.look_of = Look(Standing.RUNNING)
    assert machine.lives_for(NEIGHBOUR, 1)
    machine.look_of = Look(Standing.STOPPED)
    assert machine.seconds_until_death(NEIGHBOUR) == SILENCE


def test_a_process_whose_pid_has_ended_is_dead_at_once(machine: Machine) -> None:
    machine.look_of = Look(Standing.ENDED)
    assert machine.finds_dead(NEIGHBOUR)


# --- where the kernel cannot be asked ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("here", "other"),
    [
        (HERE, ELSEWHERE),
        (HERE, replace(NEIGHBOUR, host="bot pid:[2] machine:a")),  # a container beside it
        (HERE, replace(NEIGHBOUR, boot_id="boot 2")),  # a copy of this machine, or before its reboot
        (HERE, replace(NEIGHBOUR, boot_id="")),
        # Two machines called `localhost` that tell no boot and have no id.
        (replace(HERE, host="localhost", boot_id=""), replace(NEIGHBOUR, host="localhost", boot_id="")),
        (HERE, Identity("no row", "", "", 0, "")),
    ],
)
def test_another_kernels_process_is_not_asked_about_and_dead_after_a_silence(
    here: Identity, other: Identity
) -> None:
    machine = Machine(here)
    machine.look_of = Look(Standing.ENDED)  # this kernel has no such pid

    assert machine.seconds_until_death(other) == SILENCE
    assert machine.asked == []


def test_without_a_boot_id_the_machine_id_says_whom_to_ask() -> None:
    here = replace(HERE, boot_id="")
    machine = Machine(here)
    machine.look_of = Look(Standing.ENDED)

    assert machine.finds_dead(replace(NEIGHBOUR, boot_id=""))


def test_a_process_that_renews_its_row_lives(machine: Machine) -> None:
    for second in range(20 * SILENCE):
        machine.mark = second // (SILENCE - 1)
        assert not machine.finds_dead(ELSEWHERE, after=EACH_SECOND)


@pytest.mark.parametrize("jump", [-86_400, -40, 40, 86_400])
def test_a_clock_that_jumps_kills_nobody_and_saves_nobody(machine: Machine, jump: int) -> None:
    machine.mark = 1_000_000
    assert machine.lives_for(ELSEWHERE, SILENCE)
    machine.mark = (
        1_000_000 + jump
    )  # of the process or the database: its row is another one all the same
    assert machine.seconds_until_death(ELSEWHERE) == SILENCE


def test_time_in_which_this_process_did_not_look_counts_as_one_look(machine: Machine) -> None:
    """It was stopped, or its database was away; so perhaps were the others."""
    assert machine.lives_for(ELSEWHERE, 5)

    assert not machine.finds_dead(ELSEWHERE, after=3600)

    assert machine.lives_for(ELSEWHERE, SILENCE - LONGEST_GAP - 5)
    assert machine.finds_dead(ELSEWHERE, after=EACH_SECOND)


def test_looks_that_are_always_late_find_the_dead_all_the_same(machine: Machine) -> None:
    machine.finds_dead(ELSEWHERE)
    looks = [machine.finds_dead(ELSEWHERE, after=600) for _ in range(3)]
    assert looks == [False, False, True]


def test_a_live_copy_of_this_machine_is_told_of_loudly_and_once(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    copy = replace(NEIGHBOUR, boot_id="boot 2")
    machine.finds_dead(copy, after=EACH_SECOND)
    assert caplog.records == []  # it may be a process from before a reboot

    for mark in range(3):
        machine.mark = mark
        machine.finds_dead(copy, after=EACH_SECOND)

    (told,) = caplog.records
    assert told.levelno == logging.ERROR
    assert "host name and the machine id of this one" in told.getMessage()
    assert "Give each its own" in told.getMessage()


# --- with a database ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [timedelta(days=-1), timedelta(seconds=40), timedelta(days=1)])
@pytest.mark.parametrize("host", ["elsewhere", None])
def test_a_jump_of_the_databases_clock_takes_nothing_from_the_living(
    desk: Desk, jump: timedelta, host: str | None
) -> None:
    other = desk.another("other")
    run_id = desk.start(engine_flows.doubling, 3)
    where = {} if host is None else {"host": host}
    desk.register(other, **where)
    other.claim(run_id)
    desk.watch(timedelta(seconds=SILENCE - 1))
    desk.register(other)

    desk.clock.jump(jump)
    desk.watch(timedelta(seconds=SILENCE - 1))

    assert desk.node(run_id).status is NodeStatus.RUNNING
    if host is not None:
        desk.watch(timedelta(seconds=2))
        assert desk.node(run_id).status is NodeStatus.PLANNED
    other.close()
