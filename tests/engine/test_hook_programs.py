"""Bodies with hooks that random programs have found (`tests/differential`), each made small."""

from __future__ import annotations

from typing import Any

import pytest

from ckworkflow import HookConflictError, codec, create_hook, step, workflow
from ckworkflow.engine import resume as sending
from ckworkflow.engine.advance import advance
from ckworkflow.model import HookKey, Namespace, RunId, RunStatus
from desk import Desk


@step
async def one(what: Any = 1) -> Any:
    return what


def send(desk: Desk, value: str, token: str) -> None:
    sending.resume(desk.engine, HookKey.of(Namespace.CODE, token), f'"{value}"', dedup_key=None)


def result(desk: Desk, run_id: RunId) -> Any:
    run = desk.run(run_id)
    assert run.status == RunStatus.COMPLETED, (run.status, run.error)
    return codec.decode(codec.loads(run.output or "null"))


@workflow
async def conflict_twice(first: str, second: str) -> list[Any]:
    create_hook(first)
    await one()
    again = create_hook(first)
    try:
        await again
        create_hook(second)
        await create_hook(second)
    except HookConflictError:
        return [await one("not"), await one("ours")]
    return []


@pytest.mark.parametrize("tokens", [("a", "b"), ("b", "a")])  # the hash of "b" is the smaller one
def test_of_two_conflicts_the_one_is_told_that_the_body_meets_first(desk: Desk, tokens: tuple[str, str]):
    run_id = desk.start(conflict_twice, *tokens)
    send(
        desk, "at hand", tokens[0]
    )  # so that the body, which does not know of the conflict yet, runs on
    desk.succeed(desk.claim(run_id, "0:2"), 1)
    advance(desk.engine, run_id)
    desk.succeed(desk.claim(run_id, "0:4"), "not")
    advance(desk.engine, run_id)
    desk.succeed(desk.claim(run_id, "0:5"), "ours")
    advance(desk.engine, run_id)
    assert result(desk, run_id) == ["not", "ours"]
