"""The default error policy, row by row, with the errors that discord.py itself raises."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import aiohttp
import discord
import pytest

from ckworkflow.discord.policy import CODES, KINDS, judge
from ckworkflow.errors import FatalError, ReturnValueTimeoutError
from discord_bots import logged_in

SEND = "/channels/{channel_id}/messages"

# (what Discord answers, action, kind)
ROWS = [
    *[({"code": code}, "fault", "auth") for code in (40001, 50014)],
    ({"code": 40333}, "fault", "cloudflare"),
    ({"cloudflare": True, "status": 403}, "fault", "cloudflare"),
    ({"cloudflare": True}, "fault", "cloudflare"),
    *[({"code": code}, "fatal", "dm_blocked") for code in (50007, 50278, 20009)],
    ({"code": 40007}, "fatal", "user_banned"),
    *[
        ({"code": code}, "fatal", "gone")
        for code in (10003, 10004, 10007, 10008, 10011, 10013, 10014, 10015, 10026, 10062, 50027)
    ],
    *[({"code": code}, "fatal", "forbidden") for code in (50001, 50013, 50028, 160002, 50009)],
    ({"code": 60003, "status": 403}, "fatal", "forbidden"),
    *[
        ({"code": code}, "fatal", "invalid")
        for code in (50035, 50006, 50109, 50008, 50024, 40005, 50045, 50033, 10063)
    ],
    *[({"code": code}, "fatal", "blocked") for code in (200000, 240000)],
    ({"code": 200001, "status": 400}, "fatal", "blocked"),
    ({"code": 30034}, "retry", "quota"),
    ({"code": 30040, "status": 400}, "retry", "quota"),
    ({"code": 30013}, "fatal", "limit"),
    ({"code": 30005, "status": 400}, "fatal", "limit"),
    ({"code": 50083}, "fatal", "archived"),
    *[({"code": code}, "fatal", "interaction") for code in (40060, 40094)],
    ({"code": 40004}, "retry", "unavailable"),
    ({"code": 500000}, "retry", "unavailable"),
    *[({"code": code}, "retry", "unavailable") for code in (110000, 130000)],
    *[({"status": status}, "retry", "server") for status in (503, 520, 530)],
    ({"status": 400}, "fatal", "invalid"),
    ({"status": 404}, "fatal", "invalid"),
    ({"status": 405}, "fatal", "invalid"),
    ({"status": 403}, "fatal", "forbidden"),
    ({"status": 401}, "fault", "auth"),
    ({"retry_after": 60.0}, "retry", "rate_limited"),
    ({"retry_after": 60.0, "is_global": True}, "retry", "rate_limited"),
    ({"drop": True}, "retry", "network"),
]


@pytest.mark.parametrize(
    ("answer", "action", "kind"), ROWS, ids=["-".join(str(v) for v in row[0].values()) for row in ROWS]
)
async def test_an_answer_of_discord_is_judged(fake, answer, action, kind):
    fake.fail("POST", SEND, times=None, **answer)
    error = await failed_send(fake)

    verdict = judge(error)

    assert (verdict.action, verdict.kind) == (action, kind)
    assert kind in KINDS
    assert verdict.code == answer.get("code")
    assert verdict.counts == (kind not in ("auth", "cloudflare", "rate_limited"))
    assert (verdict.retry_after is None) == (action == "fatal" or kind == "auth")
    json.dumps(verdict.details)


async def failed_send(fake) -> BaseException:
    home = fake.add_guild("Home")
    async with logged_in(fake) as client:
        with pytest.raises((discord.DiscordException, aiohttp.ClientError)) as caught:
            await client.get_partial_messageable(home.channel("general").id).send("x")
    return caught.value


async def test_a_rate_limit_waits_as_long_as_discord_says_and_a_little_longer(fake):
    fake.fail("POST", SEND, retry_after=60.0)
    error = await failed_send(fake)

    assert isinstance(error, discord.RateLimited)
    assert judge(error, jitter=lambda: 0.0).retry_after == timedelta(seconds=60)
    assert judge(error, jitter=lambda: 1.0).retry_after == timedelta(seconds=66)
    assert judge(error).counts is False


async def test_a_rate_limit_after_five_tries_waits_for_the_header(fake):
    fake.fail("POST", SEND, retry_after=0.01, times=None)
    error = await failed_send(fake)

    verdict = judge(error, jitter=lambda: 0.0)

    assert (error.status, verdict.kind) == (429, "rate_limited")
    assert verdict.retry_after == timedelta(seconds=0.01)
    assert len(fake.calls_to("POST", SEND)) == 5


async def test_a_quota_that_comes_as_a_429_is_no_rate_limit(fake):
    fake.fail("POST", SEND, code=30046, retry_after=0.01, times=None)
    verdict = judge(await failed_send(fake), jitter=lambda: 0.0)

    assert (verdict.kind, verdict.retry_after, verdict.counts) == ("quota", timedelta(minutes=10), True)


async def test_an_expired_interaction_says_nothing_of_the_bots_token(fake):
    async with logged_in(fake) as client:
        data = {"id": str(fake.bot.id), "type": 3, "token": "t" * 40}
        webhook = discord.Webhook.from_state(data, state=client._connection)
        with pytest.raises(discord.HTTPException) as caught:
            await webhook.send("late")

    verdict = judge(caught.value)
    assert (verdict.action, verdict.kind, verdict.status, verdict.code) == ("fatal", "gone", 401, 50027)
    assert "t" * 40 not in repr(verdict)
    assert verdict.details["route"] == "POST /webhooks/{id}/[token]"


async def test_the_fields_of_an_invalid_form_are_told(fake):
    home = fake.add_guild("Home")
    async with logged_in(fake) as client:
        with pytest.raises(discord.HTTPException) as caught:
            await client.get_partial_messageable(home.channel("general").id).send("x" * 2001)

    verdict = judge(caught.value)
    assert "In content: Must be 2000 or fewer in length." in verdict.details["text"]
    assert verdict.details["route"] == "POST /channels/{id}/messages"
    assert verdict.message.startswith(
        "POST /channels/{id}/messages: 400 Bad Request (error code: 50035)"
    )


async def test_pauses_grow_with_the_attempts(fake):
    fake.fail("POST", SEND, status=503)
    error = await failed_send(fake)

    pauses = [
        judge(error, attempt=n, jitter=lambda: 0.0).retry_after.total_seconds() for n in range(1, 7)
    ]
    assert pauses == [5, 30, 120, 300, 300, 300]


async def test_a_connection_that_is_refused_is_the_network():
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError) as caught:
            await session.get("http://127.0.0.1:1/")

    assert judge(caught.value).kind == "network"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), "network"),
        (ConnectionResetError(), "network"),
        (discord.LoginFailure("Improper token"), "auth"),
        (discord.InvalidData("?"), "invalid"),
        (discord.ClientException("Intents.members must be enabled"), "invalid"),
        (ValueError("no"), None),
        (FileNotFoundError("settings.json"), None),
        (FatalError("mine", code=50007), None),
        (ReturnValueTimeoutError("r", 1.0, is_worker_alive=True), None),
        (RuntimeError("Session is closed"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_an_error_that_is_no_answer_is_judged_or_left_alone(error, kind):
    verdict = judge(error)

    assert (verdict.kind if verdict else None) == kind


async def test_a_client_that_was_closed_is_the_workers_fault(fake):
    async with logged_in(fake) as client:
        pass

    with pytest.raises(RuntimeError) as caught:
        await client.fetch_user(fake.bot.id)
    verdict = judge(caught.value)
    assert (verdict.action, verdict.kind, verdict.counts) == ("fault", "runtime", False)


async def test_a_closed_session_of_the_steps_own_is_not(fake):
    session = aiohttp.ClientSession()
    await session.close()

    with pytest.raises(RuntimeError, match="Session is closed") as caught:
        await session.get(fake.api_base)
    assert judge(caught.value) is None


def test_every_code_has_one_row():
    assert CODES[10063].kind == "invalid"
    assert CODES[10008].kind == "gone"
    assert CODES[30034].kind == "quota"
    assert CODES[30061].kind == "limit"
    assert asyncio.TimeoutError is TimeoutError
