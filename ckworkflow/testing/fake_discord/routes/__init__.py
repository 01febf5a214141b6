"""The REST routes of the fake, by what they are about."""

from __future__ import annotations

from ckworkflow.testing.fake_discord.routing import Router

from . import channels, guilds, interactions, messages, users

router = Router()
for part in (users, guilds, channels, messages, interactions):
    router.include(part.route)

__all__ = ["router"]
