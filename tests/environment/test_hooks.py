"""Hooks: what is sent, the body gets, once and in order; tokens are one run's; and how each of them ends."""

from __future__ import annotations

import asyncio
import logging
import re
from datetime import timedelta
from typing import Any

import pytest

from ckworkflow import (
    HookContextError,
    HookFullError,
    HookNotFoundError,
    HookPayloadError,
    NotAwaitedError,
    RunCancelledError,
    RunFailedError,
    RunStatus,
    UnreadableValueError,
    UnserializableValueError,
    create_hook,
    define_hook,
    get_hook,
    get_hook_sync,
    resume_hook,
    resume_hook_sync,
    start,
)
from ckworkflow.engine import resume as sending
from ckworkflow.engine.installation import current
from ckworkflow.store import hooks, tables
from ckworkflow.testing import Environment
from environment import hook_flows as flows
from environments import in_environment

pytestmark = pytest.mark.fast

BOTH = pytest.mark.parametrize("always_replay", [False, True])


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "")
    flows.said.clear()


def payloads_of(run_id: Any) -> list[tuple[Any, ...]]:
    """Of each payload of a run: its body, whether it was told, and whether it was taken."""
    table = tables.hook_payloads
    query = table.select().where(table.c.run_id == run_id).order_by(table.c.number)
    rows = current().engine.database.read(lambda tx: tx.execute(query).mappings().all())
    return [(row["body"], row["delivered"] is not None, bool(row["is_taken"])) for row in rows]


# -- waiting and sending --------------------------------------------------------------------------------


@BOTH
def test_what_is_sent_the_body_gets(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.approve, "7")
        await env.settle()
        info = await flows.decision.resume("order:7", flows.Decision("yes", by=42))
        assert (info.run_id, info.name, info.metadata) == (run.run_id, "decision", {"order": "7"})
        assert await run.return_value() == "yes"
        assert flows.said == ["posted 7", "yes"]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_what_is_sent_right_after_the_start_is_not_lost(always_replay: bool):
    async def test(_env: Environment):
        run = await start(flows.approve, "7")
        await flows.decision.resume("order:7", flows.Decision("no"))
        assert await run.return_value() == "no"

    in_environment(test, always_replay=always_replay)


@BOTH
def test_nobody_sends_until_the_deadline(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.approve, "7")
        await env.advance("1 day")
        assert await run.status() == RunStatus.RUNNING
        await env.advance("1 day")
        assert await run.return_value() == "nobody answered"
        with pytest.raises(HookNotFoundError):
            await flows.decision.resume("order:7", flows.Decision("late"))

    in_environment(test, always_replay=always_replay)


@BOTH
def test_all_that_is_sent_comes_once_and_in_order(always_replay: bool):
    async def test(_env: Environment):
        run = await start(flows.collect, "c", 5)
        for number in range(5):
            await resume_hook("c", {"n": number})
        assert await run.return_value() == [{"n": number} for number in range(5)]
        assert flows.said == [{"n": number} for number in range(5)]
        assert payloads_of(run.run_id) == [(f'{{"n":{n}}}', True, True) for n in range(5)]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_who_waits_first_gets_first(always_replay: bool):
    async def test(_env: Environment):
        run = await start(flows.two_takers, "t")
        await resume_hook("t", "first")
        await resume_hook("t", "second")
        assert await run.return_value() == ["first", "second"]

        run = await start(flows.left_by_a_task, "t")
        await resume_hook("t", 1)
        await resume_hook("t", 2)
        await _env.advance("1 hour")
        assert await run.return_value() == [1, 2]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_an_await_that_is_cancelled_takes_nothing(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.impatient, "t")
        await env.advance("1 hour")
        await resume_hook("t", "one")
        await resume_hook("t", "two")
        assert await run.return_value() == ["late", "one", "two"]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_hook_beside_a_step_keeps_nothing_waiting(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.beside_a_step, "t")
        await env.settle()
        assert flows.said == ["beside"]
        await resume_hook("t", 1)
        assert await run.return_value() == [1, "beside"]
        assert flows.said == ["beside", "after"]

    in_environment(test, always_replay=always_replay)


# -- ends of a hook -------------------------------------------------------------------------------------


