"""Steps that are told to stop while they run, in a module that workers import."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from ckworkflow import step, timeout, workflow
from ckworkflow.hooks import use_step
from journal import note


@step(max_retries=0)
async def charge(place: str) -> str:
    """Runs until it is cancelled, and takes a moment to stop."""
    note("charge begins", place=place)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        while Path(f"{place}.slow").exists():
            await asyncio.sleep(0.01)
        note("charge ends", place=place, told=use_step().is_cancelled)
    return place


@step(max_retries=0)
def charge_plainly(place: str) -> str:
    note("charge begins", place=place)
    while not use_step().is_cancelled:
        time.sleep(0.01)
    note("charge ends", place=place, told=True)
    return place


@step(max_retries=0)
async def refund(place: str) -> None:
    note("refund", place=place)


@workflow
async def buys(place: str) -> str:
    try:
        return await charge(place)
    except asyncio.CancelledError:
        await refund(place)
        raise


@workflow
async def buys_plainly(place: str) -> str:
    try:
        return await charge_plainly(place)
    finally:
        await refund(place)


@workflow
async def buys_in_time(place: str) -> str:
    try:
        async with timeout(0.5):
            return await charge(place)
    except TimeoutError:
        await refund(place)
        return "refunded"
