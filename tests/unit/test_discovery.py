"""Discovery: every module under the packages, and a report for each that cannot be imported."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from typing import TYPE_CHECKING, Any

import discord
import pytest
from discord.ext import commands

from ckworkflow.definition import discover, registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HEAD = "from ckworkflow.definition import step, workflow\n\n"
STEP = HEAD + "@step\nasync def {0}():\n    pass\n"
WORKFLOW = HEAD + "@workflow\nasync def {0}():\n    pass\n"

Tree = dict[str, str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Tree], Path]]:
    """Write files into a folder of sys.path, and forget their modules and definitions afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules, steps, workflows = set(sys.modules), dict(registry.steps), dict(registry.workflows)

    def write(files: Tree) -> Path:
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        importlib.invalidate_caches()
        return tmp_path

    yield write
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    registry.steps.clear(), registry.workflows.clear()
    registry.steps.update(steps), registry.workflows.update(workflows)


def names(definitions: dict[str, Any]) -> set[str]:
    return {name for name in definitions if name.startswith("flows")}


def test_the_folder_structure_of_the_seed_is_found(write: Callable[[Tree], Path]) -> None:
    write(
        {
            "flows/greet/greet_workflow.py": "from .steps.greet import greet_user\n"
            + WORKFLOW.format("greet"),
            "flows/greet/steps/greet.py": STEP.format("greet_user"),
            "flows/onboarding/__init__.py": WORKFLOW.format("onboard"),
            "flows/onboarding/steps/__init__.py": "",
            "flows/onboarding/steps/assign_role.py": STEP.format("assign_role"),
            "flows/shared/log_activity.py": STEP.format("log_activity"),
            "flows/setup/flow.py": WORKFLOW.format("setup"),
            "flows/setup/steps.py": STEP.format("one") + "\n@step\ndef two(): pass\n",
            "flows/alone.py": STEP.format("work")
            + "\n@workflow\nasync def alone():\n    await work()\n",
        }
    )
    assert discover(["flows"]) == []
    assert names(registry.workflows) == {
        "flows.greet.greet_workflow.greet",
        "flows.onboarding.onboard",
        "flows.setup.flow.setup",
        "flows.alone.alone",
    }
    assert names(registry.steps) == {
        "flows.greet.steps.greet.greet_user",
        "flows.onboarding.steps.assign_role.assign_role",
        "flows.shared.log_activity.log_activity",
        "flows.setup.steps.one",
        "flows.setup.steps.two",
        "flows.alone.work",
    }


@pytest.mark.parametrize("package", ["flows", "flows_inner.flows"])
def test_a_plain_module_and_a_nested_package_may_be_named(
    package: str, write: Callable[[Tree], Path]
) -> None:
    write({"flows.py": STEP.format("one"), "flows_inner/flows.py": STEP.format("two")})
    assert discover([package]) == []
    assert len(names(registry.steps)) == 1


def test_what_is_no_module_is_passed_over(write: Callable[[Tree], Path]) -> None:
    write(
        {
            "flows/__main__.py": "raise SystemExit('not to be run')",
            "flows/.hidden/one.py": "raise AssertionError",
            "flows/not-a-name.py": "raise AssertionError",
            "flows/texts/readme.txt": "",
            "flows/__pycache__/old.py": "raise AssertionError",
            "flows/good.py": STEP.format("good"),
        }
    )
    assert discover(["flows"]) == []
    assert names(registry.steps) == {"flows.good.good"}


