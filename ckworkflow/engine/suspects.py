"""Suspects: steps that have lost several processes, one of which may be the cause.

A dead process does not say which of its steps killed it, so each of them is charged with a loss. The more losses
a step has, the fewer suspects may run beside it in one process. A step that kills its process every time soon runs
without another suspect, and from then on only its own losses grow. Losses with another cause, such as three
deploys by `kill -9`, delay no step.

A process counts only the suspects that it runs itself, so processes never wait for each other. The wait is bounded:
a step is cleared once it has run for twice as long as in any attempt that it was charged for. It then delays no other
step, and if its process dies, it is not charged, and its losses fall back to the threshold.

Not here: the claims that ask (`ckworkflow.engine.claims`), the losses themselves (`ckworkflow.engine.liveness`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from ckworkflow import codec
from ckworkflow.model import NodeId, RunId
from ckworkflow.plan import Task
from ckworkflow.store import nodes

if TYPE_CHECKING:
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction

__all__ = ["SUSPECT_LOSSES", "Suspects", "losses_after", "lost_error", "probation"]

SUSPECT_LOSSES: Final = 3
"""A step that has lost so many processes is a suspect."""
_ROOM: Final[Mapping[int, int | None]] = {3: None, 4: 16, 5: 4}
"""How many suspects may run in one process, by the losses of the worst of them; one beyond these.

This keeps innocent steps below the limit of ten losses. Beside a culprit that started with it, a step reaches six at most.
If it then meets a new culprit, it is at nine when that one becomes a suspect (three losses), and they are separated.
"""
_CLEARING: Final = 2
_LEAST_PROBATION: Final = timedelta(seconds=10)
_MOST_CLEARINGS: Final = 6
_CLEARED: Final = "is_cleared"
_RESERVED_SECONDS: Final = 5.0
"""How long a place is kept for a message that is on its way, and for a claim that is not committed yet."""

Key = tuple[RunId, NodeId]


def probation(tx: Transaction, run_id: RunId, node_id: NodeId) -> timedelta:
    """How long a step must run to be cleared: twice as long as ever before a death that it was charged with."""
    return _probation(nodes.lost_attempts(tx, run_id, node_id))


def losses_after(tx: Transaction, run: RunRow, row: NodeRow) -> int:
    """How many losses a step has, now that the process has died which ran it."""
    if not row.losses or row.started_at is None:
        return row.losses + 1
    lost = nodes.lost_attempts(tx, run.run_id, row.node_id)
    # Bounded, or a step that kills after a minute, and did so after a second once, would be cleared every time.
    may_be_cleared = sum(_is_cleared(error) for _, error in lost) < _MOST_CLEARINGS
    if may_be_cleared and run.now - row.started_at > _probation(lost):
        return min(row.losses, SUSPECT_LOSSES)
    return row.losses + 1


def _probation(lost: Iterable[tuple[timedelta, str | None]]) -> timedelta:
    longest = max((span for span, error in lost if not _is_cleared(error)), default=timedelta())
    return max(_CLEARING * longest, _LEAST_PROBATION)


def lost_error(process_id: str, *, is_cleared: bool) -> str:
    """What is on record of an attempt that ended with its process."""
    error = {"type": "ckworkflow:WorkerLost", "message": f"process {process_id} lost it"}
    return codec.dumps(error | ({_CLEARED: True} if is_cleared else {}))


def _is_cleared(error: str | None) -> bool:
    data = None if error is None else codec.loads(error)
    return isinstance(data, dict) and bool(data.get(_CLEARED))


@dataclass(slots=True)
class _Running:
    """A suspect that runs in this process.

    Attributes:
        losses: What it had lost when it began.
        since: Seconds, by the monotonic clock.
        clears_at: When it has proved that it does not kill.
        is_claimed: Whether its claim is committed; before that it only holds its place.
    """

    losses: int
    since: float
    clears_at: float
    is_claimed: bool = False

    def holds_up(self, *, is_active: bool, now: float) -> bool:
        """Whether others must make allowance for it."""
        if not self.is_claimed:
            return now < self.since + _RESERVED_SECONDS
        return is_active and now < self.clears_at


class Suspects:
    """The suspects of this process: those that run, and those whose turn has not come. Safe to use from every thread.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[Key, _Running] = {}
        self._waiting: dict[Key, tuple[int, Task]] = {}

    def admit(
        self, key: Key, task: Task, losses: int, probation: timedelta, active: Collection[Key]
    ) -> bool:
        """Give a suspect its place, or note that it waits for one.

        Args:
            key: The step.
            task: What its message is made of, once it is its turn.
            losses: The processes that it has lost.
            probation: How long it holds up others.
            active: The steps that this process runs.
        """
        with self._lock:
            self._running.pop(key, None)  # of an attempt before, or of a transaction that is tried again
            if not self._has_room(losses, active):
                self._waiting[key] = (losses, task)
                return False
            self._waiting.pop(key, None)
            now = self._clock()
            self._running[key] = _Running(losses, now, now + probation.total_seconds())
            return True

    def confirm(self, key: Key) -> None:
        """Note that the claim of a step that was admitted is committed."""
        with self._lock:
            if (found := self._running.get(key)) is not None:
                found.is_claimed = True

    def take_turns(self, active: Collection[Key]) -> list[tuple[RunId, Task]]:
        """Take out those that wait and have room now: their messages are to be published.

        Args:
            active: The steps that this process runs.
        """
        if not self._waiting:
            return []
        with self._lock:
            turns: list[tuple[RunId, Task]] = []
            for key, (losses, task) in list(self._waiting.items()):
                if not self._has_room(losses, active):
                    break  # those behind it must not overtake it
                # A reservation until its message arrives; it may also go to another process.
                self._running[key] = _Running(losses, now := self._clock(), now)
                del self._waiting[key]
                turns.append((key[0], task))
            return turns

    def _has_room(self, losses: int, active: Collection[Key]) -> bool:
        """Whether one more may run."""
        now = self._clock()
        for key, running in list(self._running.items()):
            if not running.holds_up(is_active=key in active, now=now):
                del self._running[key]
        all_losses = [losses, *(running.losses for running in self._running.values())]
        room = _ROOM.get(max(all_losses), 1)
        return room is None or len(all_losses) <= room
