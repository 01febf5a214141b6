"""The one writer of an SQLite database in this process: transactions of many threads share a commit.

SQLite lets one connection write at a time, and each commit waits for the disk. Threads that come while one
is writing queue here, not in SQLite's busy handler, and whoever writes next takes all that have queued into
one transaction: as durable for each of them, at one wait for all.

A transaction that raises must not undo its neighbours: then each of the group runs again by itself, which
they may (`database`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from ckworkflow.store.database import Transaction

__all__ = ["GroupWriter"]

T = TypeVar("T")

LARGEST_GROUP = 64


class _Pending:
    """A transaction that waits for its turn."""

    __slots__ = ("error", "is_done", "result", "turn", "work")

    def __init__(self, work: Callable[[Transaction], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_done = False
        self.turn = threading.Lock()  # held until this is done, or its thread is to write
        self.turn.acquire()

    def outcome(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.result


class GroupWriter:
    """See the module.

    Args:
        transact: Runs a function in one write transaction, trying again where that helps.
    """

    def __init__(self, transact: Callable[[Callable[[Transaction], Any]], Any]) -> None:
        self._transact = transact
        self._lock = threading.Lock()
        self._queue: deque[_Pending] = deque()
        self._is_busy = False

    def run(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a write transaction, perhaps with others, and return what it returned."""
        pending = _Pending(work)
        with self._lock:
            self._queue.append(pending)
            must_wait, self._is_busy = self._is_busy, True
        if must_wait:
            pending.turn.acquire()
        if not pending.is_done:
            self._write()
        return cast("T", pending.outcome())

    def _write(self) -> None:
        with self._lock:
            group = [self._queue.popleft() for _ in range(min(len(self._queue), LARGEST_GROUP))]
        try:
            self._commit(group)
        finally:
            for pending in group:
                pending.is_done = True
            with self._lock:
                heir = self._queue[0] if self._queue else None
                self._is_busy = heir is not None
            # After all is set: a released thread may leave, and the next one may begin.
            for pending in group:
                pending.turn.release()
            if heir is not None:
                heir.turn.release()

    def _commit(self, group: Sequence[_Pending]) -> None:
        try:
            results = self._transact(lambda tx: [pending.work(tx) for pending in group])
        except BaseException as error:  # noqa: BLE001  # handed to the thread that it belongs to
            if len(group) == 1:
                group[0].error = error
                return
            for pending in group:
                self._commit([pending])
        else:
            for pending, result in zip(group, results, strict=True):
                pending.result = result
