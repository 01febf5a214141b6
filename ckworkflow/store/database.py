"""One database: its engine, its transactions, its clock.

A transaction is a function that may run more than once: after a deadlock, a serialization failure
or a locked file it is tried again. Every transaction that touches a run locks the run's row first
(`runs.lock_run`), then joins, then nodes, so that two of them cannot wait for each other.

Not here: what the transactions do (`runs`, `plans`, `records`), how the schema changes (`schema`), how
SQLite's single writer is shared by threads (`writer`).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from ckworkflow.errors import DatabaseUnavailableError, InvalidSettingError, RefusedValueError
from ckworkflow.model import RunId
from ckworkflow.scrub import conceal_url, scrub
from ckworkflow.store.expectations import ExpectationError, is_unmet
from ckworkflow.store.files import OpenFile, make_private
from ckworkflow.store.forks import ForkedInTransactionError, ForkGate
from ckworkflow.store.location import SETTING, read_url, shown
from ckworkflow.store.transaction import (
    BUSY_SECONDS,
    PRAGMAS,
    SESSION,
    Prepared,
    Transaction,
    is_direct,
    no_unicode,
    refuse_nul,
)
from ckworkflow.store.verdicts import ConstraintError, Verdict, advise, give_verdict, sqlstate
from ckworkflow.store.writer import BusyError, Done, GroupWriter, Work, Works

if TYPE_CHECKING:
    import sqlite3

    import psycopg

T = TypeVar("T")

_SERVER_NOW = Prepared(sa.select(sa.func.clock_timestamp(type_=sa.TIMESTAMP(timezone=True))))
_END_SESSIONS = sa.text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name "
    "AND usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()"
)
_WHO = sa.text(
    "SELECT current_user, n.nspname FROM unnest(regexp_split_to_array(replace(current_setting('search_path'), "
    "'\"$user\"', quote_ident(current_user)), ' *, *')) WITH ORDINALITY AS path(name, place) "
    "LEFT JOIN pg_namespace n ON quote_ident(n.nspname) = path.name ORDER BY n.nspname IS NULL, place LIMIT 1"
)
_NO_RIGHT = ("42501", "3F000")
RETRIES = 8
LONGEST_SECONDS = BUSY_SECONDS
"""After so long no transaction is tried again, whatever it was tried for."""
_LIBPQ_DRIVERS = ("psycopg", "psycopg2")
POOL_SIZE = POOL_OVERFLOW = 5
CONNECT_SECONDS = 10
"""How long a PostgreSQL server may take to answer, where the URL does not say."""
LONGEST_NAME = 63
"""How much of a session's name a PostgreSQL server keeps."""

GROUP_LOCK_SECONDS = 0.25
"""How long a group of works waits for a run that another process has locked, before each goes on by itself."""
_LOCK_NOT_AVAILABLE = "55P03"
_SESSION_NUMBER = "ckworkflow_session"


