"""The database's and the broker's files: their owner's alone, and damaged, deleted or replaced under those who use them."""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from ckworkflow import canvas, start_sync
from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.store import Database, schema
from ckworkflow.store.tables import runs
from ckworkflow.worker.broker.broker_file import BrokerFile, BrokerFileDamagedError
from worker_flows import joining
from worker_home import TESTS, WorkerHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from celery import Celery

GARBAGE = b"no database \xff\xfe" * 500


@pytest.fixture(autouse=True)
def usual_mask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.iterdir()}


def with_others(path: Path) -> list[Path]:
    """A file, and what SQLite has beside it."""
    return sorted(path.parent.glob(f"{path.name}*"))


def count(database: Database) -> int:
    return database.read(
        lambda tx: tx.execute(sa.select(sa.func.count()).select_from(runs)).scalar_one()
    )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'runs.sqlite3'}")
    schema.ensure(made)
    yield made
    made.dispose()


# --- permissions -------------------------------------------------------------------------------------


def test_files_are_for_their_owner_alone(database: Database, tmp_path: Path) -> None:
    count(database)
    BrokerFile.at(str(tmp_path / "broker.sqlite3")).put(["work"], "{}")

    names = [f"{name}.sqlite3{end}" for name in ("runs", "broker") for end in ("", "-wal", "-shm")]
    assert modes(tmp_path) == dict.fromkeys(names, "0o600")


def test_a_file_that_is_there_keeps_its_permissions(tmp_path: Path) -> None:
    for name in ("runs", "broker"):
        (tmp_path / f"{name}.sqlite3").touch(0o660)
        (tmp_path / f"{name}.sqlite3").chmod(0o660)

    database = Database(f"sqlite:///{tmp_path / 'runs.sqlite3'}")
    schema.ensure(database)
    BrokerFile.at(str(tmp_path / "broker.sqlite3")).put(["work"], "{}")

    assert set(modes(tmp_path).values()) == {"0o660"}
    database.dispose()


# --- the database ------------------------------------------------------------------------------------


def test_a_database_that_was_deleted_is_unreachable_and_not_made_anew(
    database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "runs.sqlite3"
    kept = path.rename(tmp_path / "kept")

    for _ in range(2):
        with pytest.raises(
            DatabaseUnavailableError, match="its file was deleted while this process used it"
        ):
            count(database)
    assert not path.exists()

    kept.rename(path)
    assert count(database) == 0


def test_a_database_that_was_replaced_is_unreachable(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite3"
    path.rename(tmp_path / "kept")
    path.touch()

    with pytest.raises(DatabaseUnavailableError, match="its file was replaced by another while"):
        database.transact(lambda tx: None)


def overwritten(content: bytes, offset: int) -> bytes:
    return content[:offset] + b"\xff\xfe" * ((len(content) - offset) // 2)


def with_a_damaged_name(content: bytes) -> bytes:
    """What SQLite then says of its schema is no UTF-8, and Python cannot even read that."""
    for found, put in (
        (b"CREATE TABLE runs", b"CREATE TABXE ru\xffs"),
        (b"tableruns", b"tableru\xffs"),
        (b"runsruns", b"ru\xffsru\xffs"),
    ):
        content = content.replace(found, put)
    return content


@pytest.mark.parametrize(
    "damage",
    [partial(overwritten, offset=0), partial(overwritten, offset=100), with_a_damaged_name],
    ids=["header", "pages", "name"],
)
def test_a_damaged_database_is_unreachable_in_a_sentence(
    database: Database, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    database.dispose()
    path = tmp_path / "runs.sqlite3"
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(DatabaseUnavailableError) as caught:
        count(database)

    assert "\n" not in str(caught.value)


# --- the broker file ---------------------------------------------------------------------------------


def test_a_damaged_broker_file_says_that_it_may_be_deleted_and_is_well_once_it_is(
    tmp_path: Path,
) -> None:
    path = tmp_path / "broker.sqlite3"
    file = BrokerFile.at(str(path))
    file.put(["work"], "{}")
    for part in with_others(path):
        part.write_bytes(GARBAGE)

    for _ in range(2):
        with pytest.raises(
            BrokerFileDamagedError, match=r"broker\.sqlite3 is damaged .*Delete it.*no run is lost"
        ):
            file.put(["work"], "{}")

    for part in with_others(path):
        part.unlink()
    file.put(["work"], "{}")
    assert file.size("work") == 1


@pytest.mark.parametrize("is_damaged_before", [True, False])
def test_a_start_does_not_raise_over_a_damaged_broker_file(
    make_app: Callable[..., Celery],
    tmp_path: Path,
    is_damaged_before: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "broker.sqlite3"
    make_app(broker_url=f"ckworkflow+sqlite:///{path}")
    if not is_damaged_before:
        start_sync(joining, 1)
    for part in with_others(path) or [path]:
        part.write_bytes(GARBAGE)

    canvas._broker.ends()  # what an earlier test has left out of reach is another broker

    run = start_sync(joining, 1)

    assert run.status() == "pending"
    assert "is damaged" in caplog.text


# --- under a worker ----------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Iterator[WorkerHome]:
    home = WorkerHome(tmp_path, TESTS / "broker", {"workflow_packages": ["greeting"]})
    home.worker = home.start_worker("--concurrency=2")
    home.wait_for(lambda: " ready." in home.logs(), "the worker")
    yield home
    home.stop()


@pytest.mark.slow
def test_a_worker_outlives_a_damaged_broker_file(home: WorkerHome) -> None:
    path = home.folder / "ckworkflow-broker.sqlite3"
    for part in with_others(path):
        part.write_bytes(GARBAGE)
    home.wait_for(lambda: "is damaged" in home.logs(), "the sentence")
    program = home.start_program()
    run_id = program.start("greeting:with_a_retry", "w")

    for part in with_others(path):
        part.unlink()

    assert program.result(run_id) == "result-w"
    assert home.worker.poll() is None
    assert "Traceback" not in home.logs()


@pytest.mark.slow
def test_a_worker_says_that_its_database_was_deleted(home: WorkerHome) -> None:
    for part in with_others(home.folder / "ckworkflow.sqlite3"):
        part.unlink()

    home.wait_for(
        lambda: "its file was deleted while this process used it" in home.logs(), "the sentence"
    )

    assert "Traceback" not in home.logs()
