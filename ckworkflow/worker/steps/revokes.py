"""Revokes: what Celery's `revoke` (Flower's button) does to a step, whatever carries it.

A revoked step ends as failed, with the word `revoked`, and its run goes on with that: the body may catch it, as it may
any failure of a step. Else the run would neither go on nor end, since each worker that has heard of the revoke throws
every message of that task id away. That somebody says "not this one" cannot mean that it runs under another id.

As in Celery, a step that runs is left alone unless it is to be terminated; its next attempt does not begin. An async step
is then cancelled, a pool process is told to end, and of a sync step in a thread the result is ignored.

Not here: messages that are thrown away later (`.request`), the record (`ckworkflow.engine.verdicts`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Final

from celery.platforms import signals
from celery.worker import state as worker_state
from celery.worker.control import Panel

from ckworkflow.canvas import parse_task_id, task_id
from ckworkflow.engine import verdicts
from ckworkflow.engine.installation import current
from ckworkflow.worker.process import prefork
from ckworkflow.worker.process import runtime as runtimes
from ckworkflow.worker.steps.request import is_prefork_pool, record

if TYPE_CHECKING:
    from celery.utils.collections import AttributeDict

    from ckworkflow.engine.claims import Claimed

__all__ = ["install", "is_revoked"]

logger = logging.getLogger(__name__)

Command = Callable[..., object]
"""One of remote control."""
_COMMANDS: Final = ("revoke", "terminate")
_MARK: Final = "_ckworkflow_revokes"


def install() -> None:
    """Have the workers of this process hear what is revoked."""
    for name in _COMMANDS:
        command = Panel.data[name]
        if not hasattr(command, _MARK):
            Panel.data[name] = _hearing(command, always_terminates=name == "terminate")


def is_revoked(claimed: Claimed) -> bool:
    """Whether a step that was claimed without a message must not begin, as far as this process has heard."""
    revoked = worker_state.revoked
    row = claimed.row
    return bool(revoked) and task_id(claimed.run_id, row.node_id, row.generation) in revoked


def _hearing(command: Command, *, always_terminates: bool) -> Command:
    @wraps(command)
    def hear(state: AttributeDict, *args: Any, **arguments: Any) -> object:
        ids = arguments.get("task_id", args[-1] if args else ())
        terminates = always_terminates or bool(arguments.get("terminate"))
        for each in [ids] if isinstance(ids, str) else list(ids or ()):
            if parse_task_id(each) is not None:
                record(partial(_end, state, each, terminates, arguments.get("signal")))
        return command(state, *args, **arguments)

    setattr(hear, _MARK, True)
    return hear


def _end(state: AttributeDict, revoked_id: str, terminates: bool, signal: str | int | None) -> None:  # noqa: FBT001
    found = parse_task_id(revoked_id)
    assert found is not None
    run_id, node_id, generation = found
    pool = state.consumer.pool
    pids: Iterable[int] = ()
    if terminates:
        pids = prefork.pids_of(pool) if is_prefork_pool(pool) else [os.getpid()]
    pid = verdicts.revoke(current().engine, run_id, node_id, generation, pids=frozenset(pids))
    if pid is None:
        return
    running = runtimes.peek()
    if pid == os.getpid() and running is not None:
        running.interrupt_claimed(run_id, node_id, verdicts.revoked(revoked_id))
    elif revoked_id not in worker_state.requests:  # else Celery ends the process, for its message
        os.kill(pid, signals.signum(signal or "TERM"))
