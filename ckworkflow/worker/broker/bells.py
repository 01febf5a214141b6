"""Bells: a process that puts a message into a broker file wakes the consumers in other processes of this machine.

A consumer hangs a bell, which is a datagram socket in a folder that is named by the file; a publisher sends a byte to each
bell there. A ring is a hint and nothing more. Where it does not arrive (another mount namespace, another user, a system without
such sockets, a folder that was cleaned up), the consumer finds the message at its next look, as without bells.

The folder is for its owner alone, so nobody else learns of messages or keeps a worker awake.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import tempfile
from pathlib import Path
from typing import Final

from ckworkflow.per_process import PerProcess

__all__ = ["Bell", "hang", "ring"]

_OWNER_ONLY: Final = 0o700
_own: PerProcess[set[str]] = PerProcess()
"""Names of the bells of this process, which hears of its own messages without them."""
_folders: dict[tuple[int, int], Path | None] = {}


class Bell:
    """A bell that hangs; made by `hang`."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.settimeout(0)
            self._socket.bind(str(path))
        except OSError:
            self._socket.close()
            raise
        self._path, self._pid = path, os.getpid()
        _own.get(set).add(path.name)

    def fileno(self) -> int:
        """The file descriptor to wait at."""
        return self._socket.fileno()

    def answer(self) -> None:
        """Take note of every ring so far."""
        with contextlib.suppress(OSError):  # none is left
            while self._socket.recv(1):
                pass

    def close(self) -> None:
        """Take it down."""
        self._socket.close()
        if self._pid == os.getpid():  # or it is the parent's
            _own.get(set).discard(self._path.name)
            _take_down(str(self._path))


def hang(file: tuple[int, int]) -> Bell | None:
    """Hang a bell for a file.

    Args:
        file: Its device and inode.

    Returns:
        The bell; `None` where there can be none.
    """
    for _ in range(2):  # the folder may be taken down, as empty, in between
        folder = _folder(file, makes=True)
        if folder is None:
            return None
        with contextlib.suppress(OSError):  # its path is too long, say
            return Bell(folder / secrets.token_hex(8))
    return None


def ring(file: tuple[int, int]) -> None:
    """Ring the bells that other processes have hung for a file; never blocks and never fails."""
    folder = _folder(file, makes=False)
    if folder is None:
        return
    try:
        names = os.listdir(folder)  # noqa: PTH208  # for every message
    except OSError:  # nobody has hung any
        return
    own = _own.get(set)
    if others := [name for name in names if name not in own]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(0)
            for name in others:
                _ring(sender, f"{folder}/{name}")


def _ring(sender: socket.socket, path: str) -> None:
    try:
        sender.sendto(b"!", path)
    except ConnectionRefusedError:  # the process that hung it is dead
        _take_down(path)
    except OSError:
        pass  # it has been rung so often that there is no room, or was taken down meanwhile


def _take_down(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108  # as above
        os.rmdir(os.path.dirname(path))  # noqa: PTH106, PTH120  # which keeps those that others hang in


def _folder(file: tuple[int, int], *, makes: bool) -> Path | None:
    """The folder of a file's bells; `None` where it cannot be had, or is not this user's alone."""
    if file not in _folders or (makes and _folders[file] is None):
        _folders[file] = _found(file) if hasattr(socket, "AF_UNIX") and hasattr(os, "getuid") else None
    folder = _folders[file]
    if folder is not None and makes:
        try:
            folder.mkdir(_OWNER_ONLY, exist_ok=True)
        except OSError:
            return None
    return folder


def _found(file: tuple[int, int]) -> Path | None:
    ours = Path(tempfile.gettempdir()) / f"ckworkflow-{os.getuid()}"
    try:
        ours.mkdir(_OWNER_ONLY, exist_ok=True)
        found = ours.lstat()
    except OSError:
        return None
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    is_private = not stat.S_IMODE(found.st_mode) & 0o077
    return ours / f"{file[0]:x}-{file[1]:x}" if is_ours and is_private else None
