"""A kombu transport over one SQLite file: `ckworkflow+sqlite:///path`, no server needed.

It is what carries messages by default: a bot with its embedded worker, and any further worker, command
line or Flower that opens the same file. It survives `kill -9` of any process, never gives a message to
two consumers, keeps a message that waits for its ETA or runs for hours with the process that has it, and
gives it back the moment that process is found dead. Fanout is there, so events, Flower and remote control
work. Consumers wake at once, in other processes of the machine by a bell (`ckworkflow.worker.broker.bells`); they also look
every 20 ms, for a bell may not be heard.

It uses `sqlite3` of the standard library and not the store's SQLAlchemy: this is a broker, not the store.

Importing this module makes the URL scheme known to kombu.

Not here: the file itself (`ckworkflow.worker.broker.broker_file`).
"""

# mypy: disallow-untyped-calls=False
# kombu says that it is typed, and most of its methods are not.
# ruff: noqa: FBT001, FBT002, FBT003, ARG002, SLF001
# The signatures below are kombu's, and so are the private methods that a transport plugs into.

from __future__ import annotations

import contextlib
import socket
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Mapping
from itertools import count
from queue import Empty
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport.base import to_rabbitmq_queue_arguments
from kombu.utils.json import dumps, loads

from ckworkflow.store.location import path_in_url
from ckworkflow.worker.broker.broker_file import (
    BrokerFile,
    BrokerFileDamagedError,
    BrokerFileReplacedError,
    Claimed,
)
from ckworkflow.worker.broker.malformed import (
    CheckedMessage,
    MalformedMessageError,
    check_envelope,
    refuse,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kombu.connection import Connection

    from ckworkflow.worker.broker.bells import Bell

__all__ = ["SCHEME", "Channel", "Transport"]

SCHEME: Final = "ckworkflow+sqlite"

Envelope = Mapping[str, Any]
"""A message as kombu wraps it."""
Arguments = Mapping[str, Any]
"""Those of a queue, as RabbitMQ names them."""

_URL_PREFIX: Final = "sqlite:///"
_AT_ONCE: Final = 50
"""How many messages an event loop is given before it gets to do other things."""
_AHEAD: Final = 32
"""How many messages one look takes, at most: one write instead of many, and still some for other workers."""


class Channel(virtual.Channel):
    """An AMQP-like channel over a broker file."""

    Message = CheckedMessage
    supports_fanout = True
    do_restore = True

    def __init__(self, connection: Transport, **kwargs: object) -> None:
        super().__init__(connection, **kwargs)
        self._file = connection.file
        self._no_ack_queues: set[str] = set()
        self._transient_queues: set[str] = set()
        self._turn = 0
        self._claims = count(1)
        self._ahead: deque[Claimed] = deque()

    # --- publishing ----------------------------------------------------------------------------------

    def _put(self, queue: str, message: Envelope, **_: object) -> None:
        self._file.put([queue], dumps(message), priority=self._get_message_priority(message))

    def _put_fanout(self, exchange: str, message: Envelope, routing_key: str, **_: object) -> None:
        if queues := cast("list[str]", list(self._lookup(exchange, routing_key))):
            self._file.put(queues, dumps(message), priority=self._get_message_priority(message))

    # --- consuming -----------------------------------------------------------------------------------

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,
        callback: Callable[[CheckedMessage], object],
        consumer_tag: str,
        **kwargs: object,
    ) -> None:
        """Start to consume; without acknowledgements messages are deleted as they are taken."""
        if no_ack:
            self._no_ack_queues.add(queue)
        super().basic_consume(queue, no_ack, callback, consumer_tag, **kwargs)
        self._file.notify()  # what waits in this queue is no news to the file

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop to consume, and leave the queue if it was a mailbox of this channel."""
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is not None and queue not in self._active_queues:
            self._give_back_ahead(queue)
            self._no_ack_queues.discard(queue)
            self._leave(queue)

    def basic_get(self, queue: str, no_ack: bool = False, **_: object) -> virtual.Message | None:
        """Take one message now, or return `None`."""
        while found := self._file.claim([queue], 1, keep=not no_ack):
            try:
                message = self.Message(self._payload(found[0]), channel=self)
            except MalformedMessageError as error:
                self._refuse(found[0], error)
                continue
            if not no_ack:
                self.qos.append(message, message.delivery_tag)
            return message
        return None

    def drain_events(
        self, timeout: float | None = None, callback: Callable[[Envelope, str], object] | None = None
    ) -> None:
        """Deliver one message that is ready in a queue of this channel.

        Raises:
            queue.Empty: Nothing is ready, or the prefetch window is full.
        """
        if not self._consumers or not self.qos.can_consume():
            raise Empty
        if not self._ahead:
            self._take_ahead()
        if not self._ahead:
            raise Empty
        # One for each call, as every transport does it: who waits for two answers drains twice.
        message = self._ahead.popleft()
        try:
            (callback or self.connection._deliver)(self._payload(message), message.queue)
        except MalformedMessageError as error:
            self._refuse(message, error)

    def _refuse(self, claimed: Claimed, error: MalformedMessageError) -> None:
        refuse(error, queue=claimed.queue)
        self._file.ack(claimed.id)

    def _take_ahead(self) -> None:
        room = self.qos.can_consume_max_estimate()
        for queue in self._queues_in_turn():
            if queue in self._no_ack_queues:
                # Gone from the file once it is taken, so never take one that nobody may come for.
                self._ahead.extend(self._file.claim([queue], 1, keep=False))
            else:
                self._ahead.extend(self._file.claim([queue], min(room or _AHEAD, _AHEAD), keep=True))
            if self._ahead:
                return

    def _give_back_ahead(self, queue: str) -> None:
        ours = [message for message in self._ahead if message.queue == queue]
        for message in ours:
            self._ahead.remove(message)
            self._file.release(message.id)

    def _queues_in_turn(self) -> list[str]:
        queues = list(dict.fromkeys(self._active_queues))
        self._turn += 1
        first = self._turn % len(queues) if queues else 0
        return queues[first:] + queues[:first]

    def _payload(self, claimed: Claimed) -> Envelope:
        try:
            payload: Envelope = loads(claimed.body)
        except Exception as error:
            raise MalformedMessageError("it is no JSON") from error
        check_envelope(payload)
        properties = payload["properties"]
        # The row's id makes the message findable; the number makes the tag of a second delivery another
        # one, since kombu removes acknowledged tags late.
        properties["delivery_tag"] = f"{claimed.id}.{next(self._claims)}"
        properties["delivery_info"]["redelivered"] = claimed.is_redelivered
        return payload

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Delete a message from the file, then make room in the prefetch window."""
        self._file.ack(_row(delivery_tag))
        super().basic_ack(delivery_tag, multiple)
        self._file.notify()  # only now is there room in the window

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Delete a message, or give it back to its place in the queue."""
        if not requeue:
            self._file.ack(_row(delivery_tag))
        super().basic_reject(delivery_tag, requeue=requeue)
        self._file.notify()

    def _restore(self, message: virtual.Message) -> None:
        self._file.release(_row(cast("str", message.delivery_tag)))

    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        """Set the prefetch window, and look at once whether it has room now."""
        super().basic_qos(prefetch_size, prefetch_count, apply_global)
        self._file.notify()

    # --- queues --------------------------------------------------------------------------------------

    def prepare_queue_arguments(self, arguments: Arguments | None, **options: object) -> Arguments:
        """Spell queue options as RabbitMQ does; of them the message TTL is kept."""
        prepared: Arguments = to_rabbitmq_queue_arguments(arguments or {}, **options)
        return prepared

    def _new_queue(
        self,
        queue: str,
        auto_delete: bool = False,
        exclusive: bool = False,
        durable: bool = False,
        arguments: Arguments | None = None,
        **_: object,
    ) -> None:
        is_transient = exclusive or (auto_delete and not durable)
        ttl = (arguments or {}).get("x-message-ttl")
        self._file.declare(
            queue, is_transient=is_transient, ttl_seconds=None if ttl is None else ttl / 1000
        )
        if is_transient:
            self._transient_queues.add(queue)

    def _has_queue(self, queue: str, **_: object) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  # kombu says no types
        return self._file.is_declared(queue)

    def _size(self, queue: str) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]  # likewise
        return self._file.size(queue)

    def _purge(self, queue: str) -> int:
        return self._file.purge(queue)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **_: object
    ) -> None:
        """Delete a queue for every process, whoever declared it."""
        if if_empty and self._file.size(queue):
            return
        self._file.delete_queue(queue)
        self._transient_queues.discard(queue)
        self.state.queue_bindings_delete(queue)

    def _leave(self, queue: str) -> None:
        if queue in self._transient_queues:
            self._transient_queues.discard(queue)
            self._file.leave(queue)
            self.state.queue_bindings_delete(queue)

    # --- bindings: in the file, since publisher and consumer are different processes --------------------

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str | None, queue: str) -> None:
        self._file.bind(exchange, routing_key or "", pattern or "", queue)

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Arguments | None = None,
        **_: object,
    ) -> None:
        """Remove a binding for every process."""
        self.state.binding_delete(queue, exchange, routing_key)
        self._file.unbind(exchange or "amq.direct", routing_key or "", queue)

    def get_table(self, exchange: str) -> list[tuple[str, str, str]]:
        """Return routing key, pattern and queue of each binding, as kombu's exchange types read them."""
        return self._file.bindings(exchange)

    def close(self) -> None:
        """Give back what is not acknowledged, and leave the mailboxes."""
        if not self.closed:
            # A file that cannot be written any more must not keep a connection from closing.
            with contextlib.suppress(sqlite3.Error, OSError):
                for queue in list(self._transient_queues):
                    self._leave(queue)
        super().close()


