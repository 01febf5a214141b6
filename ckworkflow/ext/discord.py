"""Durable workflows for any client of discord.py: `attach(client)`, or for a bot its extension.

`await bot.load_extension("ckworkflow.ext.discord")` calls `setup`, and the bot's closing calls `teardown`.
A thin shim: discord.py executes this file anew at each load, so everything lives elsewhere.
"""

from __future__ import annotations

from ckworkflow.discord.extension import attach, detach

__all__ = ["attach", "detach", "setup", "teardown"]

setup, teardown = attach, detach
