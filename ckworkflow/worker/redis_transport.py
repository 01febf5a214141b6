"""The Redis transport: kombu's, whose channels keep their client and note messages without a transaction.

kombu makes a client for each command that a channel sends, four for each message, and redis-py fills a table of
some two hundred entries for each: a third of what a message costs a worker. A client is but a pool of connections
with methods, and safe for threads, so one serves a channel for as long as it has the pool.

That a message was delivered, and later that it was acknowledged, is written to a hash and its index. Both travel in one
packet; as a transaction they would be twice as many commands and answers, and nothing would be won: whoever restores a
message looks it up in the hash first.

Not here: anything about what is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

__all__ = ["Channel", "QoS", "Transport", "install"]

_KOMBU = "kombu.transport.redis:Transport"


class QoS(kombu_redis.QoS):
    """What a channel has delivered; see the module."""

    @contextmanager
    def pipe_or_acquire(self, pipe: Any = None, client: Any = None) -> Iterator[Any]:
        """Give the pipeline that is there, or a new one."""
        if pipe:
            yield pipe
            return
        with self.channel.conn_or_acquire(client) as found:
            yield found.pipeline(transaction=False)


class Channel(kombu_redis.Channel):
    """A channel; see the module."""

    QoS = QoS
    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002  # kombu's
        if asynchronous:
            # Those for which the channel waits have a connection of their own.
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]  # kombu's
        kept = self._kept
        if kept is None or kept.connection_pool is not self.pool:
            kept = self._kept = super()._create_client()  # type: ignore[no-untyped-call]  # kombu's
        return kept


class Transport(kombu_redis.Transport):
    """A transport of such channels."""

    Channel = Channel


def install() -> None:
    """Have `redis://` and `rediss://` mean this transport in this process, unless they mean something else already."""
    for scheme in ("redis", "rediss"):
        if TRANSPORT_ALIASES.get(scheme) == _KOMBU:
            TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
