"""Steps that do something to the worker that runs them; in a module that its process imports."""

from __future__ import annotations

import asyncio
import os
import time

from ckworkflow import step, workflow
from ckworkflow.engine import recovery
from ckworkflow.worker.process import runtime
from dying import die
from journal import note

if "STOP_SECONDS" in os.environ:
    seconds = float(os.environ["STOP_SECONDS"])
    runtime.GRACE_SECONDS = runtime.GIVE_UP_SECONDS = runtime.CLOSE_SECONDS = seconds


@step
async def end_thread(name: str) -> None:
    if name == "ckworkflow-clock":
        recovery.tick = die
    else:
        asyncio.get_running_loop()._run_once = die


@workflow
async def ends_thread(name: str) -> None:
    await end_thread(name)
    await answer()


@step
async def stop_loop() -> None:
    asyncio.get_running_loop().stop()


@step
async def answer() -> int:
    await asyncio.sleep(0)
    return 42


@workflow
async def stops_loop() -> int:
    await stop_loop()
    return await answer()


@step
async def end(how: str) -> None:
    """Go on for ever, and do something else than to end when the worker stops."""
    note("begun")
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            note("cancelled")
            if how == "by blocking the loop":
                time.sleep(3600)
            if how == "when it is cancelled":
                raise


@workflow
async def ends(how: str) -> None:
    await end(how)
