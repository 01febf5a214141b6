"""The default error policy: what a Discord error that a step lets through means for the step.

The table is data. It is matched in this order, and the order matters: Cloudflare's pages, Discord's
JSON code, then class and status. An expired interaction answers 401 with code 50027 and says nothing
of the bot's token; code 30046 arrives as a 429 and is a quota, not a rate limit.

Guarantee: a verdict holds JSON only, and no token.

Not here: who retries and when (`worker`), errors that the step has turned into `FatalError` or
`RetryableError` itself (the worker never asks about those).

Source: https://docs.discord.com/developers/topics/opcodes-and-status-codes
"""

from __future__ import annotations

import math
import random
import re
import socket
import ssl
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

import aiohttp
import discord

from ckworkflow.errors import CkWorkflowError
from ckworkflow.integration import Verdict
from ckworkflow.scrub import scrub_head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["CODES", "KINDS", "judge"]

Action = Literal["fatal", "retry", "fault"]

_LONGEST_TEXT: Final = 500
_JITTER: Final = 0.1
_LONGEST_SAID: Final = 86_400.0
"""Seconds. Discord says minutes, hours at most; what is longer is not its word, and not to be waited for."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table.

    Attributes:
        action: As in `Verdict`.
        kind: The word that a body branches on; public.
        delays: Pauses before the second attempt, the third, …; the last one stays. Empty: what Discord
            says, or the step's own delay.
        counts: Whether the attempt is used up.
    """

    action: Action
    kind: str
    delays: tuple[float, ...] = ()
    counts: bool = True


AUTH: Final = Rule("fault", "auth", counts=False)
CLOUDFLARE: Final = Rule("fault", "cloudflare", (300.0,), counts=False)
RUNTIME: Final = Rule("fault", "runtime", counts=False)
RATE_LIMITED: Final = Rule("retry", "rate_limited", (5.0,), counts=False)
DM_BLOCKED: Final = Rule("fatal", "dm_blocked")
USER_BANNED: Final = Rule("fatal", "user_banned")
GONE: Final = Rule("fatal", "gone")
FORBIDDEN: Final = Rule("fatal", "forbidden")
INVALID: Final = Rule("fatal", "invalid")
BLOCKED: Final = Rule("fatal", "blocked")
QUOTA: Final = Rule("retry", "quota", (600.0, 1800.0, 3600.0))
LIMIT: Final = Rule("fatal", "limit")
ARCHIVED: Final = Rule("fatal", "archived")
INTERACTION: Final = Rule("fatal", "interaction")
UNAVAILABLE: Final = Rule("retry", "unavailable", (5.0, 30.0, 120.0, 300.0))
SERVER: Final = Rule("retry", "server", (5.0, 30.0, 120.0, 300.0))
NETWORK: Final = Rule("retry", "network", (5.0, 30.0, 120.0, 300.0))

KINDS: Final = frozenset(
    rule.kind
    for rule in (
        *(AUTH, CLOUDFLARE, RUNTIME, RATE_LIMITED, DM_BLOCKED, USER_BANNED, GONE, FORBIDDEN, INVALID),
        *(BLOCKED, QUOTA, LIMIT, ARCHIVED, INTERACTION, UNAVAILABLE, SERVER, NETWORK),
    )
)
"""Every word that a verdict may have as its `kind`."""


def _table(*rows: tuple[Rule, Iterable[int]]) -> Mapping[int, Rule]:
    # First come, first served: exact codes stand before the ranges around them.
    table: dict[int, Rule] = {}
    for rule, codes in rows:
        for code in codes:
            table.setdefault(code, rule)
    return table


CODES: Final[Mapping[int, Rule]] = _table(
    (AUTH, (40001, 50014)),
    (CLOUDFLARE, (40333,)),
    (RATE_LIMITED, (20016, 20022, 20028, 20029, 40062, 40003)),
    (DM_BLOCKED, (50007, 50278, 20009)),
    (USER_BANNED, (40007,)),
    (GONE, (10003, 10004, 10007, 10008, 10011, 10013, 10014, 10015, 50027, 10026, 10062)),
    (FORBIDDEN, (50001, 50013, 50028, 160002, 60003, 50009)),
    (INVALID, (50035, 50006, 50109, 50008, 50024, 40005, 50045, 50033)),
    (BLOCKED, (200000, 200001, 240000)),
    (QUOTA, (30037, 30040, 30042, 30046, 30034, 30035)),
    (ARCHIVED, (50083,)),
    (INTERACTION, (40060, 40094)),
    (UNAVAILABLE, (40004, 40006, 110000, 110001, 130000, 500000)),
    (INVALID, range(10001, 11000)),
    (LIMIT, range(30001, 30062)),
)

_LOOP_ERRORS: Final = (
    "Session is closed",
    "Event loop is closed",
    "Timeout context manager should be used inside a task",
    "attached to a different loop",
    "is bound to a different event loop",
)
_NETWORK_ERRORS: Final = (
    aiohttp.ClientError,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    socket.gaierror,
)
# A plain OSError is left to the step: it is a file that is not there as often as a network that is down.


