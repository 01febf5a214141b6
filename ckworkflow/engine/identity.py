"""Who this process is, and whether another one on this host still lives.

A pid alone lies after a restart; with the time at which it started, and the boot of the machine, it does not.
"""

from __future__ import annotations

import functools
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, unmistakably.

    Attributes:
        process_id: Its name in the database.
        host: Where its pid means what it means: the machine's name, and the namespace of its pids. Two
            containers may have one name.
        boot_id: The machine's boot; empty where the system does not say.
        pid: Its pid.
        pid_started: When that pid started, in the system's own unit; empty where it does not say.
    """

    process_id: str
    host: str
    boot_id: str
    pid: int
    pid_started: str


def this_process() -> Identity:
    """Return the identity of this process; a forked child has its own."""
    return _identity(os.getpid())


@functools.cache
def _identity(pid: int) -> Identity:
    host = socket.gethostname()
    return Identity(
        f"{host}:{pid}:{uuid.uuid4().hex[:8]}",
        f"{host}{_pid_namespace()}",
        _boot_id(),
        pid,
        pid_started(pid) or "",
    )


def is_gone(host: str, boot_id: str, pid: int, started: str) -> bool:
    """Whether a process of this host has provably ended; `False` when that cannot be known from here."""
    here = this_process()
    if host != here.host:
        return False
    if boot_id != here.boot_id:
        return True
    found = pid_started(pid)
    return found is None or (bool(started) and bool(found) and found != started)


def pid_started(pid: int) -> str | None:
    """When a pid started; `None` when there is no such process (a zombie has ended too)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except ProcessLookupError:
        return None  # it ended between the opening of its file and the reading
    except FileNotFoundError:
        return None if Path("/proc/self").exists() or not _answers(pid) else ""
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _pid_namespace() -> str:
    try:
        return f" {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
