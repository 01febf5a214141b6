"""Verdicts: what an error of the database means for the transaction, its session, and the value that was written.

Only a verdict on the value itself is one that every try would meet again. Everything else (a lock, a server that
fails over, a missing right, a full disk) is about the database, and is waited out.

Source: PostgreSQL documentation, appendix "PostgreSQL Error Codes"; SQLite, "Result and Error Codes".

Not here: who tries again, and for how long (`ckworkflow.store.database`).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from sqlalchemy import exc

from ckworkflow.errors import DatabaseUnavailableError

__all__ = ["ConstraintError", "Verdict", "advise", "give_verdict", "sqlstate"]


class Verdict(Enum):
    """What an error means."""

    AGAIN = "again"
    """Others were in the way: the same transaction may succeed in this session."""
    OTHER_SESSION = "other session"
    """This session is of no use any more, and those that were opened before it are not either."""
    VALUE = "value"
    """A value cannot be stored, however often it is tried."""
    CONSTRAINT = "constraint"
    """A row does not go with those that are there."""
    UNAVAILABLE = "unavailable"
    """The database cannot do its work at present."""


class ConstraintError(DatabaseUnavailableError):
    """A constraint of the database forbids a row: one that is there already, or a fault that is no value's."""


_AGAIN: Final = ("40", "55P03")
_OTHER_SESSION: Final = ("08", "25", "26000", "53300", "57P")
_VALUE: Final = ("22", "54")
_CONSTRAINT: Final = ("23",)
_SQLITE: Final = {
    "SQLITE_BUSY": Verdict.AGAIN,
    "SQLITE_LOCKED": Verdict.AGAIN,
    "SQLITE_TOOBIG": Verdict.VALUE,
    "SQLITE_MISMATCH": Verdict.VALUE,
    "SQLITE_CONSTRAINT": Verdict.CONSTRAINT,
}
_POOLER: Final = (
    "A pooler in front of the server hands out sessions per transaction and does not know prepared statements: use "
    "PgBouncer 1.21 or newer with max_prepared_statements, its session mode, or the server's own address"
)
_ADVICE: Final = {
    "25006": "This server only reads: a standby, or one that fails over. If the URL names several hosts, add "
    "target_session_attrs=read-write to it",
    "26000": _POOLER,
    "3F000": "Create the schema of the role's search_path, or GRANT USAGE on it",
    "42P01": "Run `ckworkflow db upgrade`, with the search_path that bot and workers have",
    "42703": "Run `ckworkflow db upgrade`, with the search_path that bot and workers have",
    "42P05": _POOLER,
    "53100": "Make room on the server's disk",
    "53300": "Raise max_connections of the server, or run fewer processes: each opens up to 10 connections",
    "57014": "The server's statement_timeout is too short for ckworkflow, or somebody cancels its statements",
    "55P03": "Another session holds a lock for longer than this server's lock_timeout",
    "SQLITE_BUSY": "Another process keeps it locked: end its transaction",
    "SQLITE_CORRUPT": "The file is damaged: restore a backup",
    "SQLITE_FULL": "Make room on its disk",
    "SQLITE_NOTADB": "The file is no SQLite database: give another path, or move it away",
    "SQLITE_READONLY": "Let this user write to the file and to its folder",
}


def sqlstate(error: exc.DBAPIError) -> str | None:
    """Return the five characters with which a PostgreSQL server names an error; `None` where it was not asked."""
    found: str | None = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return found


def give_verdict(error: exc.DBAPIError) -> Verdict:
    """Say what an error of either database means."""
    name = _sqlite_name(error)
    if name is not None:
        return _SQLITE.get(name, Verdict.UNAVAILABLE)
    if error.connection_invalidated:
        return Verdict.OTHER_SESSION
    state = sqlstate(error) or ""
    for states, verdict in (
        (_AGAIN, Verdict.AGAIN),
        (_OTHER_SESSION, Verdict.OTHER_SESSION),
        (_VALUE, Verdict.VALUE),
        (_CONSTRAINT, Verdict.CONSTRAINT),
    ):
        if state.startswith(states):
            return verdict
    if not state and isinstance(error, exc.DataError):  # the driver's own, before it sends anything
        return Verdict.VALUE
    return Verdict.UNAVAILABLE


def advise(error: exc.DBAPIError) -> str | None:
    """Say what to do about an error; `None` if the database was not reached at all."""
    name = _sqlite_name(error) or sqlstate(error)
    if name is None:
        return None
    if name.startswith(("57P", "08", "28", "3D")) or name == "SQLITE_CANTOPEN":
        return None
    return _ADVICE.get(name, f"It said so with the code {name}")


def _sqlite_name(error: exc.DBAPIError) -> str | None:
    """Return the name of SQLite's primary result code: that of the module, without what extends it."""
    name: str | None = getattr(error.orig, "sqlite_errorname", None)
    return None if name is None else "_".join(name.split("_")[:2])
