"""Deploys: bodies that are edited while runs are under way. Each edit replaces the registered workflow."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from ckworkflow import codec, sleep, step
from ckworkflow.definition import Workflow, registry
from ckworkflow.engine import failures
from ckworkflow.errors import ReplayDivergenceError
from ckworkflow.model import NodeStatus, RunStatus
from ckworkflow.store import tables
from ckworkflow.testing import worker
from ckworkflow.worker import clock, embedded
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckworkflow.engine.installation import Installation
    from ckworkflow.model import RunId
    from desk import Desk

NAME = "tests.deploys.body"


@step
def ask(question: str) -> str:
    return question


@step
def tell(text: str) -> str:
    return text


@step
def shout(text: str) -> str:
    return text.upper()


def deploy(function: Callable[..., Any]) -> Workflow[..., Any]:
    """Register a body under the one name, as a worker that starts with the new code does."""
    definition = Workflow(function, name=NAME)
    registry.workflows[NAME] = definition
    return definition


async def sleeps_and_tells() -> str:
    await ask("first")
    await sleep("7 days")
    return await tell("as planned")


async def sleeps_and_shouts() -> str:
    await shout("something else")
    return await shout("edited")


async def decides() -> str:
    answer = await ask("yes")
    if answer == "yes":
        return await tell(answer)
    return "no"


async def asks_otherwise() -> str:
    answer = await shout("yes")
    if answer == "yes":
        return await tell(answer)
    return "no"


@pytest.fixture(autouse=True)
def registered():
    yield
    registry.workflows.pop(NAME, None)


def work(desk: Desk, run_id: RunId) -> None:
    desk.work(run_id, fails=lambda row: False)


def test_a_run_that_sleeps_in_a_traced_workflow_ends_on_its_stored_plan(desk: Desk) -> None:
    run_id = desk.start(deploy(sleeps_and_tells))
    work(desk, run_id)

    deploy(sleeps_and_shouts)
    desk.engine.bodies.clear()
    desk.clock.advance(timedelta(days=7))
    desk.tick()
    work(desk, run_id)

    run = desk.run(run_id)
    assert run.status is RunStatus.COMPLETED
    assert codec.loads(run.output or "") == "as planned"


def test_a_continuation_that_meets_another_step_fails_and_names_both(desk: Desk) -> None:
    run_id = desk.start(deploy(decides))

    deploy(asks_otherwise)
    desk.engine.bodies.clear()
    work(desk, run_id)

    run = desk.run(run_id)
    error = failures.loads(run.error or "")
    assert run.status is RunStatus.FAILED
    assert isinstance(error, ReplayDivergenceError)
    assert ask.name in str(error)
    assert shout.name in str(error)


def test_a_divergence_loses_nothing(desk: Desk) -> None:
    run_id = desk.start(deploy(decides))

    deploy(asks_otherwise)
    desk.engine.bodies.clear()
    work(desk, run_id)

    node = desk.node(run_id, "0:1")
    assert (node.name, node.status, node.output) == (ask.name, NodeStatus.COMPLETED, '"yes"')
    assert node.attempt == 1


def test_an_embedded_worker_stops_when_the_database_has_left_its_code_behind(
    home: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clock, "SCHEMA_SECONDS", 0.05)
    contracted = sa.insert(tables.schema_info).values(revision=9, oldest_code=9)

    with worker():
        assert embedded._running is not None
        home.engine.database.transact(lambda tx: tx.execute(contracted))
        until(lambda: not embedded._running.is_alive)

    assert "may be used from code revision 9 on" in caplog.text
