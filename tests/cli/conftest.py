"""A project folder for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_project import FLOWS, Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write("workflows/__init__.py", "")
    made.write("workflows/flows.py", FLOWS)
    return made
