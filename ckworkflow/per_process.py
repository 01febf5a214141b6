"""What each process has one of, and a forked child must not take over from its parent: engine, runtime, events.

A child that is forked starts with its parent's objects, but without its threads, and with connections and locks that are the
parent's. So it makes its own. The parent's are kept all the same: to collect them would close what the parent still uses.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["PerProcess"]

T = TypeVar("T")

_all: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()
_inherited: list[object] = []


class PerProcess(Generic[T]):
    """A place for the one object of its kind that this process has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: T | None = None
        _all.add(self)

    def peek(self) -> T | None:
        """The object, if this process has made it."""
        return self._found

    def get(self, make: Callable[[], T]) -> T:
        """The object, made first if there is none; while one thread makes it, others wait."""
        if (found := self._found) is not None:
            return found
        with self._lock:
            if self._found is None:
                self._found = make()
            return self._found

    def set(self, found: T) -> None:
        """Have this one."""
        with self._lock:
            self._found = found

    def take(self) -> T | None:
        """Give the object to the caller: from now on the process has none."""
        with self._lock:
            found, self._found = self._found, None
            return found

    def _leave_to_parent(self) -> None:
        # The lock may be held by a thread that is not here.
        self._lock, found, self._found = threading.Lock(), self._found, None
        if found is not None:
            _inherited.append(found)


def _in_child() -> None:
    for each in list(_all):
        each._leave_to_parent()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
