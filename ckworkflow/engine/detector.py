"""The failure detector: which processes are dead, as far as this process can tell.

It keeps one rule: **no step that runs is taken from a live process, and what a dead process had is free within a
bounded time.** Under the same kernel the kernel decides. A pid that has ended, or belongs to a later process,
is dead at once; one that runs is alive, also if something in it holds the GIL for minutes and nothing is renewed;
one that is stopped runs no step, and has as long as a process elsewhere.

Of a process elsewhere only the row is known. It is dead once this process has seen that row unchanged for a whole
silence, by its own monotonic clock, and in looks that were close together. Wall clocks are never compared, so jumps
do not matter. Time during which this process was stopped, or the database was away, counts as a single look.

Not here: how the kernel is asked (`ckworkflow.engine.identity`), and how a dead process's work is freed
(`ckworkflow.engine.liveness`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from ckworkflow.engine.identity import (
    Identity,
    Look,
    Standing,
    is_reachable,
    look_up,
    this_process,
)

__all__ = ["HANG", "Dead", "FailureDetector", "Sign"]

logger = logging.getLogger(__name__)

HANG: Final = 20
"""Silences after which a process counts as dead that exists, is not stopped, and in all that time has neither
renewed its row nor used any processor time: it hangs, or has been frozen. Ten minutes by default."""


@dataclass(frozen=True, slots=True)
class Sign:
    """What a process has last said.

    Attributes:
        process: Which process.
        mark: Anything that differs from one renewal of its row to the next.
    """

    process: Identity
    mark: object


@dataclass(frozen=True, slots=True)
class Dead:
    """A process that is dead, and how that is known, as the end of a sentence."""

    process: Identity
    reason: str


@dataclass(slots=True)
class _Watched:
    """What this process has seen of another one.

    Attributes:
        mark: Its last `Sign.mark`.
        look: What the kernel last said of it.
        silent: Seconds without any sign of life.
        unrenewed: Seconds without a new mark.
        is_told: The log has a line on it.
    """

    mark: object
    look: Look
    silent: float = 0.0
    unrenewed: float = 0.0
    is_told: bool = False


class FailureDetector:
    """See the module. One thread at a time may use it.

    Args:
        silence: How long a process that cannot be asked about may say nothing.
        longest_gap: The most that one look adds to a silence, however long the one before it was ago.
        clock: Seconds that only grow.
        here: Who this process is.
        ask: What the kernel says of a process.
        tells: Whether the log is told of processes that run and say nothing, and of copies of this machine.
    """

    def __init__(
        self, silence: timedelta, longest_gap: timedelta, *, clock: Callable[[], float] = time.monotonic,
        here: Callable[[], Identity] = this_process, ask: Callable[[Identity], Look] = look_up,
        tells: bool = True,
    ) -> None:  # fmt: skip
        self._silence = silence.total_seconds()
        self._longest_gap = longest_gap.total_seconds()
        self._clock, self._here, self._ask, self._tells = clock, here, ask, tells
        self._looked_at: float | None = None
        self._watched: dict[str, _Watched] = {}
        self._clones: set[str] = set()

    def silent(self) -> list[str]:
        """The ids of those that the next look may find dead, unless their pid has ended."""
        return [
            process_id
            for process_id, seen in self._watched.items()
            if seen.silent + self._longest_gap >= self._limit(seen)
        ]

    def _limit(self, seen: _Watched) -> float:
        return self._silence * (HANG if seen.look.standing is Standing.RUNNING else 1)

    def look(self, signs: Iterable[Sign]) -> list[Dead]:
        """Look at all processes that are known, and return the dead ones.

        Args:
            signs: What each has last said, read just now. A process that is missing is forgotten.
        """
        here, now = self._here(), self._clock()
        # A process may have been too busy to look, or stopped, or without its database: so may the others.
        passed = 0.0 if self._looked_at is None else min(now - self._looked_at, self._longest_gap)
        self._looked_at = now
        watched, self._watched = self._watched, {}
        dead = []
        for sign in signs:
            process = sign.process
            look = self._ask(process) if is_reachable(process, here) else Look(Standing.UNKNOWN)
            if look.standing is Standing.ENDED:
                dead.append(Dead(process, "its pid has ended"))
                continue
            seen = watched.get(process.process_id)
            if seen is None:
                seen = _Watched(sign.mark, look)
            else:
                self._compare(seen, sign, look, passed, here)
            self._watched[process.process_id] = seen
            if (reason := self._reason(process, seen)) is not None:
                dead.append(Dead(process, reason))
        return dead

    def _compare(self, seen: _Watched, sign: Sign, look: Look, passed: float, here: Identity) -> None:
        """Take in what has changed since the last look."""
        if seen.mark != sign.mark:
            seen.silent = seen.unrenewed = 0.0
            seen.is_told = False
            self._tell_of_clone(sign.process, here)
        elif seen.look != look:
            # It was continued or stopped meanwhile, or has used the processor.
            seen.silent = 0.0
            seen.unrenewed += passed
        else:
            seen.silent += passed
            seen.unrenewed += passed
        seen.mark, seen.look = sign.mark, look

    def _reason(self, process: Identity, seen: _Watched) -> str | None:
        """Say why a process is dead; `None` while it is not."""
        is_dead = seen.silent >= self._limit(seen)
        if seen.look.standing is Standing.RUNNING:
            if is_dead:
                return f"for {seen.silent:.0f} s it has used no processor time and has not renewed its row: it hangs"
            if self._tells and seen.unrenewed >= self._silence and not seen.is_told:
                seen.is_told = True
                logger.warning(
                    "process %s (pid %d of this machine) has not renewed its row for %.0f s, and it runs: its steps "
                    "stay with it. Something in it holds the GIL (C code, a regular expression) or it cannot reach "
                    "the database. If it hangs, kill it, and others take over at once.",
                    process.process_id,
                    process.pid,
                    seen.unrenewed,
                    extra={"process_id": process.process_id},
                )
            return None
        if not is_dead:
            return None
        if seen.look.standing is Standing.STOPPED:
            return f"it has been stopped for {seen.silent:.0f} s"
        return f"its row has not changed for {seen.silent:.0f} s"

    def _tell_of_clone(self, process: Identity, here: Identity) -> None:
        """Say loudly that another live machine takes itself for this one."""
        is_copy = process.host == here.host and process.boot_id != here.boot_id
        if not self._tells or not is_copy or process.boot_id in self._clones:
            return
        self._clones.add(process.boot_id)
        logger.error(
            "process %s is alive on another machine that has the host name and the machine id of this one: one of "
            "them is a copy of the other. Neither takes the other's processes for its own, but logs and queues "
            "that go by the name mix them up. Give each its own host name and machine id (on the copy: "
            "`rm /etc/machine-id; systemd-machine-id-setup; hostnamectl set-hostname NAME`, then restart it).",
            process.process_id,
            extra={"process_id": process.process_id},
        )
