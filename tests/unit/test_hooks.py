"""Hooks find the running step, and say where they work; integrations are found by name."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from ckworkflow import hooks, integration, tracing
from ckworkflow.context import current_step
from ckworkflow.errors import HookContextError, MissingTokenError
from ckworkflow.model import RunId

if TYPE_CHECKING:
    from collections.abc import Callable

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Worker:
    """Services without a Discord token."""

    store, app, config = "the store", "the app", {"key": 1}

    def client(self) -> Any:
        raise MissingTokenError


def context(step_name: str = "s") -> hooks.StepContext:
    return hooks.StepContext(
        RunId("r"),
        "w",
        "0:1",
        step_name,
        1,
        4,
        "key",
        START,
        Worker(),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("hook", [hooks.use_step, hooks.use_run, hooks.use_client, hooks.use_commandkit])
def test_a_hook_outside_a_step_says_where_it_works(hook: Callable[[], Any]) -> None:
    with pytest.raises(
        HookContextError, match=rf"^{hook.__name__}\(\) cannot be used here: no step is running"
    ):
        hook()


def test_a_hook_in_a_body_says_to_use_a_step_even_beside_one() -> None:
    async def flow() -> None:
        hooks.use_client()

    token = current_step.set(context())
    try:
        end = tracing.Tracer(RunId("run"), flow, started_at=START).resume().end
    finally:
        current_step.reset(token)
    assert end is not None
    assert isinstance(end.error, HookContextError)
    assert "this is the body of a workflow" in str(end.error)


def test_a_body_knows_its_run_even_beside_a_step() -> None:
    async def flow() -> list[str]:
        return [hooks.use_run().run_id, hooks.use_run().workflow]

    token = current_step.set(context())
    try:
        traced = tracing.Tracer(RunId("run"), flow, workflow="flows.flow", started_at=START).resume()
    finally:
        current_step.reset(token)
    assert traced.end is not None
    assert traced.end.result == ["run", "flows.flow"]


def test_hooks_find_the_running_step_in_helpers_tasks_and_threads() -> None:
    async def helper() -> list[str]:
        return [
            hooks.use_step().step,
            hooks.use_run().run_id,
            await asyncio.to_thread(lambda: hooks.use_run().workflow),
        ]

    async def run(name: str) -> list[str]:
        current_step.set(context(name))
        return await asyncio.create_task(helper())

    async def both() -> list[list[str]]:
        return await asyncio.gather(run("one"), run("two"))

    assert asyncio.run(both()) == [["one", "r", "w"], ["two", "r", "w"]]


def test_the_surroundings_of_a_step_are_the_workers() -> None:
    token = current_step.set(context())
    try:
        kit = hooks.use_commandkit()
        assert (kit.store, kit.app, kit.config) == ("the store", "the app", {"key": 1})
        assert hooks.use_step().idempotency_key == "key"
        for use in (hooks.use_client, lambda: kit.client):
            with pytest.raises(MissingTokenError):
                use()
    finally:
        current_step.reset(token)


class Service:
    """An integration as far as `install` looks at it."""

    def __init__(self, name: str) -> None:
        self.name = name


def test_one_integration_of_a_name_is_installed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration, "_installed", {})
    old, new, other = Service("discord"), Service("discord"), Service("other")
    for service in (old, other, new):
        integration.install(service)  # type: ignore[arg-type]
    assert integration.installed() == [new, other]

    integration.uninstall(old)  # type: ignore[arg-type]
    assert integration.installed() == [new, other]
    integration.uninstall(new)  # type: ignore[arg-type]
    assert integration.installed() == [other]
