"""discord.py is pointed elsewhere as soon as ckworkflow is imported, if the environment says so.

A bot that loads the extension in `setup_hook` has logged in by then: at the real Discord, with the token of a test.
So the addresses are read here, before any bot logs in whose file imports ckworkflow.

Not here: the addresses, and what is wrong with one (`ckworkflow.discord.endpoints`; the extension and the worker
read them again and say so).
"""

from __future__ import annotations

import contextlib
import os

from ckworkflow.errors import InvalidSettingError

__all__: list[str] = []

if any(name.startswith("CKWORKFLOW_DISCORD_") for name in os.environ):
    with contextlib.suppress(ImportError, InvalidSettingError):
        from ckworkflow.discord.endpoints import apply_endpoints

        apply_endpoints()
