"""Drawings of what a body plans at first: timers, and what callbacks of its loop do."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from ckworkflow import sleep, step, timeout, workflow
from ckworkflow.drawing import data, mermaid, text
from ckworkflow.drawing.dry_run import preview

pytestmark = pytest.mark.fast


@step
async def ask(text: str) -> str:
    return text


@workflow
async def limited() -> str:
    async with timeout("2 days"):
        return await ask("yes or no")


@workflow
async def naps() -> None:
    await asyncio.sleep(5)
    await sleep(5)


@workflow
async def calls_back() -> None:
    loop = asyncio.get_running_loop()
    loop.call_soon(lambda: loop.create_task(beside()))
    loop.call_soon(lambda: loop.call_later(60, print))
    await asyncio.gather(ask("left"), ask("right"))


async def beside() -> None:
    await ask("beside")


def drawn(definition: Any) -> list[str]:
    found = preview(definition, (), {}, horizon=timedelta(seconds=15), canvas_of=str)
    json.dumps(data.as_data(found))
    assert list(mermaid.flowchart(found))
    return list(text.outline(found))


def test_a_timer_is_drawn_where_it_is_made() -> None:
    lines = drawn(limited)

    assert "├─ timer 2 days" in lines[1]
    assert "├─ ask('yes or no')" in lines[2]
    assert "└─ stops at" in lines[3]


def test_a_body_that_only_waits_for_a_timer_stops_there() -> None:
    lines = drawn(naps)

    assert "├─ timer 5 seconds" in lines[1]
    assert "└─ stops at" in lines[2]


def test_what_callbacks_make_is_drawn_beside_what_the_body_awaits() -> None:
    lines = "\n".join(drawn(calls_back))

    for part in ("ask('left')", "ask('right')", "ask('beside')", "timer 1 minute"):
        assert part in lines
