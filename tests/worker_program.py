"""A program that starts runs, told what to do by lines of JSON on its standard input; see `worker_home.py`."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import sys
import traceback
from typing import Any

from ckworkflow import (
    codec,
    get_run_sync,
    start,
    start_sync,
)
from ckworkflow.testing import worker

STARTS_AT_ONCE = 64  # so many commands of a busy bot are under way at the same time


def answer(request: list[Any]) -> Any:
    match request:
        case ["start", place, args]:
            return start_sync(workflow_at(place), *args).run_id
        case ["start_all", place, all_args]:
            return asyncio.run(start_all(workflow_at(place), codec.decode(all_args)))
        case ["result", run_id, timeout]:
            return get_run_sync(run_id).return_value(timeout)
        case ["steps", run_id]:
            return [
                {"node": step.node_id, "name": step.name, "status": step.status, "attempt": step.attempt}
                for step in get_run_sync(run_id).steps()
            ]
        case ["status", run_id]:
            return get_run_sync(run_id).status()
        case ["told", run_id]:
            return any(step.cancelled_at is not None for step in get_run_sync(run_id).steps())
        case ["cancel", run_id, options]:
            return get_run_sync(run_id).cancel(**options)
        case ["terminate", run_id]:
            return get_run_sync(run_id).terminate(reason="terminated")
        case ["replay", run_id]:
            from replaying import replayed_end

            return replayed_end(run_id)
        case ["resume", token, payload, dedup_key]:
            # Here: programs of older releases, which know no hooks, are run by this file, too.
            from ckworkflow import HookFullError, HookNotFoundError, resume_hook_sync

            try:
                return resume_hook_sync(token, payload, dedup_key=dedup_key).run_id
            except HookNotFoundError:
                return "no hook"
            except HookFullError:
                return "full"
    raise ValueError(request)


def workflow_at(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


async def start_all(workflow: Any, all_args: list[list[Any]]) -> None:
    """Start many runs, in this order, as concurrent commands would; their ids are left to the database."""
    left = iter(all_args)

    async def command() -> None:
        for args in left:
            await start(workflow, *args)

    await asyncio.gather(*[command() for _ in range(STARTS_AT_ONCE)])


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    with worker() if "--worker" in sys.argv else contextlib.nullcontext():
        say("ready")
        for line in sys.stdin:
            try:
                say({"value": answer(json.loads(line))})
            except Exception:
                say({"error": traceback.format_exc()})
        say("leaving")


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


main()
