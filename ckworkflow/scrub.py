"""Scrubbing: secrets are cut out of text before it reaches a log, a table or a screen.

Guarantee: after `scrub`, a text holds no Discord bot token, no interaction token, no webhook token in a URL, no
credentials of an `Authorization` header, no password in a database or broker URL or DSN, and none of the secrets
that this process was told of (`conceal`), plain, escaped, percent-encoded or in base64. The text says where
something was cut.

Every pattern is linear: it begins with literal text or a bounded run, and no run is scanned twice. So a text of
any length takes time in proportion to it, and callers that keep only a part use `scrub_head` or `scrub_tail`.

Not here: which texts are scrubbed (the engine its stored errors, `ckworkflow.discord` the logs of discord.py).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, quote_plus, unquote

__all__ = ["conceal", "conceal_url", "scrub", "scrub_head", "scrub_tail"]

_SLASH: Final = r"(?:\\{0,4}/|%2F)"
_QUOTE: Final = r"""\\{0,4}["']"""
_IS: Final = r"\s{0,4}(?:=|%3D)\s{0,4}"
_CUT: Final = r"\[(?:token|password)\]"
_UNCUT: Final = rf"(?!{_CUT}|(?:None|True|False|null)\b)"
_USER: Final = r"""[^\s:/@"'<>\[]{0,256}"""
_AFTER_USER: Final = r"""[^\s@"'<>]{1,512}+(?:@[^\s@/:"'<>]{0,256}+(?=@))*+"""
_PASSWORD: Final = r"(?:password|passwd|passphrase|pwd)"  # noqa: S105  # a pattern
_TOKEN: Final = r"(?:token|secret|api_?key)"  # noqa: S105  # a pattern


def _named(name: str, kind: str) -> Iterator[tuple[str, str]]:
    """Give the rules for `name=value`, as in a DSN, a query or a call, and for `"name": "value"`."""
    yield rf"""({name}{_IS}[bB]?["']){_UNCUT}(?:[^"'\\\n]|\\[^\n]){{1,512}}""", rf"\1{kind}"
    yield rf"""({name}{_IS}\\{{1,4}}["']){_UNCUT}[^"'\\\n]{{1,512}}""", rf"\1{kind}"
    yield rf"""({name}{_IS}){_UNCUT}[^\s&'"\\<>]{{1,512}}""", rf"\1{kind}"
    yield rf"""({name}{_QUOTE}\s{{0,20}}:\s{{0,20}}[bB]?{_QUOTE}){_UNCUT}[^"'\\]+""", rf"\1{kind}"


_RULES: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern, re.ASCII | re.IGNORECASE), replacement)
    for pattern, replacement in (
        # A bot token: user id, time and signature in base64url. "Bot " before it is Discord's scheme.
        (r"[\w-]{23,28}(?:\.|%2E)[\w-]{6,7}(?:\.|%2E)[\w-]{27,}", "[token]"),
        # An interaction's token: base64 of "interaction:", its id and a signature.
        (r"aW50ZXJhY3Rpb246(?:[\w+/-]|%2[BF]){16,}(?:=|%3D){0,2}", "[token]"),
        (rf"""({_SLASH}(?:webhooks|interactions){_SLASH}\d{{1,25}}{_SLASH})[^\s/?#&'"\\(),;<>]+""", r"\1[token]"),
        (r"""(authorization["'\\]{0,6}\s{0,4}[:=]\s{0,4}b?["'\\]{0,6}(?:\w{1,16}\s{1,4})?)[^\s"'\\,;\[]+""", r"\1[token]"),
        # Not the English word after "basic".
        (
            r"\b((?:bearer|basic)(?:\s{1,4}|%20))(?!(?-i:[A-Z]?[a-z]{1,16})(?:[^\w+/=-]|$))[\w.~+/=%-]{6,}",
            r"\1[token]",
        ),
        # A URL with a password, which may hold "@" and "/"; a number after the colon is a port.
        (rf"(:(?:\\{{0,4}}/){{2}}{_USER}:)(?!\d{{1,5}}/|\*+@|{_CUT}){_AFTER_USER}(@)", r"\1[password]\2"),
        (r"(%3A%2F%2F(?:(?!%3A|%2F|%40)\S){0,256}%3A)(?:(?!%40|%2F)\S){1,512}(%40)", r"\1[password]\2"),
        *_named(_PASSWORD, "[password]"),
        *_named(_TOKEN, "[token]"),
    )
)  # fmt: skip

_MARGIN: Final = 1_024
"""Longer than any secret: what a cut may have left of one at the edge of a text is within this."""


