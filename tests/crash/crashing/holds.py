"""Where a process is to be killed between two steps: its thread is held there, and the test then kills it.

Discovery loads this module in every worker process, as any workflow module. It puts itself around doors of
the engine; the engine knows nothing of it. With `HOLD` in the environment each of the places below is
reached once and never left. In any case it notes the first tick of the clock: the worker is up.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from celery.signals import worker_shutting_down

from ckworkflow.engine import advance as advances
from ckworkflow.engine import attempts, claims, recovery
from ckworkflow.engine.claims import Claimed
from ckworkflow.engine.core import Engine
from ckworkflow.worker.process import runtime
from journal import note


def hold(place: str) -> None:
    note("held", place=place)
    threading.Event().wait()


def install() -> None:
    claim, record, publish = claims.claim, attempts.record_success, Engine.publish
    advance = advances.advance

    def claim_and_hold(*args: Any, **kwargs: Any) -> Any:
        claimed = claim(*args, **kwargs)
        if isinstance(claimed, Claimed) and claimed.args == ("claimed",):
            if claimed.row.name.endswith(".second"):
                hold("claimed")
        return claimed

    def record_and_hold(engine: Engine, claimed: Claimed, *args: Any, **kwargs: Any) -> Any:
        recorded = record(engine, claimed, *args, **kwargs)
        if claimed.row.name.endswith(".first") and claimed.args[0] in {"recorded", "boundary"}:
            hold(claimed.args[0])
        # What comes next was claimed with the record.
        if recorded.here is not None and recorded.here.args == ("claimed",):
            hold("claimed")
        if recorded.here is not None and recorded.here.row.name.endswith(".published"):
            hold("continued")
        return recorded

    def publish_not(engine: Engine, run_id: Any, pieces: Any) -> None:
        if ".published" in str(pieces):
            hold("continued")
        publish(engine, run_id, pieces)

    def advance_and_hold(*args: Any, **kwargs: Any) -> Any:
        claimed = advance(*args, **kwargs)
        if claimed is not None and claimed.row.name.endswith(".published"):
            hold("continued")
        return claimed

    advances.advance = advance_and_hold
    claims.claim, attempts.record_success = claim_and_hold, record_and_hold
    Engine.publish = publish_not  # type: ignore[method-assign]


def watch_clock() -> None:
    tick, first = recovery.tick, threading.Lock()

    def noted(engine: Engine, **how: Any) -> Any:
        if first.acquire(blocking=False):
            note("up")
        return tick(engine, **how)

    recovery.tick = noted


@worker_shutting_down.connect(weak=False)
def note_shutdown(**_: Any) -> None:
    note("stopping")


watch_clock()
if "GRACE_SECONDS" in os.environ:
    runtime.GRACE_SECONDS = float(os.environ["GRACE_SECONDS"])
if "HOLD" in os.environ:
    install()
