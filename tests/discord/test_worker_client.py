"""The worker's client and its integration: login, token, loop, what needs a gateway."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

import aiohttp
import discord
import pytest

from ckworkflow.context import StepContext
from ckworkflow.discord import DiscordIntegration, LiveBotIntegration
from ckworkflow.discord import integration as integration_module
from ckworkflow.discord.endpoints import apply_endpoints, require_discord_py
from ckworkflow.errors import (
    DiscordLibraryError,
    DiscordLoginError,
    HookContextError,
    InvalidSettingError,
    InvalidTokenError,
    MissingTokenError,
)
from ckworkflow.testing import FakeDiscord
from discord_bots import FastBot, connected, logged_in


async def test_a_worker_logs_in_with_two_calls_before_it_consumes(fake):
    discord_ = DiscordIntegration(fake.token)
    await discord_.open()
    try:
        user = await discord_.client().fetch_user(fake.bot.id)
    finally:
        await discord_.close()

    assert user.name == "fake-bot"
    assert [each.path for each in fake.calls[:2]] == ["/users/@me", "/oauth2/applications/@me"]


async def test_the_token_comes_from_the_environment(fake, monkeypatch):
    monkeypatch.setenv("DISCORD_TOKEN", f" {fake.token}\n")
    discord_ = DiscordIntegration()
    await discord_.open()

    assert discord_.client().user.id == fake.bot.id
    assert fake.token not in repr(discord_)
    await discord_.close()


async def test_the_token_is_that_of_the_moment_when_the_worker_starts(fake, monkeypatch):
    discord_ = DiscordIntegration()
    for token in (fake.token, fake.add_token()):
        monkeypatch.setenv("DISCORD_TOKEN", token)
        await discord_.open()
        assert discord_.client().http.token == token
        await discord_.close()


async def test_a_bad_token_stops_the_worker(fake):
    discord_ = DiscordIntegration("bad")

    with pytest.raises(InvalidTokenError, match="no attempt of any step was used"):
        await discord_.open()
    assert len(fake.calls) == 1


async def test_a_worker_without_a_token_runs_and_says_so_when_asked(fake):
    discord_ = DiscordIntegration("")
    await discord_.open()

    with pytest.raises(MissingTokenError, match="set DISCORD_TOKEN"):
        discord_.client()
    await discord_.close()
    assert fake.calls == []


async def test_a_network_that_is_down_is_waited_for(fake, monkeypatch):
    monkeypatch.setattr(integration_module, "_PAUSES", (0.001,))
    fake.fail("GET", "/users/@me", drop=True, times=2)
    fake.fail("GET", "/oauth2/applications/@me", status=503)
    discord_ = DiscordIntegration(fake.token)

    await discord_.open()

    assert [each.status for each in fake.calls_to("GET", "/users/@me")] == [None, None, 200, 200]
    await discord_.close()


async def test_an_address_that_is_no_discord_stops_the_worker(fake):
    apply_endpoints({"CKWORKFLOW_DISCORD_API_BASE": fake.api_base + "/nowhere"})
    discord_ = DiscordIntegration(fake.token)

    with pytest.raises(DiscordLoginError, match="check that it ends in /api/v10"):
        await discord_.open()


def test_an_address_that_is_no_url_is_refused():
    with pytest.raises(
        InvalidSettingError, match="CKWORKFLOW_DISCORD_API_BASE = 'localhost:80' cannot be used"
    ):
        apply_endpoints({"CKWORKFLOW_DISCORD_API_BASE": "localhost:80"})


def test_a_fork_of_discord_py_is_named(monkeypatch):
    monkeypatch.setattr(discord, "__title__", "pycord")

    with pytest.raises(DiscordLibraryError, match="gave pycord .*uninstall it"):
        require_discord_py()


async def test_the_client_is_refused_on_another_loop(fake):
    discord_ = DiscordIntegration(fake.token)
    await discord_.open()

    async def elsewhere() -> None:
        discord_.client()

    with pytest.raises(HookContextError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, elsewhere())
    with pytest.raises(HookContextError, match="Make the step `async def`"):
        await asyncio.to_thread(discord_.client)
    await discord_.close()


async def test_a_broken_client_is_replaced(fake):
    discord_ = DiscordIntegration(fake.token)
    await discord_.open()
    broken = discord_.client()
    await broken.http.close()

    with pytest.raises(RuntimeError) as caught:
        await broken.fetch_user(fake.bot.id)
    assert discord_.judge(caught.value).kind == "runtime"
    await fake.until(lambda: discord_.client() is not broken)

    assert (await discord_.client().fetch_user(fake.bot.id)).id == fake.bot.id
    await discord_.close()


async def test_a_step_sends_with_its_nonces_and_its_pauses_grow(fake):
    ada = fake.add_user("ada")
    discord_ = DiscordIntegration(fake.token)
    await discord_.open()
    fake.fail("POST", "/channels/{channel_id}/messages", drop_after_commit=True)
    user = await discord_.client().fetch_user(ada.id)

    with pytest.raises(aiohttp.ClientError) as caught, discord_.step(attempt_of_a_step(2)):
        await user.send("Hello!")
    with discord_.step(attempt_of_a_step(3)):
        await user.send("Hello!")
    await discord_.close()

    assert len(fake.dms(ada)) == 1
    assert timedelta(seconds=30) <= discord_.judge(caught.value).retry_after <= timedelta(seconds=33)


def attempt_of_a_step(attempt: int) -> StepContext:
    return StepContext(
        run_id="r",
        workflow="w",
        node_id="0:1",
        step="s",
        attempt=attempt,
        max_attempts=4,
        idempotency_key="r/0:1",
        started_at=datetime.now(UTC),
        services=None,
    )


async def test_waiting_for_events_is_refused_at_once(fake):
    async with logged_in(fake) as client:
        with pytest.raises(HookContextError, match="no gateway.*Waiting for 'message' would hang"):
            await client.wait_for("message")
        with pytest.raises(HookContextError, match="can be used at once"):
            await client.wait_until_ready()
        with pytest.raises(HookContextError, match="The bot holds the gateway"):
            await client.connect()
        with pytest.raises(HookContextError, match="presence"):
            await client.change_presence()


async def test_a_rate_limit_of_minutes_is_not_slept_through(fake):
    home = fake.add_guild("Home")
    fake.fail("POST", "/channels/{channel_id}/messages", retry_after=600)

    async with logged_in(fake) as client:
        with pytest.raises(discord.RateLimited):
            await client.get_partial_messageable(home.channel("general").id).send("x")


async def test_the_live_bot_is_given_to_steps_on_its_own_loop(fake):
    async with connected(FastBot(), fake) as bot:
        live = LiveBotIntegration(bot, asyncio.get_running_loop())
        await live.open()
        assert live.client() is bot
        with pytest.raises(HookContextError, match="Make the step `async def`"):
            await asyncio.to_thread(live.client)
        assert "send_message" in vars(bot.http)
        await live.close()
        assert "send_message" not in vars(bot.http)


async def test_logs_of_discord_py_hold_no_token(fake, caplog):
    discord_ = DiscordIntegration(fake.token)
    await discord_.open()
    logger = logging.getLogger("discord.http")

    with caplog.at_level(logging.DEBUG, logger="discord"):
        logger.debug("POST %s with Bot %s", "/webhooks/123/secret-of-an-interaction", fake.token)
    await discord_.close()

    assert caplog.messages[-1:] == ["POST /webhooks/123/[token] with Bot [token]"]


def test_env_is_all_that_a_process_needs():
    with FakeDiscord() as fake:
        assert sorted(fake.env) == [
            "CKWORKFLOW_DISCORD_API_BASE",
            "CKWORKFLOW_DISCORD_GATEWAY_URL",
            "DISCORD_TOKEN",
        ]
