"""Forks and SQLite: no connection is open in the moment of a fork.

SQLite keeps in the memory of a process which locks that process holds on a file, and a forked child starts
with a copy of it: it would wait for ever for a lock that its parent has long given back, and would hold
none where it believes that it does, so that another process may reset the log under its feet. Closing the
child's copies makes it worse. So the parent closes all of its own first: a fork waits for the transactions
that are under way, and those that want to begin wait for the fork. It takes a millisecond and is rare: a
worker with the prefork pool, when it starts and when it replaces a process.

Not here: servers, whose connections a child just leaves alone (`ckworkflow.store.database`).
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["ForkGate"]

logger = logging.getLogger(__name__)

LONGEST_WAIT_SECONDS = 5.0
"""A fork does not wait longer than this: whoever forks may be what a transaction waits for."""

_gates: weakref.WeakSet[ForkGate] = weakref.WeakSet()
_gates_lock = threading.Lock()
_closed: list[ForkGate] = []


class ForkGate:
    """Where every use of the connections of one database goes through.

    Args:
        close: Closes every connection; called before a fork, while no thread is inside.
    """

    def __init__(self, close: Callable[[], object]) -> None:
        self._close = close
        self._reset()
        with _gates_lock:
            _gates.add(self)

    def _reset(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._is_closed = False

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Use connections; waits while the process forks."""
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
            is_empty = self._condition.wait_for(lambda: not self._inside, LONGEST_WAIT_SECONDS)
        if not is_empty:
            logger.warning("fork during a long transaction: the child may have to wait for the database")
        self._close()

    def after_fork_in_parent(self) -> None:
        """Let everybody in again."""
        with self._condition:
            self._is_closed = False
            self._condition.notify_all()

    def after_fork_in_child(self) -> None:
        """Start over: whoever was waiting is in the parent."""
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
