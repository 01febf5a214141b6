"""Processes of this machine, as Linux shows them under `/proc`.

A process may end before, between or during two reads, so "it has ended" is an answer here and never an error.

Not here: what an answer means for the process that is asked about (`ckworkflow.engine.identity`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Stat", "all_stats", "children_of", "is_running", "read_file", "read_stat"]

PROC = Path("/proc")
_FIELDS = 20
"""Fields of `stat` behind the name that are read here; a text with fewer was cut off."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What `/proc/PID/stat` says of a process; see proc(5).

    Attributes:
        pid: Its pid.
        state: One letter: `R` running, `S` and `D` waiting, `T` and `t` stopped, `Z` and `X` ended.
        parent: The pid of its parent.
        started: When it started, in clock ticks since the boot.
        ticks: The processor time that all its threads have used, in clock ticks.
    """

    pid: int
    state: str
    parent: int
    started: str
    ticks: int

    @property
    def has_ended(self) -> bool:
        """Whether only its exit status is left."""
        return self.state in ("Z", "X", "x")

    @property
    def is_stopped(self) -> bool:
        """Whether a signal or a debugger has stopped it."""
        return self.state in ("T", "t")


def read_file(pid: int, name: str) -> str | None:
    """Read a file of a process; `None` when there is no such process (any more).

    Raises:
        OSError: The file cannot be read for another reason, such as a missing right.
    """
    try:
        # The name of a process may be any bytes.
        return (PROC / str(pid) / name).read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        # The second: it ended after its file was opened.
        return None


def read_stat(pid: int) -> Stat | None:
    """Read the state of a process; `None` when there is no such process (any more).

    Raises:
        OSError: As `read_file`.
    """
    text = read_file(pid, "stat")
    # The name of the program stands in parentheses, and may hold any number of its own.
    fields = (text or "").rpartition(")")[2].split()
    if len(fields) < _FIELDS:
        return None
    return Stat(pid, fields[0], int(fields[1]), fields[19], int(fields[11]) + int(fields[12]))


def all_stats() -> Iterator[Stat]:
    """Read the state of every process that can be seen from here.

    Raises:
        OSError: As `read_file`.
    """
    for folder in PROC.glob("[0-9]*"):
        if (stat := read_stat(int(folder.name))) is not None:
            yield stat


def children_of(parent: int) -> list[int]:
    """The pids of a process's children that have not ended."""
    return [stat.pid for stat in all_stats() if stat.parent == parent and not stat.has_ended]


def is_running(pid: int) -> bool:
    """Whether a process exists and has not ended; a zombie has."""
    stat = read_stat(pid)
    return stat is not None and not stat.has_ended
