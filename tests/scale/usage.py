"""What a process has used: memory of its own, and processor time beside that of a piece of work which never changes."""

from __future__ import annotations

import os
import time

from ckworkflow.engine.procfs import read_file

MEGABYTE = 1_000_000
KNOWN_WORK = 15_000
"""Entries made: some three milliseconds."""
SETTLED_BYTES, SETTLED_SECONDS = 256 * 1024, 1.5
"""Memory that moves by less than this for so long is what a process holds; as in `benchmarks/sides.py`."""
SETTLE_TIMEOUT_SECONDS = 60.0


def memory_of(pid: int) -> int:
    """Bytes that a process has asked for: no pages of files, whose share changes as other processes come and go."""
    for line in (read_file(pid, "smaps_rollup") or "").splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has ended, and with it its memory")


def memory_of_this_process() -> int:
    return memory_of(os.getpid())


def time_of_known_work() -> float:
    """Seconds of processor that the same piece of Python takes at this moment.

    A shared machine gives the same code half its speed for minutes. What costs are compared over time, they are
    compared in units of this.
    """
    began = time.thread_time()
    rows: dict[int, tuple[int, str]] = {}
    for number in range(KNOWN_WORK):
        rows[number % 1_000] = (number, str(number))
    return time.thread_time() - began


def settled_memory_of(pid: int) -> int:
    """Bytes of a process, once they stay as they are."""
    end = time.monotonic() + SETTLE_TIMEOUT_SECONDS
    held, since = memory_of(pid), time.monotonic()
    while time.monotonic() - since < SETTLED_SECONDS:
        assert time.monotonic() < end, f"the memory of {pid} does not settle: {held}"
        now = memory_of(pid)
        if abs(now - held) > SETTLED_BYTES:
            held, since = now, time.monotonic()
        time.sleep(0.05)
    return held
