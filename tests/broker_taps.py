"""Taps: everything that is written to a broker, as raw bytes, from now on."""

from __future__ import annotations

import ast
import base64
import binascii
import contextlib
import re
import socket
import sqlite3
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ckworkflow.worker.broker.broker_file import BrokerFile

if TYPE_CHECKING:
    from pathlib import Path

QUEUE = b"ckworkflow"

_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{16,}={0,2}")


class RedisTap:
    """Every command that reaches one database of a Redis server, as `MONITOR` shows it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._mark = b"[%s " % parts.path.strip("/").encode()
        self._lines: list[bytes] = []
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=10)
        self._file = self._socket.makefile("rwb")
        self._file.write(b"MONITOR\r\n")
        self._file.flush()
        assert self._file.readline() == b"+OK\r\n"
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed by the test
            for line in self._file:
                if self._mark in line[:40]:
                    self._lines.append(line)

    def commands(self) -> list[list[bytes]]:
        """The commands, each as its words."""
        return [
            [ast.literal_eval(f'b"{word.decode()}"') for word in _WORD.findall(line)]
            for line in list(self._lines)
        ]

    def everything(self) -> list[bytes]:
        return [b" ".join(words) for words in self.commands()]

    def task_messages(self) -> list[bytes]:
        """What was put into the queue of our tasks, whatever its priority."""
        return [
            words[2]
            for words in self.commands()
            if words[0].upper() in {b"LPUSH", b"RPUSH"} and words[1].split(b"\x06")[0] == QUEUE
        ]

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._file.close()
        self._socket.close()


class FileTap:
    """Every message that is put into a broker file, kept by a trigger of the database itself."""

    def __init__(self, folder: Path) -> None:
        path = folder / "ckworkflow-broker.sqlite3"
        BrokerFile.at(str(path)).collect()  # makes the file
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._db.execute("CREATE TABLE tapped (queue TEXT, body TEXT)")
        self._db.execute(
            "CREATE TRIGGER tap AFTER INSERT ON messages "
            "BEGIN INSERT INTO tapped VALUES (NEW.queue, NEW.body); END"
        )

    def everything(self) -> list[bytes]:
        return [body.encode() for (body,) in self._db.execute("SELECT body FROM tapped")]

    def task_messages(self) -> list[bytes]:
        found = self._db.execute("SELECT body FROM tapped WHERE queue = ?", (QUEUE.decode(),))
        return [body.encode() for (body,) in found]

    def close(self) -> None:
        self._db.close()


def opened(message: bytes) -> bytes:
    """A message with all that is packed in base64 in it behind it, to any depth."""
    found = [message]
    for text in found:
        for packed in _BASE64.findall(text):
            with contextlib.suppress(binascii.Error):
                found.append(base64.b64decode(packed, validate=True))
    return b"\n".join(found)
