"""The server of webhooks: for `ckworkflow web`, and for a bot that receives them itself.

Guarantee: once `stop` was called nothing new is accepted, and what is being received is answered first, for a few seconds at most.

Not here: what is answered (`ckworkflow.web.application`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final
from urllib.parse import unquote, urlsplit

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ckworkflow.engine.installation import current
from ckworkflow.web.application import Receiver
from ckworkflow.web.redaction import install_log_filter

__all__ = ["WebServer", "server_for_bot"]

logger = logging.getLogger(__name__)
# Of its own, with a filter: aiohttp's errors quote the requests that they are about.
_aiohttp = logging.getLogger(f"{__name__}.aiohttp")

STOP_SECONDS: Final = 10.0
"""How long requests that are being received may take, when the server stops."""
ANSWER_SECONDS: Final = 2.0
"""How long the last answers may then take to be sent; what is received still is given up."""
LINGER_SECONDS: Final = 2.0
"""How long what is refused is read on and thrown away, so that its sender hears the answer."""
IDLE_SECONDS: Final = 75.0
"""How long a connection stays open without a request; longer than proxies keep theirs, which is a minute as a rule."""


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a record is not about a request that is no HTTP: scanners send many, and each would be a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


_aiohttp.addFilter(_is_ours)


class WebServer:
    """A server that receives webhooks on the running loop; to be started once.

    Args:
        host: On which address it listens.
        port: On which port; 0: one that is free.
        url: `workflow_web_url`: the path of it is the one that is served.
    """

    def __init__(self, host: str, port: int, *, url: str | None) -> None:
        self._host, self._port = host, port
        self._path = unquote(urlsplit(url or "").path).rstrip("/")
        self._runner: web.AppRunner | None = None
        self._receiver = Receiver(is_inflated=False)

    async def start(self) -> str:
        """Listen; return the address, with the path below which webhooks are.

        Raises:
            OSError: The address or the port cannot be listened on.
            CkWorkflowError: A setting cannot be used.
        """
        app = self._receiver.app
        if self._path:
            app = web.Application()
            app.add_subapp(self._path, self._receiver.app)
        install_log_filter(_aiohttp)
        runner = web.AppRunner(
            app, access_log=None, logger=_aiohttp, auto_decompress=False, keepalive_timeout=IDLE_SECONDS,
            lingering_time=LINGER_SECONDS, shutdown_timeout=ANSWER_SECONDS, handle_signals=False,
        )  # fmt: skip
        try:
            await runner.setup()
            site = web.TCPSite(runner, self._host, self._port)
            await site.start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        host = f"[{self._host}]" if ":" in self._host else self._host
        address = f"http://{host}:{runner.addresses[0][1]}{self._path}"
        logger.info("webhooks are received at %s", address)
        return address

    async def stop(self) -> None:
        """Stop; see the module."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for site in runner.sites:
            await site.stop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._receiver.drain(), STOP_SECONDS)
        await runner.cleanup()


def server_for_bot() -> WebServer | None:
    """Return the server of a bot, not yet started; `None`: `workflow_web_port` does not ask for one.

    Raises:
        CkWorkflowError: A setting cannot be used.
    """
    settings = current().engine.settings.web
    return None if settings.port is None else WebServer(settings.host, settings.port, url=settings.url)
