"""A home for the example bot: an empty folder, the real `bot.py`, and where its steps run.

`embedded`: the worker is inside the bot, over SQLite files. `redis`: the bot only starts runs, and a
`celery -A ckworkflow worker` process carries them out over Redis. Either way both talk to one FakeDiscord, and
what a run has become is read from the command line, as a person would read it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Connection, update

from ckworkflow import codec
from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.store import keyvalue
from ckworkflow.store.database import Database
from ckworkflow.store.runs import list_runs
from ckworkflow.store.tables import nodes, runs
from ckworkflow.testing import FakeDiscord

if TYPE_CHECKING:
    from ckworkflow.store.runs import RunRecord

SEED_BOT = Path(__file__).parents[1] / "examples" / "seed_bot"
TIMEOUT_SECONDS = 40.0
BIN = Path(sys.executable).parent


class Home:
    """A folder with a `celeryconfig.py`, and the processes that run in it."""

    def __init__(
        self,
        folder: Path,
        fake: FakeDiscord,
        *,
        code: Path = SEED_BOT,
        broker_url: str | None = None,
        database_url: str | None = None,
    ) -> None:
        self.folder, self.fake, self.code = folder, fake, code
        self.broker_url, self.database_url = broker_url, database_url
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._database: Database | None = None
        settings = {
            "broker_url": broker_url,
            "workflow_database_url": database_url,
            "workflow_packages": ["workflows"],
        }
        lines = [f"{name} = {value!r}" for name, value in settings.items() if value is not None]
        (folder / "celeryconfig.py").write_text("\n".join(lines) + "\n")

    @property
    def env(self) -> dict[str, str]:
        """What a shell in that folder would have; the bot's code is on the path."""
        path = os.pathsep.join([str(BIN), os.environ["PATH"]])
        return (
            os.environ
            | self.fake.env
            | {"PATH": path, "PYTHONPATH": f"{self.folder}{os.pathsep}{self.code}"}
        )

    def start(self) -> Self:
        """Start the bot, and a worker where the bot has none inside."""
        if self.database_url is not None and self.database_url.startswith("postgresql"):
            self.command("ckworkflow", "db", "upgrade")
        if self.broker_url is not None:
            self.start_worker()
        self.start_bot()
        return self

    def start_bot(self) -> None:
        """Start `bot.py` and wait until the gateway knows it."""
        self._spawn("bot", sys.executable, str(self.code / "bot.py"))
        self.fake.wait_for(lambda: self.fake.connected_bots or not self.is_alive("bot"), TIMEOUT_SECONDS)
        assert self.is_alive("bot"), self.log("bot")

    def start_worker(self) -> None:
        """Start `celery -A ckworkflow worker`; it need not be ready, the messages wait."""
        self._spawn("worker", str(BIN / "celery"), "-A", "ckworkflow", "worker", "--loglevel=INFO")

    def kill(self, name: str) -> None:
        """Kill a process with SIGKILL."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def is_alive(self, name: str) -> bool:
        """Whether a process runs."""
        return self._processes[name].poll() is None

    def log(self, name: str) -> str:
        """What a process has said, for the message of a failed test."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-6000:]

    def stop(self) -> None:
        """End every process in order, and insist on it."""
        if self._database is not None:
            self._database.dispose()
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def command(self, *words: str) -> str:
        """Run a command in the folder, as a person would."""
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def runs(self, workflow: str, about: int) -> list[RunRecord]:
        """The runs of a workflow that were given this id, newest first."""
        if self._database is None:
            self._database = Database(self.database_url or f"sqlite:///{self.folder}/ckworkflow.sqlite3")
        try:
            found = self._database.read(lambda tx: list_runs(tx, limit=1000))
        except DatabaseUnavailableError as error:
            # The bot makes the tables as it starts its first run.
            if "no such table" in str(error):
                return []
            raise
        return [
            run for run in found if run.workflow.endswith(f".{workflow}") and str(about) in run.input
        ]

    def wait_for_run(self, workflow: str, about: int, status: str, *, count: int = 1) -> dict[str, Any]:
        """Wait until there are so many runs and the newest has a status; it, as `runs show` prints it."""

        def newest() -> RunRecord | None:
            found = self.runs(workflow, about)
            return found[0] if len(found) == count and found[0].status == status else None

        try:
            run = self.fake.wait_for(newest, TIMEOUT_SECONDS)
        except TimeoutError as error:
            logs = "\n".join(f"--- {name}\n{self.log(name)}" for name in self._processes)
            raise AssertionError(
                f"{workflow} is not {status}: {self.runs(workflow, about)}\n{error}\n{logs}"
            ) from None
        assert run is not None
        return self.show(run.run_id)

    def show(self, run_id: str) -> dict[str, Any]:
        """A run with its steps, as `ckworkflow runs show` prints it."""
        shown: dict[str, Any] = json.loads(self.command("ckworkflow", "runs", "show", run_id, "--json"))
        return shown

    def let_sleep_end(self, run_id: str) -> None:
        """Let the time of a run's sleep pass: what seven days would do to its rows."""
        assert self._database is not None
        now = datetime.now(UTC)

        def pass_time(tx: Connection) -> None:
            slept = (nodes.c.run_id == run_id) & (nodes.c.kind == "sleep")
            tx.execute(update(nodes).where(slept).values(due_at=now))
            tx.execute(update(runs).where(runs.c.id == run_id).values(wake_at=now))

        self._database.transact(pass_time)

    def stored(self, key: str) -> Any:
        """A value of the store that bot and workers share, or `None`."""
        assert self._database is not None
        text = self._database.read(lambda tx: keyvalue.get(tx, key))
        return None if text is None else codec.decode(codec.loads(text))

    def _spawn(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
