"""Durable workflows for any client of discord.py: `attach(client)`, or for a bot its extension.

`await bot.load_extension("ckworkflow.ext.discord")` calls `setup`, and the bot's closing calls `teardown`.
A thin shim: discord.py executes this file anew at each load, so everything lives elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckworkflow.discord import extension
from ckworkflow.discord.extension import detach
from ckworkflow.web.server import server_for_bot

if TYPE_CHECKING:
    import discord

__all__ = ["attach", "detach", "setup", "teardown"]


async def attach(client: discord.Client) -> None:
    """Set up ckworkflow in the process of a client: what `load_extension` does for a bot.

    Call it before `client.start(...)` or in `setup_hook`. With no broker configured the worker starts inside the
    process once the client has logged in, and ends as the client closes. With `workflow_web_port` set, webhooks are received there
    for as long. A second call does nothing.

    Args:
        client: Any client of discord.py: `Client`, `AutoShardedClient`, `Bot`, or a class of one's own.

    Raises:
        TypeError: It is no client.
        HookContextError: Another client of this process runs the embedded worker.
        DiscordLibraryError: `discord` is not discord.py.
        InvalidSettingError: An address in the environment is no URL; or a setting cannot be used.
        CkWorkflowError: Another setting cannot be used: the error names it.
    """
    await extension.attach(client, find_server=server_for_bot)


setup, teardown = attach, detach
