"""What only the body of a workflow may call: `sleep`, `timeout`, `now`, `random`, `uuid4`.

Each gives the same in every replay. Outside a body each raises `HookContextError`, which names what to
use there instead.

Not here: steps and workflows (`definition`), and what a sleep becomes (`tracing`, `plan`).
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, cast
from uuid import UUID

from ckworkflow import tracing
from ckworkflow.duration import parse_wait
from ckworkflow.errors import HookContextError

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import datetime

    from ckworkflow.tracing import Tracer

__all__ = ["now", "random", "sleep", "timeout", "uuid4"]


def sleep(duration: str | float | timedelta | datetime) -> Coroutine[None, None, None]:
    """Let the run wait, through any restart, without holding a worker.

    Write `await sleep("7 days")`.

    Args:
        duration: Text with units (`"5 seconds"`, `"1h 30m"`: the units and aliases of the npm package `ms`, and
            sums of them), a number of seconds, a `timedelta`, or a `datetime` with a time zone: until then.
            Zero and the past complete at once.

    Raises:
        InvalidDurationError: Not one of these, or negative; at the call, before anything is awaited.
        HookContextError: No body of a workflow is running.
    """
    wait = parse_wait(duration)
    tracer = _tracer("sleep", "use asyncio.sleep(seconds) in steps and elsewhere")
    frame = sys._getframe(1)  # noqa: SLF001  # where the body calls: what is shown of a boundary
    return cast("Coroutine[None, None, None]", tracer.sleep_call(wait, frame=frame))


def timeout(duration: str | float | timedelta | datetime | None) -> asyncio.Timeout:
    """Limit how long a part of a body may take, through any restart: `asyncio.timeout` with the durations of `sleep`.

    Write `async with timeout("2 days"):`. When the time has passed, what the part awaits is cancelled, and `TimeoutError` is raised
    at the end of the part.

    Args:
        duration: As for `sleep`; `None`: no limit. Zero and the past: at the first await.

    Returns:
        What `asyncio.timeout` returns, with its `reschedule`, `when` and `expired`; `when` is in seconds since 1970.

    Raises:
        InvalidDurationError: As for `sleep`.
        HookContextError: No body of a workflow is running.
    """
    tracer = _tracer("timeout", "use asyncio.timeout(seconds) in steps and elsewhere")
    if duration is None:
        return asyncio.timeout(None)
    wait = parse_wait(duration)
    if isinstance(wait, timedelta):
        wait = tracer.now() + wait
    return asyncio.timeout_at(wait.timestamp())


def now() -> datetime:
    """Return the time, UTC, as far as the body has been told: after a sleep of an hour, an hour later.

    Raises:
        HookContextError: No body of a workflow is running.
    """
    return _tracer("now", "use datetime.now(UTC) in steps and elsewhere").now()


def random() -> float:
    """Return a random number from 0 up to 1, the same in every replay.

    Raises:
        HookContextError: No body of a workflow is running.
    """
    bits = _tracer("random", "use random.random() in steps and elsewhere").random_bits()
    # 53 bits, as many as a float holds: the same grid as random.random().
    return (int.from_bytes(bits[:8], "big") >> 11) * 2.0**-53


def uuid4() -> UUID:
    """Return a random UUID, the same in every replay.

    Raises:
        HookContextError: No body of a workflow is running.
    """
    bits = _tracer("uuid4", "use uuid.uuid4() in steps and elsewhere").random_bits()
    return UUID(bytes=bits[:16], version=4)


def _tracer(function: str, instead: str) -> Tracer:
    tracer = tracing.current()
    if tracer is None:
        raise HookContextError(
            function, f"it belongs in the body of a workflow, and none is running; {instead}."
        )
    return tracer
