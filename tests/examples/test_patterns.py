"""The patterns that users copy: their tests pass where a user would run them, and mypy finds nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PATTERNS = Path(__file__).parents[2] / "examples" / "patterns"

pytestmark = pytest.mark.slow


def test_each_pattern_passes_its_test(tmp_path: Path) -> None:
    shutil.copytree(PATTERNS, tmp_path / "patterns", ignore=shutil.ignore_patterns("__pycache__"))

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"],
        cwd=tmp_path / "patterns", env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout


def test_the_table_names_each_pattern() -> None:
    files = {path.name for path in PATTERNS.glob("*.py")} - {"test_patterns.py"}
    table = (PATTERNS / "README.md").read_text()
    assert files == {name for name in files if f"[{name}]({name})" in table}
    assert len(files) == 8
