"""Side effects: lines in a file outside the database, by which it shows how often each step really ran.

`effect` is what a step under test does to the world. A line is one `write` to a file opened for appending, so
lines of several processes never mix, and what is written stays written when its process is killed.
"""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckworkflow.hooks import use_step
from journal import append, whole_lines

VARIABLE = "CKWORKFLOW_TEST_EFFECTS"
LINGER_VARIABLE = "CKWORKFLOW_TEST_LINGER"


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect of one attempt of a step.

    Attributes:
        label: What the workflow calls this step; of several steps of one name, each has its own.
        key: The idempotency key: the same for every attempt.
        group: The process group of whoever had it: a worker and its children.
        at: When, by the machine's clock.
    """

    run_id: str
    node_id: str
    label: str
    key: str
    attempt: int
    pid: int
    group: int
    at: float


def effect(label: str) -> int:
    """Have an effect in the running step; return how many this step had before, whichever process it was in."""
    step = use_step()
    before = sum(found.key == step.idempotency_key for found in _read(_of_run(step.run_id)))
    line: dict[str, Any] = {
        "run_id": step.run_id, "node_id": step.node_id, "label": label, "key": step.idempotency_key,
        "attempt": step.attempt, "pid": os.getpid(), "group": os.getpgrp(), "at": time.time(),
    }  # fmt: skip
    append(_of_run(step.run_id), json.dumps(line) + "\n")
    return before


def linger() -> None:
    """Take a moment, between the effect and the end of the step, if the test wants steps that take time."""
    longest = float(os.environ.get(LINGER_VARIABLE, "0"))
    if longest:
        time.sleep(random.uniform(0, longest))


def effects_of(folder: Path, run_id: str) -> list[Effect]:
    """What the steps of a run did, oldest first."""
    return _read(folder / f"{run_id}.jsonl")


def _of_run(run_id: str) -> Path:
    return Path(os.environ[VARIABLE]) / f"{run_id}.jsonl"


def _read(path: Path) -> list[Effect]:
    return [Effect(**json.loads(line)) for line in whole_lines(path)]