@BOTH
def test_an_expired_hook_gives_what_came_before_and_then_ends(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.collect_until, "t")
        info = await get_hook("t")
        assert info.expires_at is not None
        assert abs(info.expires_at - info.created_at - timedelta(hours=1)) < timedelta(seconds=1)
        await resume_hook("t", 1)
        await env.advance("59 minutes")
        await resume_hook("t", 2)
        await env.advance("1 minute")
        with pytest.raises(HookNotFoundError):
            await resume_hook("t", 3)
        assert await run.return_value() == [1, 2, "hook"]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_hook_that_is_closed_has_all_that_was_accepted(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.close_and_count, "t")
        await resume_hook("t", 1)
        await resume_hook("t", 2)
        await env.advance("1 hour")
        with pytest.raises(HookNotFoundError):
            await resume_hook("t", 3)
        assert await run.return_value() == [[1, 2], 1, 2, "closed"]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_wait_at_a_hook_that_is_closed_raises(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.closed_meanwhile, "t")
        await env.advance("1 hour")
        assert await run.return_value() == ["HookClosedError"]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_what_nobody_took_waits_for_the_next_hook_of_the_token(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.make_again, "t")
        await resume_hook("t", "early")
        await env.advance("1 hour")
        await resume_hook("t", "later")
        assert await run.return_value() == ["early", "later"]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_token_that_is_closed_and_made_again_is_never_free(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.give_and_take, "t")
        for number in range(3):
            assert await (await start(flows.try_token, "t")).return_value() == f"taken by {run.run_id}"
            await resume_hook("t", number)
            await env.settle()
        assert await run.return_value() == [0, 1, 2]
        other = await start(flows.try_token, "t")
        await resume_hook("t", 9)
        assert await other.return_value() == "got 9"

    in_environment(test, always_replay=always_replay)


@pytest.mark.parametrize("how", ["return", "cancel", "terminate"])
def test_the_end_of_a_run_closes_its_hooks(how: str):
    async def test(env: Environment):
        run = await start(flows.wait_for_any, "t")
        await env.settle()
        if how == "return":
            await resume_hook("t", 1)
            assert await run.return_value() == 1
        elif how == "cancel":
            await run.cancel()
        else:
            await run.terminate()
        for _ in range(2):
            with pytest.raises(HookNotFoundError, match="No open hook has this token"):
                await resume_hook("t", 2)
        with pytest.raises(HookNotFoundError):
            await get_hook("t")
        other = await start(flows.wait_for_any, "t")
        await resume_hook("t", 3)
        assert await other.return_value() == 3

    in_environment(test)


@BOTH
def test_a_run_that_waits_is_cancelled_and_cleans_up(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.cleans_up, "t")
        await env.settle()
        await run.cancel(reason="enough")
        with pytest.raises(RunCancelledError, match="enough"):
            await run.return_value()
        assert flows.said == ["cleaned up"]

    in_environment(test, always_replay=always_replay)


def test_what_is_left_over_is_logged(caplog: pytest.LogCaptureFixture):
    async def test(_env: Environment):
        run = await start(flows.collect, "c", 1)
        for number in range(3):
            await resume_hook("c", number)
        with caplog.at_level(logging.INFO, "ckworkflow"):
            await run.return_value()
        assert (
            f"run {run.run_id} ({flows.collect.name}) completed. Its body has not taken 2 payloads"
            in caplog.text
        )

    in_environment(test)


# -- tokens ---------------------------------------------------------------------------------------------


@BOTH
def test_a_token_has_one_run(always_replay: bool):
    async def test(env: Environment):
        first = await start(flows.wait_for_any, "t")
        second = await start(flows.try_token, "t")
        assert await second.return_value() == f"taken by {first.run_id}"
        await resume_hook("t", 1)
        assert await first.return_value() == 1
        assert [step.status for step in await second.steps()] == ["failed"]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_a_run_that_takes_its_own_token_again_is_told_so(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.try_own_token, "t")
        await env.settle()
        await resume_hook("t", 1)
        assert await run.return_value() == ["taken", run.run_id, 1]

    in_environment(test, always_replay=always_replay)


