"""A journal that outlives the processes that write it: one line of JSON for each thing that happened.

Used by steps and patches in worker processes; `WorkerHome.journal` reads it. A line is one `write` to a file
opened for appending, so lines of several processes never mix and a kill leaves whole lines. Who reads while
they write can still see the beginning of one (the kernel grows a file page by page): `whole_lines` leaves it out.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


def note(what: str, **fields: Any) -> None:
    """Note that something happened now."""
    line = json.dumps({"what": what, "at": time.time(), "pid": os.getpid(), **fields}) + "\n"
    append(Path(os.environ["CKWORKFLOW_TEST_JOURNAL"]), line)


def append(path: Path, line: str) -> None:
    """Add a line, with its end, to a file that several processes write."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that others may be writing, each complete; none of a file that is not there yet."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    return text[: text.rfind(b"\n") + 1].decode().splitlines()
