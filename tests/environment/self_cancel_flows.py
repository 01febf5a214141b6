"""Bodies that are cancelled from inside: by themselves, or by a task that they have begun."""

from __future__ import annotations

import asyncio
from typing import Any

from ckworkflow import continue_as_new, sleep, step, workflow

done: list[Any] = []
"""What steps did, in that order; emptied before each test."""


@step(max_retries=0)
async def act(what: Any) -> Any:
    done.append(what)
    return what


def me() -> asyncio.Task[Any]:
    found = asyncio.current_task()
    assert found is not None
    return found


async def by_itself() -> Any:
    try:
        me().cancel("stop")
        await act("charge")
    except asyncio.CancelledError as error:
        return await act(["caught", *error.args])
    return "not caught"


async def before_a_sleep() -> Any:
    me().cancel("stop")
    try:
        await sleep(5)
    except asyncio.CancelledError:
        await act("caught")
    await act("after")


async def at_the_end() -> Any:
    await act("charge")
    me().cancel("too late")


async def after_a_step() -> Any:
    await act("first")
    me().cancel("stop")
    await act("charge")


async def by_a_task_at_once() -> Any:
    main = me()

    async def stop() -> None:
        main.cancel("bad")

    task = asyncio.create_task(stop())
    try:
        await act("charge")
        await act("more")
    except asyncio.CancelledError:
        await act("refund")
    return task.done()


async def by_a_task_after_its_step() -> Any:
    main = me()

    async def watch() -> None:
        await act("check")
        main.cancel("bad")

    task = asyncio.create_task(watch())
    await sleep(3_600)
    await act("charge")
    return task.done()


async def by_a_task_later() -> Any:
    main = me()

    async def watch() -> None:
        await act("check")
        await sleep(10)
        main.cancel("bad")

    task = asyncio.create_task(watch())
    await act("a")
    await act("b")
    try:
        await sleep(3_600)
        await act("charge")
    except asyncio.CancelledError as error:
        await act(["caught", *error.args])
    await sleep(60)
    return [task.done(), await act("after")]


async def by_a_callback() -> Any:
    asyncio.get_running_loop().call_soon(me().cancel, "called")
    try:
        await act("charge")
    except asyncio.CancelledError:
        await act("caught")
    return "went on"


async def in_a_gather() -> Any:
    main = me()

    async def stop() -> Any:
        main.cancel("bad")
        return await act("member")

    try:
        await asyncio.gather(act("one"), stop())
    except asyncio.CancelledError:
        await act("caught")
    return "went on"


async def once_more() -> Any:
    for number in range(3):
        try:
            me().cancel(number)
            await act(["never", number])
        except asyncio.CancelledError as error:
            await act(error.args)
            me().uncancel()
    return await act("end")


BODIES = [
    by_itself, before_a_sleep, at_the_end, after_a_step, by_a_task_at_once, by_a_task_after_its_step, by_a_task_later,
    by_a_callback, in_a_gather, once_more,
]  # fmt: skip
FLOWS = {body.__name__: workflow(body) for body in BODIES}


@workflow
async def inlined(name: str) -> Any:
    """The same, called by another workflow."""
    return [name, await FLOWS[name]()]


@workflow
async def in_a_later_life(life: int = 0) -> Any:
    await act(life)
    if life == 0:
        return continue_as_new(1)
    return await by_a_task_at_once()
