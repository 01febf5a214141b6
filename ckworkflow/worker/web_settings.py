"""Settings of webhooks, as `celeryconfig.py` says them.

Not here: the other settings, and refusing unknown names (`ckworkflow.worker.settings`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit

from ckworkflow.engine.settings import Rate, WebSettings
from ckworkflow.errors import InvalidSettingError

__all__ = ["NAMES", "read"]

NAMES: Final = (
    "workflow_web_dedup_header",
    "workflow_web_headers",
    "workflow_web_host",
    "workflow_web_methods",
    "workflow_web_peer_rate",
    "workflow_web_port",
    "workflow_web_proxies",
    "workflow_web_token_rate",
    "workflow_web_url",
)
HIGHEST_PORT: Final = 65_535
# A name of RFC 9110: a token. Methods have the same form.
_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_RATE: Final = re.compile(r"\s*(\d{1,9})\s*/\s*([smh])\s*", re.ASCII)
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DEFAULT: Final = WebSettings()


def read(conf: Mapping[str, object]) -> WebSettings:
    """Read the settings of webhooks.

    Raises:
        InvalidSettingError: One of them makes no sense.
    """
    return WebSettings(
        url=_url(conf.get("workflow_web_url")),
        host=_host(conf.get("workflow_web_host", _DEFAULT.host)),
        port=_port(conf.get("workflow_web_port")),
        methods=tuple(
            name.upper() for name in _names(conf, "workflow_web_methods", _DEFAULT.methods, "POST")
        ),
        headers=tuple(
            name.lower()
            for name in _names(conf, "workflow_web_headers", _DEFAULT.headers, "x-hub-signature-256")
        ),
        dedup_header=_dedup_header(conf.get("workflow_web_dedup_header")),
        proxies=_proxies(conf.get("workflow_web_proxies", ())),
        peer_rate=_rate(conf, "workflow_web_peer_rate", _DEFAULT.peer_rate),
        token_rate=_rate(conf, "workflow_web_token_rate", _DEFAULT.token_rate),
    )


def _url(value: object) -> str | None:
    if value is None:
        return None
    name = "workflow_web_url"
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise InvalidSettingError(
            name, value, "it must be a URL such as 'https://bot.example.com/hooks'"
        )
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError as error:
        raise InvalidSettingError(name, value, str(error)) from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidSettingError(name, value, "it must begin with https:// (or http://) and a host")
    if parts.username is not None or parts.password is not None:
        # They would be part of every URL that is handed out; and this text must not quote them.
        raise InvalidSettingError(name, parts.hostname, "it must hold no user and no password")
    if parts.query or parts.fragment or value.endswith(("?", "#")):
        raise InvalidSettingError(name, value, "the token is put at its end: it must have no ? and no #")
    return value.rstrip("/")


def _host(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidSettingError("workflow_web_host", value, "it must be a name or an address")
    return value.strip()


def _port(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= HIGHEST_PORT:
        raise InvalidSettingError("workflow_web_port", value, "it must be a number from 1 to 65535")
    return value


def _names(
    conf: Mapping[str, object], setting: str, default: tuple[str, ...], example: str
) -> list[str]:
    value = conf.get(setting, default)
    names: list[object] = [value] if isinstance(value, str) else _listed(value)
    found = [name for name in names if isinstance(name, str) and _NAME.fullmatch(name)]
    if len(found) != len(names) or (default and not found):
        raise InvalidSettingError(setting, value, f"it must be a list of names, such as [{example!r}]")
    return found


def _dedup_header(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        reason = "it must be the name of a header, such as 'x-github-delivery'"
        raise InvalidSettingError("workflow_web_dedup_header", value, reason)
    return value.lower()


def _proxies(value: object) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    try:
        return tuple(
            ipaddress.ip_network(each if isinstance(each, str) else str(each), strict=False)
            for each in ([value] if isinstance(value, str) else _listed(value))
        )
    except ValueError as error:
        reason = f"it must be a list of networks, such as ['10.0.0.0/8']: {error}"
        raise InvalidSettingError("workflow_web_proxies", value, reason) from error


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, bytes) else [value]


def _rate(conf: Mapping[str, object], setting: str, default: Rate | None) -> Rate | None:
    value = conf.get(setting, default)
    if value is None or isinstance(value, Rate):
        return value
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found is None or not int(found[1]):
        reason = "it must be a number and a time, such as '600/m' (/s, /m or /h), or None for any number"
        raise InvalidSettingError(setting, value, reason)
    return Rate(int(found[1]), _SECONDS[found[2]])
