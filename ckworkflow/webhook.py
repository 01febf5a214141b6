"""Requests to webhooks: what a body gets of one, and how it is stored.

It is stored as plain JSON, independent of the class.

Not here: receiving requests (`ckworkflow.web`), and the hook that they are for (`ckworkflow.tracing.hooks`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

if TYPE_CHECKING:
    from ckworkflow.model import Json

__all__ = ["WebhookRequest", "from_tree", "to_tree"]


@dataclass(frozen=True)
class WebhookRequest:
    """A request that came to a webhook, as the body of the workflow gets it.

    It can be an argument of a step, and a test can make one.

    Attributes:
        method: In capital letters: `POST`.
        headers: The headers that are kept (`workflow_web_headers`), by their names in lower-case letters. A header that was repeated
            has its values joined by `", "`.
        query_string: What stood after the `?` of the URL, still percent-encoded; empty without one.
        body: The bytes that were sent, decompressed.
    """

    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    query_string: str = field(default="", repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def query(self) -> dict[str, str]:
        """The values of the query by their names, decoded. Of a name that was repeated, the first value."""
        return dict(reversed(parse_qsl(self.query_string, keep_blank_values=True)))

    def text(self) -> str:
        """Return the body as text, in the charset that its `content-type` names; UTF-8 if it names none that Python knows.

        Raises:
            UnicodeDecodeError: The bytes are no such text. It is a `ValueError`.
        """
        header = Message()
        header["content-type"] = self.headers.get("content-type", "")
        try:
            return self.body.decode(header.get_content_charset("utf-8"))
        except UnicodeDecodeError:
            raise
        except (LookupError, ValueError):  # no such charset, or no name of one
            return self.body.decode()

    def json(self) -> Any:
        """Return what the body says as JSON. The `content-type` is not checked.

        Raises:
            ValueError: It is no JSON.
        """
        return json.loads(self.body)


def to_tree(request: WebhookRequest) -> Json:
    """Return a request as it is stored."""
    return {
        "method": request.method,
        "headers": dict(request.headers),
        "query": request.query_string,
        "body": base64.b64encode(request.body).decode(),
    }


def from_tree(tree: Any) -> WebhookRequest:
    """Make the request of what is stored."""
    return WebhookRequest(
        tree["method"], dict(tree["headers"]), tree["query"], base64.b64decode(tree["body"])
    )
