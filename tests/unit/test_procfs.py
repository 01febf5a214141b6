"""Reading what the kernel says of processes, which may end at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckworkflow.engine import procfs
from ckworkflow.engine.identity import (
    Identity,
    Standing,
    look_up,
    pid_started,
    this_process,
)
from waiting import until

pytestmark = pytest.mark.slow

FOREVER = [sys.executable, "-c", "import time; time.sleep(1000)"]


@contextmanager
def a_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(FOREVER)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def identity_of(pid: int) -> Identity:
    here = this_process()
    return Identity("other", here.host, here.boot_id, pid, pid_started(pid) or "")


def put(folder: Path, pid: int, text: str) -> None:
    (folder / str(pid)).mkdir(exist_ok=True)
    (folder / str(pid) / "stat").write_text(text)


def test_a_process_that_ends_while_its_file_is_read_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_process() as process:
        file = os.open(f"/proc/{process.pid}/stat", os.O_RDONLY)
    try:
        # To open it works still, as for one who has opened it in time; to read it does not.
        (tmp_path / str(process.pid)).mkdir()
        (tmp_path / str(process.pid) / "stat").symlink_to(f"/proc/{os.getpid()}/fd/{file}")
        with pytest.raises(ProcessLookupError):
            (tmp_path / str(process.pid) / "stat").read_text()
        monkeypatch.setattr(procfs, "PROC", tmp_path)

        assert procfs.read_stat(process.pid) is None
        assert list(procfs.all_stats()) == []
        assert not procfs.is_running(process.pid)
    finally:
        os.close(file)


def test_a_zombie_has_ended_and_is_nobodys_child() -> None:
    with a_process() as process:
        assert procfs.is_running(process.pid)
        assert process.pid in procfs.children_of(os.getpid())
        process.kill()
        until(lambda: not procfs.is_running(process.pid))

        stat = procfs.read_stat(process.pid)
        assert stat is not None
        assert stat.has_ended
        assert process.pid not in procfs.children_of(os.getpid())
    assert procfs.read_stat(process.pid) is None


@pytest.mark.parametrize("name", ["a) b (c", ") S 7 (", "two\nlines", ""])
def test_the_name_of_a_program_may_be_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rest = ["T", "7", *["0"] * 9, "11", "22", *["0"] * 6, "4711", "0"]
    put(tmp_path, 5, f"5 ({name}) {' '.join(rest)}\n")
    monkeypatch.setattr(procfs, "PROC", tmp_path)

    assert procfs.read_stat(5) == procfs.Stat(5, "T", 7, "4711", 33)


@pytest.mark.parametrize("text", ["", "5 (celery", "5 (celery) S 1 5"])
def test_a_file_that_was_cut_off_is_no_proof_of_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    here = this_process()
    put(tmp_path, here.pid, text)
    monkeypatch.setattr(procfs, "PROC", tmp_path)

    assert procfs.read_stat(here.pid) is None
    assert look_up(here).standing is Standing.UNKNOWN


def test_a_process_that_proc_hides_is_not_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with a_process() as process:
        other = identity_of(process.pid)
        monkeypatch.setattr(procfs, "PROC", tmp_path)  # as with hidepid=2, for processes of others
        assert look_up(other).standing is Standing.UNKNOWN
    assert look_up(other).standing is Standing.ENDED


def test_the_kernel_says_whether_a_process_runs_is_stopped_or_has_ended() -> None:
    with a_process() as process:
        other = identity_of(process.pid)
        assert look_up(other).standing is Standing.RUNNING

        process.send_signal(signal.SIGSTOP)
        until(lambda: look_up(other).standing is Standing.STOPPED)
        process.send_signal(signal.SIGCONT)
        until(lambda: look_up(other).standing is Standing.RUNNING)

        process.kill()
        until(lambda: look_up(other).standing is Standing.ENDED)


def test_a_pid_that_another_program_has_now_has_ended() -> None:
    here = this_process()
    assert look_up(here).standing is Standing.RUNNING
    earlier = Identity(here.process_id, here.host, here.boot_id, here.pid, "1")
    assert look_up(earlier).standing is Standing.ENDED


def test_processor_time_counts_for_a_process_that_computes() -> None:
    here = this_process()
    before = look_up(here).ticks
    until(lambda: look_up(here).ticks > before)


def test_a_child_inherits_no_name_of_a_pid_that_may_come_again() -> None:
    program = """
import os
from ckworkflow.engine import identity
os.getpid = lambda: 7  # of the parent, and again of a child of its child
parent = identity.this_process().process_id
if os.fork() == 0:
    os.write(1, str(parent == identity.this_process().process_id).encode())
    os._exit(0)
os.wait()
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=30)

    assert said.stdout == b"False"
