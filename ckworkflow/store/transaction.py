"""One transaction: what runs inside it, and how few round trips it takes.

The statements of the hot path are *prepared*: SQLAlchemy compiles them once for each dialect, and here they go
to the driver directly. On a server they travel in a pipeline: a statement whose rows nobody reads waits for
the next one whose rows somebody does, and the begin and the commit travel with them. Every other statement is
SQLAlchemy's as usual, in the same transaction.

Not here: where transactions begin, and what is tried again (`ckworkflow.store.database`).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

import sqlalchemy as sa
from sqlalchemy import exc

from ckworkflow.errors import RefusedValueError
from ckworkflow.store.pipeline import Pipeline
from ckworkflow.store.tables import UtcDateTime
from ckworkflow.store.verdicts import Verdict, give_verdict

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult
    from sqlalchemy.engine import Dialect
    from sqlalchemy.types import TypeEngine

    from ckworkflow.store.pipeline import Sent

logger = logging.getLogger(__name__)

__all__ = [
    "SESSION",
    "Asked",
    "Prepared",
    "Row",
    "Rows",
    "Transaction",
    "is_direct",
    "no_unicode",
    "refuse_nul",
]

Parameters = Mapping[str, object]
Row = Sequence[Any]
"""The values of a row, in the order of its columns."""


def is_direct(dialect: Dialect) -> bool:
    """Whether prepared statements go to the driver directly, as they do to the drivers that are known here."""
    return dialect.driver in ("pysqlite", "psycopg")


T = TypeVar("T")


class Rows:
    """The rows that a prepared statement gives, as tuples in the order of its columns.

    A server is asked for them at once; they are waited for when somebody reads them.
    """

    __slots__ = ("_fetch", "_rows")

    def __init__(self, rows: list[Row] | None, fetch: Callable[[], list[Row]] | None = None) -> None:
        self._rows, self._fetch = rows, fetch

    def __iter__(self) -> Iterator[Row]:
        return iter(self.all())

    def all(self) -> list[Row]:
        """Every row."""
        if self._rows is None:
            assert self._fetch is not None
            self._rows = self._fetch()
        return self._rows

    def one_or_none(self) -> Row | None:
        """The only row; `None` when there is none."""
        rows = self.all()
        if not rows:
            return None
        (row,) = rows
        return row


_NO_ROWS = Rows([])


class Asked(Generic[T]):
    """The answer to a statement that has been sent: the server may still be working on it, and `get` waits.

    Args:
        rows: The rows that are to come.
        read: Makes of them what was asked for.
    """

    __slots__ = ("_read", "_rows")

    def __init__(self, rows: Rows, read: Callable[[Rows], T]) -> None:
        self._rows, self._read = rows, read

    def get(self) -> T:
        """Wait for the answer and return it; to be called once. Raises what the function that asked for it documents."""
        return self._read(self._rows)


class Prepared:
    """A statement that is built once, with a bound parameter for everything that varies.

    Args:
        statement: An SQLAlchemy Core statement; no list in it, whose length would be a part of the text.
    """

    def __init__(self, statement: sa.sql.Executable) -> None:
        self.statement = statement
        self._forms: dict[str, _Form] = {}

    def form(self, dialect: Dialect) -> _Form:
        """Return the statement as a dialect writes it."""
        found = self._forms.get(dialect.name)
        if found is None:
            made = _Form if dialect.name == "sqlite" else _TextForm
            found = self._forms[dialect.name] = made(self.statement, dialect)
        return found


Convert = Callable[[Any], Any]


class _Form:
    """A statement as SQLite's driver takes it."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        self._dialect = dialect
        compiled = statement.compile(dialect=dialect)
        self.sql = str(compiled)
        # Name, what it is when nobody says, and how the driver wants it.
        self.binds: list[tuple[str, object, Convert | None]] = [
            (name, compiled.binds[name].value, self._encoder(compiled.binds[name].type))
            for name in compiled.positiontup
        ]
        is_select = isinstance(statement, sa.sql.Select)
        columns = statement.exported_columns if is_select or statement.exported_columns else ()
        self.decoders = [self._decoder(column.type) for column in columns]
        self.has_rows = bool(self.decoders)
        self.is_plain = not any(self.decoders)

    def values(self, parameters: Parameters) -> list[Any]:
        """The parameters as the driver wants them.

        Raises:
            RefusedValueError: A text has a NUL character.
        """
        # Some fifty for each step, so `refuse_nul` is asked only where there is one.
        values: list[Any] = []
        get = parameters.get
        for name, default, encode in self.binds:
            value = get(name, default)
            if isinstance(value, str) and "\0" in value:
                refuse_nul([value])
            values.append(value if encode is None else encode(value))
        return values

    def rows(self, found: list[Row]) -> list[Row]:
        """What the driver gave, decoded."""
        if self.is_plain:
            return found
        return [
            [
                value if decode is None else decode(value)
                for value, decode in zip(row, self.decoders, strict=True)
            ]
            for row in found
        ]

    def _encoder(self, type_: TypeEngine[object]) -> Convert | None:
        found: Convert | None = type_.dialect_impl(self._dialect).bind_processor(self._dialect)
        return found

    def _decoder(self, type_: TypeEngine[object]) -> Convert | None:
        found: Convert | None = type_.dialect_impl(self._dialect).result_processor(self._dialect, None)
        return found


