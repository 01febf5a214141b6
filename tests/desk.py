"""A desk: the real engine on a real database, with the messages and the clock in the hand of the test.

Not here: a worker that carries the messages by itself (`differential/simulator.py`, and the real ones).
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from ckworkflow.background import AtOnce
from ckworkflow.definition import registry
from ckworkflow.engine import attempts, claims, judging, liveness, recovery
from ckworkflow.engine.advance import advance
from ckworkflow.engine.claims import Claimed
from ckworkflow.engine.core import LONGEST_GAP, Engine
from ckworkflow.engine.detector import FailureDetector
from ckworkflow.engine.identity import this_process
from ckworkflow.engine.settings import Settings
from ckworkflow.engine.start import start_run
from ckworkflow.engine.suspects import Suspects
from ckworkflow.model import NodeId, NodeKind, NodeStatus, RunId, RunStatus
from ckworkflow.store import nodes, processes, runs, schema, tables
from ckworkflow.store.processes import ProcessRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckworkflow.engine.answer import Answer
    from ckworkflow.plan import Piece
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.store.runs import RunRecord
    from ckworkflow.store.transaction import Transaction


class DeskEngine(Engine):
    """An engine that says which process it is."""

    name = ""

    @property
    def owner(self) -> str:
        return self.name


class ManualClock:
    """The time of a database, and of the processes on it, which stands still until told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        self.seconds = 0.0

    def __call__(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        """Seconds that only grow, and do not jump with the time."""
        return self.seconds

    def advance(self, span: timedelta) -> None:
        self.now += span
        self.seconds += span.total_seconds()

    def jump(self, span: timedelta) -> None:
        """Set the time forward or back, as NTP does; no time passes."""
        self.now += span


class Desk:
    """An engine without Celery: the test carries the messages, and says what time it is."""

    def __init__(self, url: str, clock: ManualClock, name: str) -> None:
        self._url, self._name = url, name
        self._others: list[Desk] = []
        self.clock = clock
        self.messages: list[tuple[RunId, Piece]] = []
        self.engine = DeskEngine(Settings(database_url=url), self._publish, clock=clock)
        self.engine.name = name
        self.engine.beside = AtOnce()
        settings = self.engine.settings
        self.engine.detector = FailureDetector(
            settings.silence, LONGEST_GAP * settings.heartbeat, clock=clock.monotonic
        )
        self.engine.suspects = Suspects(clock.monotonic)
        schema.upgrade(self.engine.database)

    @property
    def published(self) -> list[Piece]:
        """What was published since this was emptied."""
        return [piece for _, piece in self.messages]

    def _publish(self, run_id: RunId, pieces: Any) -> bool:
        self.messages.extend((run_id, piece) for piece in pieces)
        return True

    def another(self, name: str) -> Desk:
        """A second process on the same database, with the same time; closed with this one."""
        self._others.append(Desk(self._url, self.clock, name))
        return self._others[-1]

    def close(self) -> None:
        for other in self._others:
            other.close()
        self.engine.bodies.clear()
        self.engine.database.dispose()

    def start(self, workflow: Any, *args: Any) -> RunId:
        return start_run(self.engine, workflow, args, {})

    def claim(self, run_id: RunId, node_id: str = "0:1") -> Any:
        """Receive the message of a node."""
        row = self.node(run_id, node_id)
        return claims.claim(self.engine, run_id, row.node_id, row.generation, step=row.name, wakes=True)

    def succeed(self, claimed: Claimed, value: Any = None) -> Answer:
        return attempts.record_success(self.engine, claimed, value, carries=frozenset())

    def fail(self, claimed: Claimed, error: BaseException, step: Any) -> Answer:
        failure = judging.judge(error, now=self.clock)
        return attempts.record_failure(self.engine, claimed, failure, step=step, carries=frozenset())

    def work(self, run_id: RunId, *, fails: Callable[[NodeRow], bool]) -> None:
        """Run every step of a run that may begin, once; those of which `fails` says so raise."""
        for row in self.engine.database.read(lambda tx: nodes.load_nodes(tx, run_id).get()):
            if row.kind is not NodeKind.STEP or row.status is not NodeStatus.PLANNED:
                continue
            claimed = claims.claim(self.engine, run_id, row.node_id, row.generation, step=row.name)
            if not isinstance(claimed, Claimed):
                continue
            step = registry.require_step(row.name)
            if fails(row):
                recorded = self.fail(claimed, RuntimeError("flaky"), step)
            else:
                recorded = self.succeed(claimed, step.function(*claimed.args, **claimed.kwargs))
            if recorded.must_advance:
                advance(self.engine, run_id)

    def tick(self) -> None:
        """Let the clock look once."""
        recovery.tick(self.engine)

    def register(self, other: Desk, **changes: Any) -> None:
        """Write the row by which another process is known: one that lives, but for the changes."""
        here = this_process()
        row = ProcessRow(
            other.engine.owner, "worker", here.host, here.boot_id, here.pid, here.pid_started,
            self.clock.now + 6 * self.engine.settings.heartbeat,
        )  # fmt: skip
        self.engine.database.transact(
            lambda tx: processes.renew_process(tx, replace(row, **changes), now=self.clock.now)
        )

    def lose(self, other: Desk) -> None:
        """Another process has died, and that is found out."""
        self.register(other, pid_started="1")
        liveness.reap_dead(self.engine)
        other.engine.active.clear()  # from now on it stands for another process

    def watch(self, span: timedelta) -> None:
        """Let time pass in which this process looks at the others again and again."""
        heartbeat = self.engine.settings.heartbeat
        liveness.reap_dead(self.engine)
        while span > timedelta():
            self.clock.advance(min(heartbeat, span))
            liveness.reap_dead(self.engine)
            span -= heartbeat

    def take_lease(self, run_id: RunId) -> None:
        """Begin to advance a run, and come no further."""

        def take(tx: Transaction) -> int | None:
            run = runs.lock_run(tx, run_id, self.engine.database).get()
            ttl = self.engine.settings.lease
            return runs.acquire_lease(tx, run, owner=self.engine.owner, ttl=ttl)

        assert self.engine.database.transact(take) is not None

    def spoil(self, run_id: RunId) -> None:
        """Make a row that no code of ours could have written."""
        broken = sa.update(tables.runs).where(tables.runs.c.id == run_id).values(status="sideways")
        self.engine.database.transact(lambda tx: tx.execute(broken))

    def node(self, run_id: RunId, node_id: str = "0:1") -> NodeRow:
        row = self.engine.database.read(lambda tx: nodes.load_node(tx, run_id, NodeId(node_id)).get())
        assert row is not None
        return row

    def nodes(self, run_id: RunId) -> list[NodeRow]:
        return self.engine.database.read(lambda tx: nodes.load_nodes(tx, run_id).get())

    def run(self, run_id: RunId) -> RunRecord:
        return self.engine.database.read(lambda tx: runs.read_run(tx, run_id))

    def epoch(self, run_id: RunId) -> int:
        """How many leases there were, with the start as the first."""
        return self.engine.database.transact(
            lambda tx: runs.lock_run(tx, run_id, self.engine.database).get().epoch
        )

    def attempts(self, run_id: RunId) -> list[Any]:
        query = sa.select(tables.attempts).where(tables.attempts.c.run_id == run_id)
        return list(self.engine.database.read(lambda tx: tx.execute(query).all()))

    def is_live_without_wake_at(self) -> bool:
        live = (RunStatus.PENDING, RunStatus.RUNNING)
        query = sa.select(tables.runs.c.id).where(
            tables.runs.c.status.in_(live), tables.runs.c.wake_at.is_(None)
        )
        return self.engine.database.read(lambda tx: tx.execute(query).first()) is not None
