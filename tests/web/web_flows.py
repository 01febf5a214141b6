"""Workflows that wait for requests to their webhooks."""

from __future__ import annotations

import asyncio
from typing import Any

from ckworkflow import (
    HookExpiredError,
    InvalidSettingError,
    WebhookRequest,
    continue_as_new,
    create_hook,
    create_webhook,
    sleep,
    step,
    workflow,
)

urls: list[str] = []
"""What the steps were told."""
handled: list[WebhookRequest] = []


@step
async def tell(url: str) -> None:
    urls.append(url)


@step
async def handle(request: WebhookRequest) -> int:
    handled.append(request)
    return len(request.body)


@workflow
async def one() -> dict[str, Any]:
    async with create_webhook(metadata={"for": "payments"}) as hook:
        await tell(hook.url)
        request = await hook
    return {
        "method": request.method, "headers": dict(request.headers), "query": request.query,
        "body": request.body,
    }  # fmt: skip


@workflow
async def several(count: int) -> list[bytes]:
    hook = create_webhook()
    await tell(hook.url)
    found = [(await hook).body for _ in range(count)]
    await hook.close()
    return found


@workflow
async def handed_to_a_step() -> int:
    hook = create_webhook()
    await tell(hook.url)
    return await handle(await hook)


@workflow
async def made_late() -> list[bytes]:
    """The first one gets its URL before it is made: the step before it is not recorded yet."""
    await tell("before")
    first = create_webhook()
    await tell(first.url)
    found = [(await first).body]
    second = create_webhook()
    await tell(second.url)
    found.append((await second).body)
    await tell(first.url)
    return found


@workflow
async def in_each_life(bodies: list[bytes]) -> list[bytes]:
    """Each life makes a webhook of its own, and another one when that was used."""
    hook = create_webhook()
    await tell(hook.url)
    bodies.append((await hook).body)
    again = create_webhook()
    await tell(again.url)
    bodies.append((await again).body)
    return continue_as_new(bodies) if len(bodies) < 4 else bodies


@workflow
async def after_a_random_token() -> bytes:
    plain = create_hook()
    await tell(plain.token)
    await sleep("1 hour")
    hook = create_webhook()
    await tell(hook.url)
    return (await hook).body


@workflow
async def without_a_url() -> str:
    try:
        create_webhook()
    except InvalidSettingError:
        await sleep("1 hour")
        return "refused"
    await sleep("1 hour")
    return "made"


@workflow
async def expiring() -> list[bytes]:
    hook = create_webhook(expires="1 hour")
    await tell(hook.url)
    found = []
    try:
        while True:
            found.append((await hook).body)
    except HookExpiredError:
        await sleep("1 day")
        return found


@workflow
async def deaf() -> None:
    """Takes nothing."""
    hook = create_webhook()
    await tell(hook.url)
    await sleep("1 day")


@workflow
async def side_by_side() -> list[bytes]:
    async def wait(delay: int) -> bytes:
        await sleep(delay)
        hook = create_webhook()
        await tell(hook.url)
        return (await hook).body

    return list(await asyncio.gather(wait(20), wait(10)))
