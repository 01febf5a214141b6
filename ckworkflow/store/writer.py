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

Who waits is a thread, or nobody: a work may be handed in (`submit`), by an event loop that must not wait, and then a
thread of the writer's own writes when it is such a work's turn.

A work that raises must not undo its neighbours: then each of the group runs again by itself, which
they may (`database`). On a server, where a run may be locked by a process that was stopped, each does so on its own
thread and connection: whoever waits holds up nobody else.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, overload

from ckworkflow.background import BackgroundThread
from ckworkflow.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from ckworkflow.store.transaction import Transaction

__all__ = ["LAST", "BusyError", "Done", "GroupWriter", "Work", "Works", "finish", "together"]

T = TypeVar("T")
LAST: Final = "last"
Works = Generator[str | None, None, T]
"""What a work that yields returns."""
Work = Callable[["Transaction"], Works[T]] | Callable[["Transaction"], T]

Done = Callable[[Callable[[], T]], object]
"""Told of the end of a work by a function that returns what the work returned, or raises what it raised."""

LARGEST_GROUP = 64
IDLE_SECONDS = 5.0
"""After so long without a work that was handed in, the writer's own thread ends."""


class BusyError(Exception):
    """A group could not lock a run within its time."""


class _Pending:
    """A work that waits for its turn."""

    __slots__ = ("error", "is_alone", "is_lasting", "key", "result", "until", "work")

    def __init__(self, work: Callable[[Transaction], object], key: str, *, is_lasting: bool) -> None:
        self.work, self.key, self.is_lasting = work, key, is_lasting
        self.result: object = None
        self.error: BaseException | None = None
        self.is_alone = False
        self.until = 0.0  # monotonic

    def outcome(self) -> object:
        if self.error is not None:
            raise self.error
        return _ended(self.result)

    def end(self) -> None:
        """Report that it is done."""
        raise NotImplementedError


class _Awaited(_Pending):
    """A work for which a thread waits."""

    __slots__ = ("is_done", "is_writing", "turn")

    def __init__(self, work: Callable[[Transaction], object], key: str, *, is_lasting: bool) -> None:
        super().__init__(work, key, is_lasting=is_lasting)
        self.is_done = self.is_writing = False
        self.turn = threading.Lock()  # held until this is done, or its thread is to write
        self.turn.acquire()

    def end(self) -> None:
        self.is_done = True
        self.turn.release()


class _Submitted(_Pending):
    """A work that was handed in."""

    __slots__ = ("done",)

    def __init__(self, work: Callable[[Transaction], object], key: str, done: Done[Any]) -> None:
        super().__init__(work, key, is_lasting=True)
        self.done = done

    def end(self) -> None:
        if self.is_alone:
            self.error = BusyError(
                "it has to be written apart from others, by a thread that waits for it"
            )
        self.done(self.outcome)


