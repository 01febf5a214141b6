"""What stands in a worker's way: a connection that is cut, a disk that is full."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import subprocess
import threading
from typing import TYPE_CHECKING

import services

if TYPE_CHECKING:
    from pathlib import Path


class Proxy:
    """A line to a server of this machine, on a port of its own, that can be cut and mended."""

    def __init__(self, port: int) -> None:
        self.port = services.free_port()
        self._target = port
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.mend()

    def mend(self) -> None:
        """Let connections through from now on."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """End every connection, and refuse new ones."""
        with self._lock:
            listener, self._listener = self._listener, None
            ends, self._ends = self._ends, set()
        for end in [*ends, *([listener] if listener else [])]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return  # cut
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()  # the server is down
                continue
            with self._lock:
                is_cut = self._listener is not listener
                if not is_cut:
                    self._ends |= {near, far}
            if is_cut:
                near.close()
                far.close()
                return
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._ends.discard(end)
            end.close()


class SmallDisk:
    """A disk of few megabytes: more than SQLite's two files and their logs grow to."""

    BYTES = 32_000_000

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._sudo = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
        options = f"size={self.BYTES},mode=0700,uid={os.geteuid()},gid={os.getegid()}"
        mount = [
            *self._sudo,
            "mount",
            "-t",
            "tmpfs",
            "-o",
            options,
            "ckworkflow-small-disk",
            str(folder),
        ]
        with contextlib.suppress(FileNotFoundError):
            if subprocess.run(mount, capture_output=True).returncode == 0:
                return
        services.absent(
            "A small disk", "let the tests mount a tmpfs: as root, or by sudo without a password"
        )

    def fill(self) -> None:
        """Leave no room at all."""
        for file in self.folder.glob("*.sqlite3"):
            # Or SQLite would find room in its own log.
            with contextlib.closing(sqlite3.connect(file, timeout=30)) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with (self.folder / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(b"x" * 4096):
                pass

    def empty(self) -> None:
        """Make room again."""
        (self.folder / "filler").unlink()

    def remove(self) -> None:
        """Take it away, with what is on it."""
        subprocess.run([*self._sudo, "umount", "--lazy", str(self.folder)], check=True)
