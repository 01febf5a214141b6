"""Attempts that fail: how many, how long between them, and what the body sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from ckworkflow import codec, start, start_sync, step, workflow
from ckworkflow.errors import FatalError, RetryableError, RunFailedError, StepTimeoutError
from ckworkflow.hooks import use_step
from ckworkflow.model import NodeStatus
from ckworkflow.store import runs
from ckworkflow.store.tables import attempts
from environments import in_environment
from waiting import failure_of, until

if TYPE_CHECKING:
    from ckworkflow.engine.installation import Installation
    from ckworkflow.testing import Environment
    from desk import Desk

SECOND = timedelta(seconds=1)
START = datetime(2026, 1, 2, tzinfo=UTC)

journal: list[Any] = []


@pytest.fixture(autouse=True)
def _empty_journal() -> None:
    journal.clear()


class QuotaError(Exception):
    """An error of a user's own."""


# --- how many, and how long between them -------------------------------------------------------------


@step
def always_fails() -> None:
    journal.append((use_step().attempt, use_step().max_attempts, use_step().idempotency_key))
    raise QuotaError("full")


@workflow
async def failing() -> None:
    await always_fails()


def test_by_default_a_step_has_four_attempts_a_second_apart() -> None:
    async def test(env: Environment) -> tuple[BaseException | None, str | None]:
        run = await start(failing)
        for attempts_begun in (1, 2, 3, 4):
            await env.advance(0.999)
            assert len(journal) == attempts_begun
            await env.advance(0.001)
        with pytest.raises(RunFailedError) as caught:
            await run.return_value()
        return caught.value.__cause__, (await run.steps())[0].error

    error, recorded = in_environment(test)

    assert [attempt for attempt, _, _ in journal] == [1, 2, 3, 4]
    assert {most for _, most, _ in journal} == {4}
    assert len({key for _, _, key in journal}) == 1
    assert isinstance(error, FatalError)
    assert "always_fails failed after 4 attempts: QuotaError: full" in str(error)
    assert type(error.__cause__) is QuotaError
    assert str(error.__cause__) == "full"
    assert "QuotaError: full" in (recorded or "")


@step(max_retries=0)
def has_one_attempt() -> None:
    journal.append("tried")
    raise QuotaError("full")


@step(max_retries=2, retry_backoff=10, retry_jitter=False)
def backs_off() -> None: ...


@step(retry_delay="1 hour")
def waits_an_hour() -> None: ...


@workflow
async def single_attempt() -> None:
    await has_one_attempt()


@workflow
async def backing_off() -> str:
    try:
        await backs_off()
    except FatalError as error:
        return str(error)
    return "fine"


@workflow
async def patient() -> None:
    await waits_an_hour()


def test_a_step_without_retries_has_one_attempt(running: Installation) -> None:
    assert "failed after 1 attempt" in str(failure_of(start_sync(single_attempt)))
    assert journal == ["tried"]


def test_backoff_doubles_as_celery_spells_it(desk: Desk) -> None:
    run_id = desk.start(backing_off)
    delays = []
    for _ in range(2):
        recorded = desk.fail(desk.claim(run_id), QuotaError("full"), backs_off)
        delays.append(recorded.retry_in or desk.node(run_id).due_at - desk.clock.now)
        desk.clock.advance(delays[-1])
    recorded = desk.fail(desk.claim(run_id), QuotaError("full"), backs_off)

    assert delays == [10 * SECOND, 20 * SECOND]
    assert recorded.must_advance
    assert desk.node(run_id).status is NodeStatus.FAILED


@pytest.mark.parametrize(
    ("retry_after", "wait"),
    [
        ("1 minute", 60 * SECOND),
        (5, 5 * SECOND),
        (2.5, 2.5 * SECOND),
        (timedelta(hours=2), timedelta(hours=2)),
        (datetime(2026, 1, 2, 3, 4, 35, tzinfo=UTC), 30 * SECOND),
        (None, SECOND),
        (0, SECOND),
        (-0.01, SECOND),
        (-5, SECOND),
        (timedelta(seconds=-1), SECOND),
        ("10 ms", SECOND),
        (datetime(2020, 1, 1, tzinfo=UTC), SECOND),
    ],
)
def test_a_retryable_error_says_how_long_to_wait_a_second_at_least(
    desk: Desk, retry_after: Any, wait: timedelta
) -> None:
    run_id = desk.start(patient)

    recorded = desk.fail(
        desk.claim(run_id), RetryableError("later", retry_after=retry_after), waits_an_hour
    )

    row = desk.node(run_id)
    assert (row.status, row.attempt, row.owner) == (NodeStatus.PLANNED, 1, None)
    assert row.due_at == desk.clock.now + wait
    within_horizon = wait <= desk.engine.settings.horizon
    assert recorded.retry_in == (wait if within_horizon else None)


