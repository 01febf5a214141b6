"""Lost brokers: which errors of a broker mean that the connection must be made again, though they do not say so.

A failover of Redis answers on a connection that stays open: a replica refuses writes, a server that has just started is
loading, a cluster has no master. RabbitMQ closes the channel, and not the connection, of a worker that has kept a message
unacknowledged for longer than its `consumer_timeout`, thirty minutes by default, which a long step does. kombu calls all of
these errors of the channel, and Celery ends over them: mostly they are mistakes, such as a queue that is declared in two
ways, and connecting again would change nothing.

Here those are told apart. A connection that is made again is harmless: what was not acknowledged is delivered again, and
dropped, since its node is owned or done.

Why a step's message is not acknowledged at its claim instead: what a worker has not acknowledged is what its prefetch window
counts, so with early acknowledgements it would take messages for which it has no slot, from others that have one; and a
prefork child, where the claim is made, has no channel on which to acknowledge.

Not here: how it is connected again (Celery's consumer).
"""

from __future__ import annotations

import re
from typing import Final

from amqp.exceptions import (  # type: ignore[import-untyped]  # it has no types
    AMQPError,
    NotFound,
    PreconditionFailed,
    RecoverableChannelError,
)

__all__ = ["BrokerLostError", "means_loss"]

_REDIS: Final = re.compile(
    r"\b(UNBLOCKED|READONLY|LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF|NOREPLICAS|OOM|BUSY)\b"
)
_REDIS_CLASSES: Final = {
    "ReadOnlyError", "BusyLoadingError", "MasterDownError", "ClusterDownError", "TryAgainError", "OutOfMemoryError",
}  # fmt: skip
"""redis-py cuts the code off the text of these."""
_RABBITMQ: Final = re.compile(
    r"acknowledgement on channel \d+ timed out|unknown delivery tag|is down or inaccessible"
)


class BrokerLostError(Exception):
    """The broker has answered, and cannot be worked with on this connection, or not now."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}")


def means_loss(error: BaseException) -> bool:
    """Tell whether an error of a broker means that the connection is to be made again.

    Args:
        error: What redis-py or py-amqp has raised.

    Source:
        https://redis.io/docs/latest/develop/reference/protocol-spec/ and the replies in Redis' `src/server.c`
        (`createSharedObjects`); https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout.
    """
    if isinstance(error, AMQPError):
        if isinstance(error, (PreconditionFailed, NotFound)):
            return bool(_RABBITMQ.search(str(error)))
        return isinstance(error, RecoverableChannelError)
    kinds = {kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "redis.exceptions"}
    return bool(kinds & _REDIS_CLASSES) or ("ResponseError" in kinds and bool(_REDIS.search(str(error))))
