"""A process that is stopped, or whose machine is gone, in the middle of a transaction holds locks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

import engine_flows
from ckworkflow.model import NodeStatus
from ckworkflow.store import runs
from desk import Desk, ManualClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckworkflow.model import RunId
    from ckworkflow.store.transaction import Transaction

pytestmark = pytest.mark.timeout(30)


@contextmanager
def stopped_amid_a_transaction(desk: Desk, run_id: RunId) -> Iterator[list[int]]:
    """Lock a run and fall silent until the `with` ends; what is given counts how often it was begun."""
    has_locked, may_go_on = threading.Event(), threading.Event()
    begun: list[int] = []

    def work(tx: Transaction) -> None:
        begun.append(1)
        runs.lock_run(tx, run_id, desk.engine.database).get()
        has_locked.set()
        may_go_on.wait()
        runs.update_run(tx, run_id, dispatches=0)

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(desk.engine.database.transact, work)
        try:
            assert has_locked.wait(20)
            yield begun
        finally:
            may_go_on.set()
        done.result()


def test_what_a_process_has_locked_that_is_stopped_holds_up_no_clock(postgres_url: str) -> None:
    with (
        closing(Desk(postgres_url, ManualClock(), "here")) as desk,
        closing(desk.another("other")) as other,
    ):
        run_id = desk.start(engine_flows.doubling, 3)
        desk.register(other, host="elsewhere")
        other.claim(run_id)

        with stopped_amid_a_transaction(other, run_id) as begun:
            desk.watch(2 * desk.engine.settings.silence)

            assert desk.node(run_id).status is NodeStatus.PLANNED
            assert begun == [1]

    # When it went on its transaction was gone, and was made anew.
    assert begun == [1, 1]
