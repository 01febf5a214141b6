"""A Discord for tests and demos: REST and gateway, stateful, in this process or beside it."""

from __future__ import annotations

from .face import FakeDiscord
from .handles import FakeFault, FakeInteraction
from .views import FakeCall, FakeChannel, FakeGuild, FakeMember, FakeMessage, FakeRole, FakeUser
from .wire import FakeDiscordError

__all__ = [
    "FakeCall",
    "FakeChannel",
    "FakeDiscord",
    "FakeDiscordError",
    "FakeFault",
    "FakeGuild",
    "FakeInteraction",
    "FakeMember",
    "FakeMessage",
    "FakeRole",
    "FakeUser",
]
