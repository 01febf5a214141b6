"""Compression: what a compressed message may unpack to is bounded in a worker.

kombu unpacks whatever it is sent before anybody has looked at it, and a few hundred kilobytes of gzip can be half a gigabyte.
`install` gives its decoders a limit, which is also what RabbitMQ accepts as a whole message by default; a message beyond it
cannot be decoded, and is rejected as one.

brotli is left as it is: its usual module cannot be told a limit. It is used only where somebody has installed it.
"""

# mypy: disallow-untyped-calls=False
# kombu says that it is typed, and these functions are not.

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from kombu import compression

__all__ = ["LIMIT", "TooLargeError", "install"]

LIMIT: Final = 16 * 1024 * 1024
"""How many bytes a compressed body may unpack to."""


class Decompressor(Protocol):
    """What the decoders have in common."""

    @property
    def eof(self) -> bool:
        """Whether the end of the packed data was reached."""
        ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Unpack, to so many bytes at most."""
        ...


_BOUNDED: Final[dict[str, Callable[[], Decompressor]]] = {
    "gzip": zlib.decompressobj,
    "bzip2": bz2.BZ2Decompressor,
    "lzma": lzma.LZMADecompressor,
}


class TooLargeError(ValueError):
    """A body unpacks to more than `LIMIT` bytes."""

    def __init__(self) -> None:
        super().__init__(f"the body unpacks to more than {LIMIT >> 20} MiB")


def install() -> None:
    """Bound kombu's decoders in this process."""
    known = compression.encoders()
    for alias, make in (*_BOUNDED.items(), *_zstd()):
        if compression._aliases.get(alias, alias) in known:  # noqa: SLF001  # the only way to ask without an error
            encoder, content_type = compression.get_encoder(alias)
            compression.register(encoder, partial(_unpack, make), content_type)


def _unpack(make: Callable[[], Decompressor], packed: bytes) -> bytes:
    decompressor = make()
    unpacked = decompressor.decompress(packed, LIMIT + 1)
    if len(unpacked) > LIMIT:
        raise TooLargeError
    if not decompressor.eof:
        raise ValueError("the compressed body is cut off")
    return unpacked


def _zstd() -> list[tuple[str, Callable[[], Decompressor]]]:
    module = getattr(compression, "zstd", None)
    return [] if module is None else [("zstd", module.ZstdDecompressor)]
