"""FakeDiscord and the process around it: where discord.py points, and bots that die."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from concurrent.futures import Future

import aiohttp
import discord
import discord.http
import pytest

from ckworkflow.testing import FakeDiscord, FakeDiscordError

BOT = """
from discord.ext import commands
import discord
import ckworkflow

class Bot(commands.Bot):
    async def setup_hook(self):
        await self.load_extension("ckworkflow.ext.discord")
        raise SystemExit(7)

Bot("!", intents=discord.Intents.none()).run(__import__("os").environ["DISCORD_TOKEN"])
"""


def test_a_bot_that_loads_the_extension_in_setup_hook_logs_in_at_the_fake(tmp_path):
    with FakeDiscord() as fake:
        bot = subprocess.run(
            [sys.executable, "-c", BOT],
            cwd=tmp_path,
            env=os.environ | fake.env,
            capture_output=True,
            text=True,
        )
        calls = [each.path for each in fake.calls]

    assert bot.returncode == 7, bot.stderr
    assert calls[:2] == ["/users/@me", "/oauth2/applications/@me"]


async def test_a_client_of_the_process_of_a_fake_is_pointed_at_it():
    before = discord.http.Route.BASE
    with FakeDiscord() as first:
        with FakeDiscord() as fake:
            async with discord.Client(intents=discord.Intents.none()) as client:
                await client.login(fake.token)
                assert client.user.id == fake.bot.id
        assert discord.http.Route.BASE == first.api_base
    assert discord.http.Route.BASE == before


def test_waiting_for_a_bot_ends_when_its_process_has_ended():
    with FakeDiscord() as fake:
        bot = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
        with pytest.raises(FakeDiscordError, match="exit code 3 before it connected"):
            fake.wait_for_bot(bot=bot)
        future = Future()
        future.set_exception(discord.LoginFailure("no"))
        with pytest.raises(FakeDiscordError, match="raised LoginFailure"):
            fake.wait_for_bot(bot=future)


async def test_waiting_for_a_bot_ends_when_its_task_has_ended():
    async with FakeDiscord() as fake, discord.Client(intents=discord.Intents.none()) as client:
        with pytest.raises(FakeDiscordError, match="raised LoginFailure") as caught:
            await fake.until_bot(bot=asyncio.create_task(client.start("refused")))

    assert isinstance(caught.value.__cause__, discord.LoginFailure)


async def test_a_bot_that_lives_is_waited_for_as_long_as_was_said():
    async with FakeDiscord() as fake:
        with pytest.raises(TimeoutError):
            await fake.until_bot(0.01, bot=asyncio.get_running_loop().create_future())


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/control/add_guild"), ("GET", "/gateway"), ("POST", "/api/v10/users/@me/channels")],
)
async def test_a_web_page_cannot_use_a_fake_on_the_machine_of_its_reader(method, path):
    with FakeDiscord() as fake:
        url = fake.control_url.removesuffix("/control") + path
        headers = {"Origin": "https://evil.example", "Authorization": f"Bot {fake.token}"}
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, headers=headers, json={"name": "Home"}) as answer,
        ):
            assert answer.status == 403
        assert fake.call("sessions") == []
        assert fake.calls == []