@BOTH
def test_any_number_of_taken_tokens_is_no_turning_in_circles(always_replay: bool):
    async def test(env: Environment):
        runs = [await start(flows.first_free, 40) for _ in range(30)]
        await env.settle()
        assert sorted(flows.said) == list(range(30))
        await env.advance("1 day")
        assert sorted([await run.return_value() for run in runs]) == list(range(30))

    in_environment(test, always_replay=always_replay)


@BOTH
def test_tokens_that_are_left_out_are_the_same_in_each_replay_and_nowhere_in_the_database(
    always_replay: bool,
):
    async def test(env: Environment):
        runs = [await start(flows.tell_tokens) for _ in range(2)]
        await env.settle()
        await env.advance("1 day")
        tokens = [await run.return_value() for run in runs]
        assert [each[0] for each in tokens] == flows.said
        assert len({token for each in tokens for token in each}) == 6
        assert all(len(token) == 22 for each in tokens for token in each)
        rows = current().engine.database.read(lambda tx: tx.execute(tables.hooks.select()).all())
        assert len(rows) == 6
        assert not any(token in str(rows) for each in tokens for token in each)

    in_environment(test, always_replay=always_replay)


def test_a_hook_does_not_show_its_token():
    async def test(env: Environment):
        run = await start(flows.wait_for_any, "a-secret-place")
        with pytest.raises(AssertionError) as caught:
            await run.return_value()
        assert "a-secret-place" not in str(caught.value)
        assert "waits for what is sent to a hook (0:1): resume it" in str(caught.value)

    in_environment(test)


# -- sending twice, and too much ------------------------------------------------------------------------


def test_a_sending_under_the_same_key_is_accepted_once_also_after_the_close():
    async def test(_env: Environment):
        run = await start(flows.collect, "c", 2)
        for _ in range(3):
            await resume_hook("c", "once", dedup_key="click-1")
        await resume_hook("c", "twice", dedup_key="click-2")
        assert await run.return_value() == ["once", "twice"]
        info = await resume_hook("c", "once", dedup_key="click-1")
        assert info.run_id == run.run_id
        with pytest.raises(HookNotFoundError):
            await resume_hook("c", "thrice", dedup_key="click-3")
        other = await start(flows.wait_for_any, "c")  # another run: another sending
        await resume_hook("c", "again", dedup_key="click-1")
        assert await other.return_value() == "again"

    in_environment(test)


@pytest.mark.parametrize("room", [(3, 1_000), (1_000, 30)])
def test_a_run_that_takes_nothing_is_full(monkeypatch: pytest.MonkeyPatch, room: tuple[int, int]):
    monkeypatch.setattr(sending, "ROOM", sending.Room(*room, "3 payloads"))

    async def test(env: Environment):
        run = await start(flows.close_and_count, "t")
        for number in range(3):
            await resume_hook("t", f"number {number}"[:8])
        with pytest.raises(
            HookFullError, match=f"run {run.run_id} are full.*more than 3 payloads"
        ) as caught:
            await resume_hook("t", "too many")
        assert caught.value.run_id == run.run_id
        assert len(payloads_of(run.run_id)) == 3

    in_environment(test)


