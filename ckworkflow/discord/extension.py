"""The bot's extension: what `load_extension("ckworkflow.ext.discord")` and `attach(client)` set up and take down.

With no broker configured, the worker runs inside the bot: it starts once the client is logged in and its
`setup_hook` is over, on the bot's own loop, and the bot is what `use_client()` gives. It does not wait for READY:
steps need REST, and a bot of many guilds is minutes behind its login before it is ready. `load_extension` itself
returns at once. With a broker, steps run in processes of their own. In both cases the bot receives webhooks if the settings ask for
it, for as long; with a broker there is else nothing to do here.

All state lives in this module, not in the shim that discord.py loads: discord.py executes an extension
anew at each load and removes it from `sys.modules` at unload.

Not here: the embedded worker and the server of webhooks, which are reached through ports (`Installation`, `WebServer`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import discord
import discord.http

from ckworkflow import integration
from ckworkflow.discord.endpoints import API_BASE, apply_endpoints, require_discord_py
from ckworkflow.discord.integration import LiveBotIntegration
from ckworkflow.discord.redaction import install_log_filter
from ckworkflow.errors import CkWorkflowError, HookContextError
from ckworkflow.scrub import scrub

__all__ = ["attach", "detach"]

logger = logging.getLogger(__name__)


class EmbeddedWorker(Protocol):
    """A worker that runs inside this process."""

    def stop(self) -> None:
        """Let the running steps finish, and block until then; never called on the bot's loop."""
        ...


class Installation(Protocol):
    """What the extension asks of ckworkflow in this process."""

    @property
    def is_embedded(self) -> bool:
        """Whether no broker is configured."""
        ...

    def check_settings(self) -> None:
        """Read the settings; raises the error of one that cannot be used."""
        ...

    def start_embedded(self, *, loop: asyncio.AbstractEventLoop) -> EmbeddedWorker:
        """Start a worker whose async steps run on `loop`; blocks until it consumes."""
        ...


class WebServer(Protocol):
    """A server that receives webhooks, on the running loop."""

    async def start(self) -> object:
        """Listen; raises what stands in the way."""
        ...

    async def stop(self) -> None:
        """Answer what is being received, and listen no more."""
        ...


