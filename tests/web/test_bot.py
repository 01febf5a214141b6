"""A bot that receives webhooks itself: from its login to its close, with a worker inside it or without."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from ckworkflow import start
from ckworkflow.discord import apply_endpoints, extension, reset_endpoints
from ckworkflow.engine.settings import WebSettings
from ckworkflow.ext.discord import attach
from ckworkflow.testing import FakeDiscord, environment
from ckworkflow.worker import web_settings
from discord_bots import FastBot, connected
from web import web_flows as flows

pytestmark = pytest.mark.fast
BASE = "https://bot.example.com/hooks"
NAME = "ckworkflow.ext.discord"


class Bot(FastBot):
    async def setup_hook(self) -> None:
        await self.load_extension(NAME)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def with_fake(test: Callable[[FakeDiscord], Awaitable[Any]]) -> None:
    with FakeDiscord() as fake:
        apply_endpoints(fake.env)
        try:
            asyncio.run(test(fake))
        finally:
            reset_endpoints()


@contextlib.asynccontextmanager
async def in_reach(port: int) -> AsyncIterator[aiohttp.ClientSession]:
    """A client, once somebody listens."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(aiohttp.ClientConnectorError):
                    async with client.get("/"):
                        break
        yield client


def test_a_bot_receives_webhooks_until_it_is_closed(monkeypatch, caplog):
    caplog.set_level("INFO", "ckworkflow")
    port = free_port()
    monkeypatch.setattr(web_settings, "read", lambda _: WebSettings(url=BASE, port=port))

    async def test(fake: FakeDiscord) -> None:
        async with environment() as env, connected(Bot(), fake) as bot:
            run = await start(flows.one)
            await env.settle()
            async with in_reach(port) as client:
                path = flows.urls[-1].removeprefix("https://bot.example.com")
                async with client.post(path, data=b"x") as answer:
                    assert answer.status == 202
                assert (await run.return_value())["body"] == b"x"
                await bot.reload_extension(NAME)
            async with in_reach(port) as client:
                await bot.close()
                with pytest.raises(aiohttp.ClientConnectorError):
                    await client.post(path)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    with_fake(test)
    assert f"webhooks are received at http://127.0.0.1:{port}/hooks" in caplog.text


def test_a_port_that_is_taken_leaves_the_bot_alive(monkeypatch, caplog):
    async def test(fake: FakeDiscord) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            settings = WebSettings(url=BASE, port=taken.getsockname()[1])
            monkeypatch.setattr(web_settings, "read", lambda _: settings)
            async with environment(), connected(Bot(), fake) as bot:
                await fake.until(lambda: "webhooks are not received" in caplog.text)
                assert (await bot.fetch_user(fake.bot.id)).id == fake.bot.id

    with_fake(test)


def test_a_bot_whose_settings_ask_for_none_listens_nowhere(monkeypatch):
    monkeypatch.setattr(web_settings, "read", lambda _: WebSettings(url=BASE))

    async def test(fake: FakeDiscord) -> None:
        async with environment(), connected(Bot(), fake) as bot:
            assert bot not in extension._loaded

    with_fake(test)


def test_a_second_bot_of_the_process_leaves_it_to_the_first(monkeypatch):
    port = free_port()
    monkeypatch.setattr(web_settings, "read", lambda _: WebSettings(url=BASE, port=port))

    async def test(fake: FakeDiscord) -> None:
        async with environment(), connected(Bot(), fake) as bot:
            second = FastBot()
            await attach(second)
            assert list(extension._loaded) == [bot]
            await attach(bot)

    with_fake(test)


def test_webhooks_are_received_while_the_embedded_worker_is_up(monkeypatch):
    story: list[str] = []

    class Parts:
        """The worker, and the server."""

        is_embedded = True

        def check_settings(self) -> None: ...

        def start_embedded(self, *, loop: object) -> Any:
            story.append("worker up")
            return self

        def stop(self) -> Any:
            story.append("worker down")

    class Server:
        async def start(self) -> None:
            story.append("server up")

        async def stop(self) -> None:
            story.append("server down")

    monkeypatch.setattr(extension, "_installation", Parts)

    async def test(fake: FakeDiscord) -> None:
        bot = FastBot()
        await extension.attach(bot, find_server=Server)
        async with connected(bot, fake):
            await fake.until(lambda: len(story) == 2)

    with_fake(test)
    assert story == ["worker up", "server up", "server down", "worker down"]
