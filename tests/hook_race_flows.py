"""Runs that race payloads against deadlines, in a module that workers import."""

from __future__ import annotations

from typing import Any

from ckworkflow import continue_as_new, create_hook, step, workflow
from journal import note


@step
def count(number: int) -> int:
    note("counted", number=number)
    return number


@workflow
async def rounds(token: str, number: int) -> list[Any]:
    """Each round waits for a payload for as long as payloads are apart."""
    won: list[Any] = []
    hook = create_hook(token)
    for each in range(number):
        try:
            won.append(await hook.next(timeout="15 ms"))
        except TimeoutError:
            won.append("late")
        if each % 10 == 9:
            await count(each)
    await hook.close()
    return [won, hook.pending()]


@workflow
async def again_and_again(token: str, number: int) -> list[Any]:
    """The hook is closed and made again for each payload."""
    found = []
    for each in range(number):
        async with create_hook(token) as hook:
            found.append(await hook)
            if each % 10 == 9:
                await count(each)
    return found


@workflow
async def life_after_life(token: str, number: int, found: list[int] | None = None) -> list[Any]:
    """A life for every ten payloads: the hook ends with the life, and the next one makes it anew."""
    found = list(found or ())
    hook = create_hook(token)
    for _ in range(min(10, number - len(found))):
        found.append(await hook)
    await count(len(found))
    return found if len(found) == number else continue_as_new(token, number, found)