class _Bell:
    """What other threads ring to have the event loop look; it never blocks, and ringing twice is ringing once."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._is_rung = False

    def fileno(self) -> int:
        return self._reader.fileno()

    def ring(self) -> None:
        if not self._is_rung:
            self._is_rung = True
            with contextlib.suppress(OSError):  # closed meanwhile
                self._writer.send(b"!")

    def answer(self) -> None:
        with contextlib.suppress(OSError):
            self._reader.recv(64)
        # After the read, before the look: who rings in between is seen by the look.
        self._is_rung = False

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class Transport(virtual.Transport):
    """The transport behind `ckworkflow+sqlite:///path`.

    A path with three slashes is relative to the working directory, with four it is absolute, as
    SQLAlchemy writes it. The option `polling_interval` of `broker_transport_options` (seconds) says how
    often to look for messages of other processes.
    """

    Channel = Channel

    can_parse_url = True
    polling_interval = 0.02
    driver_type = "sqlite"
    driver_name = "sqlite3"
    implements = virtual.Transport.implements.extend(
        asynchronous=True, exchange_type=frozenset(["direct", "topic", "fanout"])
    )
    connection_errors = (  # type: ignore[assignment]  # as kombu's own transports do
        *virtual.Transport.connection_errors,
        sqlite3.OperationalError,
        BrokerFileReplacedError,
        BrokerFileDamagedError,
    )

    def __init__(self, client: Connection, **kwargs: object) -> None:
        super().__init__(client, **kwargs)
        self.file = BrokerFile.at(_path_of(client.hostname))
        self._generation: int | None = None
        self._empty_at: tuple[int, ...] | None = None
        self._end_of_loop: Callable[[], None] = _nothing

    def establish_connection(self) -> Transport:
        """Open the file, which is created if it is not there."""
        self.file.collect()  # creates the file, or says here that it cannot be had
        self._generation = self.file.generation
        super().establish_connection()
        return self

    def close_connection(self, connection: Transport) -> None:
        """Close the channels, which gives back what they hold."""
        self.unregister_from_event_loop(connection, None)
        super().close_connection(connection)

    # --- without an event loop: who wants messages waits in here -----------------------------------------

    def drain_events(self, connection: Transport, timeout: float | None = None) -> None:  # type: ignore[override]
        """Wait for a message and deliver it.

        Raises:
            TimeoutError: None came within `timeout` seconds, or the worker in this process is stopping.
            BrokerFileReplacedError: The file is another one than when the connection was made.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            seen = self.file.version  # read before the look: a message put meanwhile ends the wait below
            if self._deliver_next():
                return
            pause = self.polling_interval
            if deadline is not None:
                pause = min(pause, deadline - time.monotonic())
            if pause <= 0 or _is_worker_stopping():
                raise TimeoutError
            self.file.wait(seen, pause)

    def _deliver_next(self) -> bool:
        """Deliver one message, if there is one."""
        mark = self.file.mark()
        if self._generation not in {None, mark[0]}:
            raise BrokerFileReplacedError(self.file.path)
        if mark == self._empty_at:
            return False
        cycle = self.cycle
        assert cycle is not None
        try:
            cycle.get(self._deliver, timeout=0)
        except Empty:
            self._empty_at = mark
            return False
        return True

    # --- with Celery's event loop: it looks when a bell rings, and every 20 ms -------------------------

    def register_with_event_loop(self, connection: Transport, loop: Any) -> None:
        """Let an event loop deliver the messages of this connection.

        A worker has one of its pools only with a loop that a killed child cannot bring to a stop: Celery's
        prefork pool without it has all children wait at one lock, which dies with the child that holds it.
        """
        self._bell = _Bell()
        unlisten = self.file.listen(self._bell.ring)
        loop.add_reader(self._bell, self._answer)
        timer = loop.call_repeatedly(self.polling_interval, self._look)
        remote = self.file.hang_bell()
        if remote is not None:
            loop.add_reader(remote, self._answer_remote, remote)

        def end() -> None:
            timer.cancel()
            unlisten()
            loop.remove_reader(self._bell)
            self._bell.close()
            if remote is not None:
                loop.remove_reader(remote)
                remote.close()

        self._end_of_loop = end

    def unregister_from_event_loop(self, connection: Transport, loop: object) -> None:
        """Have it deliver no more."""
        end, self._end_of_loop = self._end_of_loop, _nothing
        end()

    def _answer(self) -> None:
        self._bell.answer()
        self._look()

    def _answer_remote(self, remote: Bell) -> None:
        remote.answer()
        self._look()

    def _look(self) -> None:
        for _ in range(_AT_ONCE):
            if not self._deliver_next():
                return
        self._bell.ring()  # the loop has other things to do in between

    def driver_version(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  # likewise
        """Return the version of SQLite."""
        return sqlite3.sqlite_version

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Return the URL as it was given; it holds no secret."""
        return f"ckworkflow+{uri}"


def _nothing() -> None:
    pass


def _row(delivery_tag: str) -> int:
    return int(delivery_tag.partition(".")[0])


def _path_of(url: str | None) -> str:
    """Return the path in the rest of a URL after `ckworkflow+`."""
    if url is None or not url.startswith(_URL_PREFIX):
        _refuse(url)
    try:
        return str(path_in_url(url))
    except ValueError:
        _refuse(url)


def _refuse(url: str | None) -> NoReturn:
    raise ValueError(
        f"ckworkflow+{url} names no broker file. Write {SCHEME}:///name.sqlite3 for a file in the working "
        f"directory, or {SCHEME}:////path/name.sqlite3 for an absolute path; for messages in memory use memory://."
    )


def _is_worker_stopping() -> bool:
    """Tell whether a worker of this process was asked to stop: it looks only between two drains."""
    state = sys.modules.get("celery.worker.state")
    if state is None:
        return False
    # An exit code when set, so 0 means "stop" and only None and False do not.
    return any(
        flag is not None and flag is not False for flag in (state.should_stop, state.should_terminate)
    )


def _register(names: Iterable[str]) -> None:
    for name in names:
        TRANSPORT_ALIASES[name] = f"{__name__}:Transport"


# kombu cuts a URL at its first "+", but looks at the whole scheme where it takes one of several URLs.
_register(["ckworkflow", SCHEME])
