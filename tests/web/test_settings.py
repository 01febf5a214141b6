"""The settings of webhooks: what they may say, and what is said of what makes no sense."""

from __future__ import annotations

import re
from ipaddress import ip_network

import pytest

from ckworkflow.engine.settings import Rate, WebSettings
from ckworkflow.errors import InvalidSettingError
from ckworkflow.worker import web_settings

pytestmark = pytest.mark.fast


def test_nothing_is_set_by_default():
    assert web_settings.read({}) == WebSettings()


def test_each_is_read_in_its_forms():
    found = web_settings.read(
        {
            "workflow_web_url": "https://bot.example.com:8443/a/hooks/",
            "workflow_web_host": "0.0.0.0",
            "workflow_web_port": 8080,
            "workflow_web_methods": ["post", "PUT"],
            "workflow_web_headers": "X-Hub-Signature-256",
            "workflow_web_dedup_header": "X-GitHub-Delivery",
            "workflow_web_proxies": ["10.0.0.0/8", "2001:db8::1"],
            "workflow_web_peer_rate": "5/s",
            "workflow_web_token_rate": None,
        }
    )
    assert found == WebSettings(
        url="https://bot.example.com:8443/a/hooks", host="0.0.0.0", port=8080, methods=("POST", "PUT"),
        headers=("x-hub-signature-256",), dedup_header="x-github-delivery",
        proxies=(ip_network("10.0.0.0/8"), ip_network("2001:db8::1/128")), peer_rate=Rate(5, 1), token_rate=None,
    )  # fmt: skip
    assert web_settings.read({"workflow_web_peer_rate": " 90 / h "}).peer_rate == Rate(90, 3600)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("url", value)
            for value in (
                "", 5, "bot.example.com", "ftp://x", "https://", "https://x/?a=1", "https://x/#a", "https://x/?",
                "https://x:y", "https://x/ü", "https://x/a b", "https://[x",
            )
        ],
        *[("port", value) for value in (0, 65_536, "80", True, 1.5)],
        *[("host", value) for value in ("", 5, None)],
        *[("methods", value) for value in ([], "", ["PO ST"], 5, [5], None)],
        *[("headers", value) for value in ("x y", ["a", "b:"], 5, None)],
        *[("dedup_header", value) for value in ("", "a b", ["x"], 5)],
        *[("proxies", value) for value in ("nowhere", ["10.0.0.0/33"], 5, [None], None)],
        *[("peer_rate", value) for value in ("600", "0/m", "1/d", "-1/s", 600, "")],
        *[("token_rate", value) for value in ("x/m", 1.5)],
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(name, value):
    name = f"workflow_web_{name}"
    with pytest.raises(InvalidSettingError, match=f"^{name} = .* cannot be used: ") as caught:
        web_settings.read({name: value})
    assert caught.value.name == name


def test_a_password_in_the_url_is_refused_and_not_told():
    with pytest.raises(InvalidSettingError) as caught:
        web_settings.read({"workflow_web_url": "https://me:hush@bot.example.com"})
    assert not re.search("hush|me:", str(caught.value))
