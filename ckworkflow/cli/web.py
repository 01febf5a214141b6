"""`web`: a server that receives webhooks, until it is told to stop.

Not here: the server itself (`ckworkflow.web`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

import click

from ckworkflow.cli.home import Home, pass_home
from ckworkflow.cli.printing import say
from ckworkflow.errors import InvalidSettingError

if TYPE_CHECKING:
    from ckworkflow.engine.settings import WebSettings

__all__ = ["web"]

PORT = 8080


@click.command("web")
@click.option("--host", help="The address to listen on; else workflow_web_host: 127.0.0.1.")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=PORT, show_default=True,
    help="The port; 0: one that is free.",
)  # fmt: skip
@pass_home
def web(home: Home, host: str | None, port: int) -> None:
    """Receive webhooks.

    Requests are taken below the path of workflow_web_url. Ctrl-C or SIGTERM ends it: what is being received is answered first.
    """
    settings = home.settings.web
    if settings.url is None:
        reason = "it says where webhooks are found from outside, such as 'https://bot.example.com/hooks'"
        raise InvalidSettingError("workflow_web_url", None, reason)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # A body that waits for a request goes on here, without waiting for the clock of a worker.
    for error in home.load_workflows():
        say(f"Warning: {error}", err=True)
    try:
        asyncio.run(_serve(settings, host or settings.host, port))
    except OSError as error:
        raise click.ClickException(
            f"Cannot listen on {host or settings.host}:{port}: {error}"
        ) from error


async def _serve(settings: WebSettings, host: str, port: int) -> None:
    try:
        from ckworkflow.web.server import WebServer
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error}. Webhooks need aiohttp: pip install 'ckworkflow[web]'"
        ) from error
    loop, is_over = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, is_over.set)
        except NotImplementedError:  # of Windows, where Ctrl-C raises
            break
    server = WebServer(host, port, url=settings.url)
    address = await server.start()
    say(f"Receiving webhooks of {settings.url} at {address}")
    try:
        await is_over.wait()
    finally:
        await server.stop()
    say("Stopped.")
