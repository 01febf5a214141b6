"""A pipeline on a PostgreSQL connection: many statements under way, and one wait for all of them.

The driver has pipelines too, but it waits a little at each statement, which costs more than the statement. Here
libpq is spoken to directly, by the wrapper that psycopg publishes for that (`psycopg.pq`): statements are
prepared on the server once for each connection, parameters and results travel as text.

Source: PostgreSQL documentation, chapter "Pipeline Mode" of libpq.

Not here: what a statement is (`ckworkflow.store.transaction`).
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.pq.abc import PGconn, PGresult

__all__ = ["Pipeline", "Sent"]

LONGEST_WAIT_SECONDS = 60.0
"""Between two looks at whether the connection still lives; the server says so when it goes."""


class Sent:
    """A statement that was sent; `result` is there once somebody has waited for it."""

    __slots__ = ("on_ok", "result")

    def __init__(self, on_ok: Callable[[], object] | None = None) -> None:
        self.result: PGresult | None = None
        self.on_ok = on_ok


_SYNC = Sent()


class Pipeline:
    """See the module.

    Args:
        connection: A psycopg connection with nothing under way.
        prepared: The names of the statements that its server has prepared for it; kept with the connection.

    Raises:
        psycopg.Error: From every method: the first error of the statements sent so far.
    """

    def __init__(self, connection: Connection[object], prepared: set[bytes]) -> None:
        self._pg: PGconn = connection.pgconn
        self._prepared = prepared
        self._preparing: set[bytes] = (
            set()
        )  # until their results are read: what comes after an error is not
        self._sent: deque[Sent] = deque()
        self._error: Exception | None = None
        self._pg.enter_pipeline_mode()

    def ask(self, name: bytes, sql: bytes, values: Sequence[bytes | None]) -> Sent:
        """Send a statement that is known by a name."""
        if name not in self._prepared and name not in self._preparing:
            self._preparing.add(name)
            self._pg.send_prepare(name, sql)
            self._sent.append(Sent(lambda: self._prepared.add(name)))
        self._pg.send_query_prepared(name, values)
        sent = Sent()
        self._sent.append(sent)
        return sent

    def say(self, words: bytes) -> None:
        """Send a command without parameters."""
        self._pg.send_query_params(words, None)
        self._sent.append(Sent())

    def wait_for(self, sent: Sent) -> PGresult:
        """Return the result of a statement."""
        if sent.result is None:
            self._pg.send_flush_request()
            self._receive(until=sent)
        if sent.result is None:
            raise AssertionError("a result that was asked for before the last sync")
        return sent.result

    def sync(self) -> None:
        """Wait until everything is done."""
        self._pg.pipeline_sync()
        self._sent.append(_SYNC)
        self._receive(until=_SYNC)

    def close(self) -> None:
        """Wait for what is under way, ignore how it ends, and give the connection back to its driver."""
        try:
            self._error = None
            if _SYNC not in self._sent:  # or an error has come before the end that `sync` asks for
                self._pg.pipeline_sync()
                self._sent.append(_SYNC)
            self._receive(until=_SYNC, is_telling=False)
        finally:
            self._pg.exit_pipeline_mode()

    def leave(self) -> None:
        """Give the connection back to its driver; after `sync`."""
        self._pg.exit_pipeline_mode()

    def _receive(self, *, until: Sent, is_telling: bool = True) -> None:
        """Read results in the order of what was sent, up to those of `until`."""
        pg = self._pg
        while pg.flush():
            _wait(pg.socket, is_for_writing=True)
            pg.consume_input()
        sent = None
        while sent is not until:
            sent = self._sent.popleft()
            while True:
                while pg.is_busy():
                    _wait(pg.socket)
                    pg.consume_input()
                result = pg.get_result()
                if result is None:
                    break  # the results of the next statement come next
                self._take(sent, result)
                if sent is _SYNC:
                    break  # nothing comes after this one
            if is_telling and self._error is not None:
                raise self._error

    def _take(self, sent: Sent, result: PGresult) -> None:
        status = result.status
        if status in (_TUPLES, _COMMAND):
            sent.result = result
            if sent.on_ok is not None:
                sent.on_ok()
        elif status == _FATAL and self._error is None:
            self._error = _error_of(result)


def _wait(socket: int, *, is_for_writing: bool = False) -> None:
    poll = select.poll()
    poll.register(socket, select.POLLIN | (select.POLLOUT if is_for_writing else 0))
    poll.poll(LONGEST_WAIT_SECONDS * 1000)


def _error_of(result: PGresult) -> Exception:
    from psycopg import errors, pq

    state = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
    message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
    try:
        made: type[Exception] = errors.lookup(state.decode())
    except KeyError:
        made = errors.DatabaseError
    return made(message.decode(errors="replace"))


# The numbers of libpq's ExecStatusType, so that SQLite's users need no libpq.
_COMMAND, _TUPLES, _FATAL = 1, 2, 7