class _TextForm(_Form):
    """A statement as a PostgreSQL server takes it: everything is text, and `$1` a parameter."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        numbered: Dialect = type(dialect)(paramstyle="numeric_dollar")  # type: ignore[call-arg]  # every dialect takes it
        super().__init__(statement, numbered)
        self.text = self.sql.encode()
        # By what it says: behind a pooler that knows nothing of names, another process may have prepared this one.
        self.name = b"ckworkflow_" + hashlib.sha256(self.text).hexdigest()[:32].encode()

    def values(self, parameters: Parameters) -> list[bytes | None]:
        """The parameters as libpq wants them; see the base class."""
        # Some fifty for each step, so what most of them are is asked here.
        values: list[bytes | None] = []
        for name, default, _ in self.binds:
            value = parameters.get(name, default)
            if value is None:
                values.append(None)
            elif isinstance(value, str):
                text = value.encode()
                if b"\0" in text:
                    refuse_nul([value])
                values.append(text)
            elif type(value) is int:
                values.append(b"%d" % value)
            else:
                values.append(_to_text(value))
        return values

    def result(self, result: PGresult) -> list[Row]:
        """The rows of a result of libpq."""
        get, decoders = result.get_value, self.decoders
        return [
            [
                None if (value := get(row, column)) is None else decode(value)  # type: ignore[misc]  # text has one
                for column, decode in enumerate(decoders)
            ]
            for row in range(result.ntuples)
        ]

    def _encoder(self, type_: TypeEngine[object]) -> None:  # noqa: ARG002  # as text, whatever it is
        return None

    def _decoder(self, type_: TypeEngine[object]) -> Convert:
        if isinstance(type_, sa.Boolean):
            return _TRUE.__eq__
        if isinstance(type_, sa.Integer):
            return int
        if isinstance(type_, sa.TIMESTAMP | UtcDateTime):
            return _time_of
        return bytes.decode


_TRUE = b"t"
_TEXTS: Final = "Ids, keys and names must be whole Unicode texts: take that out of it first"


def refuse_nul(values: Iterable[object]) -> None:
    """Refuse texts with a NUL character: SQLite keeps it, and a server would read only what is before it.

    Raises:
        RefusedValueError: One has it.
    """
    for value in values:
        if isinstance(value, str) and "\0" in value:
            raise RefusedValueError("a text with a NUL character", _TEXTS)


def no_unicode() -> RefusedValueError:
    """Return the error of a text with half of a surrogate pair, which neither database keeps."""
    return RefusedValueError("a text with half of a surrogate pair", _TEXTS)


def _to_text(value: object) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bool):
        return b"t" if value else b"f"
    return (value.isoformat() if isinstance(value, datetime) else str(value)).encode()


def _time_of(text: bytes) -> datetime:
    # Of a session whose times are UTC, in ISO format (`SESSION`).
    return datetime.fromisoformat(text.decode()).astimezone(UTC)


SESSION: Final = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'"
"""What a server's session must be told first, for times to be read here."""


