"""Crashes: a process of an environment dies at one of its writes, as by kill -9."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ckworkflow.model import RunId
from ckworkflow.store.database import Database
from ckworkflow.store.transaction import Transaction
from ckworkflow.store.writer import Work, finish

__all__ = ["Crash", "CrashPoint", "CrashableDatabase"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """Where a process dies.

    Attributes:
        write: At which write transaction, counted from 1.
        is_committed: Whether that one still takes effect.
    """

    write: int
    is_committed: bool

    def __str__(self) -> str:
        return f"{'after' if self.is_committed else 'before'} the commit of write {self.write}"


class Crash(BaseException):  # no error of anybody's: the process is gone
    """The process is dead. Not an `Exception`: nothing in it may notice."""


class CrashableDatabase(Database):
    """A database of a process that dies at one of its writes, and does nothing more.

    Attributes:
        point: Where it dies; `None`: it does not.
        writes: How many writes there were since that was set.
        is_dead: Whether the process has died.
    """

    point: CrashPoint | None = None
    writes = 0
    is_dead = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._one_by_one = threading.RLock()

    def crash_at(self, point: CrashPoint | None) -> None:
        """Die there; count writes from now on."""
        self.point, self.writes = point, 0

    def transact(self, work: Callable[[Transaction], T]) -> T:
        """Run a work as `Database` does, or die."""
        return self._counted(work, super().transact)

    def transact_run(self, run_id: RunId, work: Work[T], *, is_lasting: bool = True) -> T:
        """Run a work as `Database` does, or die."""
        transact = super().transact_run
        return self._counted(work, lambda counted: transact(run_id, counted, is_lasting=is_lasting))

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Read as `Database` does, unless the process is dead."""
        if self.is_dead:
            raise Crash
        return super().read(work)

    def _counted(self, work: Work[T], transact: Callable[[Callable[[Transaction], T]], T]) -> T:
        # One by one: a write of another thread that waits for its turn when the process dies is never made.
        with self._one_by_one:
            return self._write(work, transact)

    def _write(self, work: Work[T], transact: Callable[[Callable[[Transaction], T]], T]) -> T:
        if self.is_dead:
            raise Crash
        self.writes += 1
        point = self.point
        dies_here = point is not None and point.write == self.writes

        def counted(tx: Transaction) -> T:
            value = finish(work, tx)
            if dies_here and point is not None and not point.is_committed:
                self.is_dead = True
                raise Crash
            return value

        try:
            value = transact(counted)
        except Exception:
            self.writes -= 1  # nothing was written: it is tried again in another way
            raise
        if dies_here:
            self.is_dead = True
            raise Crash
        return value
