"""Charges that are told to stop, slowly, and refunds that follow them, in a module that workers import.

A charge has effects until it is told to stop, then some more: five, and as many as there is time for while a file is there, which
stands for whatever keeps a worker busy. Labels of effects that come more than once in an attempt end in "…".
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from ckworkflow import step, timeout, workflow
from ckworkflow.hooks import use_step
from effects import effect

EFFECT_SECONDS = 0.01
STOPPING = 5
DEADLINE = 0.25


@step(max_retries=0)
async def get_ready() -> None:
    """So that a worker has the run when its deadline begins."""
    effect("ready")


def _stops(turn: int, busy: str) -> bool:
    return turn < STOPPING or Path(busy).exists()


@step(max_retries=0)
async def charge(busy: str) -> str:
    """Of an async step `on_cancel="wait"` is the default."""
    turn = 0
    try:
        while True:
            effect("charges…")
            await asyncio.sleep(EFFECT_SECONDS)
    finally:
        while _stops(turn, busy):
            turn += 1
            effect("stops…")
            if turn % 2:
                time.sleep(EFFECT_SECONDS / 10)  # it holds up the loop, and with it all the others
            await asyncio.sleep(EFFECT_SECONDS)
        effect("charged")


@step(max_retries=0, on_cancel="wait")
def charge_plainly(busy: str) -> str:
    turn = 0
    while not use_step().is_cancelled:
        effect("charges…")
        time.sleep(EFFECT_SECONDS)
    while _stops(turn, busy):
        turn += 1
        effect("stops…")
        time.sleep(EFFECT_SECONDS)
    effect("charged")
    return "charged in part"


@step(max_retries=0)
async def refund() -> None:
    effect("refunds")
    await asyncio.sleep(EFFECT_SECONDS)
    effect("refunded")


@workflow
async def deadline_except(busy: str) -> str:
    await get_ready()
    try:
        async with asyncio.timeout(DEADLINE):
            await charge(busy)
    except TimeoutError:
        await refund()
        return "refunded"
    return "charged"


@workflow
async def deadline_finally(busy: str) -> str:
    await get_ready()
    try:
        try:
            async with timeout(DEADLINE):
                await charge_plainly(busy)
        finally:
            await refund()
    except TimeoutError:
        return "refunded"
    return "charged"


@workflow
async def request_except(busy: str) -> str:
    await get_ready()
    try:
        return await charge(busy)
    except asyncio.CancelledError:
        await refund()
        raise


@workflow
async def request_finally(busy: str) -> str:
    await get_ready()
    try:
        return await charge_plainly(busy)
    finally:
        await refund()
