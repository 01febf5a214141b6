"""What nobody waits for: done on a few threads, once for all who ask meanwhile, and before the process ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ckworkflow.background import LONG_SECONDS, Beside, SpareThreads
from waiting import until


class Gate:
    """A job that says that it has begun, and waits until it may end."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.may_end.wait(20)


@pytest.fixture
def gate() -> Gate:
    return Gate()


def test_nobody_waits_for_a_job(gate: Gate) -> None:
    beside = Beside(SpareThreads())
    beside.do("a", gate)
    assert gate.begun.wait(20)
    gate.may_end.set()
    beside.finish()


def test_jobs_of_one_key_that_wait_are_one(gate: Gate) -> None:
    done: list[str] = []
    beside = Beside(SpareThreads(), size=1)
    beside.do("first", gate)
    for name in ("1", "2", "3"):
        beside.do("same", lambda name=name: done.append(name))
    beside.do("other", lambda: done.append("other"))
    gate.may_end.set()
    beside.finish()
    assert done == ["1", "other"]


def test_a_job_that_has_begun_does_not_stand_for_one_that_comes_later(gate: Gate) -> None:
    done: list[str] = []
    beside = Beside(SpareThreads(), size=1)
    beside.do("same", gate)
    assert gate.begun.wait(20)
    beside.do("same", lambda: done.append("later"))
    gate.may_end.set()
    beside.finish()
    assert done == ["later"]


def test_a_job_that_takes_long_keeps_one_thread_and_not_the_others() -> None:
    gates, now = [Gate() for _ in range(4)], [0.0]
    beside = Beside(SpareThreads(), size=2, clock=lambda: now[0])
    beside.do(0, gates[0])
    assert gates[0].begun.wait(20)
    beside.do(1, gates[1])
    assert not gates[1].begun.is_set()
    now[0] += LONG_SECONDS
    beside.do(2, gates[2])
    assert gates[1].begun.wait(20)
    now[0] += LONG_SECONDS
    beside.do(3, gates[3])
    assert not gates[2].begun.is_set()
    assert not gates[3].begun.is_set()
    for each in gates:
        each.may_end.set()
    beside.finish()
    assert all(each.begun.is_set() for each in gates)


def test_no_more_wait_than_may(gate: Gate) -> None:
    done: list[int] = []
    beside = Beside(SpareThreads(), size=1, most=2)
    beside.do("first", gate)
    assert gate.begun.wait(20)
    for number in range(5):
        beside.do(number, lambda number=number: done.append(number))
    gate.may_end.set()
    beside.finish()
    assert done == [0, 1]


def test_where_there_are_no_threads_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    threads = SpareThreads()
    beside = Beside(threads)

    def none(*_: Any) -> None:
        raise RuntimeError

    with monkeypatch.context() as patches:
        patches.setattr(threads, "begin", none)
        beside.do("same", lambda: done.append("never"))
    beside.finish()
    beside.do("same", lambda: done.append("now"))
    until(lambda: done)
    assert done == ["now"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_has_nothing_of_it(gate: Gate) -> None:
    beside = Beside(SpareThreads(), size=1)
    beside.do("first", gate)
    assert gate.begun.wait(20)
    pid = os.fork()
    if not pid:  # waits for nothing that only its parent does
        beside.finish()
        os._exit(0)
    gate.may_end.set()
    assert os.waitpid(pid, 0)[1] == 0


def test_a_process_that_ends_lets_a_job_come_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "done"
    script = f"""
import threading
from pathlib import Path
from ckworkflow.background import Beside, SpareThreads

def job():
    threading.Event().wait(0.3)
    Path({str(file)!r}).write_text("all of it")

beside = Beside(SpareThreads())
beside.do("job", job)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

    assert file.read_text() == "all of it"
