"""The built wheel in an empty folder and an empty environment: what a user gets who types `pip install`."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import services

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

WORKFLOW = """\
from ckworkflow import step, workflow
@step
def shout(text): return text.upper()
@workflow
async def hello(name): return await shout(name)
"""

MAIN = """\
import ckworkflow.testing
from ckworkflow import start_sync
from hello import hello

with ckworkflow.testing.worker():
    print(start_sync(hello, "ada").return_value(timeout=30))
"""


PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
OFFLINE = ("Could not fetch URL", "Failed to establish a new connection", "No matching distribution")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command with nothing of this environment around it."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "CELERY", "CKWORKFLOW", "DISCORD"))
    }
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    if done.returncode and any(words in done.stderr for words in OFFLINE):
        services.absent("PyPI", "this machine cannot reach it")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """The interpreter of an environment that holds the wheel and what it asks for, and nothing else."""
    venv.create(wheel.parent / "venv", with_pip=False)
    python = wheel.parent / "venv" / "bin" / "python"
    run(*PIP, "--python", python, "install", wheel, cwd=wheel.parent)
    return python


def test_the_wheel_holds_the_package_whole_and_nothing_beside_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    assert {name.split("/")[0] for name in names} == {
        "ckworkflow",
        wheel.name.split("-py3")[0] + ".dist-info",
    }
    assert "ckworkflow/py.typed" in names
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "ckworkflow").rglob("*.py")}
    assert ours <= set(names)


def test_it_imports_without_discord_py(python: Path, tmp_path: Path) -> None:
    code = (
        "import ckworkflow, importlib.util as u; print(u.find_spec('discord'), u.find_spec('aiohttp'))"
    )

    assert run(python, "-c", code, cwd=tmp_path).split() == ["None", "None"]


def test_a_five_line_workflow_runs_on_the_embedded_default(python: Path, tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(WORKFLOW)
    (tmp_path / "main.py").write_text(MAIN)

    assert run(python, "main.py", cwd=tmp_path).split() == ["ADA"]


def test_the_fake_discord_says_which_extra_it_needs(python: Path, tmp_path: Path) -> None:
    code = (
        "from ckworkflow.testing import FakeDiscord\n"
        "try: FakeDiscord().start()\n"
        "except Exception as error: print(error)"
    )

    assert 'pip install "ckworkflow[test]"' in run(python, "-c", code, cwd=tmp_path)


def test_the_commands_are_there(python: Path, tmp_path: Path) -> None:
    assert "plan" in run(python.parent / "ckworkflow", "--help", cwd=tmp_path)
    (tmp_path / "celeryconfig.py").write_text("workflow_packages = []\n")
    run(python.parent / "ckworkflow", "db", "upgrade", cwd=tmp_path)
    assert (tmp_path / "ckworkflow.sqlite3").exists()
