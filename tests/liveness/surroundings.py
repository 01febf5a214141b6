"""What a worker under test finds around it; each function is called in its process before its app is made."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import socket
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

HEARTBEAT_SECONDS = 0.2
SILENCE_SECONDS = 6 * HEARTBEAT_SECONDS
COMMON_NAME = "raspberrypi"

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWUSER = 0x20000, 0x4000000, 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000


def short_silence() -> None:
    """Be silent for a second to be taken for dead, not for half a minute."""
    from ckworkflow.worker import settings

    read = settings.read

    def tuned(app: Any) -> Any:
        return dataclasses.replace(
            read(app),
            heartbeat=timedelta(seconds=HEARTBEAT_SECONDS),
            redispatch_after=timedelta(seconds=1),
        )

    settings.read = tuned


def no_second_messages() -> None:
    """Publish nothing again that is not claimed: whoever waits gets its turn, or never."""
    from ckworkflow.worker import settings

    read = settings.read
    settings.read = lambda app: dataclasses.replace(read(app), redispatch_after=timedelta(minutes=10))


def machine_of_its_own() -> None:
    """Be on another machine, a copy of all others: of their name and their machine id, with a boot of its own."""
    new_namespaces()
    socket.sethostname(COMMON_NAME)
    boot_id = Path(f"boot-id-{os.getpid()}")
    boot_id.write_text(f"{uuid.uuid4()}\n")
    _call("mount", str(boot_id).encode(), b"/proc/sys/kernel/random/boot_id", None, _MS_BIND, None)


def new_namespaces() -> None:
    """Take leave of the machine's mounts and its name.

    Raises:
        OSError: This may not be done here.
    """
    user, group = os.geteuid(), os.getegid()
    if user != 0:
        _call("unshare", _CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _call("unshare", _CLONE_NEWNS | _CLONE_NEWUTS)
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)


def _call(name: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