# -- types ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("decision", flows.Decision("yes", tags=["a"])),
        ("vote", flows.Vote(option="red")),
        ("order", flows.Order(amount=5)),
        ("seat", flows.Seat(3)),
    ],
)
@BOTH
def test_a_typed_hook_gives_what_was_sent(name: str, payload: Any, always_replay: bool):
    async def test(_env: Environment):
        run = await start(flows.wait_for_typed, name)
        await flows.TYPED[name].resume(name, payload)
        found = await run.return_value()
        assert (found, type(found)) == (payload, type(payload))

    in_environment(test, always_replay=always_replay)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("decision", {"choice": "no"}, flows.Decision("no")),
        ("vote", {"option": "blue"}, {"option": "blue"}),
        ("order", {"amount": 7}, flows.Order(amount=7)),
        ("seat", {"row": 1}, flows.Seat(1)),
    ],
)
def test_a_typed_hook_makes_what_plain_values_say(name: str, data: Any, expected: Any):
    async def test(_env: Environment):
        for send in (flows.TYPED[name].resume, resume_hook):
            run = await start(flows.wait_for_typed, name)
            await send(name, data)
            assert await run.return_value() == expected

    in_environment(test)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("decision", {"choice": 5}, r"Expected `str`, got `int` - at `\$.choice`"),
        ("decision", "yes", "Expected `object`, got `str`"),
        ("vote", {"option": None}, r"Expected `str`, got `null` - at `\$.option`"),
        ("order", {"amount": "many"}, r"valid integer.* - at `\$.amount`"),
        ("seat", {}, "missing required field `row`"),
    ],
)
@BOTH
def test_what_does_not_fit_is_refused_where_it_is_sent_and_told_where_it_is_taken(
    name: str, data: Any, why: str, always_replay: bool
):
    async def test(env: Environment):
        run = await start(flows.wait_for_typed, name)
        with pytest.raises(HookPayloadError, match=f"does not fit hook '{name}': .*{why}"):
            await flows.TYPED[name].resume(name, data)
        assert payloads_of(run.run_id) == []
        await resume_hook(name, data)  # which knows no type
        await env.settle()
        assert [taken for _, _, taken in payloads_of(run.run_id)] == [True]
        await resume_hook(
            name, {"decision": {"choice": "x"}, "seat": {"row": 2}, "order": {"amount": 1}}.get(name, {})
        )
        reason, _ = await run.return_value()
        assert re.search(why, reason)

    in_environment(test, always_replay=always_replay)


@pytest.mark.parametrize(
    ("args", "error", "why"),
    [
        ((flows.Decision,), TypeError, "takes a name first"),
        (("  ",), ValueError, "needs a name"),
        (("x", 5), TypeError, "a type is needed .* and got 5"),
    ],
)
def test_a_definition_that_makes_no_sense(args: Any, error: type[Exception], why: str):
    with pytest.raises(error, match=why):
        define_hook(*args)


# -- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("expires", "InvalidDurationError: .*must be in the future"),
        ("duration", "InvalidDurationError: .*tomorrow"),
        ("metadata", "UnserializableValueError: .*metadata"),
        ("token", "TypeError: token= must be text, and got 5"),
        ("empty", "ValueError: token= must have 1 to 1,000 characters, and has 0"),
    ],
)
def test_what_a_hook_cannot_be_made_of(what: str, why: str):
    async def test(_env: Environment):
        assert re.match(why, await (await start(flows.makes_bad, what)).return_value())

    in_environment(test)


def test_what_belongs_in_a_body_and_what_does_not():
    async def test(_env: Environment):
        with pytest.raises(HookContextError, match="belongs in the body of a workflow"):
            create_hook()
        with pytest.raises(HookContextError, match="belongs in the body of a workflow"):
            flows.decision.create("t")
        run = await start(flows.sends_in_its_body)
        with pytest.raises(RunFailedError) as caught:
            await run.return_value()
        assert isinstance(caught.value.__cause__, HookContextError)
        run = await start(flows.forgets_to_wait, "t")
        with pytest.raises(RunFailedError) as caught:
            await run.return_value()
        assert isinstance(caught.value.__cause__, NotAwaitedError)

    in_environment(test)


def test_a_hook_itself_is_no_argument():
    async def test(_env: Environment):
        run = await start(flows.passes_its_hook)
        with pytest.raises(RunFailedError, match=r"Hook, which cannot be stored. Pass args\[0\].token"):
            await run.return_value()

    in_environment(test)


def test_what_cannot_be_sent():
    async def test(_env: Environment):
        await start(flows.wait_for_any, "t")
        with pytest.raises(UnserializableValueError, match="payload"):
            await resume_hook("t", object())
        with pytest.raises(TypeError, match="token= must be text"):
            await resume_hook(5, 1)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="dedup_key= must be text"):
            await resume_hook("t", 1, dedup_key=5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="dedup_key= must have 1 to 200"):
            await resume_hook("t", 1, dedup_key="x" * 201)
        with pytest.raises(HookNotFoundError):
            await resume_hook("T", 1)

    in_environment(test)


def test_the_sync_forms():
    async def test(_env: Environment):
        run = await start(flows.collect, "c", 2)
        assert get_hook_sync("c").run_id == run.run_id
        await asyncio.to_thread(resume_hook_sync, "c", 1)
        await asyncio.to_thread(resume_hook_sync, "c", 2)
        assert await run.return_value() == [1, 2]
        run = await start(flows.approve, "7")
        await asyncio.to_thread(flows.decision.resume_sync, "order:7", flows.Decision("yes"))
        assert await run.return_value() == "yes"

    in_environment(test)


