"""Locks that a forked child starts with: free, also when a thread of the parent held them in that moment."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORK = """
import os, sys, threading
import ckworkflow.celery
from ckworkflow import canvas
from ckworkflow.engine.installation import current
from ckworkflow.worker.process import runtime
from ckworkflow.worker.steps import task

def lock():
    return {lock}

held = threading.Event()
def hold():
    lock().acquire()
    held.set()

threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child == 0:
    os._exit(0 if lock().acquire(blocking=False) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "lock",
    [
        "runtime._runtime._lock",
        "current()._engine._lock",
        "canvas._broker._lock",
        "task._database._lock",
    ],
)
def test_a_forked_child_waits_for_no_thread_of_its_parent(lock: str) -> None:
    ended = subprocess.run([sys.executable, "-c", FORK.replace("{lock}", lock)], timeout=60, check=False)

    assert ended.returncode == 0