class GroupWriter:
    """See the module.

    Args:
        transact: Runs a function in one write transaction, trying again where that helps; `BusyError` where
            it may not wait for a lock. Told whether the commit must outlive the machine, and until when it may try.
        longest_seconds: How long a work may take from when it comes, the wait for its turn included.
        alone: As `transact`, beside others, told until when; `None` where there is one writer.
    """

    def __init__(
        self, transact: Callable[[Callable[[Transaction], list[object]], bool, float], list[object]],
        *, longest_seconds: float,
        alone: Callable[[Callable[[Transaction], object], float], object] | None = None,
    ) -> None:  # fmt: skip
        self._transact, self._alone, self._longest_seconds = transact, alone, longest_seconds
        self._lock = threading.Lock()
        self._queue: deque[_Pending] = deque()
        self._is_busy = False
        self._thread: threading.Thread | None = None
        self._thread_turn = threading.Lock()  # held until the own thread is to write
        self._thread_turn.acquire()

    def run(self, work: Work[T], *, key: str = "", is_lasting: bool = True) -> T:
        """Run a work in a write transaction, perhaps with others, and return what it returned.

        Args:
            work: The work.
            key: Works with the same key never go on beside each other: the run's id. Those without are all of one.
            is_lasting: Whether it must outlive the machine; one that need not may commit without waiting for the disk.
        """
        pending = _Awaited(work, key, is_lasting=is_lasting)
        try:
            if not self._enter(pending):
                pending.turn.acquire()
            if not pending.is_done:
                self._write(pending)
        except BaseException:  # Ctrl+C, wherever it comes
            self._leave(pending)
            raise
        if pending.is_alone and self._alone is not None:
            return cast("T", _ended(self._alone(lambda tx: finish(work, tx), pending.until)))
        return cast("T", pending.outcome())

    def submit(self, work: Work[T], done: Done[T], *, key: str) -> None:
        """Run a work as `run` does, and return at once.

        Args:
            work: The work.
            done: Told of its end, on some thread that it must not keep; with `BusyError` where it has to be `run` instead.
            key: As for `run`.
        """
        if self._enter(_Submitted(work, key, done)):
            self._have_own_thread_write()

    def _enter(self, pending: _Pending) -> bool:
        """Queue a work; return whether its thread has to write, since none does at present."""
        with self._lock:
            pending.until = (
                time.monotonic() + self._longest_seconds
            )  # here: so the first of the queue is late first
            self._queue.append(pending)
            is_first, self._is_busy = not self._is_busy, True
            if isinstance(pending, _Awaited):
                pending.is_writing = is_first
        return is_first

    def _leave(self, pending: _Awaited) -> None:
        """Let a work go whose thread waits for it no more; the turn to write is passed on, if it was its own."""
        with self._lock:
            if pending in self._queue:
                self._queue.remove(pending)
            was_writing, pending.is_writing = pending.is_writing, False
            heir = self._choose_heir() if was_writing else None
        self._wake(heir)

    def _choose_heir(self) -> _Pending | None:
        """Choose the work whose thread writes next; under the lock."""
        heir = self._queue[0] if self._queue else None
        self._is_busy = heir is not None
        if isinstance(heir, _Awaited):
            heir.is_writing = True
        return heir

    def _wake(self, heir: _Pending | None) -> None:
        if isinstance(heir, _Awaited):
            heir.turn.release()
        elif heir is not None:
            self._have_own_thread_write()

    def _have_own_thread_write(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = BackgroundThread(
                    self._write_for_others, name="ckworkflow-writer", loss="no result is recorded"
                )
                try:
                    self._thread.start()
                except RuntimeError:
                    self._thread = None
            if self._thread is not None:
                self._thread_turn.release()
                return
        self._write()  # the system gives no more threads: on this one, then

    def _write_for_others(self) -> None:
        try:
            while self._has_own_turn():
                self._write()
        except BaseException:
            with self._lock:
                self._thread = None  # the next work that is handed in gets another
            raise

    def _has_own_turn(self) -> bool:
        """Wait for the own thread's turn; `False`: none has come for a while, and the thread is forgotten."""
        if self._thread_turn.acquire(timeout=IDLE_SECONDS):
            return True
        with self._lock:  # under which a turn is given: it may have been, just now
            if self._thread_turn.acquire(blocking=False):
                return True
            self._thread = None
            return False

    def _write(self, writing: _Awaited | None = None) -> None:
        """Write what waits, on the thread of one of these works or on the writer's own."""
        with self._lock:
            group = [self._queue.popleft() for _ in range(min(len(self._queue), LARGEST_GROUP))]
        early: Sequence[_Pending] = ()
        try:
            early = self._commit(group)
        finally:
            with self._lock:
                self._queue.extendleft(reversed(early))
                if writing is not None:
                    writing.is_writing = False
                heir = self._choose_heir()
            # After all is set: a released thread may leave, and the next one may begin.
            with ExitStack() as rest:  # one that raises must leave none of the others waiting
                rest.callback(self._wake, heir)
                for pending in reversed(group):
                    if pending not in early:
                        rest.callback(pending.end)

    def _commit(self, group: Sequence[_Pending]) -> Sequence[_Pending]:
        """Write; return those whose time is not up, where it was up for the first ones only: they go on without them."""
        until = group[0].until
        try:
            is_lasting = any(pending.is_lasting for pending in group)
            works = [(pending.key, pending.work) for pending in group]
            results = self._transact(lambda tx: together(tx, works), is_lasting, until)
        except BaseException as error:  # noqa: BLE001  # handed to the thread that it belongs to
            if self._alone is not None and (len(group) > 1 or isinstance(error, BusyError)):
                for pending in group:
                    pending.is_alone = True
            elif len(group) == 1:
                group[0].error = error
            elif isinstance(error, DatabaseUnavailableError) and (now := time.monotonic()) >= until:
                late = [pending for pending in group if pending.until <= now]
                for pending in late:
                    pending.error = error
                return group[len(late) :]
            else:
                for pending in group:
                    self._commit([pending])
        else:
            for pending, result in zip(group, results, strict=True):
                pending.result = result
        return ()


class _Rest:
    """What is left of a work after its commit."""

    def __init__(self, begun: Works[object]) -> None:
        self._begun = begun

    def end(self) -> object:
        try:
            next(self._begun)
        except StopIteration as end:
            return end.value
        raise AssertionError("a work goes on after the last that it has to read")


def _ended(result: object) -> object:
    return result.end() if isinstance(result, _Rest) else result


@overload
def finish(work: Callable[[Transaction], Works[T]], tx: Transaction) -> T: ...


@overload
def finish(work: Work[T], tx: Transaction) -> T: ...


def finish(work: Work[object], tx: Transaction) -> object:
    """Run one work to its end."""
    begun = work(tx)
    if not inspect.isgenerator(begun):
        return begun
    while True:
        try:
            if next(begun) is LAST:
                return _Rest(cast("Works[object]", begun))
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
    begun: dict[int, Works[T]] = {}
    while waiting:
        for queue in waiting:
            index = queue[0]
            try:
                if index not in begun:
                    found = works[index][1](tx)
                    if not inspect.isgenerator(found):
                        results[queue.popleft()] = found
                        continue
                    begun[index] = cast("Works[T]", found)
                if next(begun[index]) is LAST:
                    results[queue.popleft()] = _Rest(begun[index])
            except StopIteration as end:
                results[queue.popleft()] = end.value
        waiting = [queue for queue in waiting if queue]
    return results
