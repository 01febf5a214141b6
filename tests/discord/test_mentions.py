"""Mentions: a step pings nobody by default, in the bot and in a worker; the bot's own commands keep its setting."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

import aiohttp
import discord
import pytest

from ckworkflow.context import StepContext
from ckworkflow.discord import DiscordIntegration, LiveBotIntegration
from discord_bots import FastBot, connected

LOUD = discord.AllowedMentions.all()
SILENT = {"parse": []}


@contextlib.asynccontextmanager
async def bot_with(fake, setting):
    async with connected(FastBot(allowed_mentions=setting), fake) as bot:
        live = LiveBotIntegration(bot, asyncio.get_running_loop())
        await live.open()
        try:
            yield bot, live
        finally:
            await live.close()


@contextlib.asynccontextmanager
async def worker_client(fake):
    discord_ = DiscordIntegration(fake.token)
    await discord_.open()
    try:
        yield discord_.client(), discord_
    finally:
        await discord_.close()


def a_step() -> StepContext:
    return StepContext("r", "w", "0:1", "s", 1, 4, "r/0:1", datetime.now(UTC), None)


def mentions(fake) -> list:
    """What each send and edit so far allowed; `None`: it left that to Discord, which pings everybody."""
    bodies = [each.json for each in fake.calls if each.method in ("POST", "PATCH")]
    return [each.get("allowed_mentions") for each in bodies if "content" in each]


@pytest.mark.parametrize("setting", [None, LOUD])
async def test_a_step_in_the_bot_pings_nobody_and_the_bot_keeps_its_setting(fake, setting):
    general = fake.add_guild("Home").channel("general")
    async with bot_with(fake, setting) as (bot, live):
        channel = bot.get_partial_messageable(general.id)
        with live.step(a_step()):
            message = await channel.send("@everyone")
            await message.edit(content="@here")
            await message.reply("@everyone")
        await channel.send("@everyone")
        assert bot.allowed_mentions is setting
    in_step, own = mentions(fake)[:3], mentions(fake)[3]

    assert [each["parse"] for each in in_step] == [[], [], []]
    assert own == (setting and setting.to_dict())


async def test_a_step_in_a_worker_pings_nobody(fake):
    general = fake.add_guild("Home").channel("general")
    async with worker_client(fake) as (client, integration):
        with integration.step(a_step()):
            await client.get_partial_messageable(general.id).send("@everyone")

    assert mentions(fake) == [SILENT]


@pytest.mark.parametrize(
    "place", [lambda fake: bot_with(fake, LOUD), worker_client], ids=["bot", "worker"]
)
async def test_a_webhook_made_with_a_session_pings_nobody_in_a_step(fake, place):
    async with place(fake) as (_, integration), aiohttp.ClientSession() as session:
        webhook = discord.Webhook.partial(1, "token-of-a-webhook", session=session)
        # The fake knows no such webhook; what it was asked to send is what counts.
        with integration.step(a_step()), pytest.raises(discord.HTTPException):
            await webhook.send("@everyone")
        with pytest.raises(discord.HTTPException):
            await webhook.send("@everyone")

    assert mentions(fake) == [SILENT, None]


@pytest.mark.parametrize(
    "place", [lambda fake: bot_with(fake, LOUD), worker_client], ids=["bot", "worker"]
)
async def test_a_step_that_names_whom_to_ping_pings_them_alone(fake, place):
    general, ada = fake.add_guild("Home").channel("general"), fake.add_user("ada")
    async with place(fake) as (client, integration):
        with integration.step(a_step()):
            await client.get_partial_messageable(general.id).send(
                f"{ada.mention} @everyone", allowed_mentions=discord.AllowedMentions(users=[ada])
            )

    assert mentions(fake) == [{"parse": [], "users": [ada.id]}]


async def test_closing_leaves_discord_py_as_it_was(fake):
    state = discord.client.ConnectionState
    before = dict(vars(state)), vars(discord.webhook.async_._WebhookState)["allowed_mentions"]

    async with worker_client(fake):
        assert "allowed_mentions" in vars(state)

    assert (dict(vars(state)), vars(discord.webhook.async_._WebhookState)["allowed_mentions"]) == before
