"""Workflows whose steps hold up their process in one way or another."""

from __future__ import annotations

import asyncio
import ctypes
import time
from pathlib import Path

from ckworkflow import step, workflow
from effects import effect
from liveness.surroundings import SILENCE_SECONDS

HELD_SECONDS = round(3 * SILENCE_SECONDS)
MANY = 20
GO = Path("go")
"""Once it is there, steps that stay end."""


@step(max_retries=0)
def hold_gil() -> str:
    effect("hold")
    ctypes.PyDLL(None).sleep(HELD_SECONDS)  # as C code does that does not let go of it
    return "held"


@step(max_retries=0)
async def stay(label: str) -> str:
    effect(label)
    while not GO.exists():
        await asyncio.sleep(0.01)
    return label


@step(max_retries=0)
def stay_in_thread(label: str) -> str:
    effect(label)
    while not GO.exists():
        time.sleep(0.01)
    return label


@workflow
async def holding():
    return await hold_gil()


@workflow
async def staying():
    return await stay("only")


@workflow
async def staying_in_thread():
    return await stay_in_thread("only")


@workflow
async def many():
    return len(await asyncio.gather(*[stay(f"member {number}") for number in range(MANY)]))


@step(max_retries=0)
async def pass_by(number: int) -> int:
    effect(f"member {number}")
    return number


@workflow
async def passing():
    return sum(await asyncio.gather(*[pass_by(number) for number in range(6)]))
