"""Names in the database: they choose among what this process knows, and never what code it runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from ckworkflow import codec
from ckworkflow.codec import classes
from ckworkflow.engine import failures
from ckworkflow.engine.failures import RecordedError
from ckworkflow.errors import UnreadableValueError

if TYPE_CHECKING:
    from pathlib import Path

TRAP = """
import enum
from dataclasses import dataclass
from pathlib import Path

Path(__file__).with_suffix(".sprung").touch()


class E(enum.Enum):
    A = 1


class F(enum.Flag):
    A = 1


@dataclass
class D:
    a: int = 1


class Boom(Exception): ...
"""
TREES = [
    {"$": "enum", "t": "{module}:E", "v": "A"},
    {"$": "flag", "t": "{module}:F", "v": 1},
    {"$": "dataclass", "t": "{module}:D", "v": {}},
    {"$": "instance", "t": "{module}:D", "v": [{}, {}]},
    {"$": "namedtuple", "t": "{module}:D", "v": {}},
    {"$": "pydantic", "t": "{module}:D", "v": {}, "set": []},
]


class Trap:
    """A package on the path that nobody has imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "trap"
        self.folder.mkdir()
        for name in ("__init__", "inner", "__main__"):
            (self.folder / f"{name}.py").write_text(TRAP)

    @property
    def sprung(self) -> list[str]:
        return sorted(file.stem for file in self.folder.glob("*.sprung"))


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(classes, "_trusted", set())
    yield Trap(tmp_path)
    for name in ("trap", "trap.inner", "trap.__main__"):
        sys.modules.pop(name, None)


def named(tree: dict[str, Any], module: str) -> dict[str, Any]:
    return {**tree, "t": tree["t"].format(module=module)}


@pytest.mark.parametrize("module", ["trap", "trap.inner", "trap.__main__"])
@pytest.mark.parametrize("tree", TREES, ids=lambda tree: str(tree["$"]))
def test_a_class_in_a_stored_value_imports_no_module(trap: Trap, tree: Any, module: str) -> None:
    with pytest.raises(UnreadableValueError, match="not imported in this process"):
        codec.decode(named(tree, module))

    assert trap.sprung == []


def test_the_class_of_a_stored_error_imports_no_module(trap: Trap) -> None:
    error = failures.from_data({"type": "trap.inner:Boom", "message": "loud"})

    assert type(error) is RecordedError
    assert str(error) == "Boom: loud"
    assert trap.sprung == []


def test_a_module_of_the_workflow_packages_is_imported_for_them(trap: Trap) -> None:
    codec.trust(["trap"])

    assert repr(codec.decode(named(TREES[0], "trap.inner"))) == "<E.A: 1>"
    assert type(failures.from_data({"type": "trap.inner:Boom"})).__name__ == "Boom"


def test_a_package_is_not_trusted_for_the_beginning_of_its_name_nor_its_program_at_all(
    trap: Trap,
) -> None:
    codec.trust(["tra", "trap.in", "trap.__main__"])

    for module in ("trap", "trap.inner", "trap.__main__"):
        with pytest.raises(UnreadableValueError):
            codec.decode(named(TREES[0], module))
    assert trap.sprung == []


def test_a_module_that_imports_what_it_is_asked_for_is_not_asked(
    trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy = type(sys)("lazy")
    asked: list[str] = []
    lazy.__getattr__ = asked.append  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy", lazy)

    with pytest.raises(UnreadableValueError):
        codec.decode({"$": "enum", "t": "lazy:E", "v": "A"})

    assert asked == []
