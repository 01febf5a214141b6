"""What type checkers say of webhooks. Read by them, never run: see `test_typing`."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_type

from aiohttp import web

from ckworkflow import Hook, Webhook, WebhookRequest, create_webhook, workflow
from ckworkflow.web import webhook_app


@workflow
async def body() -> str:
    async with create_webhook(metadata={"order": 7}, expires="1 day") as hook:
        assert_type(hook, Webhook)
        assert_type(hook.url, str)
        assert_type(await hook, WebhookRequest)
        assert_type(await hook.next(timeout="1 hour"), WebhookRequest)
        assert_type(hook.pending(), list[WebhookRequest])
        plain: Hook[WebhookRequest] = hook
        async for request in plain:
            assert_type(request.headers, Mapping[str, str])
            assert_type(request.query, dict[str, str])
            assert_type(request.body, bytes)
            return request.text()
    create_webhook("mine")  # type: ignore[call-arg]
    return "nothing"


assert_type(webhook_app(), web.Application)
