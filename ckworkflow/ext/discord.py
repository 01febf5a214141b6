"""`await bot.load_extension("ckworkflow.ext.discord")`: durable workflows for any discord.py bot.

A thin shim: discord.py executes this file anew at each load, so everything lives elsewhere.
"""

from __future__ import annotations

from ckworkflow.discord.extension import setup, teardown

__all__ = ["setup", "teardown"]
