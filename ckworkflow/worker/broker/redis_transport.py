"""The Redis transport: kombu's, whose channels keep their client and note messages without a transaction.

kombu makes a client for each command that a channel sends, four for each message, and redis-py fills a table of
some two hundred entries for each: a third of what a message costs a worker. A client is but a pool of connections
with methods, and safe for threads, so one serves a channel for as long as it has the pool.

That a message was delivered, and later that it was acknowledged, is written to a hash and its index. Both travel in one
packet; as a transaction they would be twice as many commands and answers, and nothing would be won: whoever restores a
message looks it up in the hash first.

A message that is no JSON, or whose envelope is not kombu's, is dropped with one line in the log: reading it is what took it
out of its list, and what it raises would end the worker.

Not here: anything about what is sent.
"""

# mypy: disallow-untyped-calls=False
# kombu says that it is typed, and most of its methods are not.

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import TYPE_CHECKING, Any, Literal

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from ckworkflow.worker.broker.broker_loss import means_loss
from ckworkflow.worker.broker.malformed import CheckedMessage, MalformedMessageError, refuse

if TYPE_CHECKING:
    from redis import Redis
    from redis.client import Pipeline, PubSub

__all__ = ["Channel", "QoS", "Transport", "install"]

logger = logging.getLogger(__name__)


class QoS(kombu_redis.QoS):
    """What a channel has delivered; see the module."""

    @contextmanager
    def pipe_or_acquire(
        self, pipe: Pipeline | None = None, client: Redis | None = None
    ) -> Iterator[Pipeline]:
        """Give the pipeline that is there, or a new one."""
        if pipe:
            yield pipe
            return
        with self.channel.conn_or_acquire(client) as found:
            yield found.pipeline(transaction=False)

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        """Put back what was delivered too long ago; a broker that is lost is for those to report who consume."""
        try:
            super().restore_visible(start, num, interval)
        except Transport.channel_errors as error:
            if not means_loss(error):
                raise
            logger.debug("nothing restored: %r", error)

    def restore_by_tag(self, tag: str, client: Redis | None = None, leftmost: bool = False) -> None:  # noqa: FBT001, FBT002  # kombu's
        """Put a message back into its queue; what is noted as one and is none is forgotten."""
        try:
            super().restore_by_tag(tag, client, leftmost)
        except (*Transport.connection_errors, *Transport.channel_errors):
            raise
        except Exception as error:  # noqa: BLE001  # it would be met again every few seconds, by every worker
            refuse(error, queue=self.unacked_key)
            self._remove_from_indices(tag).execute()


class Channel(kombu_redis.Channel):
    """A channel; see the module."""

    QoS = QoS
    Message = CheckedMessage
    _kept: Redis | None = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002  # kombu's
        if asynchronous:
            # Those for which the channel waits have a connection of their own.
            return super()._create_client(asynchronous=True)
        kept = self._kept
        if kept is None or kept.connection_pool is not self.pool:
            kept = self._kept = super()._create_client()
        return kept

    def maybe_refresh_binding_expiry(self) -> None:
        """Keep the bindings of queues from expiring, as kombu's timer asks; a server that refuses writes is asked again."""
        try:
            super().maybe_refresh_binding_expiry()
        except self.ResponseError as error:  # of which kombu logs the whole traceback
            logger.warning(
                "Redis does not keep the bindings of queues for now, and is asked again: %s", error
            )

    def _brpop_read(self, **options: object) -> Literal[True]:
        """Read the answer to a pending BRPOP and deliver what it holds."""
        try:
            answer = self._answer_to_brpop(**options)
            if not answer:
                raise Empty
            key, item = answer
            queue = bytes_to_str(key).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            self._deliver_text(item, queue)
            return True
        finally:
            self._in_poll: Any = None
            self._flush_brpop_reauth()  # the connection is idle: only now may it be given another token

    def _answer_to_brpop(self, **options: object) -> Any:
        connection = self.client.connection
        try:
            return self.client.parse_response(connection, "BRPOP", **options)
        except self.connection_errors:
            connection.disconnect()  # it is made anew when it is next needed
            raise

    def _deliver_text(self, item: bytes, queue: str) -> None:
        try:
            try:
                payload = loads(bytes_to_str(item))
            except Exception as error:
                raise MalformedMessageError("it is no JSON") from error
            self.connection._deliver(payload, queue)  # noqa: SLF001  # kombu's own door
        except MalformedMessageError as error:
            refuse(error, queue=queue)

    def _receive_one(self, c: PubSub) -> Any:
        """Read one message of a fan-out and deliver it."""
        try:
            return super()._receive_one(c)
        except (Empty, *self.connection_errors, *Transport.channel_errors):
            raise
        except Exception as error:  # noqa: BLE001  # the message's: nesting without end, a date that is none
            refuse(error, queue="of a fan-out")
            raise Empty from None


class Transport(kombu_redis.Transport):
    """A transport of such channels."""

    Channel = Channel


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """A channel to the master that a Sentinel names."""


class SentinelTransport(Transport, kombu_redis.SentinelTransport):
    """A transport of such channels."""

    Channel = SentinelChannel


def install() -> None:
    """Have `redis://`, `rediss://` and `sentinel://` mean these transports here, unless they mean something else already."""
    for scheme, transport in (
        ("redis", Transport),
        ("rediss", Transport),
        ("sentinel", SentinelTransport),
    ):
        if TRANSPORT_ALIASES.get(scheme) == f"{kombu_redis.__name__}:{transport.__name__}":
            TRANSPORT_ALIASES[scheme] = f"{__name__}:{transport.__name__}"