@pytest.mark.parametrize("retry_after", ["1 month", True, datetime(2030, 1, 1), "soon"])  # noqa: DTZ001
def test_a_retryable_error_with_a_bad_delay_fails_at_once(desk: Desk, retry_after: Any) -> None:
    run_id = desk.start(patient)

    recorded = desk.fail(
        desk.claim(run_id), RetryableError("later", retry_after=retry_after), waits_an_hour
    )

    assert recorded.must_advance
    error = json.loads(desk.node(run_id).error or "")
    assert "InvalidDurationError" in str(error)
    assert "later" in str(error)  # what the step itself has said


def test_a_delay_beyond_the_horizon_lives_in_sql_alone(desk: Desk) -> None:
    run_id = desk.start(patient)
    desk.messages.clear()

    recorded = desk.fail(desk.claim(run_id), QuotaError("full"), waits_an_hour)

    assert recorded.retry_in is None
    assert recorded.pieces == ()
    wake_at = desk.run(run_id).wake_at
    assert wake_at is not None
    assert wake_at - desk.clock.now <= timedelta(hours=1)
    early = desk.claim(run_id)
    assert getattr(early, "wait", None) == timedelta(hours=1)

    desk.clock.advance(timedelta(minutes=59))
    desk.tick()
    assert desk.published == []

    desk.clock.advance(timedelta(minutes=1))
    desk.tick()
    assert len(desk.published) == 1
    desk.succeed(desk.claim(run_id))
    assert desk.node(run_id).attempt == 2


def test_a_retryable_error_uses_an_attempt(desk: Desk) -> None:
    run_id = desk.start(failing)
    for attempt in range(1, 5):
        recorded = desk.fail(
            desk.claim(run_id), RetryableError("busy", retry_after=5, code=7), always_fails
        )
        assert recorded.must_advance is (attempt == 4)
        desk.clock.advance(5 * SECOND)

    assert desk.node(run_id).status is NodeStatus.FAILED


# --- what the body sees ------------------------------------------------------------------------------


@step(retry_delay=0.01, max_retries=1)
async def asks_the_bank(how: str) -> str:
    journal.append(how)
    if how == "fatal":
        raise FatalError("account closed", code=50007, kind="closed", status=403, details={"account": 7})
    if how == "retryable":
        raise RetryableError("busy", retry_after="1 second", code=429, kind="rate")
    if how == "exit":
        sys.exit(3)
    if how == "cancel":
        raise asyncio.CancelledError
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "odd":
        raise OddError("a", "b")
    if how == "nan":
        raise QuotaError(float("nan"), {"at": START}, object)
    if how == "mute":
        raise MuteError(7)
    if how == "surrogate":
        raise QuotaError("half a character: \ud83d and a NUL: \0")
    return "paid"


