"""Deploys: bodies that are edited while runs are under way. Each edit replaces the registered workflow."""

from __future__ import annotations

import inspect
import logging
import sys
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from ckworkflow import codec, sleep, start_sync, step, workflow
from ckworkflow.definition import Workflow, registry
from ckworkflow.engine import holding
from ckworkflow.engine.advance import advance
from ckworkflow.errors import ReturnValueTimeoutError
from ckworkflow.hooks import use_client
from ckworkflow.model import NodeStatus, RunStatus
from ckworkflow.store import runs, schema, tables
from ckworkflow.testing import worker
from ckworkflow.worker.process import clock, embedded
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckworkflow.definition import Step
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


def held(desk: Desk, run_id: RunId) -> holding.Hold:
    hold = holding.read(desk.run(run_id).held)
    assert hold is not None
    return hold


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


def diverge(desk: Desk) -> RunId:
    run_id = desk.start(deploy(decides))
    deploy(asks_otherwise)
    desk.engine.bodies.clear()
    work(desk, run_id)
    return run_id


def test_a_continuation_that_meets_another_step_is_held_and_names_both(desk: Desk) -> None:
    run_id = diverge(desk)

    run, hold = desk.run(run_id), held(desk, run_id)
    assert run.status is RunStatus.RUNNING
    assert f"recorded {ask.name}, and the body now calls {shout.name}" in hold.reason
    assert run.wake_at == hold.until == desk.clock.now + holding.FIRST_TRY


def test_a_divergence_loses_nothing(desk: Desk) -> None:
    run_id = diverge(desk)

    node = desk.node(run_id, "0:1")
    assert (node.name, node.status, node.output) == (ask.name, NodeStatus.COMPLETED, '"yes"')
    assert node.attempt == 1


