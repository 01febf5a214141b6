"""The bot's extension: what `load_extension("ckworkflow.ext.discord")` sets up, and takes down again.

With no broker configured, the worker runs inside the bot: it starts after READY, on the bot's own loop, and
the bot is what `use_client()` gives. `load_extension` itself returns at once. With a broker, steps run in
processes of their own, and there is nothing to do here.

All state lives in this module, not in the shim that discord.py loads: discord.py executes an extension
anew at each load and removes it from `sys.modules` at unload.

Not here: the embedded worker itself, which is reached through a port (`Installation`).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import discord.http

from ckworkflow import integration
from ckworkflow.discord.endpoints import API_BASE, apply_endpoints, require_discord_py
from ckworkflow.discord.integration import LiveBotIntegration
from ckworkflow.discord.redaction import install_log_filter
from ckworkflow.errors import CkWorkflowError, HookContextError

if TYPE_CHECKING:
    from discord.ext import commands

__all__ = ["setup", "teardown"]

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

    def start_embedded(self, *, loop: asyncio.AbstractEventLoop) -> EmbeddedWorker:
        """Start a worker whose async steps run on `loop`; blocks until it consumes."""
        ...


class _Extension:
    """The extension of one bot that runs the worker inside itself."""

    def __init__(self, bot: commands.Bot, installation: Installation) -> None:
        self._bot = bot
        self._installation = installation
        self._loop = asyncio.get_running_loop()
        self._integration = LiveBotIntegration(bot, self._loop)
        self._starting: asyncio.Task[None] | None = None
        self._worker: EmbeddedWorker | None = None
        self._closing: asyncio.Task[None] | None = None
        self._has_signal_handler = False

    def load(self) -> None:
        integration.install(self._integration)
        self._bot.add_listener(self.on_ready)
        self._take_sigterm()
        if self._bot.is_ready():
            self._start()

    async def unload(self) -> None:
        """Drain the worker while the bot can still talk to Discord, then leave no trace."""
        self._bot.remove_listener(self.on_ready)
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        worker, self._worker = self._worker, None
        if worker is not None:
            # In a thread: the steps that it waits for run on this loop.
            await self._loop.run_in_executor(None, worker.stop)
            logger.info("embedded worker stopped")
        integration.uninstall(self._integration)
        self._give_sigterm_back()

    async def on_ready(self) -> None:
        """Start the worker at the first READY; a bot that reconnects hears of more."""
        self._start()

    def _start(self) -> None:
        if self._starting is None:
            self._starting = self._loop.create_task(
                self._start_worker(), name="ckworkflow-embedded-worker"
            )

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
            self._closing = self._loop.create_task(self._bot.close(), name="ckworkflow-close-bot")

    def _give_sigterm_back(self) -> None:
        if self._has_signal_handler:
            self._loop.remove_signal_handler(signal.SIGTERM)
            self._has_signal_handler = False


def _installation() -> Installation:
    # Late: it reads the configuration, and a bot may set that up after importing us.
    from ckworkflow.engine.installation import current

    return current()


_loaded: WeakKeyDictionary[commands.Bot, _Extension] = WeakKeyDictionary()


async def setup(bot: commands.Bot) -> None:
    """Set up ckworkflow in a bot's process. discord.py calls it.

    Raises:
        HookContextError: Another bot of this process runs the embedded worker.
        DiscordLibraryError: `discord` is not discord.py.
        InvalidSettingError: An address in the environment is no URL.
    """
    require_discord_py()
    before = discord.http.Route.BASE
    apply_endpoints()
    if bot.user is not None and before != discord.http.Route.BASE:
        logger.warning(
            "the bot had logged in at %s before %s was read: load the extension before bot.start()",
            before,
            API_BASE,
        )
    install_log_filter()
    installation = _installation()
    if not installation.is_embedded:
        logger.info("broker configured: steps run in workers of their own")
        return
    if _loaded:
        raise HookContextError(
            "load_extension",
            "another bot of this process has loaded ckworkflow.ext.discord and runs the embedded worker. "
            "Run each bot in a process of its own, or configure a broker.",
        )
    extension = _Extension(bot, installation)
    _loaded[bot] = extension
    extension.load()


async def teardown(bot: commands.Bot) -> None:
    """Take everything down again. discord.py calls it, also as the bot closes."""
    extension = _loaded.pop(bot, None)
    if extension is not None:
        await extension.unload()
