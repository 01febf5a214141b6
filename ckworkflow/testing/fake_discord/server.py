"""The fake as a server: one aiohttp application on one loop, in a thread or as a program.

Needs aiohttp (`pip install "ckworkflow[test]"`); the face imports this module only when it starts one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from typing import TYPE_CHECKING

from aiohttp import web

from .api import API_PREFIX, RestApi
from .control import ControlPlane
from .gateway import Gateway
from .wire import FakeDiscordError, Payload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.typedefs import Handler

    from .state import World


@web.middleware
async def _refuse_browsers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a browser sends for a page: a site that somebody visits must not reach a fake on their machine.

    Browsers name the page's origin with every POST and WebSocket to another one, and no bot does.
    """
    if "Origin" in request.headers:
        return web.json_response({"error": "FakeDiscord takes no requests from web pages."}, status=403)
    return await handler(request)


class FakeServer:
    """One fake Discord that listens on a port of this machine."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._api = RestApi(world)
        self._gateway = Gateway(world)
        self._runner: web.AppRunner | None = None
        self.control: ControlPlane

    async def start(self, host: str, port: int) -> Payload:
        """Listen; the addresses."""
        app = web.Application(client_max_size=64 * 1024 * 1024, middlewares=[_refuse_browsers])
        app.router.add_route("*", API_PREFIX + "/{path:.*}", self._api.handle)
        app.router.add_get("/gateway", self._gateway.handle)
        app.router.add_get("/gateway/", self._gateway.handle)
        app.router.add_post("/control/{operation}", self._handle_control)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handle_signals=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        bound = self._runner.addresses[0][1]
        self._world.gateway_url = f"ws://{host}:{bound}/gateway"
        info: Payload = {
            "api_base": f"http://{host}:{bound}{API_PREFIX}",
            "gateway_url": self._world.gateway_url,
            "control_url": f"http://{host}:{bound}/control",
        }
        self.control = ControlPlane(self._world, self._gateway, self._api, info)
        return info

    async def stop(self) -> None:
        """Close every socket and stop listening."""
        self._api.stop()
        self._gateway.drop(1001)
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle_control(self, request: web.Request) -> web.Response:
        arguments = json.loads(await request.text() or "{}")
        try:
            result = await self.control.run(request.match_info["operation"], arguments)
        except (FakeDiscordError, TypeError, KeyError) as error:
            text = str(error) if isinstance(error, FakeDiscordError) else repr(error)
            return web.json_response({"error": text}, status=400)
        return web.json_response({"result": result})


class ServerThread:
    """A fake in this process, on a thread and a loop of its own, so that a test may block."""

    def __init__(self, world: World) -> None:
        self._server = FakeServer(world)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fake-discord", daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        with contextlib.suppress(RuntimeError):
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def start(self, host: str, port: int) -> Payload:
        """Start the thread and listen; the addresses."""
        self._thread.start()
        try:
            return asyncio.run_coroutine_threadsafe(self._server.start(host, port), self._loop).result(
                10
            )
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise

    def stop(self) -> None:
        """Stop listening and end the thread."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _stop(self) -> None:
        await self._server.stop()
        tasks = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def call(self, operation: str, arguments: Mapping[str, object]) -> object:
        """Run one operation of the control plane from any thread but the fake's."""
        if not self._thread.is_alive():
            raise FakeDiscordError("This FakeDiscord is not running: use it in a `with` block.")
        run = self._server.control.run(operation, arguments)
        return asyncio.run_coroutine_threadsafe(run, self._loop).result(60)
