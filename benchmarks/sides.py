"""One side of a comparison: a folder, a client process (the driver) and its worker processes.

A side answers `call(workload, ...)` with what its driver measured, and tells the memory of its worker. Every
side has a folder of its own on the disk, and a broker of its own on the server that both share.

Not here: what is measured (`workloads.py`, `drivers/`).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

DRIVERS = Path(__file__).parent / "drivers"
BIN = Path(sys.executable).parent
READY_TIMEOUT_SECONDS = 30.0
CALL_TIMEOUT_SECONDS = 900.0
SETTLED_BYTES, SETTLED_SECONDS = 256 * 1024, 1.5
"""Memory that moves by less than this for so long is what a process holds."""


class SideError(Exception):
    """A side did not do its work; carries what its processes have said."""


@dataclass(frozen=True)
class Spec:
    """How to start a side.

    Attributes:
        name: `ours`, or the peer's name in the report.
        driver: Words after `python`: the driver's file and its options.
        worker: Words of the worker's command; empty when it lives in the driver.
        config: Lines of `celeryconfig.py`; `None` writes no file.
        env: Environment of both.
        prepare: A command to run first.
        may_stop: Whether it can be stopped (SIGSTOP) while it is not its turn.
    """

    name: str
    driver: Sequence[str]
    worker: Sequence[str] = ()
    config: Mapping[str, Any] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    prepare: Sequence[str] = ()
    may_stop: bool = True


class Side:
    """A running side; use it as a context manager."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.folder = Path(tempfile.mkdtemp(prefix=f"ckworkflow-bench-{spec.name.replace(' ', '-')}-"))
        self._processes: list[subprocess.Popen[str]] = []
        self._driver: subprocess.Popen[str] | None = None
        self._worker: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        spec = self.spec
        if spec.config is not None:
            lines = [f"{name} = {value!r}" for name, value in spec.config.items()]
            (self.folder / "celeryconfig.py").write_text("\n".join(lines) + "\n")
        try:
            if spec.prepare:
                self._spawn("prepare", spec.prepare).wait()
            if spec.worker:
                self._worker = self._spawn("worker", spec.worker)
            self._driver = self._spawn("driver", ["python", *spec.driver], is_piped=True)
            self._read(READY_TIMEOUT_SECONDS)
            # Two runs come back once the worker is up.
            self._call("chains", {"runs": 2}, READY_TIMEOUT_SECONDS)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End its processes and remove its folder; a second time does nothing."""
        for process in self._processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, operation: str, **arguments: Any) -> Any:
        """Have the driver do a workload and return what it measured.

        Raises:
            SideError: It failed, or took too long.
        """
        return self._call(operation, arguments, CALL_TIMEOUT_SECONDS)

    @contextlib.contextmanager
    def turn(self) -> Iterator[Side]:
        """Let the side work; outside of its turns a peer is stopped, so that its idling costs nobody anything.

        Ours is never stopped: it would lose its leases. What it costs a peer while idle is a workload of its own.
        """
        self._signal(signal.SIGCONT)
        yield self
        if self.spec.may_stop:
            self._signal(signal.SIGSTOP)

    def memory(self) -> int:
        """Bytes that the worker's processes hold (proportional set size), once they have settled."""
        holder = self._worker or self._driver
        assert holder is not None
        before, since = -1, time.monotonic()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            now = _proportional(holder.pid)
            if abs(now - before) > SETTLED_BYTES:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > SETTLED_SECONDS:
                return now
            time.sleep(0.1)
        return before

    def processor_seconds(self) -> float:
        """Processor time that the side's processes have used so far."""
        return sum(_processor_seconds(pid) for p in self._processes for pid in _family(p.pid))

    def logs(self) -> str:
        """The end of what each process has said."""
        texts = [
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        ]
        return "\n".join(texts)

    def _spawn(
        self, name: str, words: Sequence[str], *, is_piped: bool = False
    ) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        env = {
            **os.environ,
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(self.folder), str(DRIVERS), os.environ.get("PYTHONPATH")])
            ),
            **self.spec.env,
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]], cwd=self.folder, env=env, text=True,
                stdin=pipe if is_piped else subprocess.DEVNULL, stdout=pipe if is_piped else log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, number)

    def _call(self, operation: str, arguments: Mapping[str, Any], timeout: float) -> Any:
        assert self._driver is not None
        assert self._driver.stdin is not None
        self._driver.stdin.write(json.dumps({"call": operation, "with": arguments}) + "\n")
        self._driver.stdin.flush()
        return self._read(timeout)

    def _read(self, timeout: float) -> Any:
        assert self._driver is not None
        assert self._driver.stdout is not None
        deadline = time.monotonic() + timeout
        while not select.select([self._driver.stdout], [], [], 0.5)[0]:
            if self._worker is not None and self._worker.poll() is not None:
                raise SideError(f"the worker of {self.spec.name} has ended\n{self.logs()}")
            if time.monotonic() > deadline:
                raise SideError(f"{self.spec.name} took more than {timeout:.0f} s\n{self.logs()}")
        line = self._driver.stdout.readline()
        if not line:
            raise SideError(f"the driver of {self.spec.name} has ended\n{self.logs()}")
        answer = json.loads(line)
        if "error" in answer:
            raise SideError(f"{self.spec.name}: {answer['error']}\n{self.logs()}")
        return answer["value"]


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants that still live."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):  # it ends while its threads are listed
            for task in Path(f"/proc/{parent}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += map(int, task.read_text().split())
    return found


def _proportional(pid: int) -> int:
    total = 0
    for member in _family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def _processor_seconds(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
