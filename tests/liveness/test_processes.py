"""Real workers that are busy, stopped, killed again and again, or on a machine that is a copy of another."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import services
from crash_everywhere.site import FINAL, Child, ForkServer, Reader, wait_for
from effects import VARIABLE, Effect, effects_of
from liveness.surroundings import new_namespaces

pytestmark = pytest.mark.slow

MODULE = "liveness.liveness_flows"
NEIGHBOUR_SEEN = "is alive on another machine that has the host name"


class Workers:
    """Workers in one folder, on SQLite files, and a program that starts runs."""

    def __init__(self, folder: Path, server: ForkServer) -> None:
        self.folder, self._server = folder, server
        (folder / "effects").mkdir()
        url = f"sqlite:///{folder}/ckworkflow.sqlite3"
        (folder / "celeryconfig.py").write_text(
            f"workflow_packages = [{MODULE!r}]\nworkflow_database_url = {url!r}\n"
        )
        self.reader = Reader(url)
        self._children: list[Child] = []
        self._client = self._fork("client")

    def start(self, *patches: str) -> Child:
        """Start a worker; it is not waited for."""
        return self._fork("worker", "short_silence", *patches)

    def _fork(self, kind: str, *patches: str) -> Child:
        child = self._server.fork(
            kind=kind, role=None, folder=str(self.folder), env={VARIABLE: str(self.folder / "effects")},
            log=str(self.folder / f"{kind}-{len(self._children)}.log"), options=["--loglevel=INFO"],
            patches=[f"liveness.surroundings:{patch}" for patch in patches],
        )  # fmt: skip
        self._children.append(child)
        return child

    def wait_until_ready(self, *children: Child) -> None:
        for child in children:
            self.wait_for(lambda: child.said() == "ready", "a worker")  # noqa: B023

    def run(self, workflow: str) -> str:
        """Start a run; its id."""
        self.wait_until_ready(self._client)
        self._client.tell(f"{MODULE}:{workflow}")
        answer = self.wait_for(self._client.said, "a start")
        return str(answer["run"])

    def effects(self, run_id: str) -> list[Effect]:
        return effects_of(self.folder / "effects", run_id)

    def let_go(self) -> None:
        """Let the steps end that stay."""
        (self.folder / "go").touch()

    def end_of(self, run_id: str) -> tuple[str, str]:
        """Wait for the end of a run; its status and output."""
        query = "SELECT status, output FROM runs WHERE id = ? AND status IN (?, ?, ?)"
        rows: list[tuple[str, str]] = self.wait_for(
            lambda: self.reader.all(query, run_id, *FINAL), "the end of a run"
        )
        return rows[0]

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        return wait_for(condition, lambda: f"{what}\n{self.logs()}")

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def close(self) -> None:
        for child in self._children:
            if not child.is_dead:
                child.signal(signal.SIGCONT)
                child.kill()
        self.reader.close()


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer((MODULE,))
    yield server
    server.close()


@pytest.fixture
def workers(tmp_path: Path, server: ForkServer) -> Iterator[Workers]:
    workers = Workers(tmp_path, server)
    yield workers
    workers.close()


def test_a_process_that_holds_the_gil_beyond_every_silence_keeps_its_step(workers: Workers) -> None:
    workers.wait_until_ready(workers.start(), workers.start())

    run_id = workers.run("holding")

    assert workers.end_of(run_id) == ("completed", '"held"')
    assert [each.attempt for each in workers.effects(run_id)] == [1]
    assert "has not renewed its row" in workers.logs()


@pytest.mark.parametrize("workflow", ["staying", "staying_in_thread"])
def test_a_process_that_is_stopped_beyond_its_silence_loses_its_step_to_another(
    workers: Workers, workflow: str
) -> None:
    children = [workers.start(), workers.start()]
    workers.wait_until_ready(*children)
    run_id = workers.run(workflow)
    (first,) = workers.wait_for(lambda: workers.effects(run_id), "the step")
    (stopped,) = [child for child in children if child.pid == first.pid]

    stopped.signal(signal.SIGSTOP)
    second = workers.wait_for(lambda: workers.effects(run_id)[1:], "another attempt")

    assert [(each.attempt, each.pid != first.pid) for each in second] == [(2, True)]
    stopped.signal(signal.SIGCONT)
    workers.let_go()
    assert workers.end_of(run_id) == ("completed", '"only"')
    assert len(workers.effects(run_id)) == 2


def test_machines_with_one_name_and_one_machine_id_leave_each_other_alone_and_say_so(
    workers: Workers,
) -> None:
    require_namespaces()
    children = [workers.start("machine_of_its_own"), workers.start("machine_of_its_own")]
    workers.wait_until_ready(*children)

    run_id = workers.run("staying")
    workers.wait_for(lambda: workers.logs().count(NEIGHBOUR_SEEN) == 2, "each to see the other")
    workers.let_go()

    assert workers.end_of(run_id) == ("completed", '"only"')
    assert [each.attempt for each in workers.effects(run_id)] == [1]


def require_namespaces() -> None:
    """See to it that a process can be given another host name here."""
    process = multiprocessing.get_context("spawn").Process(target=new_namespaces)
    process.start()
    process.join(20)
    if process.exitcode != 0:
        services.absent("a host name of one's own", "run as root, or allow user namespaces")


def test_three_deploys_by_kill_hold_up_nobody(workers: Workers) -> None:
    worker = workers.start()
    run_id = workers.run("many")
    for deploy in range(1, 4):
        workers.wait_for(lambda: _have_begun(workers, run_id, times=deploy), "all steps at once")  # noqa: B023
        worker.kill()
        worker = workers.start()

    # None of them ends: what has begun is running at once.
    workers.wait_for(lambda: _have_begun(workers, run_id, times=4), "all steps at once")
    workers.let_go()

    assert workers.end_of(run_id) == ("completed", "20")


def _have_begun(workers: Workers, run_id: str, *, times: int) -> bool:
    begun = Counter(each.label for each in workers.effects(run_id))
    return len(begun) == 20 and min(begun.values()) == times


def test_suspects_take_turns_without_further_messages(workers: Workers) -> None:
    run_id = workers.run("passing")
    with contextlib.closing(sqlite3.connect(workers.folder / "ckworkflow.sqlite3")) as database:
        database.execute("UPDATE nodes SET losses = 6")
        database.commit()

    workers.start("no_second_messages")

    assert workers.end_of(run_id) == ("completed", "15")
    assert [each.attempt for each in workers.effects(run_id)] == [1] * 6
