"""One database: its engine, its transactions, its clock.

A transaction is a function that may run more than once: what a deadlock, a serialization failure or a
locked file throws back is tried again. Every transaction that touches a run locks the run's row first
(`runs.lock_run`), then joins, then nodes, so that two of them cannot wait for each other.

Not here: what the transactions do (`runs`, `plans`, `records`), how the schema changes (`schema`), how
SQLite's single writer is shared by threads (`writer`).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, overload

import sqlalchemy as sa
from sqlalchemy.pool import QueuePool

from ckworkflow.errors import DatabaseUnavailableError, InvalidSettingError
from ckworkflow.model import RunId
from ckworkflow.scrub import scrub
from ckworkflow.store.forks import ForkGate
from ckworkflow.store.guesses import GuessError, is_wrong_guess
from ckworkflow.store.transaction import BUSY_SECONDS, SESSION, Transaction, is_direct
from ckworkflow.store.writer import BusyError, Done, GroupWriter, Work, Works

T = TypeVar("T")

_SERVER_NOW = sa.text("SELECT clock_timestamp()")
_END_SESSIONS = sa.text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name "
    "AND usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()"
)
RETRIES = 8
CONNECT_SECONDS = 10
"""How long a PostgreSQL server may take to answer, where the URL does not say."""
LONGEST_NAME = 63
"""How much of a session's name a PostgreSQL server keeps."""
SETTING = "workflow_database_url"

GROUP_LOCK_SECONDS = 0.25
"""How long a group of works waits for a run that another process has locked, before each goes on by itself."""
_LOCK_NOT_AVAILABLE = "55P03"
_RETRY_SQLSTATES = frozenset({"40001", "40P01", "55P03"})
_SQLITE_UNUSABLE = ("unable to open", "locked", "not a database", "readonly", "disk")
_FORMS = "sqlite:///runs.sqlite3 or postgresql+psycopg://user:password@host/database"


