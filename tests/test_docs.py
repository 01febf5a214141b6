"""The documentation: links lead somewhere, and code that is shown is Python that imports what exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

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