class Database:
    """A workflow database.

    Args:
        url: An SQLAlchemy URL, `sqlite:///file` or `postgresql+psycopg://...`.
        clock: Where to read the time instead of the database, for tests that own it.
        owner: What this process is called; a server knows its sessions by that.
        is_lasting: Whether a commit to a file is to outlive a power cut; the death of a process never loses it.

    Raises:
        InvalidSettingError: The URL names no database that could be used.
        DatabaseUnavailableError: From any transaction, while the database cannot be reached or cannot do its work. No transaction raises an error of the driver.
        RefusedValueError: From any transaction: the database can never store a value that it was given.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], datetime] | None = None,
        owner: Callable[[], str] | None = None,
        is_lasting: bool = True,
    ) -> None:
        self._is_lasting = is_lasting
        self._url = read_url(url)
        conceal_url(url)
        self._clock, self._owner = clock, owner
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._pid = os.getpid()
        self._file: OpenFile | None = None
        self._writer = self._make_writer()
        self._engine = self._make_engine()
        self._gate = ForkGate(self.dispose, str(self._path)) if self.is_sqlite else None
        self._inherited: list[object] = []
        self._kept: sa.Connection | None = None
        self._disposals = 0
        self._is_closed = False
        self._giving_back = threading.RLock()
        """Held while a session goes back to where it stays open, so that all of them can be closed."""
        self._session_number = 0
        """Sessions with a lower number were opened before one was found to be of no use: a server has failed over."""
        self._last_now: tuple[float, datetime] | None = None

    @property
    def url(self) -> str:
        """The URL, with the password masked; that of a file has its absolute path."""
        return shown(self._url)

    @property
    def is_there(self) -> bool:
        """Whether there is a database: of an SQLite file, whether something is in it; a server always has one."""
        try:
            return not self.is_sqlite or self._path.stat().st_size > 0
        except OSError:
            return False

    def make_folder(self) -> None:
        """Make the folder of an SQLite file.

        Raises:
            DatabaseUnavailableError: It cannot be made.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseUnavailableError(self.url, str(error)) from error

    @property
    def _path(self) -> Path:
        return Path(self._url.database or "")

    @property
    def engine(self) -> sa.Engine:
        """The engine of this process, whose connections commit each statement by itself."""
        if self._pid != os.getpid():
            # After a fork the parent's connections are the parent's: keep them unused and unclosed.
            self._inherited += [self._engine, self._kept]
            self._kept = None
            self._engine = self._make_engine()
            self._writer = self._make_writer()
            self._pid = os.getpid()
            self._giving_back = threading.RLock()
        return self._engine

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in one write transaction and return what it returned.

        Args:
            work: Runs again when the database asks for it, so it must not touch anything else.
        """
        _ = self.engine  # of this process, and so its writer
        if self.is_sqlite:
            return self._writer.run(work)
        return self._attempts(self._session, work, is_write=True)

    @overload
    def transact_run(
        self,
        run_id: RunId,
        work: Callable[[Transaction], Works[T]],
        *,
        is_lasting: bool = ...,
    ) -> T: ...

    @overload
    def transact_run(
        self, run_id: RunId, work: Callable[[Transaction], T], *, is_lasting: bool = ...
    ) -> T: ...

    def transact_run(self, run_id: RunId, work: Work[T], *, is_lasting: bool = True) -> T:
        """Run a work on one run, perhaps in one transaction with works on others, and return what it returned.

        Args:
            run_id: The only run that it locks.
            work: As for `transact`; may yield where it is about to read rows (`writer`).
                If something that it expects is not so, it is undone, and there is an `ExpectationError`.
            is_lasting: Whether it must be there still after a power cut; a death of the process never loses it.
        """
        _ = self.engine  # of this process, and so its writer
        return self._writer.run(work, key=run_id, is_lasting=is_lasting)

    def submit_run(self, run_id: RunId, work: Work[T], done: Done[T]) -> None:
        """Hand in a work on one run, as `transact_run` runs it, and return at once.

        Args:
            run_id: The only run that it locks.
            work: The work.
            done: Told of its end (`writer`), with the errors of `transact_run`; and with `BusyError`: it has to be run
                by `transact_run`.
        """
        _ = self.engine  # of this process, and so its writer
        self._writer.submit(work, done, key=run_id)

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a transaction that only reads."""
        return self._attempts(self._session, work, is_write=False)

    def now(self, tx: Transaction) -> datetime:
        """The database's time. SQLite has no clock but the machine's."""
        if self._clock is not None:
            return self._clock()
        if self.is_sqlite:
            return datetime.now(UTC)
        ((value,),) = tx.execute(_SERVER_NOW).all()
        return self.note_now(value)

    @property
    def can_expect(self) -> bool:
        """Whether expecting rows saves anything: there is a server to wait for, and a driver that need not wait."""
        return not self.is_sqlite and is_direct(self.engine.dialect)

    @property
    def has_server_clock(self) -> bool:
        """Whether the time must be asked of a server."""
        return self._clock is None and not self.is_sqlite

    def note_now(self, value: datetime) -> datetime:
        """Take note of what the server's clock said just now; return it in UTC."""
        now = value.astimezone(UTC)
        self._last_now = (time.monotonic(), now)
        return now

    def about_now(self) -> datetime:
        """Return about the database's time, mostly without asking it: what it said last, plus what has passed since."""
        if not self.has_server_clock:
            return self._clock() if self._clock is not None else datetime.now(UTC)
        last = self._last_now
        if last is None:
            return self.read(self.now)
        return last[1] + timedelta(seconds=time.monotonic() - last[0])

    @property
    def is_lost(self) -> bool:
        """Whether this process can never use the database, since it was forked during a transaction."""
        return self._gate is not None and self._gate.is_lost

    def end_sessions(self, owner: str) -> None:
        """Have a server give up what a process that is taken for dead has under way. SQLite has no such sessions.

        One that was stopped in the middle of a transaction keeps its locks, and so does one whose machine is gone,
        of which a server may learn after hours. The clocks of the surviving processes would wait for them as they reap it.
        """
        if not self.is_sqlite:
            self.read(lambda tx: tx.execute(_END_SESSIONS, {"name": _session_name(owner)}))

    def dispose(self) -> None:
        """Close the connections of this process."""
        if self._pid == os.getpid():
            with self._giving_back:
                kept, self._kept = self._kept, None
                if kept is not None:
                    _close(kept)
                self._disposals += 1
                self._engine.dispose()

    def close(self) -> None:
        """Close the connections of this process for good: one that a thread still opens is closed after its work."""
        self._is_closed = True
        self.dispose()

    def _make_writer(self) -> GroupWriter:
        if self.is_sqlite:
            return GroupWriter(
                lambda work, is_lasting, until: self._attempts(
                    self._writing, work, is_write=True, is_lasting=is_lasting, until=until
                ),
                longest_seconds=LONGEST_SECONDS,
            )
        return GroupWriter(
            lambda work, is_lasting, until: self._attempts(
                self._writing,
                work,
                is_write=True,
                is_lasting=is_lasting,
                lock_seconds=GROUP_LOCK_SECONDS,
                until=until,
            ),
            longest_seconds=LONGEST_SECONDS,
            alone=lambda work, until: self._attempts(self._session, work, is_write=True, until=until),
        )

    def _attempts(
        self, connected: Callable[[], AbstractContextManager[sa.Connection]], work: Callable[[Transaction], T],
        *, is_write: bool, is_lasting: bool = True, lock_seconds: float | None = None, until: float | None = None,
    ) -> T:  # fmt: skip
        until = time.monotonic() + LONGEST_SECONDS if until is None else until
        for attempt in range(1, RETRIES + 1):
            if self._file is not None and (fault := self._file.fault()) is not None:
                raise DatabaseUnavailableError(self.url, fault)
            try:
                with self._gate.passing() if self._gate else nullcontext(), connected() as connection:
                    tx, number = Transaction(connection, is_write=is_write), _number_of(connection)
                    try:
                        return _run(
                            work, tx, is_lasting=is_lasting and self._is_lasting,
                            lock_seconds=lock_seconds, until=until,
                        )  # fmt: skip
                    except exc.DBAPIError as error:
                        self._give_up(connection, number, error)
                        raise
            except ForkedInTransactionError as error:
                raise DatabaseUnavailableError(
                    self.url, str(error), "Start this process again"
                ) from None
            except exc.TimeoutError as error:  # of the pool
                reason = f"all {POOL_SIZE + POOL_OVERFLOW} sessions of this process are in use"
                raise DatabaseUnavailableError(self.url, reason) from error
            except exc.DBAPIError as error:
                if is_unmet(error.orig):
                    raise ExpectationError from error
                if lock_seconds is not None and sqlstate(error) == _LOCK_NOT_AVAILABLE:
                    raise BusyError from error
                verdict = give_verdict(error)
                is_last = attempt == RETRIES or time.monotonic() >= until
                if is_last or verdict not in (Verdict.AGAIN, Verdict.OTHER_SESSION):
                    raise self._named(error, verdict) from error
            except UnicodeDecodeError as error:
                if not self.is_sqlite:
                    raise
                # Of a damaged file not even what SQLite says about it can be read.
                raise DatabaseUnavailableError(self.url, "its file is damaged") from error
            time.sleep(random.uniform(0.5, 1) * 0.005 * 2**attempt)  # noqa: S311  # jitter, not a secret
        raise AssertionError  # pragma: no cover

    def _give_up(self, connection: sa.Connection, number: int, error: exc.DBAPIError) -> None:
        """Close the session that met an error, unless the error says nothing about it.

        What a commit that was under way has done is not known then; each transaction finds out by the row that it
        fences with. If the server is not the one that it was, the other sessions are given up when they are next used.
        """
        verdict = give_verdict(error)
        if verdict not in (Verdict.OTHER_SESSION, Verdict.UNAVAILABLE):
            return
        if verdict is Verdict.OTHER_SESSION:
            self._session_number = max(self._session_number, number + 1)
        if not connection.invalidated:
            connection.invalidate(error)

    def _named(self, error: exc.DBAPIError, verdict: Verdict) -> Exception:
        """Return our error for one of the driver's."""
        if verdict is Verdict.VALUE:
            return RefusedValueError(_reason(error))
        made = ConstraintError if verdict is Verdict.CONSTRAINT else DatabaseUnavailableError
        advice = self.rights_needed() if sqlstate(error) in _NO_RIGHT else advise(error)
        return made(self.url, _reason(error), advice)

    def rights_needed(self) -> str:
        """Say what the role of the URL must be granted on a server, and where."""
        role, schema = self.read(lambda tx: tx.execute(_WHO).one())
        quote = self._engine.dialect.identifier_preparer.quote
        role, place = quote(role), quote(schema or "public")
        return (
            f"Have the owner of the schema {place} run GRANT USAGE, CREATE ON SCHEMA {place} TO {role} for "
            f"`ckworkflow db upgrade`, and GRANT USAGE ON SCHEMA {place} TO {role}; GRANT SELECT, INSERT, UPDATE, "
            f"DELETE ON ALL TABLES IN SCHEMA {place} TO {role} for bot and workers"
        )

    @contextmanager
    def session(self) -> Iterator[sa.Connection]:
        """Give a session of a server for what goes on outside of transactions; it is closed at the end.

        Raises:
            DatabaseUnavailableError: As from a transaction.
        """
        try:
            with self._connect() as connection:
                try:
                    yield connection.execution_options(isolation_level="AUTOCOMMIT")
                finally:
                    connection.invalidate()  # it has got settings of its own: nobody else must have it
        except exc.DBAPIError as error:
            raise self._named(error, give_verdict(error)) from error

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """Give the writer the connection that it had before: taking one from the pool costs as much as two statements."""
        with self._giving_back:
            kept, self._kept = self._kept, None
            disposals = self._disposals
        if kept is not None and not self._is_useful(kept, self._session_number):
            kept = None
        connection = self._connect() if kept is None else kept
        try:
            yield connection
        except BaseException:
            self._return(connection, disposals)
            raise
        with self._giving_back:
            if disposals == self._disposals and not self._is_closed:
                self._kept = connection
                return
        self._return(connection, disposals)

    @contextmanager
    def _session(self) -> Iterator[sa.Connection]:
        """Give a session of the pool."""
        disposals = self._disposals
        connection = self._connect()
        try:
            yield connection
        finally:
            self._return(connection, disposals)

    def _return(self, connection: sa.Connection, disposals: int) -> None:
        """Give a session back to its pool; close it where all were closed meanwhile."""
        with self._giving_back:
            if disposals == self._disposals and not self._is_closed:
                connection.close()
                return
        _close(connection)

    def _make_engine(self) -> sa.Engine:
        # Every transaction here ends by itself, and a dead connection is found out by its first statement: to
        # undo and to ask once more would cost a round trip each.
        options: dict[str, Any] = {
            "poolclass": QueuePool, "pool_size": POOL_SIZE, "max_overflow": POOL_OVERFLOW, "pool_reset_on_return": None,
            "hide_parameters": True,  # values are private: no error may quote them into logs or Celery's events
        }  # fmt: skip
        if self.is_sqlite:
            options.update(connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})
            self._file = OpenFile(str(self._path))
        else:
            options.update(connect_args=self._server_options())
        if is_direct(self._url.get_dialect()()):
            options["isolation_level"] = "AUTOCOMMIT"  # we say BEGIN and COMMIT ourselves
        engine = sa.create_engine(self._url, **options)
        event.listen(engine, "connect", self._number_session)
        event.listen(engine, "before_cursor_execute", _check_texts)
        if self.is_sqlite:
            if self._file is not None:
                event.listen(engine, "do_connect", partial(_make_private, self._file))
                event.listen(engine, "connect", partial(_note_file, self._file))
            event.listen(engine, "connect", _prepare_sqlite)
            return engine
        event.listen(engine, "connect", self._check_encoding)
        if is_direct(engine.dialect):
            event.listen(engine, "connect", _prepare_session)
        if self._owner is not None:
            event.listen(engine, "do_connect", self._name_session)
        return engine

    def _connect(self) -> sa.Connection:
        """Take a session from the pool that was not given up."""
        number = self._session_number  # of now: what is opened from here on has at least this one
        while not self._is_useful(connection := self.engine.connect(), number):
            pass
        return connection

    @staticmethod
    def _is_useful(connection: sa.Connection, number: int) -> bool:
        """Whether a session is open and was not given up; one that was is closed."""
        if connection.invalidated:
            connection.close()
            return False
        if _number_of(connection) < number:
            connection.invalidate()
            connection.close()
            return False
        return True

    def _number_session(self, _connection: object, record: ConnectionPoolEntry) -> None:
        record.info[_SESSION_NUMBER] = self._session_number

    def _server_options(self) -> dict[str, object]:
        options: dict[str, object] = {}
        if "connect_timeout" not in self._url.query:
            options["connect_timeout"] = CONNECT_SECONDS
        if self._url.get_dialect().driver in _LIBPQ_DRIVERS:
            # Or texts come in whatever the database is encoded in, and as bytes where that is not known.
            options["client_encoding"] = "UTF8"
        return options

    def _check_encoding(self, connection: object, _record: object) -> None:
        """Refuse a database that cannot hold every text."""
        info = getattr(connection, "info", None)
        encoding = info.parameter_status("server_encoding") if info is not None else None
        if encoding not in (None, "UTF8"):
            reason = (
                f"its texts are encoded in {encoding}, and names and messages of every script must fit. Make a "
                f"database for it: CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"
            )
            raise InvalidSettingError(SETTING, self.url, reason)

    def _name_session(
        self, _dialect: object, _record: object, _args: object, options: dict[str, object]
    ) -> None:
        if self._owner is not None:
            options["application_name"] = _session_name(self._owner())