# -- crashes --------------------------------------------------------------------------------------------


@BOTH
def test_a_crash_at_any_write_changes_nothing(always_replay: bool):
    async def test(env: Environment):
        assert await env.crash_everywhere(flows.talks_to_itself, 2) > 20

    in_environment(test, always_replay=always_replay)


def test_all_that_a_hook_can_do():
    async def test(env: Environment):
        run = await start(flows.talks_to_itself, 2)
        await env.advance("1 hour")
        assert await run.return_value() == [0, 1, "last", "last", "expired"]

    in_environment(test)


def test_hooks_of_an_old_run_do_not_stand_in_the_way():
    """Whatever left a row open: the run has ended, and its token is free."""

    async def test(_env: Environment):
        run = await start(flows.wait_for_any, "t")
        await run.terminate()
        database = current().engine.database
        reopen = tables.hooks.update().values(closed_at=None)
        database.transact(lambda tx: tx.execute(reopen))
        with pytest.raises(HookNotFoundError):
            await resume_hook("t", 1)
        other = await start(flows.wait_for_any, "t")
        await resume_hook("t", 2)
        assert await other.return_value() == 2
        assert database.read(lambda tx: hooks.untaken(tx, run.run_id).get()) == (0, 0)

    in_environment(test)


# -- what was found by trying to break it ---------------------------------------------------------------


@BOTH
def test_a_hook_that_is_closed_beside_a_sleep_does_not_keep_that_from_ending(always_replay: bool):
    async def test(env: Environment):
        run = await start(flows.closes_beside_a_sleep, "t")
        await env.advance("1 minute")
        assert await run.return_value() is True

    in_environment(test, always_replay=always_replay)


def test_crash_everywhere_goes_on_beyond_a_conflict():
    async def test(env: Environment):
        assert await env.crash_everywhere(flows.conflicts_at_first) > 10

    in_environment(test)


def test_a_payload_is_accepted_by_a_process_that_cannot_read_the_metadata(
    monkeypatch: pytest.MonkeyPatch,
):
    async def test(_env: Environment):
        run = await start(flows.with_metadata, "t")
        with monkeypatch.context() as patches:
            patches.delattr(flows, "Decision")
            info = await resume_hook("t", 1)
            with pytest.raises(UnreadableValueError):
                _ = info.metadata
        assert info.metadata == flows.Decision("meta")
        assert await run.return_value() == 1
        assert len(payloads_of(run.run_id)) == 1

    in_environment(test)


@pytest.mark.parametrize("text", ["a\0b", "a\ud800"])
def test_text_that_no_database_keeps_is_refused_at_the_call(text: str):
    async def test(_env: Environment):
        await start(flows.wait_for_any, "t")
        with pytest.raises(ValueError, match="token= has a NUL character, or half of a surrogate pair"):
            await resume_hook(text, 1)
        with pytest.raises(
            ValueError, match="dedup_key= has a NUL character, or half of a surrogate pair"
        ):
            await resume_hook("t", 1, dedup_key=text)

    in_environment(test)


def test_an_object_of_a_subclass_fits():
    async def test(_env: Environment):
        run = await start(flows.wait_for_typed, "decision")
        await flows.decision.resume("decision", flows.Special("yes"))
        assert await run.return_value() == flows.Special("yes")

    in_environment(test)


def test_a_model_that_is_not_complete_fits_nothing():
    with pytest.raises(HookPayloadError, match="not fully defined"):
        define_hook("x", flows.Unfinished).resume_sync("t", {"what": 1})  # type: ignore[arg-type]


def test_what_is_sent_through_another_definition_is_refused():
    async def test(_env: Environment):
        run = await start(flows.wait_for_typed, "decision")
        with pytest.raises(
            HookPayloadError, match="through the definition of hook 'seat', and the token"
        ):
            await flows.seat.resume("decision", flows.Seat(1))
        assert payloads_of(run.run_id) == []
        await flows.decision.resume("decision", flows.Decision("yes"))
        assert await run.return_value() == flows.Decision("yes")

    in_environment(test)
