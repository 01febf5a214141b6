"""A journal that outlives the processes that write it: one line of JSON for each thing that happened.

Used by steps and patches in worker processes; `WorkerHome.journal` reads it. A line is one `write` to a file
opened for appending, so lines of several processes never mix and a kill leaves whole lines.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any


def note(what: str, **fields: Any) -> None:
    """Note that something happened now."""
    line = json.dumps({"what": what, "at": time.time(), "pid": os.getpid(), **fields}) + "\n"
    file = os.open(os.environ["CKWORKFLOW_TEST_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
