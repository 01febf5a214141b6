"""The oldest versions that are allowed are those that `make floors` runs the tests on."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent


def test_each_floor_of_the_package_is_the_one_that_is_tested() -> None:
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [
        line for name in ("discord", "postgres", "test") for line in extras[name]
    ]
    floors = {
        requirement.name: spec.version
        for requirement in map(Requirement, wanted)
        for spec in requirement.specifier
        if spec.operator == ">="
    }
    lines = [line for line in (HERE / "floors.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {each.name: next(iter(each.specifier)).version for each in map(Requirement, lines)}

    assert tested.keys() == floors.keys()
    for name, version in tested.items():
        assert version == floors[name] or version.startswith(f"{floors[name]}."), name
