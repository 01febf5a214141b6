"""An upgrade under load: the release before this one works on while the schema changes, and nothing is lost.

The old code is real: `tests/releases` holds its wheel, and its processes find that first. The rule that this
shows is that of `docs/operations.md`: expand, deploy, contract.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from ckworkflow.store import Database, schema, tables
from worker_home import TESTS, TIMEOUT_SECONDS, WorkerHome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker_home import Program

pytestmark = pytest.mark.slow

CODE = Path(__file__).parent
WHEEL = TESTS / "releases" / "ckworkflow-0.1.0-py3-none-any.whl"
OLD_REVISION = 1


@pytest.fixture(scope="session")
def old_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the release before this one."""
    folder = tmp_path_factory.mktemp("old-release")
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(folder)
    return folder


class Deploy(WorkerHome):
    """A home in which everything is of the old release, unless it is started with `NEW`."""

    def __init__(self, folder: Path, settings: dict[str, Any], old_release: Path) -> None:
        self.old_release = old_release
        path = os.pathsep.join([str(folder), str(CODE), str(TESTS)])
        self.new = {"PYTHONPATH": path}
        old = {"PYTHONPATH": os.pathsep.join([str(old_release), path])}
        settings = {"workflow_packages": ["deploying"], "workflow_horizon": 1, **settings}
        super().__init__(folder, CODE, settings, env={**old, "GATES": str(folder)})
        url = settings.get("workflow_database_url", f"sqlite:///{folder / 'ckworkflow.sqlite3'}")
        self.database = Database(url)

    def stop(self) -> None:
        super().stop()
        self.database.dispose()

    @property
    def revision(self) -> int:
        """The revision of the database."""
        query = sa.select(sa.func.max(tables.schema_info.c.revision))
        return self.database.read(lambda tx: tx.execute(query).scalar_one())

    def assert_releases(self, *revisions: int) -> None:
        """The processes so far ran these releases, in this order, each from where it should be."""
        notes = self.wait_for(
            lambda: len(found := self.journal("code")) >= len(revisions) and found, "the processes"
        )
        for note, revision in zip(notes, revisions, strict=True):
            assert note["revision"] == revision
            assert (self.old_release in Path(note["file"]).parents) == (revision == OLD_REVISION)

    def let_the_sleepers_wake(self) -> None:
        """Have a week pass for every sleep."""
        nodes, runs = tables.nodes, tables.runs

        def wake(tx: Any) -> None:
            now = self.database.now(tx)
            asleep = sa.and_(nodes.c.kind == "sleep", nodes.c.status == "running")
            woken = tx.execute(sa.update(nodes).where(asleep).values(due_at=now)).rowcount
            assert woken > 0
            tx.execute(sa.update(runs).where(runs.c.wake_at.is_not(None)).values(wake_at=now))

        self.database.transact(wake)


@pytest.fixture(params=["sqlite", "postgres"])
def home(request: pytest.FixtureRequest, tmp_path: Path, old_release: Path) -> Iterator[Deploy]:
    """The embedded default, where a new process migrates; or servers, where a command does."""
    settings = {}
    if request.param == "postgres":
        settings = {
            "broker_url": request.getfixturevalue("redis_url"),
            "workflow_database_url": request.getfixturevalue("postgres_url"),
        }
    home = Deploy(tmp_path, settings, old_release)
    yield home
    home.stop()


class Load:
    """Runs that were started, with what each of them must return."""

    def __init__(self) -> None:
        self.expected: dict[str, int] = {}

    def start(self, program: Program, count: int) -> None:
        for number in range(1, count + 1):
            for name, argument, result in (
                ("chain", number, 8 * number),
                ("loop", 13, 104),
                ("fan", 5, 20),
            ):
                self.expected[program.start(f"deploying:{name}", argument)] = result

    def check(self, program: Program) -> None:
        """Every run returns what it must; each is asked for once."""
        assert {run_id: program.result(run_id) for run_id in self.expected} == self.expected
        self.expected.clear()


