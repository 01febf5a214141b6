"""What a run derives for its hooks: tokens that cannot be guessed, and the addresses of its webhooks.

Both are the same in every replay, even if a deploy has changed the setting. A body may pass the URL of a webhook to a step before the webhook
itself is made, so the node of the hook comes too late to record the address. It is recorded with the run, beside the secret of the tokens, in
the commit of the continuation in which the body first sees it.

Not here: the hooks (`ckworkflow.tracing.hooks`), and the setting (`ckworkflow.engine.settings`).
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Callable
from typing import Any, Final

from ckworkflow import codec
from ckworkflow.model import NodeId

__all__ = ["Derived"]

_TOKEN_BYTES: Final = 16


class Derived:
    """See the module.

    Args:
        stored: What `news` said last; `None`: nothing was derived yet.
    """

    def __init__(self, stored: str | None) -> None:
        secret, _, webhooks = (stored or "").partition(" ")
        self._secret = secret or None
        found: Any = codec.loads(webhooks) if webhooks else {"known": 0, "bases": []}
        self._known: int = found["known"]
        """How many webhooks the body has been given, in any replay."""
        self._bases: list[tuple[int, str | None]] = [(first, base) for first, base in found["bases"]]
        """Each base, with the number of the first webhook that has it."""
        self._given = 0
        """How many it has been given in this replay."""
        self._is_new = False

    @property
    def secret(self) -> str | None:
        """From what tokens are derived; `None`: none was yet."""
        return self._secret

    @property
    def news(self) -> str | None:
        """What is to be stored, if something was derived since `begin`."""
        if not self._is_new or self._secret is None:
            return None
        if not self._known:
            return self._secret
        return f"{self._secret} {codec.dumps({'known': self._known, 'bases': self._bases})}"

    def begin(self) -> None:
        """Forget what is new: it is stored."""
        self._is_new = False

    def token(self, node_id: NodeId) -> str:
        """128 bits that are the same in every replay, and cannot be guessed without the secret."""
        if self._secret is None:
            self._secret, self._is_new = secrets.token_hex(_TOKEN_BYTES), True
        digest = hmac.digest(self._secret.encode(), node_id.encode(), "sha256")[:_TOKEN_BYTES]
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def base(self, configured: Callable[[], str | None]) -> str | None:
        """Return where the next webhook of the body is found; `None`: nowhere, since nothing was configured.

        Args:
            configured: Says where webhooks are found now. It is asked only for a webhook that no earlier continuation was given.
        """
        number, self._given = self._given, self._given + 1
        if number < self._known:
            return next(base for first, base in reversed(self._bases) if first <= number)
        base = configured()
        if not self._bases or self._bases[-1][1] != base:
            self._bases.append((number, base))
        self._known, self._is_new = number + 1, True
        return base
