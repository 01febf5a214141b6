"""A process of an environment that dies writes nothing more, on any of its threads."""

import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa

from ckworkflow.store.transaction import Transaction
from ckworkflow.testing.crashes import Crash, CrashableDatabase, CrashPoint
from waiting import until


@pytest.mark.parametrize("is_committed", [False, True])
def test_what_waits_for_its_turn_when_the_process_dies_is_never_written(
    tmp_path: Path, is_committed: bool
):
    url = f"sqlite:///{tmp_path / 'crash.db'}"
    database, other = CrashableDatabase(url, is_lasting=False), CrashableDatabase(url, is_lasting=False)
    database.transact(lambda tx: tx.execute(sa.text("CREATE TABLE written (what TEXT)")))
    database.crash_at(CrashPoint(1, is_committed=is_committed))

    def write(tx: Transaction, what: str) -> None:
        tx.execute(sa.text(f"INSERT INTO written VALUES ('{what}')"))

    def write_too() -> None:
        with suppress(Crash):
            database.transact(lambda tx: write(tx, "too late"))

    late = threading.Thread(target=write_too)

    def is_waiting() -> bool:
        frame = sys._current_frames().get(late.ident or 0)
        while frame is not None:
            if frame.f_code is CrashableDatabase._counted.__code__:
                return True
            frame = frame.f_back
        return False

    def write_and_die(tx: Transaction) -> None:
        write(tx, "in time")
        late.start()
        until(is_waiting)

    try:
        with pytest.raises(Crash):
            database.transact(write_and_die)
        late.join()
        found = other.read(lambda tx: list(tx.execute(sa.text("SELECT what FROM written")).scalars()))
        assert found == (["in time"] if is_committed else [])
    finally:
        database.dispose()
        other.dispose()
