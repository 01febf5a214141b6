"""SQLite files: they are for their owner alone, and the file that a process has opened stays the one it uses.

What runs are given and what they return is in these files, and messages about them. SQLite itself makes a file with the
permissions that the process gives to everything, mostly readable by all; the `-wal` and `-shm` beside it get those of the
file. A file that is there already keeps its permissions: they may have been set on purpose.

A file that is deleted or replaced under a process goes on working there, unseen by everybody else, and its runs are lost
with the process. SQLite does not notice.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

__all__ = ["OpenFile", "identity", "make_private"]

OWNER_ONLY: Final = 0o600


def make_private(path: str) -> None:
    """Make an empty file that its owner alone may read and write, if none is there.

    Args:
        path: Where; what keeps it from being made is left to SQLite to say.
    """
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, OWNER_ONLY))


def identity(path: str) -> tuple[int, int] | None:
    """Return what tells a file from every other one on this machine; `None` if there is none at this path."""
    try:
        stat = os.stat(path)  # noqa: PTH116 - on the path of every transaction and message
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


class OpenFile:
    """The file of a database, as this process has opened it.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._identity: tuple[int, int] | None = None

    def note(self) -> None:
        """Note which file it is; the first time counts."""
        if self._identity is None:
            self._identity = identity(self.path)

    def fault(self) -> str | None:
        """Say why it must not be used any more, or return `None`."""
        if self._identity is None:
            return None
        found = identity(self.path)
        if found == self._identity:
            return None
        what = "deleted" if found is None else "replaced by another"
        return (
            f"its file was {what} while this process used it. Put back the file that it was, or restart every process "
            f"that uses it"
        )
