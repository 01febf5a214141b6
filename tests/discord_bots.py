"""Real discord.py clients for tests: fast bots, and a client without a gateway."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import discord
from discord.ext import commands

from ckworkflow.discord.client import WorkerClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ckworkflow.testing import FakeDiscord


class FastBot(commands.Bot):
    """A bot as users write them, without the pauses that only a real Discord needs."""

    def __init__(self, **options) -> None:
        options.setdefault("intents", discord.Intents.all())
        super().__init__("!", guild_ready_timeout=0.01, chunk_guilds_at_startup=False, **options)

    async def before_identify_hook(self, shard_id: int | None, *, initial: bool = False) -> None:
        pass


@contextlib.asynccontextmanager
async def connected(bot: commands.Bot, fake: FakeDiscord) -> AsyncIterator[commands.Bot]:
    """Run a bot until the end of the block; inside, it is ready."""
    task = asyncio.create_task(bot.start(fake.token))
    ready = asyncio.create_task(_ready(bot))
    await asyncio.wait({task, ready}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert ready.done(), task.exception() if task.done() else "the bot is not ready"
    try:
        yield bot
    finally:
        await bot.close()
        await asyncio.gather(task, return_exceptions=True)


async def _ready(bot: commands.Bot) -> None:
    while bot._ready is discord.utils.MISSING:
        await asyncio.sleep(0)
    await bot.wait_until_ready()


@contextlib.asynccontextmanager
async def logged_in(fake: FakeDiscord) -> AsyncIterator[discord.Client]:
    """A client without a gateway, as a worker has it."""
    client = WorkerClient()
    await client.login(fake.token)
    try:
        yield client
    finally:
        await client.close()
