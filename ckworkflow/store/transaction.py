"""One transaction: what runs inside it, and how few round trips it takes.

The statements of the hot path are *prepared*: SQLAlchemy compiles them once for each dialect, and here they go
to the driver directly. On a server they travel in a pipeline: a statement whose rows nobody reads waits for
the next one whose rows somebody does, and the begin and the commit travel with them. Every other statement is
SQLAlchemy's as usual, in the same transaction.

Not here: where transactions begin, and what is tried again (`ckworkflow.store.database`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

__all__ = ["Prepared", "Rows", "Transaction", "is_direct"]

Parameters = Mapping[str, Any]


def is_direct(dialect: Dialect) -> bool:
    """Whether prepared statements go to the driver directly: those that are known here do."""
    return dialect.driver in ("pysqlite", "psycopg")


class Rows:
    """The rows that a prepared statement gives, as tuples in the order of its columns.

    On a server they are asked for at once and waited for when somebody reads them.
    """

    __slots__ = ("_fetch", "_rows")

    def __init__(self, rows: list[Any] | None, fetch: Callable[[], list[Any]] | None = None) -> None:
        self._rows, self._fetch = rows, fetch

    def __iter__(self) -> Iterator[Any]:
        return iter(self.all())

    def all(self) -> list[Any]:
        """Every row."""
        if self._rows is None:
            assert self._fetch is not None
            self._rows = self._fetch()
        return self._rows

    def one_or_none(self) -> Any:
        """The only row; `None` when there is none."""
        rows = self.all()
        if not rows:
            return None
        (row,) = rows
        return row


_NO_ROWS = Rows([])


class Prepared:
    """A statement that is built once, with a bound parameter for everything that varies.

    Args:
        statement: An SQLAlchemy Core statement; no list in it, whose length would be a part of the text.
    """

    def __init__(self, statement: sa.sql.Executable) -> None:
        self.statement: Any = statement
        self._forms: dict[str, _Form] = {}

    def form(self, dialect: Dialect) -> _Form:
        """How a dialect writes it."""
        found = self._forms.get(dialect.name)
        if found is None:
            found = self._forms[dialect.name] = _Form(self.statement, dialect)
        return found


Convert = Callable[[Any], Any]


class _Form:
    """A statement as the driver takes it."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.sql = str(compiled)
        self.is_positional = bool(compiled.positional)
        names = list(compiled.positiontup) if compiled.positional else list(compiled.binds)
        # Name, what it is when nobody says, and how the driver wants it.
        self.binds: list[tuple[str, Any, Convert | None]] = [
            (name, compiled.binds[name].value, _bind_processor(compiled.binds[name].type, dialect))
            for name in names
        ]
        columns = getattr(statement, "exported_columns", ()) if _gives_rows(statement) else ()
        converts = [_result_processor(column.type, dialect) for column in columns]
        self.has_rows = bool(converts)
        self.converts = [(index, convert) for index, convert in enumerate(converts) if convert is not None]

    def values(self, parameters: Parameters) -> Any:
        """The parameters as the driver wants them."""
        found = [
            (parameters.get(name, default) if convert is None else convert(parameters.get(name, default)))
            for name, default, convert in self.binds
        ]
        if self.is_positional:
            return found
        return {name: value for (name, _, _), value in zip(self.binds, found, strict=True)}

    def rows(self, found: list[Any]) -> list[Any]:
        """What the driver gave, converted."""
        if not self.converts:
            return found
        rows = []
        for row in found:
            values = list(row)
            for index, convert in self.converts:
                values[index] = convert(values[index])
            rows.append(values)
        return rows


def _gives_rows(statement: Any) -> bool:
    return isinstance(statement, sa.sql.Select) or bool(getattr(statement, "_returning", ()))


def _bind_processor(type_: Any, dialect: Dialect) -> Convert | None:
    found: Convert | None = type_.dialect_impl(dialect).bind_processor(dialect)
    return found


def _result_processor(type_: Any, dialect: Dialect) -> Convert | None:
    found: Convert | None = type_.dialect_impl(dialect).result_processor(dialect, None)
    return found


