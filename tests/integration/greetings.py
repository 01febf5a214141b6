"""What the workers of the integration tests run: a greeting, as on the seed page, and steps that wait for a gate."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from ckworkflow import sleep, step, workflow
from ckworkflow.hooks import use_step
from journal import note


def ran(**fields: Any) -> None:
    context = use_step()
    note(
        "ran",
        key=context.idempotency_key,
        attempt=context.attempt,
        worker=os.environ["WORKER"],
        **fields,
    )


@step(max_retries=0)
async def greet_user(user_id: str, again: bool = False) -> str:
    ran()
    return f"Hello again, {user_id}!" if again else f"Hello, {user_id}!"


@workflow
async def greet_user_workflow(user_id: str) -> Any:
    first = await greet_user(user_id)
    await sleep("1 second")
    second = await greet_user(user_id, again=True)
    return {"success": True, "said": [first, second]}


@step(max_retries=0)
async def wait_at(gate: str) -> str:
    ran(gate=gate)
    while not Path(f"{gate}.open").exists():
        await asyncio.sleep(0.01)
    return gate


@workflow
async def greet_at_the_gate(user_id: str, gate: str) -> Any:
    first = await greet_user(user_id)
    await wait_at(gate)
    return [first, await greet_user(user_id, again=True)]
