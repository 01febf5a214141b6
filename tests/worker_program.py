"""A program that starts runs, told what to do by lines of JSON on its standard input; see `worker_home.py`."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import sys
import traceback
from typing import Any

from ckworkflow import get_run_sync, start_sync
from ckworkflow.testing import worker


def answer(request: list[Any]) -> Any:
    match request:
        case ["start", place, args]:
            module, _, name = place.partition(":")
            return start_sync(getattr(importlib.import_module(module), name), *args).run_id
        case ["result", run_id, timeout]:
            return get_run_sync(run_id).return_value(timeout)
        case ["steps", run_id]:
            return [
                {"node": step.node_id, "name": step.name, "status": step.status, "attempt": step.attempt}
                for step in get_run_sync(run_id).steps()
            ]
    raise ValueError(request)


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
