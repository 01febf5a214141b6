"""Scrubbing: what must never reach a log, a table or a screen is cut out of text.

Guarantee: after `scrub`, a text holds no Discord bot token, no interaction token, no webhook token in a
URL, and no password in a database or broker URL. The text says where something was cut.

Not here: who scrubs (the engine its stored errors, `ckworkflow.discord` the logs of discord.py).
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["scrub"]

_RULES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # A bot token: user id, time and signature in base64url. "Bot " before it is Discord's scheme.
    (re.compile(r"(?<![\w-])[\w-]{23,28}\.[\w-]{6,7}\.[\w-]{27,}"), "[token]"),
    # An interaction's token: base64 of "interaction:", its id and a signature.
    (re.compile(r"(?<![\w+-])aW50ZXJhY3Rpb246[\w+/-]{16,}={0,2}"), "[token]"),
    (re.compile(r"(/webhooks/\d+/)[^/\s?'\")>]+"), r"\1[token]"),
    (re.compile(r"(/interactions/\d+/)[^/\s?'\")>]+"), r"\1[token]"),
    # The payload of an interaction, as discord.py's debug log prints it.
    (re.compile(r"""(["']token["']\s*:\s*)(["'])[^"']{20,}\2"""), r"\1\2[token]\2"),
    (re.compile(r"([a-z][a-z0-9+.-]*://[^\s:/@]*:)[^\s/@]+(@)", re.IGNORECASE), r"\1[password]\2"),
)


def scrub(text: str) -> str:
    """Return the text with every secret of a known form replaced by what it was.

    Args:
        text: A message, a traceback, a URL.

    Source:
        The forms of tokens: https://docs.discord.com/developers/reference#authentication, and what
        discord.py 2.7 puts into its exceptions and logs.
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
