"""Forks and SQLite: no connection is open in the moment of a fork.

SQLite keeps in the memory of a process which locks that process holds on a file, and a forked child starts
with a copy of it: it would wait for ever for a lock that its parent has long given back, and would hold
none where it believes that it does, so that another process may reset the log under its feet. Closing the
child's copies makes it worse. So the parent closes all of its own first: a fork waits for the transactions
that are under way, and those that want to begin wait for the fork. It takes a millisecond and is rare: a
worker with the prefork pool, when it starts and when it replaces a process. A child that is forked all the same, since
a transaction took too long, can never use the file: it is told so, and a pool process ends and is replaced.

Not here: servers, whose connections a child just leaves alone (`ckworkflow.store.database`).
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["ForkGate", "ForkedInTransactionError"]

logger = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 5.0
"""A fork does not wait longer than this: whoever forks may be what a transaction waits for."""

_gates: weakref.WeakSet[ForkGate] = weakref.WeakSet()
_gates_lock = threading.Lock()
_closed: list[ForkGate] = []
_lost: set[str] = set()
"""The files that this process can never use."""


class ForkedInTransactionError(sqlite3.OperationalError):
    """This process was forked while a transaction of its parent was under way: SQLite would wait for it for ever."""

    def __init__(self) -> None:
        super().__init__(
            "this process was forked during a transaction that took long, and can never use the file"
        )


class ForkGate:
    """Where every use of the connections of one database goes through.

    Args:
        close: Closes every connection; called before a fork, while no thread is inside.
        path: The file.
    """

    def __init__(self, close: Callable[[], object], path: str) -> None:
        self._close, self._path = close, path
        self._is_used = False
        self._reset()
        with _gates_lock:
            _gates.add(self)

    def _reset(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._is_closed = False

    @property
    def is_lost(self) -> bool:
        """Whether this process can never use the file."""
        return self._path in _lost

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Use connections; waits while the process forks.

        Raises:
            ForkedInTransactionError: This process can never use the file.
        """
        if self._path in _lost:
            raise ForkedInTransactionError
        with self._condition:
            while self._is_closed:
                self._condition.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    def before_fork(self) -> None:
        """Let nobody in, wait until nobody is inside, and close the connections."""
        with self._condition:
            self._is_closed = True
            self._is_used = not self._condition.wait_for(lambda: not self._inside, LONGEST_WAIT_SECONDS)
        if self._is_used:
            logger.warning("fork during a long transaction: the child can never use %s", self._path)
        self._close()

    def after_fork_in_parent(self) -> None:
        """Let everybody in again."""
        with self._condition:
            self._is_closed = False
            self._condition.notify_all()

    def after_fork_in_child(self) -> None:
        """Start over: whoever was waiting is in the parent."""
        if self._is_used:
            _lost.add(self._path)
        self._reset()


def _before() -> None:
    _gates_lock.acquire()
    _closed[:] = list(_gates)
    for gate in _closed:
        gate.before_fork()


def _after_in_parent() -> None:
    while _closed:
        _closed.pop().after_fork_in_parent()
    _gates_lock.release()


def _after_in_child() -> None:
    while _closed:
        _closed.pop().after_fork_in_child()
    _gates_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
