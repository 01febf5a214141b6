"""The host: what the engine wants from the process that it is in.

A process that only starts runs offers nothing, and that is `Host` itself. A worker attaches its own, and detaches it when it stops.

Not here: the worker's (`ckworkflow.worker.process.host`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ckworkflow.engine.claims import Claimed
    from ckworkflow.engine.watch import LoopEvent
    from ckworkflow.model import RunId
    from ckworkflow.store.runs import RunRow

__all__ = ["Host", "Spread", "one_by_one"]


class Host:
    """A process that runs no steps."""

    runs_steps = False
    """Whether `may_run` is worth asking."""

    @property
    def waiting(self) -> int:
        """How many of the claimed steps wait for their turn."""
        return 0

    @property
    def is_full(self) -> bool:
        """Whether this is a worker that has no slot free."""
        return False

    def may_run(self, name: str) -> bool:  # noqa: ARG002  # none
        """Whether a step of that name may begin here without a message, now; asked inside a transaction."""
        return False

    def run(self, claimed: Claimed) -> None:
        """Run a step that this process has claimed, since it may; returns at once."""
        msg = (
            f"step {claimed.row.node_id} of run {claimed.run_id} was claimed by a process that runs none"
        )
        raise AssertionError(msg)

    def tell_to_stop(self) -> None:
        """Have the steps stop that this process runs, and that are to; a database that is away is asked again later."""

    async def wait(self, run_id: RunId, ended: LoopEvent, seconds: float) -> None:  # noqa: ARG002  # others end it
        """Wait on the running loop for the end of a run, for so many seconds at most."""
        await ended.wait(seconds)

    def wait_here(self, run_id: RunId, ended: threading.Event, seconds: float) -> bool:  # noqa: ARG002  # as `wait`
        """Block until the end of a run, for so many seconds at most; return whether it may have ended."""
        return ended.wait(seconds)

    def queue_of(self, name: str) -> str | None:  # noqa: ARG002  # it knows of none
        """To which queue a step goes."""
        return None


class Spread(Protocol):
    """Does something for each of some runs; what of it is not done in time the clock finds again."""

    def __call__(self, call: Callable[[RunRow], object], found: Sequence[RunRow], /) -> None:
        """Begin to do it, and perhaps wait for it."""
        ...


def one_by_one(call: Callable[[RunRow], object], found: Sequence[RunRow], /) -> None:
    """Do it on this thread."""
    for run in found:
        call(run)
