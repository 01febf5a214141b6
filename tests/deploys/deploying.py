"""Steps and workflows that run in processes of two releases, and note which release that was."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import ckworkflow
from ckworkflow import sleep, step, workflow
from ckworkflow.hooks import use_step
from ckworkflow.store import schema
from journal import note

note("code", file=ckworkflow.__file__, revision=schema.CODE_REVISION)


def ran(what: str) -> None:
    """Note a side effect: it must be there once for each step of a run."""
    context = use_step()
    note(what, run=context.run_id, node=context.node_id, revision=schema.CODE_REVISION)


@step
def double(number: int) -> int:
    ran("effect")
    return 2 * number


@step
def total(*numbers: int) -> int:
    ran("effect")
    return sum(numbers)


@step
async def gated(number: int, gate: str) -> int:
    """Wait until the test lets it pass."""
    ran("waiting")
    while not Path(os.environ["GATES"], gate).exists():
        await asyncio.sleep(0.02)
    ran("effect")
    return number


@workflow
async def chain(number: int) -> int:
    return await double(await double(await double(number)))


@workflow
async def loop(number: int) -> int:
    while number < 100:
        number = await double(number)
    return number


@workflow
async def fan(width: int) -> int:
    return await total(*await asyncio.gather(*[double(number) for number in range(width)]))


@workflow
async def asleep(number: int) -> int:
    doubled = await double(number)
    await sleep("7 days")
    return await double(doubled)


@workflow
async def in_a_chain(number: int) -> int:
    return await double(await gated(await gated(await double(number), "first"), "second"))


@workflow
async def in_a_gather(number: int) -> int:
    one, two = await asyncio.gather(double(number), gated(number, "first"))
    return await total(one, await gated(two, "second"))


@workflow
async def in_a_loop(number: int) -> int:
    for gate in ("first", "second"):
        passed = await gated(number, gate)
        if passed == number:
            number = await double(passed)
    return number
