"""What every driver speaks: one JSON request a line on standard input, one JSON answer a line on standard output.

A driver is the client of one side (ours, raw Celery, DBOS) in a process of its own, so that the runner loads
none of them and no side shares an interpreter lock with another.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any


def serve(operations: Mapping[str, Callable[..., Any]]) -> None:
    """Answer requests `{"call": name, "with": {...}}` until the input ends."""
    # What libraries print must not land among the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    answers.write(json.dumps({"value": "ready"}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": operations[request["call"]](**request["with"])}
        except BaseException:  # noqa: BLE001 - the runner tells it and goes on with the next workload
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
