"""Discord: the client of the workers, nonces, the default error policy, the bot's extension."""

from __future__ import annotations

from ckworkflow.discord.endpoints import apply_endpoints, reset_endpoints
from ckworkflow.discord.integration import DiscordIntegration, LiveBotIntegration, install_for_worker

__all__ = [
    "DiscordIntegration",
    "LiveBotIntegration",
    "apply_endpoints",
    "install_for_worker",
    "reset_endpoints",
]
