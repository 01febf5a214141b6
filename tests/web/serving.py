"""A server of webhooks on a real port, in an environment, and a real client."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from ckworkflow.engine.settings import WebSettings
from ckworkflow.testing import Environment, environment
from ckworkflow.web import webhook_app
from ckworkflow.web.server import WebServer
from ckworkflow.worker import web_settings
from web import web_flows as flows

BASE = "https://bot.example.com/hooks"
KINDS = ["own", "mounted"]


@dataclass
class Served:
    """What a test has."""

    env: Environment
    client: aiohttp.ClientSession
    address: str

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2].partition("/")[0])

    def local(self, url: str) -> str:
        """Where the server of the test has what is found at a URL from outside."""
        return self.address + "/" + url.rpartition("/")[2]

    async def url(self) -> str:
        """The last URL that a step was told of, on the server of the test."""
        await self.env.settle()
        return self.local(flows.urls[-1])

    async def post(self, url: Any, data: Any = None, **options: Any) -> int:
        """Send, and return the status of the answer."""
        if isinstance(data, bytes):  # of which aiohttp's client takes no large ones
            data = io.BytesIO(data)
        async with self.client.post(url, data=data, **options) as answer:
            return answer.status


def served(
    test: Callable[[Served], Awaitable[Any]], monkeypatch: Any, *, kind: str = "own", always_replay: bool = False,
    **settings: Any,
) -> Any:  # fmt: skip
    """Run a test in an environment of its own, with a server."""
    found = WebSettings(**{"url": BASE, **settings})
    monkeypatch.setattr(web_settings, "read", lambda _: found)

    async def main() -> Any:
        async with (
            environment(always_replay=always_replay) as env,
            serving(kind) as address,
            aiohttp.ClientSession() as client,
        ):
            return await test(Served(env, client, address))

    return asyncio.run(main())


@contextlib.asynccontextmanager
async def serving(kind: str) -> AsyncIterator[str]:
    if kind == "own":
        server = WebServer("127.0.0.1", 0, url=BASE)
        address = await server.start()
        try:
            yield address
        finally:
            await server.stop()
        return
    app = web.Application()
    app.add_subapp("/hooks", webhook_app())
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hooks"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def connection(at: Served) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Bytes to and from the server, as they are."""
    reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
