"""The watch: a few who wait look for themselves, of many one thread does."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from ckworkflow.engine.watch import FEW, LONGEST_SECONDS, SHORTEST_SECONDS, RunWatch
from ckworkflow.model import RunId
from desk import Desk
from waiting import until


def watches() -> bool:
    return any(thread.name == "ckworkflow-watch" for thread in threading.enumerate())


def test_a_few_who_wait_look_for_themselves_less_and_less_often(desk: Desk) -> None:
    watch = RunWatch(desk.engine.database)
    with ExitStack() as stack:
        for number in range(FEW):
            stack.enter_context(watch.waiting(RunId(f"run-{number}")))

        assert not watches()
        assert watch.next_look(0, 0) == SHORTEST_SECONDS
        assert watch.next_look(0.5, 0) == 0.05
        assert watch.next_look(60, 0) == LONGEST_SECONDS
        # A database that is busy is not asked without a pause.
        assert (watch.next_look(0, 0.1) or 0) >= 0.5


def test_of_many_who_wait_one_thread_looks_for_all(desk: Desk) -> None:
    watch = RunWatch(desk.engine.database)
    with ExitStack() as stack:
        events = [
            stack.enter_context(watch.waiting(RunId(f"run-{number}"))) for number in range(FEW + 1)
        ]

        assert watches()
        assert watch.next_look(0, 0) is None
        until(lambda: all(event.is_set() for event in events))  # there are no such runs