def judge(
    error: BaseException, *, attempt: int = 1, jitter: Callable[[], float] = random.random
) -> Verdict | None:
    """Say what an error means, or `None` if it is none of Discord's.

    Args:
        error: What the step raised.
        attempt: Which try this was, from 1; pauses grow with it.
        jitter: A number in [0, 1): pauses are up to a tenth longer, so that many steps which failed
            together do not come back together.
    """
    rule = _rule(error)
    if rule is None:
        return None
    http = error if isinstance(error, discord.HTTPException) else None
    return Verdict(
        action=rule.action,
        kind=rule.kind,
        message=_message(error),
        code=(http.code or None) if http else None,
        status=http.status if http else None,
        retry_after=_pause(rule, error, attempt, jitter),
        counts=rule.counts,
        details=_details(error),
        is_suggestion=rule in (UNAVAILABLE, SERVER, NETWORK),
    )


def _rule(error: BaseException) -> Rule | None:
    if isinstance(error, CkWorkflowError):
        return None
    if isinstance(error, discord.HTTPException):
        return _http_rule(error)
    for kinds, rule in _CLASSES:
        if isinstance(error, kinds):
            return rule
    if isinstance(error, RuntimeError) and any(text in str(error) for text in _LOOP_ERRORS):
        # Only where discord.py itself met it: a session of the step's own would fault for ever.
        return RUNTIME if _comes_from_discord(error) else None
    return None


_CLASSES: Final[tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Rule], ...]] = (
    (discord.RateLimited, RATE_LIMITED),
    (discord.LoginFailure, AUTH),
    (discord.InteractionResponded, INTERACTION),
    (discord.GatewayNotFound, SERVER),
    (discord.ConnectionClosed, NETWORK),
    (discord.ClientException, INVALID),
    (_NETWORK_ERRORS, NETWORK),
)


def _http_rule(error: discord.HTTPException) -> Rule | None:
    if _is_cloudflare(error):
        return CLOUDFLARE
    if error.code in CODES:
        return CODES[error.code]
    status = error.status
    if status == 401:  # noqa: PLR2004
        # An interaction or webhook is authorised by its own token, not by the bot's.
        return GONE if _is_by_own_token(error) else AUTH
    if status >= 500:  # noqa: PLR2004
        return SERVER
    return _STATUSES.get(status)


_STATUSES: Final[Mapping[int, Rule]] = {
    400: INVALID,
    403: FORBIDDEN,
    404: INVALID,
    405: INVALID,
    413: INVALID,
    429: RATE_LIMITED,
}


def _is_cloudflare(error: discord.HTTPException) -> bool:
    if error.status not in (403, 429):
        return False
    headers = error.response.headers
    is_page = bool(error.text) and "json" not in headers.get("Content-Type", "")
    # Discord's own answers pass its proxy and say so; a 429 without `Via` is a ban of this address.
    return is_page or (error.status == 429 and not headers.get("Via"))  # noqa: PLR2004


def _is_by_own_token(error: discord.HTTPException) -> bool:
    path = str(getattr(error.response, "url", ""))
    return "/webhooks/" in path or "/interactions/" in path


def _comes_from_discord(error: BaseException) -> bool:
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_globals.get("__name__", "").split(".")[0] == "discord":
            return True
        frame = frame.tb_next
    return False


def _pause(
    rule: Rule, error: BaseException, attempt: int, jitter: Callable[[], float]
) -> timedelta | None:
    if rule.action == "fatal" or not (rule.delays or rule is RATE_LIMITED):
        return None
    seconds = rule.delays[min(max(attempt, 1), len(rule.delays)) - 1]
    said = _said_by_discord(error)
    if rule is RATE_LIMITED and said is not None:
        seconds = min(max(said, 0.0), _LONGEST_SAID)
    elif rule is CLOUDFLARE and said is not None:
        seconds = min(max(said, 300.0), 3600.0)
    return timedelta(seconds=seconds * (1 + _JITTER * jitter()))


def _said_by_discord(error: BaseException) -> float | None:
    if isinstance(error, discord.RateLimited):
        return error.retry_after
    if isinstance(error, discord.HTTPException):
        for name in ("Retry-After", "X-RateLimit-Reset-After"):
            try:
                seconds = float(error.response.headers[name])
            except (KeyError, ValueError):
                continue
            if not math.isnan(seconds):
                return seconds
    return None


_ID = re.compile(r"(?<=/)\d{15,20}(?=/|$)")
_EMOJI = re.compile(r"(?<=/reactions/)[^/]+")
_API = re.compile(r"^.*?/api(/v\d{1,4})?(?=/)")


def _message(error: BaseException) -> str:
    text = scrub_head(str(error), _LONGEST_TEXT) or type(error).__name__
    where = _route(error)
    return f"{where}: {text}"[:_LONGEST_TEXT] if where else text[:_LONGEST_TEXT]


def _details(error: BaseException) -> dict[str, str]:
    kind = type(error)
    details = {"exception": f"{kind.__module__}.{kind.__qualname__}"}
    route = _route(error)
    if route:
        details["route"] = route
    if isinstance(error, discord.HTTPException) and error.text:
        details["text"] = scrub_head(error.text, _LONGEST_TEXT)
    return details


def _route(error: BaseException) -> str | None:
    """Method and path with `{id}` in place of ids: the same for every call of one kind."""
    response = getattr(error, "response", None)
    url = getattr(response, "url", None)
    if response is None or url is None:
        return None
    path = scrub_head(str(getattr(url, "path", url)), _LONGEST_TEXT)
    path = _EMOJI.sub("{emoji}", _ID.sub("{id}", path))
    path = _API.sub("", path)
    return f"{getattr(response, 'method', '')} {path}".strip()
