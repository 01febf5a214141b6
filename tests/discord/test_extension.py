"""The bot's extension: load, login, unload, reload, SIGTERM. The embedded worker stands behind a port here."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading

import discord
import pytest
from discord.ext import commands

from ckworkflow import integration
from ckworkflow.discord import apply_endpoints, extension
from ckworkflow.discord.integration import LiveBotIntegration
from ckworkflow.errors import DatabaseUnavailableError, HookContextError, InvalidSettingError
from ckworkflow.ext.discord import attach, detach
from discord_bots import FastBot, connected

NAME = "ckworkflow.ext.discord"


class Installation:
    """Records what the extension asks of the process."""

    def __init__(self, *, is_embedded: bool = True) -> None:
        self.is_embedded = is_embedded
        self.story: list[str] = []
        self.loop: asyncio.AbstractEventLoop | None = None
        self.error: Exception | None = None
        self.setting_error: Exception | None = None
        self.stopping = threading.Event()
        self.may_stop = threading.Event()
        self.may_stop.set()

    def check_settings(self) -> None:
        if self.setting_error:
            raise self.setting_error

    def start_embedded(self, *, loop):
        assert threading.current_thread() is not threading.main_thread()
        if self.error:
            raise self.error
        self.loop = loop
        self.story.append("started")
        return self

    def stop(self) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.stopping.set()
        assert self.may_stop.wait(5)
        self.story.append("stopped")


@pytest.fixture
def installation(monkeypatch) -> Installation:
    found = Installation()
    monkeypatch.setattr(extension, "_installation", lambda: found)
    return found


class ExtendedBot(FastBot):
    async def setup_hook(self) -> None:
        await self.load_extension(NAME)


async def test_the_worker_starts_on_the_bots_loop_and_stops_before_the_bot_is_closed(fake, installation):
    bot = ExtendedBot()
    async with connected(bot, fake):
        await fake.until(lambda: installation.story)
        assert installation.loop is asyncio.get_running_loop()
        assert [type(each) for each in integration.installed()] == [LiveBotIntegration]
        installation.may_stop.clear()
        closing = asyncio.create_task(bot.close())
        await fake.until(installation.stopping.is_set)
        # The steps that are being drained can still talk to Discord.
        assert (await bot.fetch_user(fake.bot.id)).name == "fake-bot"
        installation.may_stop.set()
        await closing

    assert installation.story == ["started", "stopped"]
    assert integration.installed() == []


async def test_loading_before_the_login_returns_at_once(fake, installation):
    bot = FastBot()
    await bot.load_extension(NAME)
    assert installation.story == []

    async with connected(bot, fake):
        await fake.until(lambda: installation.story == ["started"])


@pytest.mark.parametrize("is_early", [True, False], ids=["before the login", "in setup_hook"])
async def test_the_worker_starts_after_setup_hook_and_does_not_wait_for_ready(
    fake, installation, is_early
):
    """READY of a bot with many guilds, whose members are fetched first, comes minutes after the login."""

    class Bot(commands.Bot):
        async def setup_hook(self) -> None:
            if not is_early:
                await self.load_extension(NAME)
            await asyncio.wait({asyncio.create_task(self.fetch_user(fake.bot.id))})
            assert installation.story == []
            installation.story.append("set up")

    bot = Bot("!", intents=discord.Intents.all(), guild_ready_timeout=60)
    if is_early:
        await bot.load_extension(NAME)
    running = asyncio.create_task(bot.start(fake.token))
    await fake.until(lambda: len(installation.story) > 1)

    assert installation.story == ["set up", "started"]
    assert not bot.is_ready()
    while bot.ws is None:  # until then discord.py's `close` breaks its own `connect`
        await asyncio.sleep(0)
    await bot.close()
    await running


async def attached_early(client, start):
    await attach(client)
    await start()


async def attached_in_setup_hook(client, start):
    client.setup_hook = lambda: attach(client)
    await start()


async def attached_when_it_runs(client, start):
    await start()
    await attach(client)


@pytest.mark.parametrize("when", [attached_early, attached_in_setup_hook, attached_when_it_runs])
@pytest.mark.parametrize("kind", [discord.Client, discord.AutoShardedClient, commands.Bot])
async def test_any_client_can_be_attached_and_is_left_as_it_was(fake, installation, kind, when):
    words = {"command_prefix": "!"} if kind is commands.Bot else {}
    client = kind(intents=discord.Intents.none(), guild_ready_timeout=0.01, **words)
    tasks = []

    async def start() -> None:
        tasks.append(asyncio.create_task(client.start(fake.token)))
        await fake.until(lambda: fake.connected_bots or tasks[0].done())

    await when(client, start)
    await attach(client)
    await fake.until(lambda: installation.story == ["started"])
    await client.close()
    await asyncio.gather(*tasks)

    assert installation.story == ["started", "stopped"]
    assert integration.installed() == []
    assert not {"connect", "close"} & vars(client).keys()


async def test_whoever_closes_a_second_time_waits_for_the_steps_too(fake, installation):
    client = discord.Client(intents=discord.Intents.none())
    await attach(client)
    running = asyncio.create_task(client.start(fake.token))
    await fake.until(lambda: installation.story)
    installation.may_stop.clear()
    first = asyncio.create_task(client.close())
    await fake.until(installation.stopping.is_set)
    second = asyncio.create_task(client.close())
    await client.fetch_user(fake.bot.id)

    assert not first.done()
    assert not second.done()
    installation.may_stop.set()
    await asyncio.gather(first, second, running)


async def test_detaching_stops_the_worker_and_the_client_goes_on(fake, installation):
    client = discord.Client(intents=discord.Intents.none())
    await attach(client)
    running = asyncio.create_task(client.start(fake.token))
    await fake.until(lambda: installation.story)
    await detach(client)
    await detach(client)

    assert installation.story == ["started", "stopped"]
    assert (await client.fetch_user(fake.bot.id)).id == fake.bot.id
    await client.close()
    await running


async def test_what_is_no_client_is_refused(installation):
    with pytest.raises(TypeError, match="takes a discord.Client"):
        await attach(discord.Client)


async def test_an_address_that_is_read_after_the_login_is_told(fake, installation, monkeypatch, caplog):
    monkeypatch.setenv("CKWORKFLOW_DISCORD_API_BASE", fake.api_base)
    async with connected(FastBot(), fake) as bot:
        await bot.load_extension(NAME)
        assert caplog.text.count("load the extension before bot.start()") == 0
        await bot.unload_extension(NAME)
        monkeypatch.setenv("CKWORKFLOW_DISCORD_API_BASE", "http://proxy.invalid/api/v10")
        await bot.load_extension(NAME)
        assert caplog.text.count("load the extension before bot.start()") == 1
        apply_endpoints(fake.env)


async def test_a_bot_that_reconnects_starts_no_second_worker(fake, installation):
    ready = []

    async def on_ready() -> None:
        ready.append("again")

    async with connected(ExtendedBot(), fake) as bot:
        bot.add_listener(on_ready)
        await fake.until(lambda: installation.story)
        fake.drop_gateway(resumable=False)
        await fake.until(lambda: ready)

        assert installation.story == ["started"]


async def test_unload_and_reload_work_on_a_running_bot(fake, installation):
    async with connected(ExtendedBot(), fake) as bot:
        await fake.until(lambda: installation.story == ["started"])
        await bot.reload_extension(NAME)
        await fake.until(lambda: installation.story == ["started", "stopped", "started"])
        await bot.unload_extension(NAME)
        assert installation.story[-1] == "stopped"
        assert NAME not in sys.modules
        await bot.load_extension(NAME)
        await fake.until(lambda: installation.story[-1] == "started")


async def test_with_a_broker_nothing_is_started(fake, installation):
    installation.is_embedded = False

    async with connected(ExtendedBot(), fake):
        assert integration.installed() == []
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    assert installation.story == []


async def test_a_worker_that_cannot_start_leaves_the_bot_alive(fake, installation, caplog):
    installation.error = DatabaseUnavailableError("postgresql://db/ck", "connection refused")

    async with connected(ExtendedBot(), fake) as bot:
        await fake.until(lambda: "embedded worker not started" in caplog.text)
        assert "connection refused" in caplog.text
        assert bot.is_ready()


@pytest.mark.parametrize("is_embedded", [True, False])
async def test_a_setting_that_cannot_be_used_stops_the_bot(fake, installation, is_embedded):
    installation.is_embedded = is_embedded
    installation.setting_error = InvalidSettingError("workflow_package", "x", "there is no such setting")

    with pytest.raises(commands.ExtensionFailed) as caught:
        await FastBot().load_extension(NAME)

    assert caught.value.__cause__ is installation.setting_error
    assert installation.story == []


async def test_a_second_bot_of_the_process_is_told_so(fake, installation):
    async with connected(ExtendedBot(), fake):
        with pytest.raises(commands.ExtensionFailed) as caught:
            await FastBot().load_extension(NAME)

    assert isinstance(caught.value.__cause__, HookContextError)


async def test_sigterm_closes_the_bot_in_order(fake, installation):
    async with connected(ExtendedBot(), fake) as bot:
        await fake.until(lambda: installation.story)
        os.kill(os.getpid(), signal.SIGTERM)
        await fake.until(bot.is_closed)

    assert installation.story == ["started", "stopped"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_a_sigterm_handler_of_the_users_own_is_left_alone(fake, installation):
    def mine(*_) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        async with connected(ExtendedBot(), fake):
            assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
