"""The documentation: links lead somewhere, and code that is shown is Python that imports what exists."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ckworkflow import life
from ckworkflow.life import (
    CHILD_CHANGES,
    CLOSE_CHANGES,
    HOOK_CHANGES,
    RUN_CHANGES,
    SLEEP_CHANGES,
    STEP_CHANGES,
)
from ckworkflow.store import tables

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "docker" / "README.md",
]
PAGES += sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "examples").glob("*/README.md"))

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """The anchors that the headings of a page have, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pages
def test_every_python_block_is_python_and_imports_what_exists(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        code = re.sub(r"^   ", "", block, flags=re.MULTILINE) if block.startswith("   ") else block
        # Fragments of bodies show `await` at the top.
        tree = compile(code, str(page), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ckworkflow"):
                module = importlib.import_module(str(node.module))
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module}.{name.name}"


def test_the_diagrams_of_the_internals_are_drawn_from_the_tables() -> None:
    drawn = re.findall(
        r"```mermaid\n(.*?)\n```", (ROOT / "docs" / "internals.md").read_text(), re.DOTALL
    )
    tables = (RUN_CHANGES, STEP_CHANGES, SLEEP_CHANGES, HOOK_CHANGES, CLOSE_CHANGES, CHILD_CHANGES)
    assert drawn == [life.diagram(table) for table in tables]


def test_the_internals_explain_every_counter() -> None:
    """Not what a reader of a run sees: these say who may do what."""
    text = (ROOT / "docs" / "internals.md").read_text()
    explained = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `[^|]*\|", text, re.MULTILINE))))
    seen = {
        "id",
        "workflow",
        "source_hash",
        "status",
        "input",
        "output",
        "error",
        "created_at",
        "started_at",
        "finished_at",
    }
    seen |= {"run_id", "node_id", "kind", "name", "line", "args"}
    later = {"key", "attributes"}
    columns = {column.name for table in (tables.runs, tables.nodes) for column in table.columns}
    assert columns - seen - later == explained & columns


def test_the_page_of_errors_is_made_of_their_docstrings() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "tools" / "errors_page.py"], capture_output=True, text=True, check=True
    )
    assert made.stdout == (ROOT / "docs" / "errors.md").read_text(), (
        "python tools/errors_page.py > docs/errors.md"
    )


def test_the_table_of_discord_errors_is_that_of_the_policy() -> None:
    policy = importlib.import_module("ckworkflow.discord.policy")
    text = (ROOT / "docs" / "discord.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \| .* \|$", text, re.MULTILINE))

    assert set(rows) == policy.KINDS
    for kind, codes in rows.items():
        for code in re.findall(r"\b\d{5,6}\b", codes):
            assert policy.CODES[int(code)].kind == kind, code
    shown = {int(code) for row in rows.values() for code in re.findall(r"\b\d{5,6}\b", row)}
    ranges = {code for code in policy.CODES if 10001 <= code < 11000 or 30001 <= code < 30062}
    assert set(policy.CODES) - ranges <= shown


@pytest.mark.slow
def test_the_tests_of_the_testing_page_pass_for_the_bot_of_the_readme(tmp_path: Path) -> None:
    write_the_bot(tmp_path)

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path, env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
        capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


@pytest.mark.slow
def test_mypy_finds_nothing_in_the_bot_of_the_readme(tmp_path: Path) -> None:
    write_the_bot(tmp_path)

    cache = ROOT / ".mypy_cache" / "readme"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache, "."],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr


def write_the_bot(folder: Path) -> None:
    """Do what the README and the page on tests tell their readers to do."""
    (folder / "celeryconfig.py").write_text('workflow_packages = ["workflows"]\n')
    for page in (ROOT / "README.md", ROOT / "docs" / "testing.md"):
        for name, code in files_in(page).items():
            (folder / name).parent.mkdir(exist_ok=True)
            # The page's five seconds make no difference to what is shown.
            (folder / name).write_text(code.replace('"5 seconds"', '"100ms"'))
    assert "with an empty `__init__.py`" in (ROOT / "README.md").read_text()
    (folder / "workflows" / "__init__.py").touch()


def files_in(page: Path) -> dict[str, str]:
    """The blocks of a page that begin with the name of a file."""
    blocks = re.findall(r"^( *)```python\n(.*?)```", page.read_text(), re.MULTILINE | re.DOTALL)
    code = [re.sub(f"^{indent}", "", block, flags=re.MULTILINE) for indent, block in blocks]
    return {found[1]: each for each in code if (found := re.match(r"# (\S+\.py)\n", each))}