def _run(
    work: Callable[[Transaction], T], tx: Transaction, *, is_lasting: bool, lock_seconds: float | None,
    until: float,
) -> T:  # fmt: skip
    try:
        tx.begin(is_lasting=is_lasting, lock_seconds=lock_seconds, until=until)
        value = work(tx)
        tx.commit()
    except BaseException:
        tx.roll_back()
        raise
    return value


def _close(connection: sa.Connection) -> None:
    """Close a session for good: a pool, and one that was disposed of, too, would keep it open."""
    if not connection.invalidated:
        connection.detach()
    connection.close()


def _number_of(connection: sa.Connection) -> int:
    number: int = connection.info[_SESSION_NUMBER]
    return number


def _session_name(owner: str) -> str:
    # Of a long name the end counts, where the process is.
    return f"ckworkflow {owner}"[-LONGEST_NAME:]


def _reason(error: exc.DBAPIError) -> str:
    return scrub(str(error.orig).strip().splitlines()[0])


def _check_texts(
    _connection: object, _cursor: object, _statement: str, parameters: Any, *_: object
) -> None:
    """Refuse texts in statements that SQLAlchemy executes, as `Transaction` does in its own."""
    for each in parameters if isinstance(parameters, list) else [parameters]:
        values = list(each.values() if isinstance(each, Mapping) else each or ())
        refuse_nul(values)
        try:
            for value in values:
                if isinstance(value, str):
                    value.encode()
        except UnicodeEncodeError:
            raise no_unicode() from None


def _prepare_session(connection: psycopg.Connection[object], _record: object) -> None:
    # The driver would prepare what it is asked often, and with each rollback forget on the server all that is prepared: ours, too.
    connection.prepare_threshold = None
    connection.execute(SESSION)


def _make_private(
    file: OpenFile, _dialect: object, _record: object, _args: object, options: Mapping[str, object]
) -> None:
    if not options.get("uri"):  # such a one says itself how the file is opened
        make_private(file.path)


def _note_file(file: OpenFile, _connection: object, _record: object) -> None:
    file.note()


def _prepare_sqlite(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    # It says which mode there is: not this one where processes cannot share memory, as on a network's file system.
    (mode,) = cursor.execute("PRAGMA journal_mode=WAL").fetchone()
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
    record.info[PRAGMAS] = {"journal_mode": mode, "synchronous": "FULL"}
