"""The shared writer: threads share commits, and one that fails undoes nobody else's."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from ckworkflow.model import RunId
from ckworkflow.store import writer
from ckworkflow.store.database import Database
from ckworkflow.store.transaction import Transaction
from ckworkflow.store.writer import BusyError, GroupWriter, together
from commits import count_commits
from waiting import until

TABLE = sa.Table("counts", sa.MetaData(), sa.Column("number", sa.Integer, primary_key=True))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'counts.sqlite3'}")
    database.transact(lambda tx: TABLE.metadata.create_all(tx.connection))
    yield database
    database.dispose()


def numbers(database: Database) -> list[int]:
    return list(database.read(lambda tx: tx.execute(sa.select(TABLE)).scalars().all()))


class Gate:
    """Holds the writer until others have queued behind it."""

    def __init__(self, database: Database) -> None:
        self._database, self._is_inside, self._may_go = database, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=database.transact, args=(self._wait,))

    def _wait(self, _: Transaction) -> None:
        self._is_inside.set()
        assert self._may_go.wait(30)

    def close(self) -> None:
        self._thread.start()
        assert self._is_inside.wait(30)

    def open_when_queued(self, count: int) -> None:
        while len(self._database._writer._queue) < count:
            assert self._thread.is_alive()
        self._may_go.set()
        self._thread.join()


def test_threads_that_queue_behind_one_another_share_a_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = count_commits(monkeypatch)
    gate = Gate(database)
    gate.close()

    with ThreadPoolExecutor(20) as pool:
        written = [
            pool.submit(
                database.transact, lambda tx, n=n: tx.execute(sa.insert(TABLE), {"number": n}) and n
            )
            for n in range(20)
        ]
        gate.open_when_queued(20)

    assert len(commits) == 2  # the one that held the gate, and one for all
    assert sorted(each.result() for each in written) == numbers(database) == list(range(20))


def test_one_that_raises_undoes_only_its_own(database: Database) -> None:
    def write(tx: Transaction, number: int) -> int:
        tx.execute(sa.insert(TABLE), {"number": number})
        if number == 3:
            raise ValueError(number)
        return number

    gate = Gate(database)
    gate.close()
    with ThreadPoolExecutor(6) as pool:
        written = [pool.submit(database.transact, lambda tx, n=n: write(tx, n)) for n in range(6)]
        gate.open_when_queued(6)

    errors = [each.exception() for each in written]
    assert [error for error in errors if error is not None] == [errors[3]]
    assert isinstance(errors[3], ValueError)
    assert numbers(database) == [0, 1, 2, 4, 5]


def test_a_transaction_sees_what_those_before_it_in_the_group_wrote(database: Database) -> None:
    gate = Gate(database)
    gate.close()

    def add_next(tx: Transaction) -> int:
        found: int = tx.execute(sa.select(sa.func.count()).select_from(TABLE)).scalar_one()
        tx.execute(sa.insert(TABLE), {"number": found})
        return found

    with ThreadPoolExecutor(8) as pool:
        written = [pool.submit(database.transact, add_next) for _ in range(8)]
        gate.open_when_queued(8)

    assert sorted(each.result() for each in written) == list(range(8))


def test_works_of_one_run_follow_one_another_while_those_of_others_go_on_beside_them() -> None:
    steps: list[str] = []

    def work(name: str) -> Callable[[Transaction], Generator[None, None, str]]:
        def run(_: Transaction) -> Generator[None, None, str]:
            steps.append(f"{name} asks")
            yield
            steps.append(f"{name} reads")
            return name

        return run

    works = [(name[0], work(name)) for name in ("b1", "a1", "b2")]
    piped: Any = SimpleNamespace(is_piped=True)

    assert together(piped, works) == ["b1", "a1", "b2"]
    # Runs in the order of their ids, whatever the order in which they came: so no two processes lock crosswise.
    assert steps == ["a1 asks", "b1 asks", "a1 reads", "b1 reads", "b2 asks", "b2 reads"]


def test_a_group_that_cannot_have_its_locks_dissolves_and_each_goes_on_by_itself() -> None:
    alone: list[object] = []

    def transact(_work: object, _is_lasting: bool, _until: float) -> Any:
        raise BusyError

    def by_itself(work: Callable[[Any], Any], _until: float) -> Any:
        alone.append(threading.current_thread())
        return work(None)

    writer = GroupWriter(transact, longest_seconds=30, alone=by_itself)

    assert writer.run(lambda _: "done", key="a") == "done"
    assert alone == [threading.current_thread()]


# -- works that are handed in -------------------------------------------------------------------------


class Ends:
    """The ends of works that were handed in, in their order."""

    def __init__(self) -> None:
        self.found: list[Callable[[], Any]] = []

    def done(self, outcome: Callable[[], Any]) -> None:
        self.found.append(outcome)


def test_who_hands_in_a_work_does_not_wait_for_it(database: Database) -> None:
    gate, ends = Gate(database), Ends()
    gate.close()

    for n in range(3):
        database.submit_run(
            RunId(f"run-{n}"),
            lambda tx, n=n: tx.execute(sa.insert(TABLE), {"number": n}) and n,
            ends.done,
        )
    assert ends.found == []
    gate.open_when_queued(3)

    until(lambda: len(ends.found) == 3)
    assert [outcome() for outcome in ends.found] == numbers(database) == [0, 1, 2]


def test_works_of_threads_and_works_that_were_handed_in_share_a_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = count_commits(monkeypatch)
    gate, ends = Gate(database), Ends()
    gate.close()

    with ThreadPoolExecutor(1) as pool:
        database.submit_run(
            RunId("b"), lambda tx: tx.execute(sa.insert(TABLE), {"number": 1}) and None, ends.done
        )
        waits = pool.submit(
            database.transact, lambda tx: tx.execute(sa.insert(TABLE), {"number": 2}) and None
        )
        gate.open_when_queued(2)
        waits.result()

    until(lambda: len(ends.found) == 1)
    assert numbers(database) == [1, 2]
    assert len(commits) == 2  # the gate's, and theirs


def test_an_error_of_a_work_that_was_handed_in_is_told_to_nobody_else(database: Database) -> None:
    ends = Ends()

    def fails(tx: Transaction) -> None:
        raise ValueError("mine")

    database.submit_run(RunId("a"), fails, ends.done)
    database.submit_run(
        RunId("b"), lambda tx: tx.execute(sa.insert(TABLE), {"number": 1}) and "fine", ends.done
    )

    until(lambda: len(ends.found) == 2)
    with pytest.raises(ValueError, match="mine"):
        ends.found[0]()
    assert ends.found[1]() == "fine"


def test_a_work_that_was_handed_in_and_has_to_go_alone_is_given_back(database: Database) -> None:
    def transact(_work: object, _is_lasting: bool, _until: float) -> None:
        raise BusyError

    ends = Ends()
    alone = GroupWriter(
        transact, longest_seconds=30, alone=lambda *_: pytest.fail("nobody waits for it")
    )

    alone.submit(lambda tx: None, ends.done, key="a")

    until(lambda: len(ends.found) == 1)
    with pytest.raises(BusyError):
        ends.found[0]()


def test_a_work_that_was_handed_in_is_written_whenever_connections_are_closed(
    database: Database,
) -> None:
    """They are before each fork, which any thread of a bot may do."""
    ends = Ends()

    for n in range(200):
        database.submit_run(
            RunId("a"), lambda tx, n=n: tx.execute(sa.insert(TABLE), {"number": n}) and None, ends.done
        )
        database.dispose()

    until(lambda: len(ends.found) == 200)
    assert [outcome() for outcome in ends.found] == [None] * 200
    assert numbers(database) == list(range(200))


def test_the_writers_own_thread_ends_when_it_has_nothing_to_do_and_another_begins(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "IDLE_SECONDS", 0.001)
    ends, threads = Ends(), set()

    for n in range(300):  # so that some come just as it goes
        database.submit_run(
            RunId("a"), lambda tx, n=n: tx.execute(sa.insert(TABLE), {"number": n}) and None, ends.done
        )
        threads.add(database._writer._thread)
        if n % 3 == 0:
            until(lambda n=n: len(ends.found) == n + 1)

    until(lambda: len(ends.found) == 300)
    assert numbers(database) == list(range(300))
    until(lambda: database._writer._thread is None)
    threads.discard(None)
    assert len(threads) > 1
    until(lambda: not any(thread.is_alive() for thread in threads))


@pytest.mark.parametrize("use", ["read", "transact", "transact_run"])
def test_a_session_that_is_given_back_while_all_are_closed_is_closed(
    database: Database, use: str
) -> None:
    held: list[Any] = []
    may_end = threading.Event()

    def work(tx: Transaction) -> None:
        held.append(tx.connection.connection.driver_connection)
        may_end.wait(10)

    run = {
        "read": database.read,
        "transact": database.transact,
        "transact_run": lambda work: database.transact_run(RunId("a"), work),
    }[use]
    using = threading.Thread(target=run, args=(work,))
    using.start()
    until(lambda: held)
    with database._giving_back:  # it cannot be given back before they are closed
        may_end.set()
        database.dispose()
    using.join()

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        held[0].execute("SELECT 1")


@pytest.mark.parametrize("use", ["read", "transact", "transact_run"])
def test_a_session_that_is_under_way_when_all_are_closed_is_closed_at_its_end(
    database: Database, use: str
) -> None:
    held: list[Any] = []

    def work(tx: Transaction) -> None:
        held.append(tx.connection.connection.driver_connection)
        database.dispose()

    run = {
        "read": database.read,
        "transact": database.transact,
        "transact_run": lambda work: database.transact_run(RunId("a"), work),
    }[use]
    run(work)

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        held[0].execute("SELECT 1")


@pytest.mark.parametrize("is_chosen", [False, True], ids=["while it waits", "as its turn comes"])
def test_who_is_interrupted_in_the_queue_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, *, is_chosen: bool
) -> None:
    """Ctrl+C is raised in the main thread, whatever it waits for."""
    inside, go, gone = threading.Event(), threading.Event(), threading.Event()
    group_writer = GroupWriter(
        lambda work, _lasting, _until: work(SimpleNamespace(is_piped=False)),  # type: ignore[arg-type]
        longest_seconds=30,
    )

    class Turn:
        """The lock of a thread that is interrupted, before or after the turn was given to it."""

        def __init__(self) -> None:
            self._lock = threading.Lock()
            self._lock.acquire()
            self.release = self._lock.release

        def acquire(self) -> None:
            if is_chosen:
                go.set()
                self._lock.acquire()
            gone.set()
            raise KeyboardInterrupt

    def first(_: Transaction) -> str:
        inside.set()
        assert go.wait(20)
        return "first"

    def interrupted(pending: Any) -> None:
        pending.turn = Turn()

    with ThreadPoolExecutor(2) as pool:
        begun = pool.submit(group_writer.run, first)
        assert inside.wait(20)
        made = writer._Awaited.__init__

        def make(self: Any, *args: Any, **options: Any) -> None:
            made(self, *args, **options)
            interrupted(self)

        with monkeypatch.context() as patched:
            patched.setattr(writer._Awaited, "__init__", make)
            with pytest.raises(KeyboardInterrupt):
                group_writer.run(lambda _: "never")
        assert gone.is_set()
        go.set()
        assert begun.result(20) == "first"
        assert pool.submit(group_writer.run, lambda _: "later").result(20) == "later"


def test_a_turn_that_comes_before_it_is_waited_for_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go = threading.Event(), threading.Event()
    group_writer = GroupWriter(
        lambda work, _lasting, _until: work(SimpleNamespace(is_piped=False)),  # type: ignore[arg-type]
        longest_seconds=30,
    )

    def first(_: Transaction) -> str:
        inside.set()
        assert go.wait(20)
        return "first"

    enter = GroupWriter._enter

    def slowly(self: GroupWriter, pending: Any) -> bool:
        is_first = enter(self, pending)
        if not is_first:
            go.set()
            until(lambda: pending.is_writing)
        return is_first

    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(group_writer.run, first)
        assert inside.wait(20)
        monkeypatch.setattr(GroupWriter, "_enter", slowly)
        assert group_writer.run(lambda _: "second") == "second"
        assert begun.result(20) == "first"
        assert pool.submit(group_writer.run, lambda _: "later").result(20) == "later"
