"""The types that users see: mypy and pyright accept the right calls and refuse the wrong ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = "tests/typing"
# Beside this interpreter, wherever the PATH leads.
BIN = str(Path(sys.executable).parent)


def check(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_mypy_agrees_with_every_line(tmp_path: Path) -> None:
    check(sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), FOLDER)


@pytest.mark.slow
def test_pyright_agrees_with_every_line() -> None:
    check(f"{BIN}/pyright", "--pythonpath", sys.executable, FOLDER)


@pytest.mark.slow
def test_a_wrong_call_that_were_accepted_would_be_noticed(tmp_path: Path) -> None:
    # The tests above rest on this: an ignore that nothing needs is an error.
    file = tmp_path / "accepted.py"
    file.write_text("number: int = 1  # type: ignore[assignment]\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Unused" in done.stdout
