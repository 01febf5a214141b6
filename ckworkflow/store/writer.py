"""The writer of a database in this process: transactions of many threads share a commit.

A commit waits for the disk, and each statement of a server for the network. Threads that come while one is
writing queue here, and whoever writes next takes all that have queued into one transaction: as durable for
each of them, at one wait for all. SQLite lets one connection write at a time anyway: so they wait here, and
not in its busy handler.

What takes part is a *work*: a function of the transaction, or a generator function that yields wherever it is
about to read rows, and `LAST` where nothing but what it has asked for is left to read: that is done after the commit,
which so need not wait for it. Works of several runs go on together, each up to its next yield, so that what they ask of a
server travels together. Works of one run go one after the other, in the order in which they came; runs are
locked in the order of their ids, so that two processes never wait for each other.

A work that raises must not undo its neighbours: then each of the group runs again by itself, which
they may (`database`). On a server, where a run may be locked by a process that was stopped, each does so on its own
thread and connection: whoever waits holds up nobody else.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

if TYPE_CHECKING:
    from ckworkflow.store.transaction import Transaction

__all__ = ["LAST", "BusyError", "GroupWriter", "Work", "Works", "finish", "together"]

T = TypeVar("T")
LAST: Final = "last"
Works = Generator[str | None, None, T]
"""What a work that yields returns."""
Work = Callable[["Transaction"], Works[T]] | Callable[["Transaction"], T]

LARGEST_GROUP = 64


class BusyError(Exception):
    """A group could not lock a run within its time."""


class _Pending:
    """A work that waits for its turn."""

    __slots__ = ("error", "is_alone", "is_done", "is_lasting", "key", "result", "turn", "work")

    def __init__(self, work: Callable[[Transaction], Any], key: str, *, is_lasting: bool) -> None:
        self.work, self.key, self.is_lasting = work, key, is_lasting
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_done = False
        self.is_alone = False
        self.turn = threading.Lock()  # held until this is done, or its thread is to write
        self.turn.acquire()

    def outcome(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.result


class GroupWriter:
    """See the module.

    Args:
        transact: Runs a function in one write transaction, trying again where that helps; `BusyError` where
            it may not wait for a lock. Told whether the commit must outlive the machine.
        alone: As `transact`, beside others; `None` where there is one writer.
    """

    def __init__(
        self, transact: Callable[[Callable[[Transaction], Any], bool], Any], *,
        alone: Callable[[Callable[[Transaction], Any]], Any] | None = None,
    ) -> None:  # fmt: skip
        self._transact, self._alone = transact, alone
        self._lock = threading.Lock()
        self._queue: deque[_Pending] = deque()
        self._is_busy = False

    def run(self, work: Work[T], *, key: str = "", is_lasting: bool = True) -> T:
        """Run a work in a write transaction, perhaps with others, and return what it returned.

        Args:
            work: The work.
            key: Works with the same key never go on beside each other: the run's id. Those without are all of one.
            is_lasting: Whether it must outlive the machine; one that need not may commit without waiting for the disk.
        """
        pending = _Pending(work, key, is_lasting=is_lasting)
        with self._lock:
            self._queue.append(pending)
            must_wait, self._is_busy = self._is_busy, True
        if must_wait:
            pending.turn.acquire()
        if not pending.is_done:
            self._write()
        if pending.is_alone and self._alone is not None:
            return cast("T", _ended(self._alone(lambda tx: finish(work, tx))))
        return cast("T", _ended(pending.outcome()))

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
            is_lasting = any(pending.is_lasting for pending in group)
            works = [(pending.key, pending.work) for pending in group]
            results = self._transact(lambda tx: together(tx, works), is_lasting)
        except BaseException as error:  # noqa: BLE001  # handed to the thread that it belongs to
            if self._alone is not None and (len(group) > 1 or isinstance(error, BusyError)):
                for pending in group:
                    pending.is_alone = True
            elif len(group) == 1:
                group[0].error = error
            else:
                for pending in group:
                    self._commit([pending])
        else:
            for pending, result in zip(group, results, strict=True):
                pending.result = result


class _Rest:
    """What is left of a work after its commit."""

    def __init__(self, begun: Works[Any]) -> None:
        self._begun = begun

    def end(self) -> Any:
        try:
            next(self._begun)
        except StopIteration as end:
            return end.value
        raise AssertionError("a work goes on after the last that it has to read")


def _ended(result: Any) -> Any:
    return result.end() if isinstance(result, _Rest) else result


@overload
def finish(work: Callable[[Transaction], Works[T]], tx: Transaction) -> T: ...


@overload
def finish(work: Work[T], tx: Transaction) -> T: ...


def finish(work: Work[Any], tx: Transaction) -> Any:
    """Run a work to its end, by itself."""
    begun = work(tx)
    if not inspect.isgenerator(begun):
        return begun
    while True:
        try:
            if next(begun) is LAST:
                return _Rest(cast("Works[Any]", begun))
        except StopIteration as end:
            return end.value


def together(tx: Transaction, works: Sequence[tuple[str, Work[T]]]) -> list[T]:
    """Run works to their ends, those of different keys beside each other; return what they returned."""
    results: list[Any] = [None] * len(works)
    queues: dict[str, deque[int]] = {}
    for index, (key, _) in enumerate(works):
        queues.setdefault(key, deque()).append(index)
    if not tx.is_piped:  # nothing is won by going on together
        for queue in queues.values():
            for index in queue:
                results[index] = finish(works[index][1], tx)
        return results
    # Whoever has no key may lock anything: before all others.
    for index in queues.pop("", ()):
        results[index] = finish(works[index][1], tx)
    waiting = [queues[key] for key in sorted(queues)]
    begun: dict[int, Works[Any]] = {}
    while waiting:
        for queue in waiting:
            index = queue[0]
            try:
                if index not in begun:
                    found = works[index][1](tx)
                    if not inspect.isgenerator(found):
                        results[queue.popleft()] = found
                        continue
                    begun[index] = cast("Works[Any]", found)
                if next(begun[index]) is LAST:
                    results[queue.popleft()] = _Rest(begun[index])
            except StopIteration as end:
                results[queue.popleft()] = end.value
        waiting = [queue for queue in waiting if queue]
    return results
