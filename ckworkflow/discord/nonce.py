"""Nonces: a message that an attempt has sent is not sent again by the next.

Discord returns the message that it already has when the same author sends the same nonce again within
a few minutes. Every channel send of a step gets a nonce made of the step's idempotency key, the channel,
the body, and how many equal sends came before it in this attempt; so two sends of one step stay two, in
any order, and a repeated attempt finds its messages.

Not covered: a body that differs between attempts (a clock in an embed; a button without a `custom_id`,
which discord.py makes up), follow-ups of interactions and webhooks, for which Discord has no nonce, and
attempts that are more than some minutes apart.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    import discord
    from discord.http import MultipartParameters, Response
    from discord.types.message import Message
    from discord.types.snowflake import Snowflake

__all__ = ["install_nonces", "step_nonces", "uninstall_nonces"]

_NONCE_LENGTH: Final = 24
"""Discord takes 25."""


class _Scope:
    """The sends of one attempt. asyncio tasks that the step starts share it with the step."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._sent: Counter[bytes] = Counter()

    def nonce(self, channel_id: Snowflake, body: dict[str, object]) -> str:
        content = {name: value for name, value in body.items() if name not in ("nonce", "enforce_nonce")}
        text = json.dumps([self._key, str(channel_id), content], sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).digest()
        nth = self._sent[digest]
        self._sent[digest] += 1
        numbered = hashlib.sha256(digest + nth.to_bytes(4, "big")).digest()
        return base64.urlsafe_b64encode(numbered).decode()[:_NONCE_LENGTH]


_scope: ContextVar[_Scope | None] = ContextVar("ckworkflow.discord.nonces", default=None)


@contextmanager
def step_nonces(idempotency_key: str) -> Iterator[None]:
    """Give every send inside the block a nonce of this key."""
    token = _scope.set(_Scope(idempotency_key))
    try:
        yield
    finally:
        _scope.reset(token)


def install_nonces(client: discord.Client) -> None:
    """Wrap the one function of a client through which every channel send goes. Idempotent.

    Outside `step_nonces` a send stays as discord.py made it.
    """
    http = client.http
    original = http.send_message
    if getattr(original, "__ckworkflow__", False):
        return

    def send_message(channel_id: Snowflake, *, params: MultipartParameters) -> Response[Message]:
        scope = _scope.get()
        if scope is not None:
            _stamp(scope, channel_id, params)
        return original(channel_id, params=params)

    send_message.__ckworkflow__ = True  # type: ignore[attr-defined]  # how we know our own
    http.send_message = send_message  # type: ignore[method-assign]  # on the instance: others keep theirs


def uninstall_nonces(client: discord.Client) -> None:
    """Undo `install_nonces`."""
    if getattr(client.http.send_message, "__ckworkflow__", False):
        del client.http.send_message


def _stamp(scope: _Scope, channel_id: Snowflake, params: MultipartParameters) -> None:
    if params.payload is not None:
        _set_nonce(scope, channel_id, params.payload)
        return
    for part in params.multipart or ():
        if part["name"] == "payload_json":
            body = json.loads(part["value"])
            _set_nonce(scope, channel_id, body)
            part["value"] = json.dumps(body)


def _set_nonce(scope: _Scope, channel_id: Snowflake, body: dict[str, object]) -> None:
    given = body.get("nonce")
    # discord.py fills in a random number as text; anything else is the user's own choice.
    if given is None or str(given).isdecimal():
        body["nonce"] = scope.nonce(channel_id, body)
        body["enforce_nonce"] = True