class _Extension:
    """The extension of one client that runs the worker or the server of webhooks inside itself."""

    def __init__(
        self, client: discord.Client, installation: Installation, server: WebServer | None
    ) -> None:
        self._client = client
        self._installation = installation
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._integration = LiveBotIntegration(client, self._loop)
        self._waiting: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._worker: EmbeddedWorker | None = None
        self._unloading: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._has_signal_handler = False

    def load(self) -> None:
        if self._installation.is_embedded:
            integration.install(self._integration)
        # On the instance, since a plain client has no listeners: discord.py calls `connect` when the login and
        # `setup_hook` are over, and everybody calls `close`.
        self._connect_as_before, self._close_as_before = self._client.connect, self._client.close
        self._client.connect = self._connect  # type: ignore[method-assign]
        self._client.close = self._close  # type: ignore[method-assign]
        self._take_sigterm()
        if self._client.is_ready():
            self._start()
        elif self._client.user is not None:
            # In `setup_hook`, and `connect` comes; or in a client that is connecting already.
            self._waiting = self._loop.create_task(self._start_when_ready())

    async def unload(self) -> None:
        """Drain the worker while the bot can still talk to Discord, then leave no trace."""
        if self._unloading is None:
            self._unloading = self._loop.create_task(self._unload(), name="ckworkflow-unload")
        # Whoever closes the client a second time waits for the same.
        await asyncio.shield(self._unloading)

    async def _unload(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._server is not None:
            await self._server.stop()
        worker, self._worker = self._worker, None
        if worker is not None:
            # In a thread: the steps that it waits for run on this loop.
            await self._loop.run_in_executor(None, worker.stop)
            logger.info("embedded worker stopped")
        integration.uninstall(self._integration)
        self._give_back("connect", self._connect, self._connect_as_before)
        self._give_back("close", self._close, self._close_as_before)
        self._give_sigterm_back()

    def _give_back(self, name: str, ours: object, theirs: object) -> None:
        if vars(self._client).get(name) != ours:
            return  # somebody has wrapped it since
        delattr(self._client, name)
        if getattr(self._client, name) != theirs:
            setattr(self._client, name, theirs)

    async def _connect(self, *args: Any, **kwargs: Any) -> None:
        if self._unloading is None:
            self._start()
        await self._connect_as_before(*args, **kwargs)

    async def _close(self) -> None:
        await detach(self._client)
        await self._close_as_before()

    async def _start_when_ready(self) -> None:
        await self._client.wait_until_ready()
        self._start()

    def _start(self) -> None:
        if self._starting is None:
            self._starting = self._loop.create_task(self._begin(), name="ckworkflow-embedded-worker")

    async def _begin(self) -> None:
        if self._installation.is_embedded:
            await self._start_worker()
        if self._server is not None:
            await self._start_server(self._server)

    async def _start_server(self, server: WebServer) -> None:
        try:
            await server.start()
        except (CkWorkflowError, OSError) as error:
            # The bot lives on, as without a worker; senders try again.
            logger.error("webhooks are not received: %s", error)  # noqa: TRY400  the text says it all
        except Exception:
            logger.exception("webhooks are not received")

    async def _start_worker(self) -> None:
        try:
            self._worker = await self._loop.run_in_executor(
                None, lambda: self._installation.start_embedded(loop=self._loop)
            )
        except CkWorkflowError as error:
            # The bot lives on: its commands answer, and starts are committed for a worker to come.
            logger.error("embedded worker not started: %s", error)  # noqa: TRY400  the text says it all
        except Exception:
            logger.exception("embedded worker not started")
        else:
            logger.info("embedded worker started")

    # --- SIGTERM ---------------------------------------------------------------------------------

    def _take_sigterm(self) -> None:
        """Close the bot in order on SIGTERM, unless somebody else has plans for it.

        discord.py handles Ctrl-C only; what a service manager sends would kill the process in the
        middle of its steps.
        """
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            return
        try:
            self._loop.add_signal_handler(signal.SIGTERM, self._close_bot)
        except NotImplementedError:
            # A Windows loop has no signal handlers.
            return
        self._has_signal_handler = True

    def _close_bot(self) -> None:
        if self._closing is None:
            logger.info("SIGTERM: closing the bot")
            self._closing = self._loop.create_task(self._client.close(), name="ckworkflow-close-bot")

    def _give_sigterm_back(self) -> None:
        if self._has_signal_handler:
            self._loop.remove_signal_handler(signal.SIGTERM)
            self._has_signal_handler = False


def _installation() -> Installation:
    # Late: it reads the configuration, and a bot may set that up after importing us.
    from ckworkflow.engine.installation import current

    return current()


_loaded: WeakKeyDictionary[discord.Client, _Extension] = WeakKeyDictionary()


async def attach(
    client: discord.Client, *, find_server: Callable[[], WebServer | None] = lambda: None
) -> None:
    """Do what `ckworkflow.ext.discord.attach` says.

    Args:
        client: The client.
        find_server: Gives the server of webhooks, if the settings ask for one.

    Raises:
        TypeError: It is no client.
        HookContextError: Another client of this process runs the embedded worker.
        DiscordLibraryError: `discord` is not discord.py.
        InvalidSettingError: An address in the environment is no URL; or a setting cannot be used.
        CkWorkflowError: Another setting cannot be used: the error names it.
    """
    require_discord_py()
    if not isinstance(client, discord.Client):
        raise TypeError(f"attach takes a discord.Client, made by you, and got {client!r}.")
    before = discord.http.Route.BASE
    apply_endpoints()
    if client.user is not None and before != discord.http.Route.BASE:
        logger.warning(
            "the bot had logged in at %s before %s was read: import ckworkflow in the file that starts the bot, "
            "or load the extension before bot.start()",
            scrub(before),
            API_BASE,
        )
    install_log_filter()
    installation = _installation()
    installation.check_settings()
    if not installation.is_embedded:
        logger.info(
            "a broker is configured: steps run in workers of their own (`celery -A ckworkflow worker`), not here"
        )
    if client in _loaded:
        return
    server = find_server()
    if not installation.is_embedded and (server is None or _loaded):
        return  # what another bot of this process receives is received
    if _loaded:
        raise HookContextError(
            "load_extension",
            "another bot of this process has loaded ckworkflow.ext.discord and runs the embedded worker. "
            "Run each bot in a process of its own, or configure a broker.",
        )
    extension = _Extension(client, installation, server)
    _loaded[client] = extension
    extension.load()


async def detach(client: discord.Client) -> None:
    """Take everything down again; the embedded worker lets its steps finish first, and what is being received is answered.

    A client that closes does it itself. One that is not attached is left alone.
    """
    extension = _loaded.get(client)
    if extension is None:
        return
    await extension.unload()
    _loaded.pop(client, None)
