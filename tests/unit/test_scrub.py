"""Scrubbing: secrets of known forms go, everything else stays."""

from __future__ import annotations

import pytest

from ckworkflow.scrub import scrub

TOKEN = "A" * 24 + ".abcdef." + "x" * 38


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"Bot {TOKEN}", "Bot [token]"),
        (f"token={TOKEN}, more", "token=[token], more"),
        ("POST https://discord.com/api/v10/webhooks/12345/aW50ZXI6/messages/@original", None),
        (f"answer with aW50ZXJhY3Rpb246{'MTIz' * 40}, soon", "answer with [token], soon"),
        ("/interactions/987/aW50ZXJhY3Rpb24/callback", "/interactions/987/[token]/callback"),
        ("""{'id': '1', 'token': 'aW50ZXJhY3Rpb246MTIzNDU2Nzg5'}""", "{'id': '1', 'token': '[token]'}"),
        ("postgresql+psycopg://bot:pa55@db/ck", "postgresql+psycopg://bot:[password]@db/ck"),
        ("redis://:pa55@cache:6379/0", "redis://:[password]@cache:6379/0"),
        (
            "404 Not Found (error code: 10007): Unknown Member",
            "404 Not Found (error code: 10007): Unknown Member",
        ),
        ("see https://example.org/a.b?c=d and 1.2.3", "see https://example.org/a.b?c=d and 1.2.3"),
    ],
)
def test_secrets_are_cut_out(text, clean):
    expected = (
        "POST https://discord.com/api/v10/webhooks/12345/[token]/messages/@original"
        if clean is None
        else clean
    )

    assert scrub(text) == expected
