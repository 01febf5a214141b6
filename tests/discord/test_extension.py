"""The bot's extension: load, READY, unload, reload, SIGTERM. The embedded worker stands behind a port here."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading

import pytest
from discord.ext import commands

from ckworkflow import integration
from ckworkflow.discord import apply_endpoints, extension
from ckworkflow.discord.integration import LiveBotIntegration
from ckworkflow.errors import DatabaseUnavailableError, HookContextError
from discord_bots import FastBot, connected

NAME = "ckworkflow.ext.discord"


class Installation:
    """Records what the extension asks of the process."""

    def __init__(self, *, is_embedded: bool = True) -> None:
        self.is_embedded = is_embedded
        self.story: list[str] = []
        self.loop: asyncio.AbstractEventLoop | None = None
        self.error: Exception | None = None
        self.stopping = threading.Event()
        self.may_stop = threading.Event()
        self.may_stop.set()

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


async def test_the_worker_starts_after_ready_on_the_bots_loop_and_stops_before_the_bot_is_closed(
    fake, installation
):
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
