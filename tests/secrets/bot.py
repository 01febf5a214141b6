"""A bot whose command starts the runs, with all logging on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

import confiding
import discord
from discord import app_commands
from discord.ext import commands

from ckworkflow import start
from ckworkflow.errors import RunFailedError


@app_commands.command(description="Tell the bot a secret")
async def confide(interaction: discord.Interaction[commands.Bot]) -> None:
    # Not an option of the command: discord.py's own debug log prints events as Discord sends them.
    secrets = (os.environ["PRIVATE"], interaction.token, os.environ["DISCORD_TOKEN"])
    await interaction.response.send_message("I will tell nobody.")
    for body in (confiding.confide, confiding.confide_at_once, confiding.confide_in_a_group):
        run = await start(body, *secrets)
        with contextlib.suppress(RunFailedError):
            await run.return_value(30)
    await start(confiding.goodbye)


class Bot(commands.Bot):
    async def setup_hook(self) -> None:
        self.tree.add_command(confide)
        await self.tree.sync()


async def main() -> None:
    logging.basicConfig(level=logging.DEBUG)
    async with Bot("!", intents=discord.Intents.default()) as bot:
        await bot.load_extension("ckworkflow.ext.discord")
        await bot.start(os.environ["DISCORD_TOKEN"])


asyncio.run(main())
