"""The steps of a run are told in the order of its body, however its continuations were made."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ckworkflow import start_sync, step, workflow
from ckworkflow.engine.advance import advance

if TYPE_CHECKING:
    from ckworkflow.engine.installation import Installation
    from desk import Desk


@step
async def one(number: int = 1) -> int:
    return number


@workflow
async def loops(times: int) -> int:
    total = 0
    for _ in range(times):
        if await one():
            first, second = await asyncio.gather(one(), one())
            total += first + second
    return total


def in_order(times: int) -> list[str]:
    found = []
    for turn in range(times):
        found += [f"0:{turn + 1}", f"0.{2 * turn + 1}:1", f"0.{2 * turn + 2}:1"]
    return found


def test_continuations_in_place_keep_the_order_of_the_body(running: Installation) -> None:
    run = start_sync(loops, 12)

    assert run.return_value(20) == 24
    assert [found.node_id for found in run.steps()] == in_order(12)


def test_continuations_in_place_and_replays_keep_the_order_together(desk: Desk) -> None:
    run_id = desk.start(loops, 6)
    expected = in_order(6)

    for number, node_id in enumerate(expected):
        if number % 3 == 1:
            desk.engine.bodies.clear()  # the next one replays, under a lease
        if desk.succeed(desk.claim(run_id, node_id), 1).must_advance:
            advance(desk.engine, run_id)
    found = [row.node_id for row in desk.nodes(run_id)]

    assert found == expected
