"""What Discord plugs into a runtime: a client of its own in workers, the user's bot in the bot's process.

Guarantee: a worker that consumes is logged in. A token that Discord refuses stops the worker before
it takes anything; a network that is down is waited for.

Not here: the client (`client`), the error table (`policy`), nonces (`nonce`), mentions (`mentions`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import discord
import discord.http

from ckworkflow.discord.client import WorkerClient, check_loop
from ckworkflow.discord.endpoints import apply_endpoints, require_discord_py
from ckworkflow.discord.mentions import install_mentions, step_mentions, uninstall_mentions
from ckworkflow.discord.nonce import install_nonces, step_nonces, uninstall_nonces
from ckworkflow.discord.policy import judge
from ckworkflow.discord.redaction import install_log_filter, quieten
from ckworkflow.errors import (
    DiscordLoginError,
    HookContextError,
    InvalidTokenError,
    MissingTokenError,
)
from ckworkflow.foreign import suppressed
from ckworkflow.integration import install, installed
from ckworkflow.scrub import conceal, scrub

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckworkflow.context import StepContext
    from ckworkflow.integration import Verdict

__all__ = ["DiscordIntegration", "LiveBotIntegration", "install_for_worker"]

logger = logging.getLogger(__name__)

NAME: Final = "discord"
TOKEN: Final = "DISCORD_TOKEN"  # noqa: S105  the name of a variable
_ATTEMPT: Final = "__ckworkflow_attempt__"
_PAUSES: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class _DiscordErrors:
    """What both integrations share: nonces and mentions around an attempt, and the error table."""

    @property
    def name(self) -> str:
        """There is one Discord per process."""
        return NAME

    @contextmanager
    def step(self, context: StepContext) -> Iterator[None]:
        """Give the sends of an attempt their nonces, and let them ping nobody by default."""
        with step_nonces(context.idempotency_key), step_mentions():
            try:
                yield
            except Exception as error:
                # The error is judged later, and elsewhere; pauses grow with the attempts.
                with suppressed():  # its class may refuse it in any way
                    setattr(error, _ATTEMPT, context.attempt)
                raise

    def judge(self, error: BaseException) -> Verdict | None:
        """Judge an error by the table of `policy`."""
        attempt = 1
        with suppressed():
            attempt = int(getattr(error, _ATTEMPT, 1))
        return judge(error, attempt=attempt)


class DiscordIntegration(_DiscordErrors):
    """Discord in a worker process.

    Args:
        token: The bot's; by default what `DISCORD_TOKEN` is as the worker starts. Without one the worker runs, and
            a step that asks for the client fails with `MissingTokenError`.
    """

    def __init__(self, token: str | None = None) -> None:
        self._given_token = token
        self._token = ""
        self._client: WorkerClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._rebuilding: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return (
            f"<DiscordIntegration {'with' if self._token or self._given_token else 'without'} a token>"
        )

    async def open(self) -> None:
        """Log in, over REST.

        Raises:
            InvalidTokenError: Discord refuses the token.
            DiscordLoginError: What answers is no Discord.
            DiscordLibraryError: `discord` is not discord.py.
            InvalidSettingError: An address in the environment is no URL.
        """
        require_discord_py()
        apply_endpoints()
        install_log_filter()
        quieten()
        install_mentions()
        self._loop = asyncio.get_running_loop()
        # Not as it is made: a process may start several workers, each in a test with a token of its own.
        token = os.environ.get(TOKEN, "") if self._given_token is None else self._given_token
        self._token = token.strip()
        conceal(self._token, "token")
        if self._token:
            self._client = await self._login()
        else:
            logger.info(
                "no Discord token: %s is not set, and steps that ask for the client are held until a worker has it",
                TOKEN,
            )

    async def close(self) -> None:
        """Close the client's connections. A closed client cannot be opened again; `open` makes a new one."""
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await asyncio.gather(self._rebuilding, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        uninstall_mentions()

    def client(self) -> discord.Client:
        """Return the worker's client.

        Raises:
            MissingTokenError: The worker has no token.
            HookContextError: The caller does not run on the client's loop.
        """
        if not self._token:
            raise MissingTokenError
        if self._client is None or self._loop is None:
            raise HookContextError(
                "use_client", "the Discord client of this worker is closed or not yet open."
            )
        check_loop(self._loop)
        return self._client

    def judge(self, error: BaseException) -> Verdict | None:
        """Judge an error by the table, and make a new client if this one is broken."""
        verdict = super().judge(error)
        is_broken = verdict is not None and verdict.kind == "runtime"
        if is_broken and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._rebuild)
        return verdict

    def _rebuild(self) -> None:
        is_busy = self._rebuilding is not None and not self._rebuilding.done()
        if self._client is not None and not is_busy:
            self._rebuilding = asyncio.ensure_future(self._replace(self._client))

    async def _replace(self, broken: WorkerClient) -> None:
        self._client = await self._login()
        logger.warning("Discord client rebuilt: the old one was closed, or used from another loop")
        await broken.close()

    async def _login(self) -> WorkerClient:
        attempt = 0
        while True:
            # A client that failed to log in is spent: its connector is closed with it.
            client = WorkerClient()
            try:
                await client.login(self._token)
            except BaseException as error:
                await client.close()
                if not isinstance(error, Exception):
                    raise
                pause = _login_pause(error, attempt)
                logger.warning(
                    "Discord cannot be reached, so the worker takes no work yet; it tries again in %.1f s: %s",
                    pause.total_seconds(), error,
                )  # fmt: skip
                await asyncio.sleep(pause.total_seconds())
                attempt += 1
            else:
                install_nonces(client)
                return client


def _login_pause(error: Exception, attempt: int) -> timedelta:
    """How long to wait before the next login, if it makes sense to try.

    Raises:
        InvalidTokenError: The token is refused.
        DiscordLoginError: The answer will stay the same.
    """
    verdict = judge(error, attempt=attempt + 1)
    if verdict is None:
        raise error
    if verdict.kind == "auth":
        raise InvalidTokenError(scrub(str(error))) from error
    if verdict.action == "fatal":
        raise DiscordLoginError(scrub(discord.http.Route.BASE), scrub(str(error))) from error
    if verdict.kind in ("cloudflare", "rate_limited") and verdict.retry_after is not None:
        return verdict.retry_after
    return timedelta(seconds=_PAUSES[min(attempt, len(_PAUSES) - 1)])


class LiveBotIntegration(_DiscordErrors):
    """Discord in the bot's own process: the steps use the bot itself, on its own loop.

    Args:
        bot: The bot, logged in. Its options are the user's and stay as they are; sends of steps get
            nonces and ping nobody by default, and nothing else is changed.
        loop: The loop that it runs on.
    """

    def __init__(self, bot: discord.Client, loop: asyncio.AbstractEventLoop) -> None:
        self._bot, self._loop = bot, loop

    async def open(self) -> None:
        """Wrap the bot's sends. It is logged in already."""
        conceal(self._bot.http.token or "", "token")
        install_log_filter()
        install_mentions()
        install_nonces(self._bot)

    async def close(self) -> None:
        """Leave the bot as it was; it is not ours to close."""
        uninstall_nonces(self._bot)
        uninstall_mentions()

    def client(self) -> discord.Client:
        """Return the bot.

        Raises:
            HookContextError: The caller does not run on the bot's loop.
        """
        check_loop(self._loop)
        return self._bot


def install_for_worker() -> None:
    """Plug Discord into this process, unless a bot's extension has plugged in its own."""
    if not any(each.name == NAME for each in installed()):
        install(DiscordIntegration())
