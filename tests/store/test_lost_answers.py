"""A connection that breaks after a commit was done, and before its answer has come."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import engine_flows
from ckworkflow.engine import attempts, liveness
from ckworkflow.engine.advance import go_on as carry_on
from ckworkflow.engine.answer import Answer
from ckworkflow.engine.claims import Claimed
from ckworkflow.model import NodeStatus, RunStatus
from ckworkflow.store.pipeline import Pipeline
from desk import Desk, ManualClock

if TYPE_CHECKING:
    from ckworkflow.model import RunId

pytestmark = pytest.mark.timeout(30)


def lose_answers(monkeypatch: pytest.MonkeyPatch, *, count: int) -> list[int]:
    """Break the connections of the next transactions where their answers were to be read; return what counts them."""
    sync, lost = Pipeline.sync, []

    def broken(pipeline: Pipeline) -> None:
        sync(pipeline)
        if len(lost) < count:
            lost.append(1)
            pipeline._pg.finish()
            msg = "server closed the connection unexpectedly"
            raise psycopg.OperationalError(msg)

    monkeypatch.setattr(Pipeline, "sync", broken)
    return lost


@pytest.mark.parametrize("callers", [1, 6])
def test_a_run_whose_start_was_committed_without_an_answer_has_been_started(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, callers: int
) -> None:
    with closing(Desk(postgres_url, ManualClock(), "here")) as desk:
        desk.start(engine_flows.doubling, 1)  # whatever a first start does
        together = threading.Barrier(callers)

        def start(_: int) -> RunId:
            together.wait()
            return desk.start(engine_flows.doubling, 3)

        lost = lose_answers(monkeypatch, count=2)
        with ThreadPoolExecutor(callers) as threads:
            run_ids = list(threads.map(start, range(callers)))
        assert lost

        desk.tick()
        published = {run_id for run_id, _ in desk.messages}
        assert published >= set(run_ids)
        for run_id in run_ids:
            assert desk.run(run_id).status is not RunStatus.FAILED
            desk.succeed(desk.claim(run_id), 6)
            assert desk.node(run_id).status is NodeStatus.COMPLETED


@pytest.mark.parametrize("flow", [engine_flows.looks, engine_flows.twice], ids=["looks", "twice"])
def test_a_step_that_was_taken_in_place_without_an_answer_is_given_back_and_none_runs_twice(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, flow: Any
) -> None:
    with closing(Desk(postgres_url, ManualClock(), "here")) as desk:

        def go_on(claimed: Claimed) -> Answer:
            return attempts.record_success(
                desk.engine, claimed, 1, carries=frozenset(), may_run=lambda _: True
            )

        run_id = desk.start(flow)
        first = desk.claim(run_id)
        lost = lose_answers(monkeypatch, count=1)

        assert go_on(first) == Answer(
            is_refused=True
        )  # what it had done was there, and nothing of it again
        assert lost
        assert desk.node(run_id).status is NodeStatus.COMPLETED
        taken = desk.node(run_id, "0:2")
        assert (taken.status, taken.attempt) == (NodeStatus.RUNNING, 1)

        suspects = liveness.release_orphans(desk.engine, frozenset())
        liveness.release_orphans(desk.engine, suspects)
        following: Claimed | None = desk.claim(run_id, "0:2")
        ran = ["0:1"]
        while following is not None:
            ran.append(following.row.node_id)
            recorded = go_on(following)
            following = carry_on(desk.engine, run_id, recorded, may_run=lambda _: True)

        assert desk.run(run_id).status is RunStatus.COMPLETED
        assert ran == [f"0:{number}" for number in range(1, len(ran) + 1)]