def test_a_broken_module_is_reported_with_its_line_and_the_others_load(
    write: Callable[[Tree], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(
        {
            "flows/a_good.py": STEP.format("a"),
            "flows/b_raises.py": "def fail():\n    raise ValueError('no such role')\n\n\nfail()\n",
            "flows/c_syntax.py": "x = 1\ndef broken(:\n    pass\n",
            "flows/d_imports.py": "import os\nimport flows.b_raises\n",
            "flows/e_missing.py": "\nimport nothing_of_this_name\n",
            "flows/f_exits.py": "import sys\nsys.exit('bye')\n",
            "flows/g_sync.py": HEAD + "@workflow\ndef not_async(): pass\n",
            "flows/h_good.py": STEP.format("h"),
        }
    )
    with caplog.at_level(logging.ERROR):
        failures = discover(["flows"])

    assert names(registry.steps) == {"flows.a_good.a", "flows.h_good.h"}
    assert [(failure.module, failure.line) for failure in failures] == [
        ("flows.b_raises", 2),
        ("flows.c_syntax", 2),
        ("flows.d_imports", 2),
        ("flows.e_missing", 2),
        ("flows.f_exits", 2),
        ("flows.g_sync", 3),
    ]
    assert all(failure.path == f"{folder}/flows/{failure.module[6:]}.py" for failure in failures)
    assert str(failures[0]) == (
        f"Module flows.b_raises ({folder}/flows/b_raises.py:2) cannot be imported: ValueError: no such role"
    )
    assert isinstance(failures[0].__cause__, ValueError)
    assert "No module named 'nothing_of_this_name'" in str(failures[3])
    assert "@workflow needs an `async def`" in str(failures[5])
    assert caplog.messages == [f"workflow module not loaded: {failure}" for failure in failures]


def test_a_package_whose_init_fails_is_reported_once(write: Callable[[Tree], Path]) -> None:
    write({"flows/__init__.py": "1 / 0\n", "flows/inner.py": STEP.format("inner")})
    (failure,) = discover(["flows"])
    assert (failure.module, failure.line) == ("flows", 1)


def test_a_package_that_does_not_exist_is_reported(write: Callable[[Tree], Path]) -> None:
    write({"flows/good.py": STEP.format("good")})
    missing, inner = discover(["no_such_flows", "flows", "flows.no_such"])
    assert str(missing) == (
        "Module no_such_flows (no file) cannot be imported: there is no 'no_such_flows' on sys.path. Check "
        "`workflow_packages`, and start the process in the folder that holds it"
    )
    assert inner.module == "flows.no_such"
    assert names(registry.steps) == {"flows.good.good"}


def test_two_functions_of_one_name_are_reported(write: Callable[[Tree], Path]) -> None:
    named = HEAD + "@step(name='flows-step')\ndef {0}(): pass\n"
    write({"flows/a.py": named.format("one"), "flows/b.py": named.format("two")})
    (failure,) = discover(["flows"])
    assert failure.module == "flows.b"
    assert "Two steps are named 'flows-step': flows.a:one" in str(failure)


def test_a_reloaded_module_takes_its_names_again(write: Callable[[Tree], Path]) -> None:
    write({"flows/a.py": WORKFLOW.format("a")})
    discover(["flows"])
    old = registry.workflows["flows.a.a"]
    importlib.reload(sys.modules["flows.a"])
    assert registry.workflows["flows.a.a"] is not old
    assert registry.workflows["flows.a.a"] is sys.modules["flows.a"].a


FACTORY = (
    HEAD
    + """
def make(text):
    @step(name="made")
    def made(): return text
    return made
"""
)


def test_a_module_that_calls_the_factory_of_another_may_be_reloaded(
    write: Callable[[Tree], Path],
) -> None:
    write({"flows/lib.py": FACTORY, "flows/a.py": "from .lib import make\nmade = make('hi')\n"})
    discover(["flows"])
    importlib.reload(sys.modules["flows.a"])
    assert registry.steps["made"] is sys.modules["flows.a"].made


def test_two_modules_that_call_one_factory_may_not_share_a_name(
    write: Callable[[Tree], Path],
) -> None:
    caller = "from .lib import make\nmade = make({!r})\n"
    write({
        "flows/lib.py": FACTORY, "flows/a.py": caller.format("hi"), "flows/b.py": caller.format("bye"),
    })  # fmt: skip
    (failure,) = discover(["flows"])
    assert failure.module == "flows.b"
    assert "flows.lib:make.<locals>.made is defined twice" in str(failure)
    assert registry.steps["made"]() == "hi"


def test_an_extension_of_discord_py_that_makes_steps_when_it_is_loaded_may_be_reloaded(
    write: Callable[[Tree], Path],
) -> None:
    """Its `setup` runs long after its module; `reload_extension` executes that anew and calls it again."""
    extension = "from .lib import make\nasync def setup(bot): bot.made = make('hi')\n"
    write({"flows/lib.py": FACTORY, "flows/cog.py": extension})

    async def reload() -> None:
        async with commands.Bot("!", intents=discord.Intents.none()) as bot:
            await bot.load_extension("flows.cog")
            old = registry.steps["made"]
            await bot.reload_extension("flows.cog")
            assert registry.steps["made"] is bot.made is not old  # type: ignore[attr-defined]

    asyncio.run(reload())


def test_a_link_to_a_folder_above_ends(write: Callable[[Tree], Path]) -> None:
    folder = write({"flows/inner/a.py": STEP.format("a")})
    (folder / "flows/inner/again").symlink_to(folder / "flows", target_is_directory=True)
    discover(["flows"])
    assert names(registry.steps) == {"flows.inner.a.a"}


def test_discovering_twice_is_the_same_as_once(write: Callable[[Tree], Path]) -> None:
    write({"flows/a.py": STEP.format("a")})
    discover(["flows"])
    before = registry.steps["flows.a.a"]
    assert discover(["flows", "flows"]) == []
    assert registry.steps["flows.a.a"] is before
