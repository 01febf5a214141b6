"""What bodies compile to, line by line of the design's table, and for each workflow of the seed page."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cli_project import Project

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
TABLE = """
    import asyncio
    from typing import Any

    from ckworkflow import FatalError, sleep, step, workflow


    @step
    async def a(value: Any = None) -> Any: return value

    @step
    async def b(value: Any = None) -> Any: return value

    @step
    async def c(one: Any = None, two: Any = None) -> Any: return one


    @workflow
    async def straight() -> None:
        await a()
        await b()

    @workflow
    async def joined() -> None:
        x, y = await asyncio.gather(a(), b())
        await c(x.id, y)

    @workflow
    async def last() -> Any:
        return await asyncio.gather(a(), b())

    @workflow
    async def inner(value: int) -> Any:
        first = await a(value)
        return await b(first)

    @workflow
    async def chains() -> Any:
        x, y = await asyncio.gather(inner(1), inner(2))
        return await c(x, y)

    @workflow
    async def short_sleep() -> None:
        await a()
        await sleep("5 seconds")
        await b()

    @workflow
    async def long_sleep() -> None:
        await a()
        await sleep("7 days")
        await b()

    @workflow
    async def long_member() -> None:
        await asyncio.gather(a(), sleep("7 days"))
        await c()

    @workflow
    async def branch() -> None:
        if await a():
            await b()

    @workflow
    async def loop() -> None:
        for row in await a():
            await b(row)

    @workflow
    async def handled() -> None:
        try:
            await a()
        except FatalError:
            await b()
        await c()

    @workflow
    async def endless() -> None:
        while True:
            await a()
            await sleep("1h")
"""


@pytest.fixture
def table(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write("workflows/__init__.py", "")
    made.write("workflows/flows.py", TABLE)
    return made


def canvases(plan: dict[str, Any]) -> list[str]:
    return [piece["words"] for stage in plan["canvas"] for piece in stage["pieces"]]


@pytest.mark.parametrize(
    ("name", "words", "stops"),
    [
        ("straight", ["a, then b"], []),
        ("joined", ["chord of 2, then c"], []),
        ("last", ["group of 2"], []),
        ("chains", ["chord of 2, then c"], []),
        ("short_sleep", ["a, then b"], []),
        ("long_sleep", ["a", "b"], []),
        ("long_member", ["a", "c"], []),
        ("branch", ["a"], ["`if await a()` looks at the result of a"]),
        ("loop", ["a"], ["`for row in await a()` looks at the result of a"]),
        ("handled", ["a, then c"], []),
    ],
)
def test_a_line_of_the_table(table: Project, name: str, words: list[str], stops: list[str]) -> None:
    plan = table.data("plan", name)

    assert plan["is_rewritten"], plan["why_not_rewritten"]
    assert canvases(plan) == words
    assert len(plan["stops"]) == len(stops)
    for stop, why in zip(plan["stops"], stops, strict=True):
        assert why in stop["why"]
    assert (plan["end"] is None) == bool(stops)


def test_an_endless_loop_is_a_segment_of_bounded_size(table: Project) -> None:
    plan = table.data("plan", "endless")

    assert plan["end"] is None
    assert 100 < len(plan["nodes"]) < 2_000
    assert "a segment ends after" in plan["stops"][0]["why"]


def test_inlined_workflows_are_chains_in_the_header(table: Project) -> None:
    plan = table.data("plan", "chains")

    (piece,) = plan["canvas"][0]["pieces"]
    assert piece["text"].count(" | ") == 2
    assert len(piece["tasks"]) == 5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["greet_user_workflow", "42"], ["greet_user, then greet_user"]),
        (["member_setup_workflow", "42", "7"], ["chord of 3, then send_welcome_message"]),
        (["member_stats_workflow", "42", "7"], ["update_member_stats"]),
        (["member_verification_workflow", "42", "7"], ["fetch_member, then verify_member"]),
        (
            ["moderation_workflow", "42", "7", "warn"],
            ["validate_input, then send_moderation_action, then log_activity"],
        ),
        (["role_assignment_workflow", "42", "7", "9"], ["assign_role"]),
        (
            ["user_onboarding_workflow", "42", "7"],
            ["send_welcome_message, then assign_role", "send_follow_up_message"],
        ),
    ],
    ids=lambda value: value[0] if len(value) > 1 else "",
)
def test_the_seed_page_compiles_to_the_canvases_that_it_did(
    tmp_path: Path, call: list[str], words: list[str]
) -> None:
    shutil.copytree(EXAMPLES / "seed_bot", tmp_path / "bot")
    seed = Project.__new__(Project)
    seed.folder = tmp_path / "bot"

    plan = seed.data("plan", *call)

    assert plan["is_rewritten"]
    assert canvases(plan) == words