BUSY_SECONDS: Final = 30.0
"""How long a transaction waits for an SQLite file on which another process writes."""
QUIET_SECONDS: Final = 5.0
"""How long it is waited for in silence."""
BUSY_PAUSE_SECONDS: Final = (0.0001, 0.0006)
PRAGMAS: Final = "ckworkflow_pragmas"
"""Where a connection to an SQLite file keeps what its pragmas were set to."""
_GONE: Final = ("08", "57P01", "57P02", "57P03", "26000")
"""SQL states that a server says goodbye with; and that it has forgotten a prepared statement, as poolers may."""


class Transaction:
    """A transaction that is under way.

    Args:
        connection: SQLAlchemy's, in which it runs.
        is_write: Whether it may write.

    Attributes:
        is_write: As given.
        is_piped: Whether several statements can be under way at once.
    """

    def __init__(self, connection: sa.Connection, *, is_write: bool) -> None:
        self._connection = connection
        self._dialect = connection.dialect
        self._is_direct = is_direct(connection.dialect)
        self.is_write = is_write
        self.is_piped = self._is_direct and connection.dialect.name == "postgresql"
        self._pipeline: Pipeline | None = None
        self._driver: Any = connection.connection.driver_connection

    @property
    def connection(self) -> sa.Connection:
        """SQLAlchemy's connection, for what only it can do; nothing is under way beside it."""
        self._leave_pipeline()
        return self._connection

    @overload
    def execute(self, statement: Prepared, parameters: Parameters | None = ...) -> Rows: ...

    @overload
    def execute(self, statement: sa.sql.Executable, parameters: Parameters | None = ...) -> Any: ...

    def execute(
        self, statement: Prepared | sa.sql.Executable, parameters: Parameters | None = None
    ) -> Any:
        """Run a statement and return its rows: `Rows` of a prepared one, else SQLAlchemy's result."""
        if not isinstance(statement, Prepared):
            return self.connection.execute(statement, parameters)
        if not self._is_direct:
            result = self._connection.execute(statement.statement, parameters)
            return Rows(list(result) if result.returns_rows else [])
        form = statement.form(self._dialect)
        try:
            values = form.values(parameters or {})
            if isinstance(form, _TextForm):
                pipeline = self._enter_pipeline()
                sent = pipeline.ask(form.name, form.text, values)
                return (
                    Rows(None, lambda: self._fetch(form, pipeline, sent)) if form.has_rows else _NO_ROWS
                )
            cursor = self._driver.execute(form.sql, values)
            return Rows(form.rows(cursor.fetchall())) if form.has_rows else _NO_ROWS
        except UnicodeEncodeError:
            raise no_unicode() from None
        except self._dialect.loaded_dbapi.Error as error:
            raise self._told(error) from error

    def execute_many(self, statement: Prepared, parameters: Sequence[Parameters]) -> None:
        """Run a statement once for each of the parameters; its rows are not returned."""
        if len(parameters) > 1 and self._is_direct and not self.is_piped:
            form = statement.form(self._dialect)
            try:
                self._driver.executemany(form.sql, [form.values(each) for each in parameters])
            except UnicodeEncodeError:
                raise no_unicode() from None
            except self._dialect.loaded_dbapi.Error as error:
                raise self._told(error) from error
            return
        for each in parameters:
            self.execute(statement, each)

    def begin(self, *, until: float, is_lasting: bool = True, lock_seconds: float | None = None) -> None:
        """Begin. On a server, one that only reads has nothing to begin: each statement is a transaction.

        Args:
            until: By the monotonic clock: how long to wait for an SQLite file on which another process writes.
            is_lasting: Whether the commit waits for the disk. If not, a power cut may undo it, and nothing else: so
                it is only on SQLite. A server may crash and lose it while those live who have acted on it.
            lock_seconds: How long a server may wait for each lock.
        """
        if not self._is_direct:
            self._connection.begin()
        elif not self.is_piped:
            if self.is_write:
                self._set("synchronous", "FULL" if is_lasting else "NORMAL")
                self._lock_file(until)
            else:
                self._be_patient()
                self._say("BEGIN")
        elif self.is_write:
            self._say("BEGIN")
            if lock_seconds is not None:
                self._say(f"SET LOCAL lock_timeout = '{lock_seconds * 1000:.0f}ms'")

    def _lock_file(self, until: float) -> None:
        """Begin a write to an SQLite file, for which other processes may be waiting, too.

        SQLite would wait by itself, longer and longer, up to a tenth of a second: most of that
        after the other has finished, since a transaction takes less than a millisecond.
        """
        quiet_until: float | None = time.monotonic() + QUIET_SECONDS
        self._set("busy_timeout", "0")
        while True:
            try:
                # IMMEDIATE: one that reads first and writes later could not be tried again.
                self._say("BEGIN IMMEDIATE")
            except exc.OperationalError as error:
                now = time.monotonic()
                if give_verdict(error) is not Verdict.AGAIN or now >= until:
                    raise
                if quiet_until is not None and now > quiet_until:
                    quiet_until = None
                    logger.warning(
                        "another process keeps the database file locked: it is waited for, %.0f s more",
                        until - now,
                    )
                time.sleep(random.uniform(*BUSY_PAUSE_SECONDS))  # noqa: S311  # jitter, not a secret
            else:
                break
        if self._pragmas().get("journal_mode") != "wal":
            # There, and only there, the commit itself must wait for those who read.
            self._be_patient()

    def commit(self) -> None:
        """Commit, and wait until it is done."""
        if self._is_direct and (self.is_write or not self.is_piped):
            self._say("COMMIT")
        self._leave_pipeline()
        if self._connection.in_transaction():  # as SQLAlchemy sees it
            self._connection.commit()

    def roll_back(self) -> None:
        """Undo all of it. Errors here are suppressed: the original error is already propagating."""
        pipeline, self._pipeline = self._pipeline, None
        if self._is_direct and not self._connection.invalidated:
            try:
                if pipeline is not None:
                    pipeline.close()
                self._driver.rollback()
            except (self._dialect.loaded_dbapi.Error, exc.DBAPIError) as error:
                # In whatever state it is, nobody else may have it.
                self._connection.invalidate(error)
        with contextlib.suppress(self._dialect.loaded_dbapi.Error, exc.DBAPIError):
            if self._connection.in_transaction():
                self._connection.rollback()

    def _be_patient(self) -> None:
        """Have SQLite itself wait while others keep the file locked."""
        self._set("busy_timeout", f"{BUSY_SECONDS * 1000:.0f}")

    def _pragmas(self) -> dict[str, str]:
        """The pragmas of this connection to an SQLite file that were set last."""
        pragmas: dict[str, str] = self._connection.connection.info.setdefault(PRAGMAS, {})
        return pragmas

    def _set(self, pragma: str, value: str) -> None:
        """Set a pragma for what this connection does next; mostly it is set so already."""
        pragmas = self._pragmas()
        if pragmas.get(pragma) != value:
            self._say(f"PRAGMA {pragma}={value}")
            pragmas[pragma] = value

    def _say(self, words: str) -> None:
        try:
            if self.is_piped:
                self._enter_pipeline().say(words.encode())
            else:
                self._driver.execute(words)
        except self._dialect.loaded_dbapi.Error as error:
            raise self._told(error) from error

    def _fetch(self, form: _TextForm, pipeline: Pipeline, sent: Sent) -> list[Row]:
        try:
            return form.result(pipeline.wait_for(sent))
        except self._dialect.loaded_dbapi.Error as error:
            raise self._told(error) from error

    def _enter_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            prepared = self._connection.connection.info.setdefault("ckworkflow_prepared", set())
            self._pipeline = Pipeline(self._driver, prepared)
        return self._pipeline

    def _leave_pipeline(self) -> None:
        if self._pipeline is None:
            return
        try:
            self._pipeline.sync()
            self._pipeline.leave()
        except self._dialect.loaded_dbapi.Error as error:
            raise self._told(error) from error
        self._pipeline = None

    def _told(self, error: Exception) -> Exception:
        """Return the driver's error as SQLAlchemy wraps it, without values; a dead connection is given up."""
        is_gone = (getattr(error, "sqlstate", None) or "").startswith(
            _GONE
        ) or self._dialect.is_disconnect(
            error,  # type: ignore[arg-type]  # a driver's error
            self._driver,
            None,
        )
        told = exc.DBAPIError.instance(
            None, None, error, self._dialect.loaded_dbapi.Error, hide_parameters=True,
            connection_invalidated=is_gone, dialect=self._dialect,
        )  # fmt: skip
        if is_gone:
            self._connection.invalidate(error)
        return told
