"""A place for many runs: a worker that only works, a client that only starts, and their database to look into.

With the embedded default, too, the worker is in a process of its own (a program with a worker inside it, which
the client's process joins), so that what is measured of it is the worker alone.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
import sqlalchemy as sa

from ckworkflow.store import tables
from worker_home import Program, WorkerHome

if TYPE_CHECKING:
    import subprocess

IS_SOAK = os.environ.get("CKWORKFLOW_SOAK", "") not in {"", "0"}
CODE = Path(__file__).parent
DATABASE = "ckworkflow.sqlite3"
BROKER_FILE = "ckworkflow-broker.sqlite3"


def size(name: str, *, short: int, full: int) -> int:
    """How many, in `make test` and in `make soak`; `CKWORKFLOW_SCALE_<name>` sets another number."""
    return int(os.environ.get(f"CKWORKFLOW_SCALE_{name}") or (full if IS_SOAK else short))


class Stage:
    """See the module. `broker_url` and `database_url` are `None` for the embedded default."""

    def __init__(
        self, folder: Path, *, broker_url: str | None = None, database_url: str | None = None,
        horizon: float | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        self.broker_url = broker_url
        self.home = WorkerHome(
            folder, CODE,
            {
                "workflow_packages": ["scaling"], "broker_url": broker_url, "workflow_horizon": horizon,
                "workflow_database_url": database_url, **settings,
            },
        )  # fmt: skip
        self.database = sa.create_engine(database_url or f"sqlite:///{folder / DATABASE}")
        self._journal_read, self._notes = 0, list[dict[str, Any]]()

    def close(self) -> None:
        self.home.stop()
        self.database.dispose()

    # --- processes -----------------------------------------------------------------------------------

    def start_worker(self) -> subprocess.Popen[str]:
        """Start a worker and wait until it consumes."""
        seen = len(self.home.journal("ready"))
        if self.broker_url is None:
            worker = self.home.start_program(embedded=True).process
        else:
            worker = self.home.start_worker()
        self.home.wait_for(lambda: len(self.home.journal("ready")) > seen, "a worker that consumes")
        return worker

    def start_client(self) -> Program:
        return self.home.start_program()

    def flush_broker(self) -> None:
        """Lose all messages; nobody may be running."""
        if self.broker_url is None:
            for file in self.home.folder.glob(f"{BROKER_FILE}*"):
                file.unlink()
        else:
            with redis.Redis.from_url(self.broker_url) as connection:
                connection.flushdb()

    # --- what happened -------------------------------------------------------------------------------

    def count_of_notes(self) -> int:
        """How many lines the journal has; for a poll, that is cheaper than what they say."""
        file = self.home.journal_file
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def query(self, text: str, **values: Any) -> Sequence[sa.Row[Any]]:
        with self.database.connect() as connection:
            return connection.execute(sa.text(text), values).all()

    def counts(self, of: str) -> dict[str, int]:
        """How many runs of a workflow (by the end of its name) there are in each status."""
        rows = self.query(
            "SELECT status, count(*) FROM runs WHERE workflow LIKE :name GROUP BY status", name=f"%{of}"
        )
        return dict(rows)

    def due_times(self, of: str) -> list[float]:
        """When the sleeps of the runs of a workflow end by what is on record, in seconds since 1970."""
        ends = sa.select(tables.nodes.c.due_at).join(tables.runs).where(
            tables.nodes.c.kind == "sleep", tables.runs.c.workflow.endswith(of)
        )  # fmt: skip
        with self.database.connect() as connection:
            return [due_at.timestamp() for due_at in connection.execute(ends).scalars()]

    def wait(self, condition: Callable[[], Any], what: str, *, seconds: float) -> None:
        """Wait for what takes longer than a `WorkerHome` waits."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited in vain for {what}\n{self.home.logs()}"
            time.sleep(0.05)

    def failures(self) -> list[str]:
        """Lines of the logs that tell of an error."""
        return re.findall(r"^.*(?:ERROR|CRITICAL|Traceback).*$", self.home.logs(), re.MULTILINE)
