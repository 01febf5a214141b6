"""Scrubbing: secrets of known forms go, everything else stays."""

from __future__ import annotations

import pytest

from ckworkflow.scrub import scrub, scrub_head, scrub_tail

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


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        # Glued, escaped, percent-encoded, in bytes.
        (f"bot_{TOKEN}", "[token]"),
        (f"é{TOKEN}", "é[token]"),
        (TOKEN.replace(".", "%2E"), "[token]"),
        (repr(TOKEN.encode()), "b'[token]'"),
        (rf"{{\"token\": \"{'s' * 24}\"}}", r"{\"token\": \"[token]\"}"),
        (r"at https:\/\/discord.com\/api\/webhooks\/12345\/a-B_1", r"at https:\/\/discord.com\/api\/webhooks\/12345\/[token]"),
        ('{"url":"https://discord.com/api/webhooks/12345/a-B_1"}', '{"url":"https://discord.com/api/webhooks/12345/[token]"}'),
        ("webhooks%2F12345%2Fa-B_1 %2Fwebhooks%2F12345%2Fa-B_1", "webhooks%2F12345%2Fa-B_1 %2Fwebhooks%2F12345%2F[token]"),
        # Passwords in queries, DSNs, calls and JSON.
        ("postgresql://db/ck?user=bot&password=pa55&sslmode=disable", "postgresql://db/ck?user=bot&password=[password]&sslmode=disable"),
        ("host=db password=pa55 dbname=ck", "host=db password=[password] dbname=ck"),
        (r"host=db password = 'pa\'55 x' dbname=ck", "host=db password = '[password]' dbname=ck"),
        ("?sslpassword%3Dpa55", "?sslpassword%3D[password]"),
        ("connect(host='db', password='pa55', port=1)", "connect(host='db', password='[password]', port=1)"),
        ("""{"user": "bot", "password": "pa55"}""", """{"user": "bot", "password": "[password]"}"""),
        (r"{\"password\":\"pa55\"}", r"{\"password\":\"[password]\"}"),
        ("connect(password=None), token=True", "connect(password=None), token=True"),
        # Passwords in URLs.
        ("postgresql://bot:pa/55@db/ck", "postgresql://bot:[password]@db/ck"),
        ("postgresql://bot:p@55@db/ck", "postgresql://bot:[password]@db/ck"),
        (r"redis:\/\/:pa55@cache", r"redis:\/\/:[password]@cache"),
        ("url=redis%3A%2F%2Fbot%3Apa55%40cache", "url=redis%3A%2F%2Fbot%3A[password]%40cache"),
        ("redis://bot:***@cache, http://host:8080/ada@example.org", "redis://bot:***@cache, http://host:8080/ada@example.org"),
        # Credentials in headers.
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer [token]"),
        ("{'Authorization': 'Bot abc.def-ghi'}", "{'Authorization': 'Bot [token]'}"),
        ("sent Basic dXNlcjpwYXNz and bearer%20abc_def", "sent Basic [token] and bearer%20[token]"),
        ("Basic knowledge of a bearer token", "Basic knowledge of a bearer token"),
        ("curl '?api_key=abcdef&x=1'", "curl '?api_key=[token]&x=1'"),
    ],
)  # fmt: skip
def test_secrets_in_other_dress_are_cut_out_too(text: str, clean: str) -> None:
    assert scrub(text) == clean


@pytest.mark.parametrize("place", [90, 100, 1_150, 1_190, 1_215, 1_223, 1_230])
def test_a_secret_at_the_edge_of_what_is_looked_at_does_not_stay_in_half(place: int) -> None:
    before, after = "y " * (place // 2), " y" * (place // 2)

    for part in (
        scrub_head(before + TOKEN + " y" * 5_000, 100),
        scrub_tail("y " * 5_000 + TOKEN + after, 100),
    ):
        assert 0 < len(part) <= 100
        assert "A" not in part
        assert "x" not in part