def scrub(text: str) -> str:
    """Return the text with every secret of a known form, or known to this process, replaced by what it was.

    Args:
        text: A message, a traceback, a URL.

    Source:
        The forms of tokens: https://docs.discord.com/developers/reference#authentication, and what
        discord.py 2.7 puts into its exceptions and logs. Of DSNs: libpq's "Connection Strings".
    """
    text = _known.cut(text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def scrub_head(text: str, limit: int) -> str:
    """Return at most so many characters of the beginning of a text, scrubbed; the rest is not looked at."""
    size = 2 * limit + _MARGIN
    if len(text) <= size:
        return scrub(text)[:limit]
    return scrub(text[:size])[:-_MARGIN][:limit]


def scrub_tail(text: str, limit: int) -> str:
    """Return at most so many characters of the end of a text, scrubbed; the rest is not looked at."""
    size = 2 * limit + _MARGIN
    if len(text) <= size:
        return scrub(text)[-limit:]
    return scrub(text[-size:])[_MARGIN:][-limit:]


# -- what this process knows -----------------------------------------------------------------------

_LEAST_CHARACTERS: Final = 6
"""A shorter secret is also a piece of other words; the patterns cut it where it stands as a secret."""
_LONGEST_WORD: Final = 12
_LEAST_ANYWHERE: Final = 8


def conceal(secret: str, kind: str) -> None:
    """Have `scrub` cut a secret of this process wherever it stands from now on.

    A secret of fewer than 6 characters, or that is a word of up to 12 lower-case letters (`guest`, `postgres`), is
    left to the patterns: texts that have nothing to do with it would be cut too.

    Args:
        secret: The value: a token, a password.
        kind: What stands in its place, in brackets: `token`, `password`.
    """
    is_word = secret.isalpha() and secret.islower() and len(secret) <= _LONGEST_WORD
    if len(secret) >= _LEAST_CHARACTERS and not is_word:
        _known.add(secret, f"[{kind}]")


def conceal_url(url: str) -> None:
    """Have `scrub` cut the passwords of a database or broker URL, or of a libpq DSN."""
    for pattern in _PASSWORDS_IN_URL:
        for found in pattern.finditer(url):
            conceal(unquote(found[1]), "password")


_PASSWORDS_IN_URL: Final = (
    re.compile(r"://[^\s:/@]*:([^\s@]+(?:@[^\s@/]*(?=@))*)@"),
    re.compile(r"(?:password|passwd)=([^\s&#'\"]+)", re.IGNORECASE),
    re.compile(r"(?:password|passwd)\s*=\s*'([^']+)'", re.IGNORECASE),
)


class _Known:
    """The literal secrets of this process, in every spelling, as one pattern."""

    def __init__(self) -> None:
        # Without a lock, which a fork might find taken: each operation on the dict is atomic.
        self._kinds: dict[str, str] = {}
        self._pattern: re.Pattern[str] | None = None
        self._is_stale = False

    def add(self, secret: str, kind: str) -> None:
        if secret in self._kinds:
            return
        spellings = list(_spellings(secret))
        spellings += [spelling.lower() for spelling in spellings if "%" in spelling]
        self._kinds.update(dict.fromkeys(spellings, kind))
        self._is_stale = True

    def cut(self, text: str) -> str:
        if self._is_stale:
            self._is_stale = False  # first: what is added from now on makes it stale again
            # The longest first: one secret may be the beginning of another.
            parts = sorted(list(self._kinds), key=len, reverse=True)  # noqa: C414  # a copy, at once
            self._pattern = re.compile("|".join(map(_literal, parts)))
        if self._pattern is None:
            return text
        # In no other case of letters than its own, unless it is percent-encoded.
        return self._pattern.sub(
            lambda found: self._kinds.get(found[0]) or self._kinds[found[0].lower()], text
        )


def _literal(spelling: str) -> str:
    if "%" in spelling:  # hexadecimal digits, of either case
        return f"(?i:{re.escape(spelling)})"
    if len(spelling) < _LEAST_ANYWHERE:
        return rf"(?<!\w){re.escape(spelling)}(?!\w)"
    return re.escape(spelling)


def _spellings(secret: str) -> Iterator[str]:
    """Give a secret as it may stand in a text; the secret itself is the first."""
    yield secret
    yield from (quote(secret), quote(secret, safe=""), quote_plus(secret))
    yield from (
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
    )
    yield from _in_base64(secret)


def _in_base64(secret: str) -> Iterator[str]:
    """Give what every base64 text that holds a secret has in common, wherever in it the secret begins."""
    data = secret.encode("utf-8", "surrogatepass")
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + data).decode().rstrip("=")
        # The characters at the edges hold bits of what is around the secret too.
        after = (len(data) + before) % 3
        core = encoded[(0, 2, 3)[before] : len(encoded) - (1 if after else 0)]
        if len(core) >= _LEAST_ANYWHERE:
            yield core
            yield core.replace("+", "-").replace("/", "_")


_known: Final = _Known()
