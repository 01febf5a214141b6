"""Foreign texts take time in proportion to their length, whatever they consist of."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ckworkflow.definition import options
from ckworkflow.discord import policy
from ckworkflow.drawing import boundaries, mermaid, words
from ckworkflow.duration import parse_span
from ckworkflow.engine import failures
from ckworkflow.errors import InvalidDurationError
from ckworkflow.scrub import conceal, scrub, scrub_head, scrub_tail

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT, LONG = 8 * 1024, 64 * 1024
MOST = 24
"""Eight times the text may take three times eight times as long, as caches and collections go; a square takes 64."""
NOISE_SECONDS = 50e-6

HEAD = "A" * 24
PIECES = [
    *("x", " ", "\n", "a.", "a:", "://", "://a:", "://a:b@", "://a:" + "b" * 600, "@", "/", "\\", "\\/", "%", "%3A%2F%2F"),
    *("%3A%2F%2Fa%3A", HEAD, HEAD + ".", HEAD + ".abcdef.", HEAD + "%2E", "aW50ZXJhY3Rpb246", "/webhooks/1/", "/webhooks/1"),
    *("token=", "token", 'token":', "token" + "\\" * 5, 'token"' + " " * 25, "password='", "password = ", "password"),
    *("authorization:", "authorization ", "Bearer ", "basic a", "basic%20", "known-pa55word", "known-", "`", "word ", "("),
]  # fmt: skip
"""What the patterns begin with, and what they end in just not."""


def cost(call: Callable[[str], object], text: str) -> float:
    """Processor time of this thread, the best of several: what other processes do does not count."""
    best = float("inf")
    for _ in range(2):
        began = time.thread_time()
        call(text)
        best = min(best, time.thread_time() - began)
    return max(best, NOISE_SECONDS)


def ratio(call: Callable[[str], object], piece: str) -> float:
    """How much longer eight times the text takes; measured again where it seems too long."""
    found = float("inf")
    for _ in range(4):
        short, long = (cost(call, (piece * (size // len(piece) + 1))[:size]) for size in (SHORT, LONG))
        found = min(found, long / short)
        if found < MOST:
            break
    return found


def span(text: str) -> None:
    with pytest.raises(InvalidDurationError):
        parse_span(text)


def route(text: str) -> None:
    response: Any = SimpleNamespace(url=SimpleNamespace(path=f"/api/v10/{text}"), method="GET")
    error: Any = SimpleNamespace(response=response)
    assert policy._route(error)


READERS: dict[str, Callable[[str], Any]] = {
    "an error's message": lambda text: failures.to_data(ValueError(text)),
    "an error's attributes": lambda text: failures.to_data(InvalidDurationError(text, text)),
    "a verdict of Discord's policy": lambda text: policy.judge(ConnectionError(text)),
    "a route of Discord": route,
    "the rate of a step": lambda text: options._is_rate(text),
    "the start of a text": lambda text: scrub_head(text, LONG),
    "the end of a text": lambda text: scrub_tail(text, LONG),
    "a label of a flowchart": mermaid._label,
    "the names in a line of code": boundaries._words,
    "the reason of a boundary": lambda text: boundaries._POINTS_AT.match(text),
    "a cell of a table": lambda text: words.shorten(text, 80),
    "a time span": span,
}


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: repr(piece[:16]))
def test_scrubbing_eight_times_the_text_takes_about_eight_times_as_long(piece: str) -> None:
    conceal("known-pa55word", "password")

    assert ratio(scrub, piece) < MOST


@pytest.mark.parametrize("name", READERS)
def test_whoever_reads_a_foreign_text_takes_time_in_proportion_to_it(name: str) -> None:
    slow = {piece: ratio(READERS[name], piece) for piece in ("x", "a.", "word ", " ", "://a:", "(", "1")}

    assert {piece: found for piece, found in slow.items() if found >= MOST} == {}


def test_of_an_error_of_a_megabyte_only_what_is_kept_is_scrubbed() -> None:
    texts = ["x" * size for size in (LONG, 16 * LONG)]
    short, long = (cost(lambda text: scrub_head(text, 2_000), text) for text in texts)

    assert long < 3 * short
