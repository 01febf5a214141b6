"""Webhooks over HTTP: an aiohttp application that hands requests to the hooks of runs.

    app.add_subapp("/hooks", webhook_app())

Needs aiohttp (`pip install "ckworkflow[web]"`; discord.py brings it too).
"""

from __future__ import annotations

from ckworkflow.web.application import webhook_app

__all__ = ["webhook_app"]
