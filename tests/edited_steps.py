"""What the workflow calls that `engine/test_edits.py` edits: its steps, its children and the workflows that it awaits."""

from __future__ import annotations

from ckworkflow import sleep, step, workflow


@step
def greet() -> None: ...


@step
def ask(question: str) -> str:
    return question


@step
def query(question: str) -> str:
    return question


@step
def shout() -> str:
    return "shouted"


@step
def fast() -> str:
    return "fast"


@step
def quick() -> str:
    return "quick"


@step
def slow() -> str:
    return "slow"


@step
def undo() -> str:
    return "undone"


@step
def restore() -> str:
    return "restored"


@step
def fetch() -> str:
    return "fetched"


@step
def tell(text: str) -> str:
    return f"told {text}"


@step
def say(text: str) -> str:
    return f"said {text}"


@workflow
async def child() -> str:
    return await fetch()


@workflow
async def another_child() -> str:
    return await fetch()


@workflow
async def part() -> str:
    await sleep("1 day")
    return "slept"


@workflow
async def another_part() -> str:
    return await shout()
