"""Bodies with hooks that random programs have found (`tests/differential`), each made small."""

from __future__ import annotations

import asyncio
import base64
import hmac
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from ckworkflow import FatalError, HookConflictError, codec, create_hook, step, workflow
from ckworkflow.engine import advance as advancing
from ckworkflow.engine import resume as sending
from ckworkflow.engine.advance import advance
from ckworkflow.model import HookKey, Namespace, RunId, RunStatus
from ckworkflow.store import tables
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


@workflow
async def end_at_once() -> str:
    return create_hook().token


def test_a_run_that_ends_where_it_begins_keeps_from_what_its_tokens_are_derived(desk: Desk):
    run_id = desk.start(end_at_once)
    columns = tables.runs.c
    query = sa.select(columns.secret, columns.untold_payloads).where(columns.id == run_id)
    ((secret, untold),) = desk.engine.database.read(lambda tx: tx.execute(query).all())
    digest = hmac.digest(secret.encode(), b"0:1", "sha256")[:16]
    assert result(desk, run_id) == base64.urlsafe_b64encode(digest).decode().rstrip("=")
    assert untold == 0  # it has made a hook


@workflow
async def make_after_a_failure(token: str) -> Any:
    try:
        await one()
        await one("planned, and never begun")
    except FatalError:
        return await create_hook(token)  # in the place of that
    return None


def test_a_hook_may_take_the_place_of_a_step_that_was_only_planned(desk: Desk):
    run_id = desk.start(make_after_a_failure, "t")
    desk.fail(desk.claim(run_id), FatalError("no"), one)
    advance(desk.engine, run_id)
    send(desk, "hello", "t")
    assert result(desk, run_id) == "hello"


def test_so_may_one_that_cannot_be_made(desk: Desk):
    holder = desk.start(make_after_a_failure, "t")
    desk.fail(desk.claim(holder), FatalError("no"), one)
    advance(desk.engine, holder)
    run_id = desk.start(make_after_a_failure, "t")
    desk.fail(desk.claim(run_id), FatalError("no"), one)
    advance(desk.engine, run_id)
    run = desk.run(run_id)
    assert run.status == RunStatus.FAILED
    assert "HookConflictError" in (run.error or "")


@workflow
async def race_before_a_conflict() -> Any:
    create_hook("held")
    hook = create_hook("asked")
    waiting = [asyncio.create_task(hook.next()), asyncio.create_task(one())]
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if waiting[0] in done:
        try:
            await create_hook("held")
        except HookConflictError:
            return "payload first"
    return await one("step first")


def test_a_step_that_ended_earlier_is_recorded_between_a_refusal_and_the_next_trace(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    run_id = desk.start(race_before_a_conflict)
    claimed = desk.claim(run_id, "0.2:1")
    transact = desk.engine.database.transact

    def then_record(work: Any) -> Any:
        found = transact(work)
        if getattr(work, "func", None) is advancing._refuse_hook:
            # Another process has estimated that its step ended before the payload was sent.
            desk.clock.jump(timedelta(milliseconds=-2))
            desk.succeed(claimed, 1)
            desk.clock.jump(timedelta(milliseconds=2))
        return found

    monkeypatch.setattr(desk.engine.database, "transact", then_record)
    desk.clock.advance(timedelta(milliseconds=5))
    send(desk, "click", "asked")
    assert desk.run(run_id).held is None  # it was said to diverge, and nothing in it did