def test_a_held_run_is_tried_again_less_and_less_often_and_goes_on_once_the_cause_is_gone(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = diverge(desk)
    pauses = []
    for _ in range(8):
        pauses.append(held(desk, run_id).until - desk.clock.now)
        desk.clock.advance(pauses[-1])
        desk.tick()
    assert pauses == [timedelta(seconds=5 * 2**tries) for tries in range(6)] + 2 * [holding.LONGEST_TRY]
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1

    deploy(decides)
    desk.clock.advance(holding.LONGEST_TRY)
    desk.tick()
    work(desk, run_id)

    assert desk.run(run_id).status is RunStatus.COMPLETED
    assert desk.attempts(run_id) == []


def test_a_worker_that_starts_tries_what_is_held_at_once(desk: Desk) -> None:
    run_id = diverge(desk)

    deploy(decides)
    holding.retry_held(desk.engine)
    desk.tick()
    work(desk, run_id)

    assert desk.run(run_id).status is RunStatus.COMPLETED


async def takes_one(name: str) -> str:
    answer = await ask(name)
    if answer == name:
        return await tell(answer)
    return "no"


async def takes_two(name: str, guild: str) -> str:
    answer = await ask(name)
    if answer == name:
        return await tell(answer + guild)
    return "no"


async def takes_two_with_a_default(name: str, guild: str = "!") -> str:
    answer = await ask(name)
    if answer == name:
        return await tell(answer + guild)
    return "no"


def test_a_body_with_one_more_parameter_is_held_until_that_has_a_default(desk: Desk) -> None:
    run_id = desk.start(deploy(takes_one), "ada")
    deploy(takes_two)
    desk.engine.bodies.clear()
    work(desk, run_id)

    reason = held(desk, run_id).reason
    assert f"Workflow '{NAME}' no longer takes the arguments" in reason
    assert "missing a required argument: 'guild'" in reason

    deploy(takes_two_with_a_default)
    holding.retry_held(desk.engine)
    desk.tick()
    work(desk, run_id)
    assert codec.loads(desk.run(run_id).output or "") == "ada!"


@dataclass
class Order:
    number: int


@step
def orders() -> Order:
    return Order(7)


async def looks_at_an_order() -> int:
    try:
        order = await orders()
        await ask("between")
        return order.number
    except Exception:  # noqa: BLE001  # a body may be careless, and must not be told what it cannot handle
        return -1


def test_a_result_that_cannot_be_rebuilt_is_nothing_for_the_body_to_handle(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.start(deploy(looks_at_an_order))
    desk.engine.bodies.clear()
    assert desk.succeed(desk.claim(run_id), Order(7)).must_advance
    with monkeypatch.context() as patch:
        patch.delattr(sys.modules[__name__], "Order")
        advance(desk.engine, run_id)
        assert "cannot be rebuilt" in held(desk, run_id).reason

    desk.clock.advance(holding.FIRST_TRY)
    desk.tick()
    work(desk, run_id)
    assert codec.loads(desk.run(run_id).output or "") == 7


async def imports_what_is_missing() -> str:
    answer = await ask("yes")
    if answer == "yes":
        import ckworkflow_missing  # noqa: PLC0415  # as a body may

        return await tell(ckworkflow_missing.text)
    return "no"


def test_a_body_that_lacks_a_package_is_held_until_that_is_there(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.start(deploy(imports_what_is_missing))
    work(desk, run_id)
    assert "No module named 'ckworkflow_missing'. Install" in held(desk, run_id).reason

    module = ModuleType("ckworkflow_missing")
    module.text = "found"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ckworkflow_missing", module)
    desk.clock.advance(holding.FIRST_TRY)
    desk.tick()
    work(desk, run_id)
    assert codec.loads(desk.run(run_id).output or "") == "found"


# --- the table of edits in docs/changing.md ------------------------------------------------------------


async def asks_and_tells() -> str:
    first = await ask("yes")
    second = await tell(first.upper())
    return second.lower()


async def inserts_before() -> str:
    await shout("new")
    first = await ask("yes")
    second = await tell(first.upper())
    return second.lower()


async def swaps() -> str:
    first = await tell("yes")
    second = await ask(first.upper())
    return second.lower()


async def removes() -> str:
    second = await tell("YES")
    return second.lower()


async def appends() -> str:
    first = await ask("yes")
    second = await tell(first.upper())
    return (await shout(second)).lower() + "!"


async def removes_what_is_to_come() -> str:
    first = await ask("yes")
    return first.lower()


async def asks_something_else() -> str:
    first = await ask("no")
    second = await tell(first.upper())
    return second.lower()


async def says_it_in_other_words() -> str:
    """One more line, and no other step."""
    return (await tell((await ask("yes")).upper())).lower()


@pytest.mark.parametrize(
    ("edited", "result"),
    [
        (appends, "yes!"),
        (removes_what_is_to_come, "yes"),
        (asks_something_else, "yes"),
        (says_it_in_other_words, "yes"),
    ],
)
def test_an_edit_behind_what_was_reached_lets_a_run_go_on(
    desk: Desk, edited: Callable[..., Any], result: str
) -> None:
    run_id = desk.start(deploy(asks_and_tells))
    deploy(edited)
    desk.engine.bodies.clear()

    for _ in range(3):
        work(desk, run_id)

    assert codec.loads(desk.run(run_id).output or "") == result


@pytest.mark.parametrize("edited", [inserts_before, swaps, removes])
def test_an_edit_among_what_was_reached_holds_a_run_until_it_is_undone(
    desk: Desk, edited: Callable[..., Any]
) -> None:
    run_id = desk.start(deploy(asks_and_tells))
    deploy(edited)
    desk.engine.bodies.clear()
    work(desk, run_id)
    assert "diverged at node 0:1" in held(desk, run_id).reason

    deploy(asks_and_tells)
    holding.retry_held(desk.engine)
    desk.tick()
    work(desk, run_id)

    assert codec.loads(desk.run(run_id).output or "") == "yes"


# --- steps: with a real worker -------------------------------------------------------------------------


@step
async def greets(name: str) -> str:
    return f"hello {name}"


@step(max_retries=0)
def needs_a_package() -> str:
    import ckworkflow_missing  # noqa: PLC0415  # as a step may

    return str(ckworkflow_missing.text)


@step(max_retries=0)
def ships(order: Order) -> int:
    return order.number


@step(max_retries=0)
async def asks_for_the_bot() -> str:
    return str(use_client())


@workflow
async def greeting() -> str:
    return await greets("ada")


@workflow
async def packing() -> str:
    return await needs_a_package()


@workflow
async def shipping() -> int:
    return await ships(Order(7))


@workflow
async def calling() -> str:
    return await asks_for_the_bot()


def redefine(monkeypatch: pytest.MonkeyPatch, made: Step[..., Any], function: Any) -> None:
    """Deploy a step with another function."""
    monkeypatch.setattr(made, "function", function)
    monkeypatch.setattr(made, "signature", inspect.signature(function))


async def greets_by_title(name: str, title: str) -> str:
    return f"hello {title} {name}"


def takes_an_argument_more(monkeypatch: pytest.MonkeyPatch, home: Installation) -> None:
    redefine(monkeypatch, greets, greets_by_title)


def does_not_know_the_step(monkeypatch: pytest.MonkeyPatch, home: Installation) -> None:
    monkeypatch.delitem(registry.steps, greets.name)
    monkeypatch.delitem(home.app.tasks, greets.name, raising=False)


def has_no_class(monkeypatch: pytest.MonkeyPatch, home: Installation) -> None:
    monkeypatch.delattr(sys.modules[__name__], "Order")


def lacks_something(monkeypatch: pytest.MonkeyPatch, home: Installation) -> None:
    pass


def knows_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register(greets)


def has_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("ckworkflow_missing")
    module.text = "found"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ckworkflow_missing", module)


def has_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answers() -> str:
        return "bot"

    redefine(monkeypatch, asks_for_the_bot, answers)


@pytest.mark.parametrize(
    ("started", "breaks", "mends", "reason", "result"),
    [
        (greeting, takes_an_argument_more, None, "missing a required argument: 'title'", "hello ada"),
        (greeting, does_not_know_the_step, knows_the_step, "knows no step named", "hello ada"),
        (shipping, has_no_class, None, "cannot be rebuilt", 7),
        (packing, lacks_something, has_the_package, "No module named 'ckworkflow_missing'", "found"),
        (calling, lacks_something, has_a_token, "set DISCORD_TOKEN", "bot"),
    ],
)
def test_a_step_that_this_deploy_cannot_run_is_held_and_runs_when_another_worker_starts(
    home: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    started: Workflow[..., Any], breaks: Callable[..., None], mends: Callable[..., None] | None, reason: str,
    result: Any,
) -> None:  # fmt: skip
    monkeypatch.setattr(holding, "FIRST_TRY", timedelta(hours=1))
    monkeypatch.setattr(holding, "LONGEST_TRY", timedelta(hours=1))
    database = home.engine.database
    run = start_sync(started)

    def why() -> str | None:
        record = database.read(lambda tx: runs.read_run(tx, run.run_id))
        return database.read(lambda tx: holding.why(tx, run.run_id, record.held))

    with monkeypatch.context() as patch:
        breaks(patch, home)
        with worker():
            until(lambda: why() is not None)
            with pytest.raises(ReturnValueTimeoutError, match="It is held: step .* cannot run"):
                run.return_value(0)
    assert reason in (why() or "")
    assert f"run {run.run_id} is held: step " in caplog.text
    assert run.status() in (RunStatus.PENDING, RunStatus.RUNNING)

    if mends is not None:
        mends(monkeypatch)
    with worker():
        assert run.return_value(10) == result
    assert why() is None


def test_an_embedded_worker_stops_when_the_database_has_left_its_code_behind(
    home: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(clock, "SCHEMA_SECONDS", 0.05)
    contracted = sa.insert(tables.schema_info).values(
        revision=schema.CODE_REVISION + 1, oldest_code=schema.CODE_REVISION + 1
    )

    with worker():
        assert embedded._running is not None
        home.engine.database.transact(lambda tx: tx.execute(contracted))
        until(lambda: embedded._running is None)

    assert f"may be used from code revision {schema.CODE_REVISION + 1} on" in caplog.text
