"""The application that receives webhooks: each request becomes a payload of the hook whose token is in its path.

The answer 202 says that the payload is committed. The answer 404 gives nothing away: unknown, closed and expired tokens get the same bytes, after
the same queries. Requests that are refused earlier (too many, too large, another method) are refused for any token.

The loop is never blocked: queries run on threads. Memory is bounded by the limits of a body, of concurrent requests and of buckets.

Not here: the server (`ckworkflow.web.server`), and what a body gets (`ckworkflow.webhook`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections import Counter
from functools import partial
from typing import Final

from aiohttp import web

from ckworkflow import codec
from ckworkflow.background import OffLoop
from ckworkflow.engine import resume as sending
from ckworkflow.engine.installation import current
from ckworkflow.engine.settings import WebSettings
from ckworkflow.errors import (
    CkWorkflowError,
    DatabaseUnavailableError,
    HookFullError,
    HookNotFoundError,
    RefusedValueError,
)
from ckworkflow.model import HookInfo, HookKey, Namespace
from ckworkflow.outage import Outage
from ckworkflow.store.schema import NoRunsYetError
from ckworkflow.web import reading
from ckworkflow.web.limits import Buckets
from ckworkflow.web.peers import peer_of
from ckworkflow.web.redaction import conceal_below, install_log_filter
from ckworkflow.webhook import WebhookRequest, to_tree

__all__ = ["Receiver", "webhook_app"]

logger = logging.getLogger(__name__)

KEPT_HEADERS: Final = frozenset(
    {"content-language", "content-type", "date", "user-agent", "x-request-id"}
)
ROOM: Final = sending.Room(
    # As they are stored: a body in base64, and what else is kept of a request.
    100, 4 * math.ceil(reading.LARGEST / 3) + 64 * 1024, "100 requests, or 1 MB of them,",
)  # fmt: skip
READ_SECONDS: Final = 30.0
"""How long a body may take to arrive."""
MOST_AT_ONCE: Final = 128
"""Requests that are read or written at a time; further ones are told to come again."""
MOST_OF_PEER: Final = 32
"""Of these, those of one peer: one that sends slowly must not keep out the others."""
LONGEST_KEY: Final = 200
"""Characters of a dedup key."""
RETRY_SECONDS: Final = 10
"""When to send again what was refused for no fault of its own."""
_threads: Final = OffLoop(8, "ckworkflow-web")


def webhook_app() -> web.Application:
    """Return an application that receives webhooks, to be mounted in one of yours.

        app.add_subapp("/hooks", webhook_app())

    `workflow_web_url` is then the address under which that is found from outside. The access log of aiohttp prints no tokens any more; logs
    of other middlewares and of proxies are yours to look after. Make one for each application.

    Have aiohttp 3.14.1 or later: earlier releases unpack a compressed body as a whole, however large that becomes.

    Its settings are read when the application starts, which raises `InvalidSettingError` for one that cannot be used.
    """
    return Receiver(is_inflated=True).app


class Receiver:
    """Receives requests, on one loop.

    Args:
        is_inflated: Whether the server has aiohttp decompress bodies.

    Attributes:
        app: The application.
    """

    def __init__(self, *, is_inflated: bool) -> None:
        self._is_inflated = is_inflated
        self._at_once: Counter[str] = Counter()
        """The requests that are received now, by their peers."""
        self._drained: asyncio.Event | None = None
        self._outage = Outage(logger, "receiving webhooks", problem="fails")
        self._use(WebSettings())
        install_log_filter()
        # aiohttp's own limit is not asked: the body is read here.
        self.app = web.Application()
        self._resource = self.app.router.add_resource("/{token:.*}")
        self._resource.add_route("*", self._handle)
        self.app.on_startup.append(self._begin)

    async def drain(self) -> None:
        """Take no more requests, and wait until those that are being received are answered.

        To be called before the server shuts down: from then on aiohttp reads nothing of what is on its way.
        """
        self._drained = asyncio.Event()
        if self._at_once:
            await self._drained.wait()

    async def _begin(self, _: web.Application) -> None:
        # By now it is known where the application is mounted.
        conceal_below(self._resource.canonical.removesuffix("/{token}"))
        self._use(current().engine.settings.web)

    def _use(self, settings: WebSettings) -> None:
        self._settings = settings
        self._kept = KEPT_HEADERS.union(settings.headers)
        self._peers, self._tokens = Buckets(settings.peer_rate), Buckets(settings.token_rate)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.method not in self._settings.methods:
            return _answer(405, "method not allowed", Allow=", ".join(self._settings.methods))
        peer = peer_of(
            request.remote, request.headers.getall("X-Forwarded-For", ()), self._settings.proxies
        )
        key = HookKey.of(Namespace.HTTP, request.match_info["token"])
        wait = self._peers.take(peer) or self._tokens.take(key.token_hash)
        if wait:
            return _answer(429, "too many requests", retry_after=wait)
        if self._at_once[peer] >= MOST_OF_PEER:
            return _answer(429, "too many requests", retry_after=RETRY_SECONDS)
        if self._at_once.total() >= MOST_AT_ONCE or self._drained is not None:
            return _answer(503, "busy", retry_after=RETRY_SECONDS)
        self._at_once[peer] += 1
        try:
            return await self._receive(request, key)
        finally:
            self._leave(peer)

    def _leave(self, peer: str) -> None:
        self._at_once -= Counter((peer,))  # which forgets a peer that has none left
        if not self._at_once and self._drained is not None:
            self._drained.set()

    async def _receive(self, request: web.Request, key: HookKey) -> web.StreamResponse:
        try:
            async with asyncio.timeout(READ_SECONDS):
                body = await reading.read(request, is_inflated=self._is_inflated)
        except reading.TooLargeError:
            return await self._refuse_rest(request)
        except reading.UnreadableError:
            return _answer(400, "the body cannot be read")
        except TimeoutError:
            return _answer(408, "the body did not arrive in time")
        text = codec.pack(to_tree(self._kept_of(request, body)))
        if codec.size_of(text) > ROOM.size:  # it would never fit
            return _answer(413, "too large")
        return await self._send(key, text, self._dedup_key(request))

    async def _send(self, key: HookKey, text: str, dedup_key: str | None) -> web.Response:
        try:
            info = await _threads.run(partial(_resume, key, text, dedup_key))
        except (HookNotFoundError, NoRunsYetError):
            return _answer(404, "not found")
        except HookFullError as error:
            logger.warning("webhook refused: %s", error)
            return _answer(503, "full", retry_after=RETRY_SECONDS)
        except RefusedValueError:
            return _answer(413, "too large")
        except DatabaseUnavailableError as error:
            self._outage.begins(error)
            return _answer(503, "unavailable", retry_after=RETRY_SECONDS)
        except CkWorkflowError as error:  # a setting, a schema that this code may not use
            self._outage.begins(error)
            return _answer(503, "unavailable", retry_after=RETRY_SECONDS)
        self._outage.ends()
        logger.info(
            "run %s: a request has come to its webhook", info.run_id, extra={"run_id": info.run_id}
        )
        return _answer(202)

    async def _refuse_rest(self, request: web.Request) -> web.StreamResponse:
        """Answer that a body is too large, and read nothing more of it."""
        answer = _answer(413, "too large")
        answer.force_close()
        if self._is_inflated and reading.encoding_of(request):
            # aiohttp reads on for a while so that the sender hears the answer, and would decompress what it throws away.
            await answer.prepare(request)
            await answer.write_eof()
            request.protocol.force_close()
        return answer

    def _kept_of(self, request: web.Request, body: bytes) -> WebhookRequest:
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            lower = name.lower()
            if lower in self._kept:
                headers[lower] = f"{headers[lower]}, {value}" if lower in headers else value
        return WebhookRequest(request.method, headers, request.rel_url.raw_query_string, body)

    def _dedup_key(self, request: web.Request) -> str | None:
        name = self._settings.dedup_header
        value = "" if name is None else request.headers.get(name, "").strip()
        if not value:
            return None
        if len(value) <= LONGEST_KEY and value.isascii() and value.isprintable():
            return value
        return "sha256:" + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()


def _resume(key: HookKey, text: str, dedup_key: str | None) -> HookInfo:
    engine = current().engine
    engine.ensure_schema(creates=False)
    return sending.resume(engine, key, text, dedup_key=dedup_key, room=ROOM)


def _answer(
    status: int, error: str | None = None, *, retry_after: float | None = None, **headers: str
) -> web.Response:
    if retry_after is not None:
        headers["Retry-After"] = str(math.ceil(retry_after))
    data = {"accepted": True} if error is None else {"error": error}
    headers["Cache-Control"] = "no-store"
    return web.json_response(data, status=status, headers=headers)
