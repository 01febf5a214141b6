"""Short leases and short patience: called in each process of a cluster before its app is made.

With the defaults every stop beyond a lease would take half a minute, and the nemesis has two in all. It also has
the processes of a pool say to which worker they belong, since that cannot be asked of one that is dead.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from journal import append, whole_lines

HEARTBEAT_SECONDS = 0.6
LEASE_SECONDS = 6 * HEARTBEAT_SECONDS
"""How long a process may be silent before it is taken for dead."""
CHILDREN = "children.txt"


def install() -> None:
    from celery.signals import worker_process_init

    from ckworkflow.worker import settings

    read = settings.read

    def tuned(app: Any) -> Any:
        return dataclasses.replace(
            read(app), heartbeat=timedelta(seconds=HEARTBEAT_SECONDS), lease=timedelta(seconds=LEASE_SECONDS),
            redispatch_after=timedelta(seconds=1), look_again_after=timedelta(seconds=10),
        )  # fmt: skip

    settings.read = tuned
    worker_process_init.connect(_note_child, weak=False)


def _note_child(**_: Any) -> None:
    from ckworkflow.engine.identity import this_process

    # By its name in the database: in an hour, pids come again.
    append(Path(CHILDREN), f"{this_process().process_id} {os.getpgrp()}\n")


def pid_of(owner: str) -> int:
    """The pid in a process's name."""
    return int(owner.split(":")[-2])


def children(folder: Path) -> Iterator[tuple[str, int]]:
    """The processes of pools in this folder, each with its group."""
    for line in whole_lines(folder / CHILDREN):
        name, group = line.split()
        yield name, int(group)
