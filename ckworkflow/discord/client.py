"""The Discord client of a worker: REST only, never the user's bot.

A bot's own `setup_hook` would load cogs, sync commands and start loops in every worker; this is a plain
`discord.Client` that logs in with two REST calls and opens no gateway. What needs a gateway raises and
says what to do, where discord.py itself would wait for ever.

Not here: who logs it in and closes it (`integration`), nonces (`nonce`), mentions (`mentions`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NoReturn

import discord

from ckworkflow.errors import HookContextError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WorkerClient", "check_loop"]

_MAX_RATELIMIT_SECONDS: Final = 30.0
"""A longer rate limit becomes a durable retry instead of a worker that sleeps; 30 is Discord.py's least."""

_NO_GATEWAY = "a worker talks to Discord over REST and has no gateway, so no event ever arrives and its cache is empty. "
_ELSEWHERE = (
    "Do it in the bot, or in a step that the bot's own embedded worker runs (leave broker_url out of "
    "celeryconfig.py)."
)


class WorkerClient(discord.Client):
    """A client that fetches and sends, and refuses what it could only wait for.

    Args:
        intents: The bot's, if it matters: without a gateway they only pass discord.py's own checks, so
            all are set by default. Discord itself checks what the application may do.
    """

    def __init__(self, *, intents: discord.Intents | None = None) -> None:
        # Every worker would warn of voice libraries that no worker needs.
        discord.VoiceClient.warn_nacl = False
        discord.VoiceClient.warn_dave = False
        super().__init__(
            intents=discord.Intents.all() if intents is None else intents,
            max_messages=None,
            max_ratelimit_timeout=_MAX_RATELIMIT_SECONDS,
        )

    async def wait_until_ready(self) -> None:
        """Refuse: there is nothing to wait for.

        Raises:
            HookContextError: Always. A worker's client can be used at once.
        """
        raise HookContextError(
            "client.wait_until_ready",
            _NO_GATEWAY + "The client of a worker can be used at once: leave the call out, and fetch "
            "(`await client.fetch_channel(...)`) instead of reading the cache.",
        )

    def wait_for(
        self,
        event: str,
        /,
        *,
        check: Callable[..., bool] | None = None,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002
    ) -> NoReturn:
        """Refuse: the event would never come.

        Raises:
            HookContextError: Always.
        """
        raise HookContextError(
            "client.wait_for",
            _NO_GATEWAY + f"Waiting for {event!r} would hang for ever. " + _ELSEWHERE,
        )

    async def connect(self, *, reconnect: bool = True) -> None:  # noqa: ARG002
        """Refuse: the bot holds the gateway.

        Raises:
            HookContextError: Always.
        """
        raise HookContextError("client.connect", _NO_GATEWAY + "The bot holds the gateway.")

    async def change_presence(self, **_: object) -> None:
        """Refuse: presence is set over the gateway.

        Raises:
            HookContextError: Always.
        """
        raise HookContextError("client.change_presence", _NO_GATEWAY + _ELSEWHERE)


def check_loop(owner: asyncio.AbstractEventLoop) -> None:
    """Make sure that the caller runs on the loop that a client belongs to.

    One call from another loop poisons discord.py's rate-limit buckets for the whole process, so it is
    refused before discord.py is touched.

    Raises:
        HookContextError: There is no running loop (a plain step), or it is another one.
    """
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        raise HookContextError(
            "use_client",
            "this step is a plain `def` and runs in a thread, where the Discord client cannot be awaited. "
            "Make the step `async def`.",
        ) from None
    if running is not owner:
        raise HookContextError(
            "use_client",
            "this code runs on another event loop than the Discord client (an asyncio.run inside the step, or "
            "a loop in a thread). Await it in the step itself.",
        )
