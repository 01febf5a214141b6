"""Sending to a hook: one transaction under the lock of its run; then the body goes on in this process, and the sender does not wait for it.

A payload that was accepted reaches the body, or is counted as left over: it is in SQL with the `signals` that wake the body, and a
continuation that has not read it is not the last. It reaches no other run: the hook is looked at again under the lock.

Crash windows: before the commit nothing was sent, and the sender is told so; after it the run's `wake_at` has come, and a
clock has the body go on. A sender that hears nothing of a commit sends again under the same `dedup_key`, and is accepted once.

Not here: what the body does with it (`ckworkflow.tracing.hooks`).
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ckworkflow import codec
from ckworkflow.engine.advance import go_on_here
from ckworkflow.engine.answer import Answer
from ckworkflow.errors import HookFullError, HookNotFoundError, HookPayloadError, RunNotFoundError
from ckworkflow.model import HookInfo, HookKey, RunId
from ckworkflow.store import hooks, runs

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.store.hooks import HookRow
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction
    from ckworkflow.store.writer import Works

__all__ = ["Room", "find", "info", "resume"]

logger = logging.getLogger(__name__)


class Room(NamedTuple):
    """How much may be left untaken in the hooks of a run.

    Attributes:
        payloads: How many.
        size: Their bytes, together, if they are more than one.
        words: Both, for a person.
    """

    payloads: int
    size: int
    words: str


ROOM: Final = Room(1_000, 16 * 1024 * 1024, "1,000 payloads, or 16 MB of them,")
_NO_RUN: Final = RunId("")


JUST_AFTER: Final = timedelta(microseconds=1)


class _ChangedError(Exception):
    """The hook that was found has ended, or another has its token by now: look again."""


def find(engine: Engine, key: HookKey) -> HookInfo:
    """Return the open hook of a token.

    Raises:
        HookNotFoundError: There is none.
    """

    def look(tx: Transaction) -> HookRow | None:
        found = hooks.find_open(tx, key).get()
        return found if found is not None and found.is_open(engine.database.now(tx)) else None

    found = engine.database.read(look)
    if found is None:
        raise HookNotFoundError
    return info(found)


def info(row: HookRow) -> HookInfo:
    """Return a hook as a reader sees it."""

    def metadata() -> Any:  # only when somebody asks: a payload is accepted where nobody can rebuild it
        return codec.decode(codec.loads(row.metadata))

    return HookInfo(row.run_id, row.workflow, row.name, row.created_at, row.expires_at, metadata)


def resume(
    engine: Engine, key: HookKey, body: str, *, dedup_key: str | None, room: Room | None = None,
    name: str | None = None,
) -> HookInfo:  # fmt: skip
    """Send a payload; return the hook that has it.

    Args:
        engine: The engine.
        key: What the hook is found by.
        body: The payload, encoded.
        dedup_key: Names this sending: what was accepted under it before, of the same run and token, is not sent again.
        room: How much its run may have untaken with it; `None`: `ROOM`.
        name: What the hook must be called; `None`: anything.

    Raises:
        HookPayloadError: It is called something else.
        HookNotFoundError: No open hook has the token.
        HookFullError: Its run has too much that its body has not taken.
        RefusedValueError: The database refuses the payload, since it is too large.
        DatabaseUnavailableError: The database cannot be reached; nobody knows whether the payload was accepted.
    """
    while True:
        hook, is_repeated = engine.database.read(lambda tx: _look(engine, tx, key, dedup_key))
        if is_repeated:
            return info(hook)
        if name not in (None, hook.name):
            raise HookPayloadError(
                hook.name,
                f"it was sent through the definition of hook {name!r}, and the token belongs to this one",
            )
        try:
            answer = engine.database.transact_run(
                hook.run_id,
                partial(
                    _send, engine, hook=hook, key=key, body=body, dedup_key=dedup_key, room=room or ROOM
                ),
            )
        except (_ChangedError, RunNotFoundError):
            continue
        if answer.must_advance:
            engine.beside.do(hook.run_id, partial(_go_on, engine, hook.run_id, hook.workflow, answer))
        return info(hook)


def _go_on(engine: Engine, run_id: RunId, workflow: str, answer: Answer) -> None:
    try:
        go_on_here(engine, run_id, workflow, answer)
    except Exception:  # nobody waits for it; a clock has the body go on
        logger.exception(
            "run %s: its body cannot be told now what was sent to its hook; it is tried again", run_id,
            extra={"run_id": run_id},
        )  # fmt: skip


def _look(engine: Engine, tx: Transaction, key: HookKey, dedup_key: str | None) -> tuple[HookRow, bool]:
    """Find the hook that a payload is for; and whether the payload was accepted before, by one that has ended.

    An unknown token costs the same queries as that of a hook that has ended, so the time of the answer gives nothing away.
    """
    asking = hooks.find_open(tx, key)
    now, found = engine.database.now(tx), asking.get()
    if found is not None and found.is_open(now):
        return found, False
    if dedup_key is not None:
        last = hooks.find_last(tx, key)
        run_id = _NO_RUN if last is None else last.run_id
        if hooks.was_accepted(tx, run_id, key, dedup_key).get() and last is not None:
            return last, True
    raise HookNotFoundError


def _send(
    engine: Engine, tx: Transaction, *, hook: HookRow, key: HookKey, body: str, dedup_key: str | None,
    room: Room,
) -> Works[Answer]:  # fmt: skip
    locked = runs.lock_run(tx, hook.run_id, engine.database)
    finding, counting = hooks.find_open(tx, key), hooks.untaken(tx, hook.run_id)
    repeated = None if dedup_key is None else hooks.was_accepted(tx, hook.run_id, key, dedup_key)
    yield None
    run, again, (count, size) = locked.get(), finding.get(), counting.get()
    if (
        again is None
        or (again.run_id, again.node_id) != (hook.run_id, hook.node_id)
        or not again.is_open(run.now)
    ):
        raise _ChangedError
    if repeated is not None and repeated.get():
        return Answer()
    own = codec.size_of(body)
    # One that is larger by itself is not refused where nothing is left: to send it again would never help.
    if count >= room.payloads or (count and size + own > room.size):
        raise HookFullError(run.run_id, room.words)
    hooks.add_payload(
        tx, run, key, number=run.signals + 1, body=body, size=own, dedup_key=dedup_key,
        received_at=_received_at(tx, run),
    )  # fmt: skip
    runs.update_run(
        tx, run.run_id, signals=run.signals + 1, untold_payloads=(run.untold_payloads or 0) + 1, wake_at=run.now,
        spins=0, spins_since=None,  # what it is told now is new
    )  # fmt: skip
    return Answer(must_advance=True)


def _received_at(tx: Transaction, run: RunRow) -> datetime:
    """The time of a payload that comes now: never before what the body was told, nor before what came earlier."""
    at = max(run.now, run.body_time)
    if run.untold_payloads and (last := hooks.last_received(tx, run.run_id)) is not None:
        at = max(at, last)
    if run.has_untold_request and run.cancel_requested_at is not None:
        at = max(at, run.cancel_requested_at + JUST_AFTER)
    return at
