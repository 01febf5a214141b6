"""Webhooks in an environment: a real server on a real port, and a real client."""

from __future__ import annotations

import pytest

from web import web_flows as flows


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORD_TOKEN", "")
    flows.urls.clear()
    flows.handled.clear()