class MuteError(Exception):
    """Nothing of it can be made again, and looking at it hurts."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __str__(self) -> str:
        return f"number {self.number}"

    @property
    def code(self) -> int:
        raise LookupError


class OddError(Exception):
    """Its constructor takes something else than its args."""

    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left}-{right}")
        self.left = left


@workflow
async def paying(how: str) -> Any:
    try:
        return await asks_the_bank(how)
    except FatalError as error:
        cause = error.__cause__
        return {
            "message": str(error), "code": error.code, "kind": error.kind, "status": error.status,
            "details": error.details, "cause": None if cause is None else type(cause).__name__,
            "why": None if cause is None else str(cause),
        }  # fmt: skip


def test_a_fatal_error_fails_at_once_and_the_body_sees_its_code_and_kind(running: Installation) -> None:
    seen = start_sync(paying, "fatal").return_value(10)

    assert seen == {
        "message": "account closed", "code": 50007, "kind": "closed", "status": 403,
        "details": {"account": 7}, "cause": None, "why": None,
    }  # fmt: skip
    assert journal == ["fatal"]


@pytest.mark.parametrize(
    ("how", "cause", "why"),
    [
        ("exit", "RuntimeError", "the step called sys.exit(3)"),
        ("cancel", "RuntimeError", "the step cancelled itself"),
        ("odd", "OddError", "a-b"),
        ("mute", "RecordedError", "MuteError: number 7"),
        ("nan", "QuotaError", "(nan, {'at': datetime.datetime(2026"),
        ("interrupt", "RuntimeError", "the step raised KeyboardInterrupt()"),
    ],
)
def test_a_step_that_has_used_up_its_attempts_is_a_fatal_error_with_the_original_as_its_cause(
    running: Installation, how: str, cause: str, why: str
) -> None:
    seen = start_sync(paying, how).return_value(10)

    assert "asks_the_bank failed after 2 attempts: " in seen["message"]
    assert seen["cause"] == cause
    assert seen["why"].startswith(why)
    assert journal == [how, how]


def test_the_code_of_a_retryable_error_is_kept_when_its_attempts_are_used_up() -> None:
    async def test(env: Environment) -> Any:
        run = await start(paying, "retryable")
        await env.advance("1 second")
        return await run.return_value()

    seen = in_environment(test)

    assert (seen["code"], seen["kind"], seen["cause"]) == (429, "rate", "RetryableError")


@workflow
async def gives_up() -> None:
    with contextlib.suppress(FatalError):
        await asks_the_bank("fatal")
    raise ValueError("no money")


def test_an_error_of_the_body_has_not_the_error_of_the_step_before_it_for_its_cause(
    running: Installation,
) -> None:
    run = start_sync(gives_up)
    with pytest.raises(RunFailedError):
        run.return_value(10)

    error = running.engine.database.read(lambda tx: runs.read_run(tx, run.run_id)).error

    assert "no money" in str(error)
    assert "cause" not in codec.loads(str(error))


def test_an_error_with_broken_text_is_recorded_all_the_same(running: Installation) -> None:
    assert "half a character" in start_sync(paying, "surrogate").return_value(10)["why"]


@step
def halves_an_emoji() -> str:
    return "\N{GRINNING FACE}".encode("utf-16-le")[:2].decode("utf-16-le", "surrogatepass")


@workflow
async def halving() -> str:
    return await halves_an_emoji()


def test_half_an_emoji_is_a_result_like_any_other(running: Installation) -> None:
    assert start_sync(halving).return_value(10) == "\ud83d"


@step(max_retries=0)
def calls_exit() -> None:
    sys.exit("bye")


@workflow
async def exiting() -> None:
    await calls_exit()


def test_a_step_that_calls_exit_does_not_stop_its_worker(running: Installation) -> None:
    error = failure_of(start_sync(exiting))

    assert "the step called sys.exit('bye')" in str(error)
    assert start_sync(paying, "fine").return_value(10) == "paid"


bombs: list[asyncio.Task[None]] = []


@step
async def leaves_a_bomb() -> None:
    async def bomb() -> None:
        sys.exit(1)

    bombs.append(asyncio.get_running_loop().create_task(bomb()))


@workflow
async def leaving_a_bomb() -> None:
    await leaves_a_bomb()


def test_a_task_that_a_step_left_behind_does_not_stop_the_others(running: Installation) -> None:
    start_sync(leaving_a_bomb).return_value(10)

    assert start_sync(paying, "fine").return_value(10) == "paid"
    assert isinstance(bombs.pop().exception(), SystemExit)


# --- time limits -------------------------------------------------------------------------------------

release = threading.Event()


@step(timeout=0.05, max_retries=1, retry_delay=0.01)
async def awaits_too_long() -> None:
    journal.append(use_step().attempt)
    await asyncio.sleep(30)


@step(timeout=0.05, max_retries=1, retry_delay=0.01)
def blocks_too_long() -> str:
    journal.append(use_step().attempt)
    if use_step().attempt == 1:
        release.wait(30)
        journal.append("late")
        return "late"
    return "in time"


@step(timeout=30)
async def raises_its_own_timeout() -> None:
    raise TimeoutError("the bank's")


@workflow
async def awaiting_too_long() -> None:
    await awaits_too_long()


@workflow
async def blocking_too_long() -> str:
    result = await blocks_too_long()
    return result


def test_the_timeout_of_an_async_step_uses_an_attempt(running: Installation) -> None:
    error = failure_of(start_sync(awaiting_too_long))

    assert journal == [1, 2]
    assert isinstance(error, FatalError)
    cause = error.__cause__
    assert isinstance(cause, StepTimeoutError)
    assert "took longer than its timeout of 0.05 s and this attempt was given up" in str(cause)
    assert (cause.seconds, cause.step.rpartition(".")[2]) == (0.05, "awaits_too_long")


def attempts_of(home: Installation, run_id: str) -> list[Any]:
    query = sa.select(attempts).where(attempts.c.run_id == run_id).order_by(attempts.c.attempt)
    return list(home.engine.database.read(lambda tx: tx.execute(query).all()))


def test_a_sync_step_that_is_given_up_cannot_record_late(running: Installation) -> None:
    release.clear()
    run = start_sync(blocking_too_long)

    assert run.return_value(10) == "in time"
    release.set()
    until(lambda: "late" in journal)
    assert journal == [1, 2, "late"]
    assert run.return_value(10) == "in time"
    assert [each.outcome for each in attempts_of(running, run.run_id)] == ["retried"]
