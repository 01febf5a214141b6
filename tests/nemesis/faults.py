"""The faults: what is done to a cluster, in an order that a seed fixes.

A deck of all of them is shuffled and dealt again and again, so each comes several times. What a fault needs to
bite it brings about itself. Against the broker: messages that wait, for which the workers are stopped for a moment,
far shorter than a lease, while a burst of runs is started. Against all else: a step that runs just now, in the
very process that is to be hit; workers are so much faster than runs come that a blow in the dark hits nothing.
"""

from __future__ import annotations

import heapq
import itertools
import random
import signal
import time
from collections.abc import Callable

from crash_everywhere.site import wait_for
from nemesis.cluster import Cluster, Slot
from nemesis.tuning import LEASE_SECONDS

BURST = 6
_PAUSE_SECONDS = (0.3, 1.0)
_MOMENT_SECONDS = 0.3
_BUSY_SECONDS = 0.5
"""How long a step is waited for in what is to be hit: it may just have lost its broker or its database."""


class Nemesis:
    """Torments a cluster.

    Args:
        cluster: Whom.
        seed: Of all that is left to chance.
    """

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._chance = random.Random(seed)
        # Apart: how much is drawn of it depends on what is there to be hit, and the order of faults must not.
        self._detail = random.Random(f"{seed} detail")
        self._order = itertools.count()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._deck: list[Callable[[], str]] = []
        self._all: list[Callable[[], str]] = [
            self._kill, self._kill, self._kill_child, self._stop_beyond_the_lease, self._stop_beyond_the_lease,
            self._stop_briefly, self._end_in_order, self._flush, self._restart_broker, self._double, self._double,
            self._shuffle, self._drop, self._restart_database_fast, self._restart_database_immediately,
            self._take_the_database_away, self._cut_connections,
        ]  # fmt: skip

    def work(self, seconds: float, *, each_moment: Callable[[], None]) -> None:
        """Let faults come for so long, and then an end to all that lasts.

        Args:
            seconds: How long.
            each_moment: Called often in between: to start runs, and to watch.
        """
        end = time.monotonic() + seconds
        next_at = time.monotonic()
        while (now := time.monotonic()) < end:
            self._cluster.supervise()
            while self._later and self._later[0][0] <= now:
                heapq.heappop(self._later)[2]()
            if now >= next_at:
                if not self._deck:
                    self._deck = self._chance.sample(self._all, len(self._all))
                self._cluster.counts[self._deck.pop()()] += 1
                next_at = time.monotonic() + self._chance.uniform(*_PAUSE_SECONDS)
            each_moment()
        for _, _, rest in sorted(self._later):
            rest()
        self._cluster.supervise()

    def _in(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), call))

    def _slot(self) -> Slot:
        return self._chance.choice(self._cluster.slots)

    # --- against workers -----------------------------------------------------------------------------

    def _amid_steps(self, *slots: Slot) -> set[int]:
        """Start a burst of runs, and wait until a step runs in one of these places; by which processes."""
        cluster = self._cluster
        pids = {pid for slot in slots if slot.stopped_at is None for pid in cluster.pids(slot)}
        for _ in range(BURST if pids else 0):
            cluster.order_run(self._detail)
        end = time.monotonic() + _BUSY_SECONDS
        while not (busy := cluster.busy_pids() & pids) and time.monotonic() < end:
            cluster.listen()
        cluster.counts["blows at a running step"] += bool(busy)
        return busy

    def _kill(self) -> str:
        slot = self._slot()
        self._amid_steps(slot)
        self._cluster.kill_worker(slot)
        return "workers killed"

    def _kill_child(self) -> str:
        slot = next(slot for slot in self._cluster.slots if slot.pool == "prefork")
        is_killed = self._cluster.kill_child(slot, self._detail, self._amid_steps(slot))
        return "pool processes killed" if is_killed else "pools without a process to kill"

    def _stop(self, slot: Slot, seconds: float) -> None:
        worker = slot.worker
        self._cluster.stop_worker(slot)

        def go_on() -> None:
            if slot.worker is worker:  # it may have been killed meanwhile, and another one is there
                self._cluster.continue_worker(slot)

        self._in(seconds, go_on)

    def _stop_beyond_the_lease(self) -> str:
        slot = self._slot()
        self._amid_steps(slot)
        self._stop(slot, LEASE_SECONDS + self._chance.uniform(1.5, 3))
        return "workers stopped beyond their lease"

    def _stop_briefly(self) -> str:
        self._stop(self._slot(), self._chance.uniform(0.2, 1))
        return "workers stopped briefly"

    def _end_in_order(self) -> str:
        slot = self._slot()
        self._amid_steps(slot)
        self._cluster.end_worker(slot)
        return "workers ended in order"

    # --- against the broker --------------------------------------------------------------------------

    def _while_messages_wait(self, do: Callable[[], int], what: str) -> str:
        cluster = self._cluster
        halted = [slot for slot in cluster.slots if slot.worker is not None and slot.stopped_at is None]
        for slot in halted:
            cluster.stop_worker(slot)
        for _ in range(BURST):
            cluster.order_run(self._detail)
        end = time.monotonic() + _MOMENT_SECONDS
        wait_for(lambda: not cluster.is_client_busy or time.monotonic() > end, "a burst of runs")
        cluster.counts[what] += do()
        for slot in halted:
            cluster.continue_worker(slot)
        return f"times that {what}"

    def _flush(self) -> str:
        return self._while_messages_wait(self._cluster.flush, "messages were flushed")

    def _double(self) -> str:
        return self._while_messages_wait(
            lambda: self._cluster.double(self._detail), "messages were doubled"
        )

    def _shuffle(self) -> str:
        return self._while_messages_wait(
            lambda: self._cluster.shuffle(self._detail), "messages were reordered"
        )

    def _drop(self) -> str:
        return self._while_messages_wait(
            lambda: self._cluster.drop(self._detail), "messages were dropped"
        )

    def _restart_broker(self) -> str:
        self._amid_steps(*self._cluster.slots)
        self._cluster.restart_broker()
        return "broker restarts"

    # --- against the database ------------------------------------------------------------------------

    def _restart_database_fast(self) -> str:
        self._amid_steps(*self._cluster.slots)
        self._cluster.restart_database(signal.SIGINT)
        return "database restarts (fast)"

    def _restart_database_immediately(self) -> str:
        self._amid_steps(*self._cluster.slots)
        self._cluster.restart_database(signal.SIGQUIT)
        return "database restarts (immediate)"

    def _take_the_database_away(self) -> str:
        self._amid_steps(*self._cluster.slots)
        # Nobody can say that he lives, and nobody is dead.
        self._cluster.restart_database(signal.SIGINT, away_seconds=LEASE_SECONDS + 0.5)
        return "database outages beyond the lease"

    def _cut_connections(self) -> str:
        self._amid_steps(*self._cluster.slots)
        self._cluster.counts["database connections cut"] += self._cluster.cut_connections()
        return "times that all connections were cut"