def test_an_upgrade_under_load_loses_nothing_and_old_runs_go_on_under_the_new_code(home: Deploy) -> None:
    load = Load()
    is_server = not home.database.is_sqlite
    old_worker = home.start_worker()
    old = home.start_program()
    standing = {
        old.start("deploying:asleep", 3): 12,
        old.start("deploying:in_a_chain", 3): 12,
        old.start("deploying:in_a_gather", 3): 9,
        old.start("deploying:in_a_loop", 3): 12,
    }
    home.wait_for(lambda: len(home.journal("waiting")) == 3, "the runs to stand in their middle")
    home.wait_for(lambda: sleeps(home), "a run to sleep")
    home.assert_releases(*[OLD_REVISION] * 2)
    assert home.revision == OLD_REVISION

    # Expand, while old workers work and old programs start runs.
    if is_server:
        upgrade = home.spawn("upgrade", "ckworkflow", "db", "upgrade", **home.new)
        while upgrade.poll() is None:
            load.start(old, 1)
            load.check(old)
        assert upgrade.returncode == 0, home.logs()
    else:
        load.start(old, 4)
    new = home.start_program(**home.new)
    load.start(new, 1)  # a file is migrated by the first new process that opens it
    assert home.revision == schema.CODE_REVISION > OLD_REVISION
    load.start(old, 2)
    load.check(old)
    assert {note["revision"] for note in home.journal("effect")} == {OLD_REVISION}

    # Deploy: both work, then the old worker is gone.
    home.start_worker(**home.new)
    home.wait_for(lambda: len(home.journal("code")) == 4, "the new worker")
    home.assert_releases(OLD_REVISION, OLD_REVISION, schema.CODE_REVISION, schema.CODE_REVISION)
    for program in (old, new):
        load.start(program, 2)
    # Just wider than a window, whose messages tell a new worker more than an old one: that opens no window, and if it
    # takes all of them, what is left waits until a clock looks at the run, up to a minute as the old release has it.
    wide = new.start("deploying:fan", 102)
    load.check(new)
    assert new.result(wide, timeout=120) == 102 * 101
    old_worker.terminate()
    home.wait_for(lambda: "Warm shutdown" in home.logs(), "the old worker to stop")
    (home.folder / "first").touch()
    assert old_worker.wait(TIMEOUT_SECONDS) == 0
    (home.folder / "second").touch()
    home.let_the_sleepers_wake()

    assert {run_id: new.result(run_id) for run_id in standing} == standing
    effects = Counter((note["run"], note["node"]) for note in home.journal("effect"))
    assert set(effects.values()) == {1}, "a step ran twice"
    for run_id in standing:
        *_, last = [note for note in home.journal("effect") if note["run"] == run_id]
        assert last["revision"] == schema.CODE_REVISION
    told = [line for path in home.folder.glob("*.log") for line in path.read_text().splitlines()]
    assert [line for line in told if "raised unexpected" in line or "Traceback" in line][:3] == []


def test_a_process_that_the_database_has_left_behind_says_so_and_stops(
    tmp_path: Path, old_release: Path
) -> None:
    home = Deploy(tmp_path, {}, old_release)
    running = home.start_worker(**home.new)
    home.wait_for(lambda: " ready." in home.logs(), "the worker")

    # Contract, though a worker was forgotten: the revision after the next one drops what this code needs.
    beyond = schema.CODE_REVISION + 1
    contracted = sa.insert(tables.schema_info).values(revision=beyond, oldest_code=beyond)
    home.database.transact(lambda tx: tx.execute(contracted))

    sentence = f"its revision {beyond} may be used from code revision {beyond} on, and this is {{}}. Upgrade ckworkflow"
    assert running.wait(TIMEOUT_SECONDS) == 1
    assert "the worker stops: The schema of sqlite:///" in home.logs()
    assert sentence.format(schema.CODE_REVISION) in home.logs()
    late = {
        OLD_REVISION: home.spawn("late-1", "celery", "-A", "ckworkflow", "worker"),
        schema.CODE_REVISION: home.spawn(
            f"late-{schema.CODE_REVISION}", "python", "-c", START, **home.new
        ),
    }
    for code, process in late.items():
        assert process.wait(TIMEOUT_SECONDS) == 1
        assert sentence.format(code) in (home.folder / f"late-{code}.log").read_text()
    count = sa.select(sa.func.count()).select_from(tables.runs)
    assert home.database.read(lambda tx: tx.execute(count).scalar_one()) == 0
    home.stop()


START = "import deploying; from ckworkflow import start_sync; start_sync(deploying.chain, 1)"


def sleeps(home: Deploy) -> bool:
    query = sa.select(tables.nodes.c.node_id).where(
        tables.nodes.c.kind == "sleep", tables.nodes.c.status == "running"
    )
    return home.database.read(lambda tx: tx.execute(query).first()) is not None
