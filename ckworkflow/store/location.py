"""Where a database is: its URL, the path in the URL of a file, and what of a URL may be shown.

The one place that turns a URL into a path: all that asks for the file, or for what lies beside it, gets the same answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import unquote

import sqlalchemy as sa
from sqlalchemy import exc

from ckworkflow.errors import InvalidSettingError
from ckworkflow.scrub import scrub

__all__ = ["SETTING", "is_relative", "path_in_url", "read_url", "shown"]

SETTING: Final = "workflow_database_url"
_FORMS: Final = "sqlite:///runs.sqlite3 or postgresql+psycopg://user:password@host/database"
_HIDDEN: Final = "***"


def read_url(text: object) -> sa.URL:
    """Read a database URL, and see that its driver is here.

    Returns:
        The URL; that of an SQLite file has its absolute path.

    Raises:
        InvalidSettingError: It names no database that could be used.
    """
    if not isinstance(text, str):
        raise InvalidSettingError(SETTING, text, f"a database URL is text, such as {_FORMS}")
    try:
        url = sa.make_url(text)
        dialect_name = url.get_backend_name()
    except (exc.ArgumentError, ValueError):
        # What is no URL may have a password anywhere, or be one.
        scheme, is_url, _ = text.partition("://")
        reason = f"it is no database URL, such as {_FORMS}"
        raise InvalidSettingError(
            SETTING, f"{scheme}://{_HIDDEN}" if is_url else scrub(text), reason
        ) from None
    if dialect_name not in ("sqlite", "postgresql"):
        raise _refusal(url, f"ckworkflow keeps its runs in SQLite or PostgreSQL, such as {_FORMS}")
    if "@" in f"{url.host}{url.database}" and dialect_name == "postgresql":
        raise InvalidSettingError(
            SETTING, f"{url.drivername}://{url.username}:{_HIDDEN}",
            "it has a second @. In a password, @ is written as %40, / as %2F and : as %3A",
        )  # fmt: skip
    try:
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except exc.ArgumentError:
        raise _refusal(url, f"it is no database URL, such as {_FORMS}") from None
    except ImportError as error:
        reason = (
            f"its driver is missing ({error}). Write {_FORMS}, and pip install 'ckworkflow[postgres]'"
        )
        raise _refusal(url, reason) from error
    if dialect.is_async:
        raise _refusal(
            url, f"its driver is for asyncio, and ckworkflow needs one that blocks, as {_FORMS} have"
        )
    if dialect_name == "sqlite":
        try:
            return url.set(database=str(path_in_url(text)))
        except ValueError as error:
            raise InvalidSettingError(
                SETTING, text.partition("?")[0], f"{error}, such as sqlite:///runs.sqlite3"
            ) from None
    return url


def path_in_url(text: str) -> Path:
    """Return the absolute path of the file that a URL names: `sqlite:///runs.sqlite3`, or `...:////srv/runs.sqlite3`.

    `~` is the home of this user, and `%25` a percent sign, as in any URL.

    Raises:
        ValueError: It names no file; says why, and ends where an example may follow.
    """
    _, _, rest = text.partition("://")
    path = unquote(rest.partition("?")[0].removeprefix("/"))
    if path in ("", ":memory:") or "mode=memory" in rest:
        msg = "what is in memory ends with its process, and no other process sees it. Name a file"
        raise ValueError(msg)
    if "\0" in path:
        msg = "no file has a NUL character in its name. Take it out"
        raise ValueError(msg)
    if not rest.startswith("/") or path.startswith("file:") or "uri=" in rest.partition("?")[2]:
        msg = "it does not name a file by its path. Three slashes and a path are needed"
        raise ValueError(msg)
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        msg = "there is no such home directory. Write the path out"
        raise ValueError(msg) from None


def is_relative(text: str) -> bool:
    """Whether a URL names a file by a path that depends on the current folder."""
    if not text.startswith("sqlite"):
        return False
    path = unquote(text.partition("://")[2].partition("?")[0].removeprefix("/"))
    return not path.startswith(("/", "~"))


def shown(url: sa.URL) -> str:
    """Return a URL without its password, wherever that stands."""
    query = {name: _HIDDEN if "password" in name.lower() else value for name, value in url.query.items()}
    return url.set(query=query).render_as_string().replace("%2A%2A%2A", _HIDDEN)


def _refusal(url: sa.URL, reason: str) -> InvalidSettingError:
    return InvalidSettingError(SETTING, shown(url), reason)
