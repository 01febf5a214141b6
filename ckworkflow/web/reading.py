"""Reading a body: decompressed, and no more of it than the limit, regardless of its headers.

Reading stops at the limit, and no decompression step produces more than that. In an application of the user's, aiohttp decompresses first, in
steps of its own.

Not here: what is answered (`ckworkflow.web.application`).
"""

from __future__ import annotations

import zlib
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

__all__ = ["LARGEST", "TooLargeError", "UnreadableError", "encoding_of", "read"]

LARGEST: Final = 1024 * 1024
"""Bytes of a body, decompressed."""
_ZLIB, _RAW, _GZIP = zlib.MAX_WBITS, -zlib.MAX_WBITS, 16 + zlib.MAX_WBITS
_DEFLATED: Final = 8
"""The low bits of the first byte of the zlib format, which some leave out though RFC 9110 asks for it."""


class TooLargeError(Exception):
    """A body has more than `LARGEST` bytes."""


class UnreadableError(Exception):
    """A body is not what its headers say, or its sender is gone before all of it has come."""


def encoding_of(request: web.BaseRequest) -> str:
    """Return how a body is compressed; empty if it is not."""
    name = request.headers.get("Content-Encoding", "").strip().lower()
    return "" if name == "identity" else name.removeprefix("x-")


async def read(request: web.BaseRequest, *, is_inflated: bool) -> bytes:
    """Read the body of a request.

    Args:
        request: The request.
        is_inflated: Whether aiohttp decompresses; else it is done here.

    Raises:
        TooLargeError: It has more than `LARGEST` bytes, compressed or decompressed.
        UnreadableError: It is not what its headers say, or compressed in an unknown way.
    """
    if (request.content_length or 0) > LARGEST:
        raise TooLargeError
    encoding = "" if is_inflated else encoding_of(request)
    inflater = _Inflater(encoding) if encoding else None
    parts, size = [], 0
    try:
        async for chunk in request.content.iter_any():
            part = chunk if inflater is None else inflater.feed(chunk, LARGEST - size)
            size += len(part)
            if size > LARGEST:
                raise TooLargeError
            parts.append(part)
    except OSError as error:  # its sender is gone
        raise UnreadableError from error
    except (HttpProcessingError, web.RequestPayloadError, zlib.error) as error:
        raise UnreadableError from error
    if inflater is not None and not inflater.is_complete:
        raise UnreadableError
    return b"".join(parts)


class _Inflater:
    """Decompresses gzip and deflate."""

    def __init__(self, encoding: str) -> None:
        if encoding not in {"gzip", "deflate"}:
            raise UnreadableError
        self._encoding = encoding
        self._stream = zlib.decompressobj(_GZIP) if encoding == "gzip" else None

    @property
    def is_complete(self) -> bool:
        return self._stream is not None and self._stream.eof

    def feed(self, chunk: bytes, room: int) -> bytes:
        """Decompress; at most one byte more than there is room for."""
        if not chunk:
            return b""
        if self._stream is None:
            self._stream = zlib.decompressobj(_ZLIB if chunk[0] & 0x0F == _DEFLATED else _RAW)
        parts: list[bytes] = []
        while chunk and room >= 0:
            if self._stream.eof:  # gzip: another member
                if self._encoding != "gzip":
                    raise UnreadableError
                self._stream = zlib.decompressobj(_GZIP)
            part = self._stream.decompress(chunk, room + 1)
            room -= len(part)
            parts.append(part)
            chunk = self._stream.unconsumed_tail or self._stream.unused_data
        return b"".join(parts)