class Database:
    """A workflow database.

    Args:
        url: An SQLAlchemy URL, `sqlite:///file` or `postgresql+psycopg://...`.
        clock: Where to read the time instead of the database; for those who own it.
        owner: What this process is called; a server knows its sessions by that.

    Raises:
        InvalidSettingError: The URL names no database that could be used.
        DatabaseUnavailableError: The folder of a file cannot be made; later from any transaction, while the
            database cannot be reached.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], datetime] | None = None,
        owner: Callable[[], str] | None = None,
    ) -> None:
        self._url = _parse_url(url)
        self._clock, self._owner = clock, owner
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self._pid = os.getpid()
        self._writer = self._make_writer()
        self._engine = self._make_engine()
        self._gate = ForkGate(self.dispose) if self.is_sqlite else None
        self._inherited: list[object] = []
        self._kept: sa.Connection | None = None
        self._last_now: tuple[float, datetime] | None = None

    @property
    def url(self) -> str:
        """The URL, with the password masked."""
        return self._url.render_as_string(hide_password=True)

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
        return self._engine

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in one write transaction and return what it returned.

        Args:
            work: Runs again when the database asks for it, so it must not touch anything else.
        """
        engine = self.engine
        if self.is_sqlite:
            return self._writer.run(work)
        return self._attempts(engine.connect, work, is_write=True)

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

    def transact_run(self, run_id: RunId, work: Work[Any], *, is_lasting: bool = True) -> Any:
        """Run a work on one run, perhaps in one transaction with works on others, and return what it returned.

        Args:
            run_id: The only run that it locks.
            work: As for `transact`; may yield where it is about to read rows (`writer`).
                Where it has taken something for granted (`guesses`) that is not so, there is a `GuessError`.
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
        return self._attempts(self.engine.connect, work, is_write=False)

    def now(self, tx: Transaction) -> datetime:
        """The database's time. SQLite has no clock but the machine's."""
        if self._clock is not None:
            return self._clock()
        if self.is_sqlite:
            return datetime.now(UTC)
        value: datetime = tx.execute(_SERVER_NOW).scalar_one()
        return self.note_now(value)

    @property
    def can_guess(self) -> bool:
        """Whether a transaction is worth its guesses: there is a server to wait for, and a driver that need not."""
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
        """About the database's time, mostly without asking: what it said last, and what has passed since."""
        if not self.has_server_clock:
            return self._clock() if self._clock is not None else datetime.now(UTC)
        last = self._last_now
        if last is None:
            return self.read(self.now)
        return last[1] + timedelta(seconds=time.monotonic() - last[0])

    def end_sessions(self, owner: str) -> None:
        """Have a server give up what a process has under way that is taken for dead; of SQLite nothing is known.

        One that was stopped in the middle of a transaction keeps its locks, and so does one whose machine is gone,
        of which a server may learn after hours. Who waits for them are the clocks of all others, in their burial.
        """
        if not self.is_sqlite:
            self.read(lambda tx: tx.execute(_END_SESSIONS, {"name": _session_name(owner)}))

    def dispose(self) -> None:
        """Close the connections of this process."""
        if self._pid == os.getpid():
            kept, self._kept = self._kept, None
            if kept is not None:
                kept.close()
            self._engine.dispose()

    def _make_writer(self) -> GroupWriter:
        if self.is_sqlite:
            return GroupWriter(
                lambda work, is_lasting: self._attempts(
                    self._writing, work, is_write=True, is_lasting=is_lasting
                )
            )
        return GroupWriter(
            lambda work, is_lasting: self._attempts(
                self._writing,
                work,
                is_write=True,
                is_lasting=is_lasting,
                lock_seconds=GROUP_LOCK_SECONDS,
            ),
            alone=lambda work: self._attempts(self.engine.connect, work, is_write=True),
        )

    def _attempts(
        self, connected: Callable[[], AbstractContextManager[sa.Connection]], work: Callable[[Transaction], T],
        *, is_write: bool, is_lasting: bool = True, lock_seconds: float | None = None,
    ) -> T:  # fmt: skip
        for attempt in range(1, RETRIES + 1):
            try:
                with self._gate.passing() if self._gate else nullcontext(), connected() as connection:
                    tx = Transaction(connection, is_write=is_write)
                    return _run(work, tx, is_lasting=is_lasting, lock_seconds=lock_seconds)
            except sa.exc.DBAPIError as error:
                if is_wrong_guess(error.orig):
                    raise GuessError from error
                if (
                    lock_seconds is not None
                    and getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE
                ):
                    raise BusyError from error
                if attempt == RETRIES or not self._is_transient(error):
                    if self._is_unreachable(error):
                        raise DatabaseUnavailableError(self.url, _reason(error)) from error
                    raise
            time.sleep(random.uniform(0.5, 1) * 0.005 * 2**attempt)  # noqa: S311  # jitter, not a secret
        raise AssertionError  # pragma: no cover

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """Give the writer the connection that it had before: to take one from the pool costs as two statements do."""
        kept, self._kept = self._kept, None
        connection = kept if kept is not None and not kept.invalidated else self.engine.connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._kept = connection

    def _is_transient(self, error: sa.exc.DBAPIError) -> bool:
        if self.is_sqlite:
            return "locked" in str(error.orig) or "busy" in str(error.orig)
        # A connection that has died took the others of the pool with it: the next one is new. What a commit that
        # was under way has done is not known then; each transaction finds out by the row that it fences with.
        return getattr(error.orig, "sqlstate", None) in _RETRY_SQLSTATES or error.connection_invalidated

    def _is_unreachable(self, error: sa.exc.DBAPIError) -> bool:
        if self.is_sqlite:
            return any(words in str(error.orig) for words in _SQLITE_UNUSABLE)
        if not isinstance(error, sa.exc.OperationalError):
            return False
        state = getattr(error.orig, "sqlstate", None)
        return state is None or state.startswith(("08", "57P", "28", "3D"))

    def _make_engine(self) -> sa.Engine:
        # Every transaction here ends by itself, and a dead connection is found out by its first statement: to
        # undo and to ask once more would cost a round trip each.
        options: dict[str, Any] = {
            "poolclass": QueuePool, "pool_size": 5, "max_overflow": 5, "pool_reset_on_return": None,
            "hide_parameters": True,  # values are private: no error may quote them into logs or Celery's events
        }  # fmt: skip
        if self.is_sqlite:
            options.update(connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})
            path = self._url.database
            if path and path != ":memory:":
                self._make_folder(Path(path).expanduser().absolute().parent)
        elif "connect_timeout" not in self._url.query:
            options.update(connect_args={"connect_timeout": CONNECT_SECONDS})
        if is_direct(self._url.get_dialect()()):
            options["isolation_level"] = "AUTOCOMMIT"  # we say BEGIN and COMMIT ourselves
        engine = sa.create_engine(self._url, **options)
        if self.is_sqlite:
            sa.event.listen(engine, "connect", _prepare_sqlite)
            return engine
        if is_direct(engine.dialect):
            sa.event.listen(engine, "connect", _prepare_session)
        if self._owner is not None:
            sa.event.listen(engine, "do_connect", self._name_session)
        return engine

    def _name_session(self, _dialect: object, _record: object, _args: object, options: Any) -> None:
        if self._owner is not None:
            options["application_name"] = _session_name(self._owner())

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseUnavailableError(self.url, str(error)) from error


def _run(
    work: Callable[[Transaction], T], tx: Transaction, *, is_lasting: bool, lock_seconds: float | None
) -> T:
    try:
        tx.begin(is_lasting=is_lasting, lock_seconds=lock_seconds)
        value = work(tx)
        tx.commit()
    except BaseException:
        tx.roll_back()
        raise
    return value


def _parse_url(text: str) -> sa.URL:
    """Read a database URL, and see that its driver is here."""
    try:
        url = sa.make_url(text)
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            reason = f"ckworkflow keeps its runs in SQLite or PostgreSQL, such as {_FORMS}"
            raise InvalidSettingError(SETTING, url.render_as_string(), reason)
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except sa.exc.ArgumentError:
        raise InvalidSettingError(
            SETTING, scrub(text), f"it is no database URL, such as {_FORMS}"
        ) from None
    except ImportError as error:
        reason = (
            f"its driver is missing ({error}). Write {_FORMS}, and pip install 'ckworkflow[postgres]'"
        )
        raise InvalidSettingError(SETTING, url.render_as_string(), reason) from error
    if dialect.is_async:
        reason = f"its driver is for asyncio, and ckworkflow needs one that blocks, as {_FORMS} have"
        raise InvalidSettingError(SETTING, url.render_as_string(), reason)
    return url


def _session_name(owner: str) -> str:
    # Of a long name the end counts, where the process is.
    return f"ckworkflow {owner}"[-LONGEST_NAME:]


def _reason(error: sa.exc.DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0]


def _prepare_session(connection: Any, _record: object) -> None:
    connection.execute(SESSION)


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
