"""A home for workers under test: a folder with a `celeryconfig.py`, and real processes that run in it.

`start_worker` is what a user types, `celery -A ckworkflow worker`; `start_program` is a Python program that
starts runs, with a worker inside it (`embedded=True`) or without. The program is told what to do line by
line (`worker_program.py`), so the test's own process stays free of apps, engines and loops.

What steps and patches note in the journal (`journal.py`) is read here; it outlives whoever wrote it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from journal import whole_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TESTS = Path(__file__).parent
BIN = Path(sys.executable).parent
TIMEOUT_SECONDS = 30.0


class WorkerHome:
    """See the module. `settings` become lines of `celeryconfig.py`."""

    def __init__(
        self, folder: Path, code: Path, settings: Mapping[str, Any], env: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.code = folder, code
        self.journal_file = folder / "journal.jsonl"
        lines = [f"{name} = {value!r}" for name, value in settings.items() if value is not None]
        (folder / "celeryconfig.py").write_text("\n".join(lines) + "\n")
        self.env = {
            **os.environ,
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(
                [str(folder), str(code), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "CKWORKFLOW_TEST_JOURNAL": str(self.journal_file),
            **(env or {}),
        }
        self._processes: list[subprocess.Popen[str]] = []
        if str(settings.get("workflow_database_url", "")).startswith("postgresql"):
            self.command("ckworkflow", "db", "upgrade")

    # --- processes -----------------------------------------------------------------------------------

    def start_worker(self, *options: str, **env: str) -> subprocess.Popen[str]:
        """Start `celery -A ckworkflow worker`."""
        words = ["celery", "-A", "ckworkflow", "worker", "--loglevel=INFO", *options]
        return self.spawn("worker", *words, **env)

    def start_program(self, *, embedded: bool = False, **env: str) -> Program:
        """Start a program that starts runs."""
        words = [sys.executable, str(TESTS / "worker_program.py"), *(["--worker"] if embedded else [])]
        return Program(self, self.spawn("program", *words, is_piped=True, **env))

    def spawn(self, name: str, *words: str, is_piped: bool = False, **env: str) -> subprocess.Popen[str]:
        """Start a process in the folder, in a process group of its own."""
        pipe = subprocess.PIPE
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]], cwd=self.folder, env=self.env | env, text=True,
                stdin=pipe if is_piped else subprocess.DEVNULL, stdout=pipe if is_piped else log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def command(self, *words: str) -> str:
        """Run a command in the folder to its end."""
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]], cwd=self.folder, env=self.env, capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @staticmethod
    def kill(process: subprocess.Popen[str]) -> None:
        """Kill a process and all that it has forked, as the machine would."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """End what still runs."""
        for process in self._processes:
            if process.poll() is None:
                self.kill(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    # --- what happened ---------------------------------------------------------------------------------

    def journal(self, what: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """What was noted, oldest first; only lines that have these fields."""
        wanted = fields if what is None else {"what": what, **fields}
        notes = [json.loads(line) for line in whole_lines(self.journal_file)]
        return [note for note in notes if wanted.items() <= note.items()]

    def wait_for_note(self, what: str, **fields: Any) -> dict[str, Any]:
        """Wait for a line and return the first one of its kind."""
        found: list[dict[str, Any]] = self.wait_for(
            lambda: self.journal(what, **fields), f"{what} {fields}"
        )
        return found[0]

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until a condition holds, and return what it gave."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while not (answer := condition()):
            assert time.monotonic() < end, f"waited in vain for {what}\n{self.logs()}"
            time.sleep(0.01)
        return answer

    def logs(self) -> str:
        """The end of what each process has said."""
        texts = [
            f"--- {path.name}\n{path.read_text(errors='replace')[-5000:]}"
            for path in sorted(self.folder.glob("*.log"))
        ]
        return "\n".join(texts)


class Program:
    """The program `worker_program.py`, asked line by line."""

    def __init__(self, home: WorkerHome, process: subprocess.Popen[str]) -> None:
        self.home, self.process = home, process
        assert self._read() == "ready", home.logs()

    def start(self, workflow: str, *args: Any) -> str:
        """Start a run; its id."""
        run_id: str = self.ask("start", workflow, args)
        return run_id

    def start_all(self, workflow: str, all_args: list[list[Any]]) -> None:
        """Start many runs as fast as it goes, one with each of these arguments."""
        self.ask("start_all", workflow, codec.encode(all_args, path="arguments"))

    def result(self, run_id: str, timeout: float = TIMEOUT_SECONDS) -> Any:
        """Wait for what a run returns."""
        return self.ask("result", run_id, timeout)

    def cancel(self, run_id: str, **options: Any) -> bool:
        """Ask a run to end; whether it was live."""
        was_live: bool = self.ask("cancel", run_id, options)
        return was_live

    def steps(self, run_id: str) -> list[dict[str, Any]]:
        """The steps of a run: node, name, status and attempt of each."""
        steps: list[dict[str, Any]] = self.ask("steps", run_id)
        return steps

    def ask(self, *request: Any) -> Any:
        """Send a request and read the answer."""
        self.begin(*request)
        return self.answer()

    def begin(self, *request: Any) -> None:
        """Send a request, and read nothing."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Read the answer to a request that was sent."""
        answer = self._read()
        assert "error" not in answer, f"{answer['error']}\n{self.home.logs()}"
        return answer["value"]

    def leave(self) -> None:
        """Have it end in order, and return once it has begun to."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self._read() == "leaving", self.home.logs()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the program has ended: {self.process.wait(10)}\n{self.home.logs()}"
        return json.loads(line)
