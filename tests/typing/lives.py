"""What type checkers say of `continue_as_new`. Read by them, never run: see `test_typing`."""

# pyright: strict

from __future__ import annotations

from typing import assert_type

from ckworkflow import Run, continue_as_new, sleep, start, workflow


@workflow
async def report(number: int) -> object:
    await sleep("7 days")
    return continue_as_new(number + 1)


@workflow
async def report_and_nothing_else(number: int) -> None:
    await sleep("7 days")
    return continue_as_new(number + 1)  # type: ignore[return-value]  # mypy: of any function that returns nothing


@workflow
async def count(number: int, until: int = 5) -> str:
    await sleep("1 day")
    if number == until:
        return "done"
    return continue_as_new(number + 1, until=until)


@workflow
async def listen() -> list[str]:
    while True:
        await sleep(1)
        return continue_as_new()


async def begin() -> None:
    assert_type(await start(report, 1), Run[object])
    assert_type(await start(count, 1, until=2), Run[str])
    assert_type(await start(listen), Run[list[str]])
