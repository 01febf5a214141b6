"""What the project's own tests need, and its users' too."""

from __future__ import annotations

from ckworkflow.testing.environment import Environment, NotSettledError, RunWaitsError, environment
from ckworkflow.testing.fake_discord import FakeDiscord, FakeDiscordError, FakeInteraction
from ckworkflow.testing.worker import worker

__all__ = [
    "Environment",
    "FakeDiscord",
    "FakeDiscordError",
    "FakeInteraction",
    "NotSettledError",
    "RunWaitsError",
    "environment",
    "worker",
]