class Transaction:
    """A transaction that is under way.

    Args:
        connection: SQLAlchemy's, in which it runs.
        is_write: Whether it may write; one that reads takes a round trip for each statement.

    Attributes:
        is_piped: Whether several statements can be under way at once.
    """

    def __init__(self, connection: sa.Connection, *, is_write: bool) -> None:
        self._connection = connection
        self._dialect = connection.dialect
        self._is_direct = is_direct(connection.dialect)
        self._is_write = is_write
        self.is_piped = self._is_direct and is_write and connection.dialect.name == "postgresql"
        self._pipeline: Any = None
        self._driver: Any = connection.connection.driver_connection

    @property
    def connection(self) -> sa.Connection:
        """SQLAlchemy's connection, for what only it can do; nothing is under way beside it."""
        self._leave_pipeline()
        return self._connection

    def execute(self, statement: Prepared | sa.sql.Executable, parameters: Any = None) -> Any:
        """Run a statement and return its rows: `Rows` of a prepared one, else SQLAlchemy's result."""
        if not isinstance(statement, Prepared):
            return self.connection.execute(statement, parameters)
        if not self._is_direct:
            result = self._connection.execute(statement.statement, parameters)
            return Rows(list(result) if result.returns_rows else [])
        form = statement.form(self._dialect)
        try:
            if self.is_piped:
                self._enter_pipeline()
            cursor = self._driver.execute(form.sql, form.values(parameters or {}))
            if not form.has_rows:
                return _NO_ROWS
            if not self.is_piped:
                return Rows(form.rows(cursor.fetchall()))
        except self._dialect.loaded_dbapi.Error as error:
            raise self._told(error) from error
        return Rows(None, lambda: self._fetch(form, cursor))

    def execute_many(self, statement: Prepared, parameters: Sequence[Parameters]) -> None:
        """Run a statement for each of the parameters; its rows are not given."""
        if len(parameters) == 1 or not self._is_direct:
            self.execute(statement, parameters[0] if len(parameters) == 1 else parameters)
            return
        form = statement.form(self._dialect)
        values = [form.values(each) for each in parameters]
        try:
            if self.is_piped:
                self._enter_pipeline()
            self._driver.cursor().executemany(form.sql, values)
        except self._dialect.loaded_dbapi.Error as error:
            raise self._told(error) from error

    def begin(self) -> None:
        """Begin. On a server, one that only reads has nothing to begin: each statement is a transaction."""
        if not self._is_direct:
            self._connection.begin()
        elif self._dialect.name == "sqlite":
            # IMMEDIATE: one that reads first and writes later could not be tried again by SQLite itself.
            self._say("BEGIN IMMEDIATE" if self._is_write else "BEGIN")
        elif self._is_write:
            self._say("BEGIN")

    def commit(self) -> None:
        """Commit, and wait until it is done."""
        if self._is_direct and (self._is_write or self._dialect.name == "sqlite"):
            self._say("COMMIT")
            self._leave_pipeline()
        if self._connection.in_transaction():  # as SQLAlchemy sees it
            self._connection.commit()

    def roll_back(self) -> None:
        """Undo all of it; what goes wrong here is not told, for something else has gone wrong before."""
        with contextlib.suppress(self._dialect.loaded_dbapi.Error, sa.exc.DBAPIError):
            self._leave_pipeline()
        with contextlib.suppress(self._dialect.loaded_dbapi.Error, sa.exc.DBAPIError):
            if self._is_direct and not self._connection.invalidated:
                self._driver.rollback()
        with contextlib.suppress(self._dialect.loaded_dbapi.Error, sa.exc.DBAPIError):
            if self._connection.in_transaction():
                self._connection.rollback()

    def _say(self, words: str) -> None:
        try:
            if self.is_piped:
                self._enter_pipeline()
            self._driver.execute(words)
        except self._dialect.loaded_dbapi.Error as error:
            raise self._told(error) from error

    def _fetch(self, form: _Form, cursor: Any) -> list[Any]:
        try:
            return form.rows(cursor.fetchall())
        except self._dialect.loaded_dbapi.Error as error:
            raise self._told(error) from error

    def _enter_pipeline(self) -> None:
        if self._pipeline is None:
            pipeline = self._driver.pipeline()
            pipeline.__enter__()
            self._pipeline = pipeline

    def _leave_pipeline(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return
        try:
            pipeline.__exit__(None, None, None)
        except self._dialect.loaded_dbapi.Error as error:
            raise self._told(error) from error

    def _told(self, error: Exception) -> Exception:
        """The driver's error as SQLAlchemy tells it, without values; a dead connection is given up."""
        is_gone = self._dialect.is_disconnect(error, self._driver, None)  # type: ignore[arg-type]  # a driver's error
        told = sa.exc.DBAPIError.instance(
            None, None, error, self._dialect.loaded_dbapi.Error, hide_parameters=True,
            connection_invalidated=is_gone, dialect=self._dialect,
        )  # fmt: skip
        if is_gone:
            self._pipeline = None
            self._connection.invalidate(error)
        return told
