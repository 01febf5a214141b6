"""Who this process is, and what the kernel says of another one that runs under the same kernel.

A pid alone proves nothing: it is used again, and every machine and every container counts its own. So a process
is named by its pid, the time at which that started, the boot of the kernel, and the place where the pid counts.
Only if boot and place are those of this process is the kernel asked at all. Anything else is another machine,
whatever its name: clones of a virtual machine share their host name and often their machine id, and a boot id
that differs may be a reboot or such a clone.

Not here: when a process that the kernel does not know is taken for dead (`ckworkflow.engine.detector`).
"""

from __future__ import annotations

import enum
import functools
import hashlib
import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

from ckworkflow.engine import procfs

__all__ = ["Identity", "Look", "Standing", "is_reachable", "look_up", "pid_started", "this_process"]

_MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_RANDOM_NODE = 1 << 40
"""Set in what `uuid.getnode` returns when it has found no network card and drawn a number."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, unmistakably.

    Attributes:
        process_id: Its name in the database.
        host: The place where its pid counts: the machine's name, the namespace of its pids (two containers may
            have one name), and a digest of the machine's id, where it has one.
        boot_id: The kernel's boot; empty where the system does not say.
        pid: Its pid.
        pid_started: When that pid started, in the system's own unit; empty where it does not say.
    """

    process_id: str
    host: str
    boot_id: str
    pid: int
    pid_started: str


class Standing(enum.Enum):
    """What the kernel says of a process."""

    RUNNING = "running"
    """It exists and is not stopped, however busy it may be."""
    STOPPED = "stopped"
    """A signal or a debugger has stopped it: nothing of it runs."""
    ENDED = "ended"
    """It has ended, or its pid belongs to a later process."""
    UNKNOWN = "unknown"
    """It cannot be asked about: another kernel, another namespace, or a system that does not tell."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a process.

    Attributes:
        standing: What the kernel says.
        ticks: The processor time that it has used, in clock ticks; only of one that exists.
    """

    standing: Standing
    ticks: int = 0


def this_process() -> Identity:
    """Return the identity of this process; a forked child has its own."""
    return _identity(os.getpid())


@functools.cache
def _identity(pid: int) -> Identity:
    name = socket.gethostname()
    boot_id = _boot_id()
    return Identity(
        f"{name}:{pid}:{uuid.uuid4().hex[:8]}",
        f"{name}{_pid_namespace()}{_machine_id(has_boot_id=bool(boot_id))}",
        boot_id,
        pid,
        pid_started(pid) or "",
    )


# A child of a child may get the pid of one whose name it has inherited.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_identity.cache_clear)


def is_reachable(other: Identity, here: Identity) -> bool:
    """Whether the kernel under which `here` runs can be asked about another process."""
    if (other.host, other.boot_id) != (here.host, here.boot_id):
        return False
    # Without a boot id a name alone would have to do; two machines called `localhost` have the same.
    return bool(here.boot_id) or " machine:" in here.host


def look_up(other: Identity) -> Look:
    """Ask the kernel about a process that it can be asked about (`is_reachable`)."""
    try:
        stat = procfs.read_stat(other.pid)
    except OSError:
        stat = None
    if stat is None:
        # Where /proc hides the processes of other users, a missing file is no proof.
        return Look(Standing.UNKNOWN if _answers(other.pid) else Standing.ENDED)
    if stat.has_ended or (other.pid_started and stat.started != other.pid_started):
        return Look(Standing.ENDED)
    if not other.pid_started:
        return Look(Standing.UNKNOWN)  # it may be a later process with the same pid
    return Look(Standing.STOPPED if stat.is_stopped else Standing.RUNNING, stat.ticks)


def pid_started(pid: int) -> str | None:
    """When a pid started; `None` when there is no such process (a zombie has ended too), empty if not known."""
    try:
        stat = procfs.read_stat(pid)
    except OSError:
        return ""
    if stat is None:
        return "" if _answers(pid) else None
    return None if stat.has_ended else stat.started


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


def _machine_id(*, has_boot_id: bool) -> str:
    """A word for this machine; empty when it has no id."""
    found = ""
    for path in _MACHINE_IDS:
        try:
            found = path.read_text().strip()
        except OSError:
            continue
        break
    if not found and not has_boot_id and not (node := uuid.getnode()) & _RANDOM_NODE:
        found = f"{node:x}"
    if not found:
        return ""
    # machine-id(5): it must not leave the machine, a keyed digest of it may.
    digest = hashlib.blake2b(found.encode(), key=b"ckworkflow", digest_size=8).hexdigest()
    return f" machine:{digest}"


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
