"""Steps that Flower is to list: one that succeeds, one that waits its turn, one that fails."""

from __future__ import annotations

from ckworkflow import FatalError, sleep, step, workflow


@step
async def remember(text: str) -> str:
    return text


@step
def count(text: str) -> int:
    return len(text)


@step(name="refuse politely")
def refuse(text: str) -> None:
    raise FatalError("refused", code=1)


@workflow
async def tell(text: str) -> int:
    again = await remember(text)
    await sleep("1 second")
    number = await count(again)
    try:
        await refuse(again)
    except FatalError:
        return number
    return -1
