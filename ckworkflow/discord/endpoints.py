"""Where discord.py looks for Discord, and whether it is discord.py at all.

`CKWORKFLOW_DISCORD_API_BASE` and `CKWORKFLOW_DISCORD_GATEWAY_URL` point every process elsewhere, bot and
worker alike: at a rate-limit proxy that they share, or at `ckworkflow.testing.FakeDiscord`, which also points the
process that it runs in at itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import discord
import discord.gateway
import discord.http
import yarl

from ckworkflow.errors import DiscordLibraryError, InvalidSettingError
from ckworkflow.scrub import conceal_url, scrub

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "API_BASE",
    "GATEWAY_URL",
    "apply_endpoints",
    "point_at",
    "require_discord_py",
    "reset_endpoints",
]

API_BASE: Final = "CKWORKFLOW_DISCORD_API_BASE"
GATEWAY_URL: Final = "CKWORKFLOW_DISCORD_GATEWAY_URL"

_OLDEST: Final = (2, 5)
_DEFAULTS: Final[tuple[str, yarl.URL]] = (
    discord.http.Route.BASE,
    discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY,
)


def apply_endpoints(environ: Mapping[str, str] | None = None) -> bool:
    """Point discord.py at the addresses of the environment, before any client logs in.

    Args:
        environ: Where to read them; `os.environ` by default. A name that is absent changes nothing.

    Returns:
        Whether an address was given.

    Raises:
        InvalidSettingError: An address is not a URL of its kind.
    """
    environ = os.environ if environ is None else environ
    base, gateway = environ.get(API_BASE), environ.get(GATEWAY_URL)
    if base:
        _check(API_BASE, base, ("http", "https"), "https://discord.com/api/v10")
        # A class attribute that discord.py reads as it builds each route; webhooks too.
        discord.http.Route.BASE = base.rstrip("/")
    if gateway:
        _check(GATEWAY_URL, gateway, ("ws", "wss"), "wss://gateway.discord.gg/")
        discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(gateway)
    return bool(base or gateway)


def reset_endpoints() -> None:
    """Point discord.py at the real Discord again."""
    _point(_DEFAULTS)


def point_at(environ: Mapping[str, str]) -> Callable[[], None]:
    """Point discord.py at the addresses of `environ` for a while.

    Returns:
        What points it back to where it pointed before; it does nothing if it has been pointed elsewhere since.

    Raises:
        InvalidSettingError: An address is not a URL of its kind.
    """
    before = _pointed()
    apply_endpoints(environ)
    ours = _pointed()

    def back() -> None:
        if _pointed() == ours:
            _point(before)

    return back


def _pointed() -> tuple[str, yarl.URL]:
    return discord.http.Route.BASE, discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY


def _point(addresses: tuple[str, yarl.URL]) -> None:
    discord.http.Route.BASE, discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY = addresses


def require_discord_py() -> None:
    """Make sure that the package `discord` is discord.py, and new enough for enforced nonces.

    Raises:
        DiscordLibraryError: It is py-cord or another fork, or too old.
    """
    title = getattr(discord, "__title__", "discord")
    version = getattr(discord, "__version__", "?")
    if title != "discord":
        raise DiscordLibraryError(f"{title} {version}")
    if discord.version_info[:2] < _OLDEST:
        raise DiscordLibraryError(f"discord.py {version}")


def _check(name: str, value: str, schemes: tuple[str, ...], example: str) -> None:
    parts = urlsplit(value)
    if parts.scheme not in schemes or not parts.netloc:
        raise InvalidSettingError(name, scrub(value), f"it must be a URL such as {example}")
    conceal_url(value)
