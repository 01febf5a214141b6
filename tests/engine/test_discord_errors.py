"""Whose word counts for an error of Discord or the network: the step's, then the app's, then the policy's."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_args

import discord
import pytest
from celery import Celery

from ckworkflow import start_sync, step, workflow
from ckworkflow.definition import options
from ckworkflow.definition.options import StepOptions
from ckworkflow.discord import policy
from ckworkflow.discord.integration import DiscordIntegration
from ckworkflow.engine import judging
from ckworkflow.errors import FatalError, InvalidSettingError
from ckworkflow.integration import install, uninstall
from ckworkflow.worker import settings
from waiting import failure_of, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckworkflow.engine.installation import Installation
    from desk import Desk

SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def _judges_discord() -> Iterator[None]:
    integration = DiscordIntegration(token="")
    install(integration)
    yield
    uninstall(integration)


class Answer:
    """What discord.py keeps of a response."""

    reason, method, url = "no", "POST", "https://discord.com/api/v10/channels/1/messages"

    def __init__(self, status: int, **headers: str) -> None:
        self.status, self.headers = status, {"Content-Type": "application/json", "Via": "1", **headers}


def answer(status: int, code: int = 0, **headers: str) -> discord.HTTPException:
    made: Any = Answer(status, **headers)
    return discord.HTTPException(made, {"code": code, "message": "no"})


@step
def silent() -> None: ...


@step(retry_delay="2 hours")
def patient() -> None: ...


@step(retry_backoff=7, retry_jitter=False)
def backs_off() -> None: ...


STEPS = {"silent": silent, "patient": patient, "backs off": backs_off}


@workflow
async def calls(name: str) -> None:
    await STEPS[name]()


def delay_of(desk: Desk, name: str, error: BaseException) -> timedelta:
    run_id = desk.start(calls, name)
    desk.fail(desk.claim(run_id), error, STEPS[name])
    due_at = desk.node(run_id).due_at
    assert due_at is not None
    return due_at - desk.clock.now


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(), TimeoutError(), ConnectionRefusedError(), answer(503), answer(400, 130000)],
    ids=repr,
)
def test_the_delay_that_a_step_names_comes_before_that_of_the_policy(
    desk: Desk, error: BaseException
) -> None:
    assert delay_of(desk, "patient", error) == timedelta(hours=2)
    assert delay_of(desk, "backs off", error) == 7 * SECOND
    assert 5 * SECOND <= delay_of(desk, "silent", error) < 6 * SECOND


def test_what_discord_says_is_waited_for_whatever_the_step_names(desk: Desk) -> None:
    limited = answer(429, **{"Retry-After": "30"})

    for name in STEPS:
        assert 30 * SECOND <= delay_of(desk, name, limited) <= 33 * SECOND


@pytest.mark.parametrize("said", ["1e300", "inf", "-5", "nan"])
def test_a_wait_that_discord_cannot_mean_is_bounded(desk: Desk, said: str) -> None:
    assert delay_of(desk, "silent", answer(429, **{"Retry-After": said})) < timedelta(days=2)


FORBIDDEN, ARCHIVED, UNREACHABLE = answer(403, 50013), answer(400, 50083), ConnectionResetError()


@pytest.mark.parametrize(
    ("wish", "error", "action"),
    [
        (None, FORBIDDEN, "fatal"),
        (True, FORBIDDEN, "fatal"),
        (False, FORBIDDEN, "retry"),
        ({}, FORBIDDEN, "fatal"),
        ({50013: "retry"}, FORBIDDEN, "retry"),
        ({"forbidden": "retry"}, FORBIDDEN, "retry"),
        ({"forbidden": "retry", 50013: "fatal"}, FORBIDDEN, "fatal"),
        ({"forbidden": "retry"}, ARCHIVED, "fatal"),
        ({"network": "fatal"}, UNREACHABLE, "fatal"),
        ({"auth": "fatal"}, answer(401, 40001), "fatal"),
        (None, answer(401, 40001), "release"),
    ],
)
def test_a_wish_is_carried_out_the_code_before_the_kind(
    desk: Desk, wish: Any, error: BaseException, action: str
) -> None:
    failure = judging.judge(error, now=desk.clock, discord_errors=wish)

    assert failure.action == action
    if wish is not False:
        assert failure.data["kind"]


def test_an_error_that_the_policy_does_not_judge_has_no_kind_and_no_delay(desk: Desk) -> None:
    failure = judging.judge(UNREACHABLE, now=desk.clock, discord_errors=False)

    assert (failure.action, failure.delay, "kind" in failure.data) == ("retry", None, False)


@step(max_retries=5, discord_errors={"network": "fatal"})
def gives_up_on_the_network() -> None:
    raise ConnectionResetError("gone")


@step(max_retries=5)
def says_nothing() -> None:
    raise ConnectionResetError("gone")


@step(max_retries=5, discord_errors=True)
def wants_the_policy() -> None:
    raise ConnectionResetError("gone")


@workflow
async def giving_up() -> None:
    await gives_up_on_the_network()


@workflow
async def saying_nothing() -> None:
    await says_nothing()


@workflow
async def wanting_the_policy() -> None:
    await wants_the_policy()


def test_a_step_and_an_app_have_their_wishes_in_a_worker(app: Celery, home: Installation) -> None:
    from ckworkflow.testing import worker

    app.conf.workflow_discord_errors = {"network": "fatal"}
    with worker():
        for body in (giving_up, saying_nothing):
            run = start_sync(body)
            error = failure_of(run)
            assert isinstance(error, FatalError)
            assert error.kind == "network"
            assert [each.attempt for each in run.steps()] == [1]
        run = start_sync(wanting_the_policy)
        until(lambda: run.steps()[0].due_at is not None and run.steps()[0].error)
        assert not run.status().is_final


@pytest.mark.parametrize(
    "wrong", ["no", 1, {"netwrok": "fatal"}, {50013: "ignore"}, {-1: "fatal"}, ["network"]]
)
def test_a_wish_that_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"step\(discord_errors=.*must be True, False, or a dict"):
        StepOptions.parse({"discord_errors": wrong})

    app = Celery("wrong", set_as_current=False)
    app.conf.workflow_discord_errors = wrong
    with pytest.raises(InvalidSettingError, match="workflow_discord_errors = .*True, False, or a dict"):
        settings.read(app)


def test_the_kinds_that_may_be_named_are_those_of_the_policy() -> None:
    assert options._KINDS == policy.KINDS
    assert get_args(options.DiscordErrors)
