"""A process that forks while its threads use SQLite: neither side may be kept waiting for a lock of the other."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.store import forks, keyvalue, schema
from ckworkflow.store.database import Database
from ckworkflow.worker.broker.broker_file import BrokerFile
from ckworkflow.worker.process import prefork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ckworkflow.store.transaction import Transaction

pytestmark = pytest.mark.slow

FORKS = 20
PATIENCE_SECONDS = 4.0  # less than SQLite's own patience with a lock, the broker file's five seconds


@pytest.fixture(params=["database", "broker file"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], object]]:
    """Write something to a SQLite file, as every thread and child does here."""
    if request.param == "broker file":
        file = BrokerFile.at(str(tmp_path / "broker.sqlite3"))
        yield lambda: file.put(["work"], "{}")
        return
    database = Database(f"sqlite:///{tmp_path / 'runs.sqlite3'}")
    schema.ensure(database)
    yield lambda: database.transact(
        lambda tx: keyvalue.put(tx, "key", "1", now=database.now(tx)),
    )
    database.dispose()


@pytest.fixture
def busy(write: Callable[[], object]) -> Iterator[None]:
    """Threads that write without a pause."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.is_set():
            write()

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    yield
    is_over.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.usefixtures("busy")
def test_a_child_forked_in_the_midst_of_transactions_can_write_at_once(
    write: Callable[[], object],
) -> None:
    for _ in range(FORKS):
        pid = os.fork()
        if pid == 0:
            try:
                write()
            except BaseException:
                os._exit(1)
            os._exit(0)
        assert exit_code(pid) == 0


def exit_code(pid: int) -> int | None:
    """Wait for a child; `None` when it had to be killed."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return None


def test_a_child_forked_during_a_transaction_that_took_long_says_that_it_can_never_use_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "LONGEST_WAIT_SECONDS", 0.05)
    url = f"sqlite:///{tmp_path / 'runs.sqlite3'}"
    database = Database(url)
    schema.ensure(database)
    has_written, is_over = threading.Event(), threading.Event()

    def write(tx: Transaction) -> None:
        keyvalue.put(tx, "key", "1", now=database.now(tx))
        has_written.set()
        is_over.wait(PATIENCE_SECONDS)

    def use() -> int:
        for each in (database, Database(url)):  # a process that has forked makes its own
            with pytest.raises(DatabaseUnavailableError, match=r"can never use the file\. Start this"):
                each.transact(lambda tx: keyvalue.put(tx, "key", "2", now=each.now(tx)))
        return 7

    def begin_pool_process() -> int:
        engine = SimpleNamespace(database=database, queues=frozenset())
        monkeypatch.setattr(prefork, "current", lambda: SimpleNamespace(engine=engine))
        prefork._open()
        return 7

    writing = threading.Thread(target=lambda: database.transact(write))
    writing.start()
    assert has_written.wait(PATIENCE_SECONDS)
    codes = [exit_code(fork(act)) for act in (use, begin_pool_process)]
    is_over.set()
    writing.join(PATIENCE_SECONDS)

    assert codes == [7, 0]
    assert not database.is_lost
    assert database.read(lambda tx: keyvalue.get(tx, "key")) == "1"
    database.dispose()


def fork(act: Callable[[], int]) -> int:
    if (pid := os.fork()) == 0:
        code = 1
        try:
            code = act()
        finally:
            os._exit(code)
    return pid
