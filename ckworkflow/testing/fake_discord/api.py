"""The REST side over HTTP: parse, log, authorise, carry out faults, answer.

Guarantee: the world's change and its log entry are there before the answer leaves, so a test that
sees the answer sees the log. A call that a fault holds back is in the log with `status=None`.

Not here: what a route does (`routes`), what a fault is (`faults`).
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING
from urllib.parse import unquote

from aiohttp import web

from .faults import Call, Fault, FaultBook
from .routes import router
from .routing import Request
from .wire import ApiError, FakeDiscordError, Payload

if TYPE_CHECKING:
    from ckworkflow.model import Json

    from .state import World

API_PREFIX = "/api/v10"


class RestApi:
    """Answers every call below `/api/v10`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.faults = FaultBook()
        self.calls: list[Call] = []
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let go of every call that a fault holds back."""
        self._stopping.set()

    async def handle(self, raw: web.Request) -> web.StreamResponse:
        """Answer one call."""
        path = raw.rel_url.raw_path.removeprefix(API_PREFIX)
        found = router.find(raw.method, path)
        request = await _parse(raw, path, found[1] if found else {})
        call = Call(
            index=len(self.calls),
            method=raw.method,
            path=path,
            route=found[0].template if found else "?",
            json=request.json,
            query=request.query,
            at=self._world.now(),
            reason=request.reason,
            has_token="Authorization" in raw.headers,
        )
        self.calls.append(call)
        self._world.changed()
        try:
            if found is None:
                text = f"FakeDiscord has no route for {raw.method} {path}"
                return self._error(call, ApiError(0, text, status=404))
            if found[0].needs_token and not self._is_known(raw.headers.get("Authorization", "")):
                return self._error(call, ApiError(0, "401: Unauthorized", status=401))
            fault = self.faults.take(raw.method, found[0].template, path)
            if fault is not None and fault.delay and not fault.drop_after_commit:
                await self._hold(fault)
            if fault is not None and fault.answers:
                return self._fault_answer(call, fault)
            if fault is not None and fault.drop:
                return _drop(raw, call)
            try:
                result = found[0].handler(self._world, request)
            except ApiError as error:
                return self._error(call, error)
            if fault is not None and fault.drop_after_commit:
                self._world.changed()
                await self._hold(fault)
                return _drop(raw, call)
            return _answer(call, result)
        finally:
            self._world.changed()

    def _is_known(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        return scheme == "Bot" and token in self._world.tokens

    async def _hold(self, fault: Fault) -> None:
        """Wait out a fault's delay, or until the fault is released or the fake stops."""
        waits = [asyncio.ensure_future(each.wait()) for each in (fault.released, self._stopping)]
        try:
            await asyncio.wait(waits, timeout=fault.delay, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _error(self, call: Call, error: ApiError) -> web.Response:
        call.status = error.status
        return _json(error.body(), error.status)

    def _fault_answer(self, call: Call, fault: Fault) -> web.Response:
        is_limit = fault.retry_after is not None
        status = fault.status or (429 if is_limit and fault.code is None else None)
        if fault.cloudflare:
            call.status = status or 429
            text = (
                "<!DOCTYPE html><html><title>Access denied | discord.com used Cloudflare</title></html>"
            )
            return web.Response(status=call.status, text=text, content_type="text/html")
        if fault.code is not None:
            error = ApiError(fault.code, fault.message, status=status, errors=fault.errors)
        else:
            status = status or 500
            error = ApiError(0, fault.message or f"{status}: scripted", status=status)
        call.status = error.status
        body, headers = error.body(), {}
        if is_limit or error.status == 429:
            seconds = fault.retry_after if fault.retry_after is not None else 1.0
            body |= {"retry_after": seconds, "global": fault.is_global}
            headers = {"Via": "1.1 google", "Retry-After": str(seconds)}
            headers["X-RateLimit-Scope"] = "global" if fault.is_global else "user"
        return _json(body, error.status, headers)


def _drop(raw: web.Request, call: Call) -> web.Response:
    """Cut the connection: the client never learns what became of its call."""
    call.dropped = True
    if raw.transport is not None:
        raw.transport.abort()
    return web.Response(status=499)


def _answer(call: Call, result: Json) -> web.Response:
    if result is None:
        call.status = 204
        return web.Response(status=204)
    call.status = 200
    return _json(result, 200)


def _json(body: Json, status: int, headers: dict[str, str] | None = None) -> web.Response:
    # `json_response` would add "; charset=utf-8", and discord.py would take the body for text.
    return web.Response(
        body=json.dumps(body).encode(),
        status=status,
        headers={"Content-Type": "application/json", "Via": "1.1 google", **(headers or {})},
    )


async def _parse(raw: web.Request, path: str, params: dict[str, str]) -> Request:
    body: Json = None
    files: list[tuple[str, str, bytes]] = []
    if raw.content_type == "multipart/form-data":
        body, files = await _multipart(raw)
    elif raw.can_read_body:
        text = await raw.text()
        try:
            body = json.loads(text) if text else None
        except ValueError as error:
            raise FakeDiscordError(
                f"{raw.method} {path} sent {text[:200]!r}, which is not JSON."
            ) from error
    reason = raw.headers.get("X-Audit-Log-Reason")
    return Request(
        raw.method, path, params, dict(raw.query), body, files, unquote(reason) if reason else None
    )


async def _multipart(raw: web.Request) -> tuple[Payload | None, list[tuple[str, str, bytes]]]:
    body: Payload | None = None
    files: list[tuple[str, str, bytes]] = []
    form = await raw.post()
    for name, value in form.items():
        if isinstance(value, web.FileField):
            files.append((name, value.filename, value.file.read()))
        elif name == "payload_json" and isinstance(value, str):
            body = json.loads(value)
    return body, files
