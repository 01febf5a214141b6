"""The example of the page on hooks does what it says."""

from __future__ import annotations

import hashlib
import hmac
import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from ckworkflow import start
from web.serving import Served, served

pytestmark = pytest.mark.fast
PAGE = Path(__file__).parents[2] / "docs" / "hooks.md"


@pytest.mark.parametrize("always_replay", [False, True])
def test_a_request_with_the_right_signature_is_taken_and_another_is_not(
    always_replay, tmp_path, monkeypatch
):
    section = PAGE.read_text().partition("## Webhooks")[2]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    name = f"page_of_webhooks_{always_replay}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PAYMENT_SECRET", "hush")
    page = importlib.import_module(name)
    told: list[str] = []

    async def test(at: Served):
        body = json.dumps({"status": "paid"}).encode()
        signature = "sha256=" + hmac.new(b"hush", body, hashlib.sha256).hexdigest()
        with at.env.replaced(page.create_payment, lambda _, url: told.append(url)):
            run = await start(page.pay, "42")
            await at.env.settle()
        url = at.local(told[0])
        assert await at.post(url, data=body, headers={"X-Hub-Signature-256": "sha256=forged"}) == 202
        await at.env.settle()
        assert await run.status() == "running"
        assert await at.post(url, data=body, headers={"X-Hub-Signature-256": signature}) == 202
        assert await run.return_value() == "paid"

        with at.env.replaced(page.create_payment, lambda *_: None):
            run = await start(page.pay, "43")
            await at.env.advance("1 day")
        assert await run.return_value() == "not paid"

    try:
        served(test, monkeypatch, always_replay=always_replay, headers=("x-hub-signature-256",))
    finally:
        del sys.modules[name]
