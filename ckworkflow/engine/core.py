"""The engine of a process: its database, its settings, and the doors to the outside.

Every operation on a run is a module of its own that takes this: `start`, `claims`, `attempts` (their records),
`advance` (continuations), `recovery` (the clock's side). What they share is here: publishing, waking,
and the ends of runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from ckworkflow import codec
from ckworkflow.background import AtOnce, Beside, SpareThreads
from ckworkflow.engine import failures
from ckworkflow.engine.bodies import BodyCache
from ckworkflow.engine.budget import Budget
from ckworkflow.engine.detector import FailureDetector
from ckworkflow.engine.host import Host
from ckworkflow.engine.identity import this_process
from ckworkflow.engine.queues import QueueWatch, WorkerLook
from ckworkflow.engine.resolve import resolve_tree
from ckworkflow.engine.suspects import Suspects
from ckworkflow.engine.watch import LEAST_WHERE_RUNS_END, SHORTEST_SECONDS, RunWatch
from ckworkflow.engine.wording import counted
from ckworkflow.errors import UnreadableValueError, UnserializableValueError
from ckworkflow.model import Ending, NodeId, NodeKind, RunId, RunStatus
from ckworkflow.plan import WINDOW, Chain, Piece, Plan, PlanNode, Task, cut_pieces
from ckworkflow.store import hooks, large, nodes, notes, plans, records, runs, schema, windows
from ckworkflow.store.database import Database
from ckworkflow.store.notes import Note, NoteKind
from ckworkflow.store.transaction import Transaction
from ckworkflow.tracing import UnresolvableError

if TYPE_CHECKING:
    from ckworkflow.engine.settings import Settings
    from ckworkflow.store.records import Followup
    from ckworkflow.store.runs import RunRow

logger = logging.getLogger(__name__)
Publish = Callable[[RunId, Sequence[Piece]], bool]
"""Publishes pieces; `False` (never an exception) when the broker did not take them."""


LONGEST_GAP = 2
"""Heartbeats that one look at the others counts for at most: in a longer gap this process did not look."""
FEW = 3
"""So many steps at most are published without what follows them."""
LONGEST_BACKOFF = timedelta(minutes=5)
LOOK_DAILY = timedelta(days=1)
"""When a clock looks at a run that waits for nothing but payloads: whoever sends one has it looked at."""


NEXT_LIFE: Final = "next_life"
"""What `runs.plan` says of a body that has ended for the run's next life, before all that it awaited was recorded."""


class LastHeartbeat:
    """When this process last renewed its row, by the monotonic clock; a client never does."""

    at: float | None = None

    def note(self) -> None:
        """Note that it has just renewed it."""
        self.at = time.monotonic()

    def is_older_than(self, span: timedelta) -> bool:
        """Whether that was longer ago than a span."""
        return self.at is not None and time.monotonic() - self.at > span.total_seconds()


class MessageLatency:
    """How long messages take at present from being published to reaching this process.

    Args:
        clock: A monotonic clock, in seconds.
    """

    RECENT_SECONDS = 2.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turned_at = clock()
        self._longest = self._longest_before = timedelta()

    def note(self, taken: timedelta) -> None:
        """Note how long a message has taken; called on the consumer's thread alone."""
        self._turn()
        self._longest = max(self._longest, taken)

    def recent(self) -> timedelta:
        """The longest of the last seconds."""
        self._turn()
        return max(self._longest, self._longest_before)

    def _turn(self) -> None:
        now = self._clock()
        passed = now - self._turned_at
        if passed > self.RECENT_SECONDS:
            is_one_turn = passed < 2 * self.RECENT_SECONDS
            self._longest_before = self._longest if is_one_turn else timedelta()
            self._longest, self._turned_at = timedelta(), now


class Engine:
    """See the module.

    Args:
        settings: What the user has set.
        publish: How pieces of a plan reach workers.
        clock: As for `Database`.
        database: The database, where it is not simply that of the settings.
    """

    def __init__(
        self, settings: Settings, publish: Publish, *, clock: Callable[[], datetime] | None = None,
        database: Database | None = None,
    ) -> None:  # fmt: skip
        self.settings = settings
        codec.trust(settings.packages)
        self.database = database or Database(
            settings.database_url, clock=clock, owner=lambda: self.owner
        )
        self.bodies = BodyCache(settings.bodies_kept)
        self.watch = RunWatch(self.database)
        self.active: set[tuple[RunId, NodeId]] = set()
        """The steps that this process runs now."""
        self._endings: dict[RunId, tuple[str, Ending, int]] = {}
        """Of the runs that have ended: their workflow, and how many payloads nobody has taken."""
        self._owing: set[RunId] = set()
        self.last_heartbeat = LastHeartbeat()
        self.detector = FailureDetector(settings.silence, LONGEST_GAP * settings.heartbeat)
        """Of the processes that have died; the clock's thread alone uses it."""
        self.suspects = Suspects()
        """The steps of this process that may be what kills it."""
        self.host = Host()
        """What this process does for the engine; a worker's own while it runs."""
        self.message_latency = MessageLatency()
        """Of the messages that come to it."""
        self.queues: frozenset[str] | None = None
        """The queues that this process consumes, once that is known."""
        self.queue_watch = QueueWatch()
        self.worker_look = WorkerLook()
        self.spare_threads = SpareThreads()
        self.budget = Budget(self.spare_threads)
        self.beside: Beside | AtOnce = Beside(self.spare_threads)
        """What nobody waits for: bodies that go on since somebody has sent to their hooks."""
        self.advancing: dict[RunId, float] = {}
        """The runs whose bodies go on in this process, under its lease, and since when (monotonic)."""
        self._publish = publish
        self._is_checked = False
        self._check_lock = threading.Lock()
        self._wakers: list[Callable[[datetime], None]] = []

    def attach(self, host: Host) -> None:
        """Use what a worker offers in this process, until `detach`."""
        self.host = host
        if host.runs_steps:
            self.watch.shortest_seconds = LEAST_WHERE_RUNS_END

    def detach(self) -> None:
        """Stop using what the worker offered."""
        self.host, self.queues = Host(), None
        self.watch.shortest_seconds = SHORTEST_SECONDS

    @property
    def owner(self) -> str:
        """The name under which this process owns nodes and leases."""
        return this_process().process_id

    def ensure_schema(self, *, creates: bool = True) -> None:
        """Check (embedded: migrate) the database, once per process.

        Args:
            creates: Whether to make an SQLite file that is not there.

        Raises:
            NoRunsYetError: It is not there.
            SchemaVersionError: This code may not use the database.
            DatabaseUnavailableError: It cannot be reached.
        """
        with self._check_lock:
            if not self._is_checked:
                schema.ensure(self.database, creates=creates)
                self._is_checked = True

    @property
    def is_ready(self) -> bool:
        """Whether the database has been checked, so that starting does not block."""
        return self._is_checked

    def publish(self, run_id: RunId, pieces: Sequence[Piece]) -> None:
        """Publish on a best-effort basis: what is lost here, the clock publishes again."""
        if pieces:
            self._publish(run_id, pieces)

    def owes_notes(self, run_id: RunId) -> None:
        """Note that a run has something to tell another one, if the transaction is committed."""
        self._owing.add(run_id)

    def takes_notes(self, run_id: RunId) -> bool:
        """Whether that was noted since the last time."""
        if run_id not in self._owing:
            return False
        self._owing.discard(run_id)
        return True

    def notify(self, run_id: RunId) -> None:
        """Tell waiting callers of this process, and the log, that a run has ended; called after the commit."""
        if (ending := self._endings.pop(run_id, None)) is not None:
            self._log_ending(run_id, *ending)
        self.watch.notify(run_id)

    def on_wake(self, waker: Callable[[datetime], None]) -> Callable[[], None]:
        """Call back when a run must be looked at at a given time; return a function that ends this."""
        self._wakers.append(waker)
        return lambda: self._wakers.remove(waker)

    @property
    def has_clock(self) -> bool:
        """Whether a clock of this process looks at runs whose time has come."""
        return bool(self._wakers)

    def wake_at(self, at: datetime) -> None:
        """Tell this process's clock of a time that it may not know yet."""
        for waker in self._wakers:
            waker(at)

    def redispatch_after(self, dispatches: int) -> timedelta:
        """Return how long a published message may stay unclaimed, given how often messages of its run were late.

        It grows with the run and not with the step, and no record makes it shorter: a queue that is merely
        long must not fill with copies of what is in it.
        """
        return min(self.settings.redispatch_after * (1 << min(dispatches, 16)), LONGEST_BACKOFF)

    def redispatches_within(self, span: timedelta) -> int:
        """How many turns of the redispatch back-off end within a span after a message was published."""
        turns, ends_after = 0, self.redispatch_after(0)
        while ends_after <= span:
            turns += 1
            ends_after += self.redispatch_after(turns)
        return turns

    # -- inside a transaction ---------------------------------------------------------------------

    def schedule(
        self,
        tx: Transaction,
        run: RunRow,
        followup: Followup,
        carried: Iterable[NodeId] = (),
        *,
        is_all: bool = False,
        has_children: bool = False,
        **values: object,
    ) -> datetime:
        """Write when the run must be looked at again, and other columns of it with that.

        Only ever earlier than what is there; a time that has passed means that the clock is about to look, and
        works out the rest. With `is_all` there is nothing else under way: a run that only sleeps, or waits for payloads, need not be
        looked at before its time. With `has_children` it waits for runs, if for nothing else.
        """
        settings = self.settings
        held = set(carried)
        only_waits = (
            is_all
            and not followup.begun
            and (followup.asleep or ((run.has_hooks or has_children) and not followup.ready))
        )
        times = [] if only_waits else [run.now + settings.look_again_after]
        if run.terminate_at is not None:
            times.append(run.terminate_at)
        if followup.ready or followup.wakes_body or followup.ends_run:
            times.append(run.now + self.redispatch_after(run.dispatches))
        times.extend(
            due_at + (settings.redispatch_after if node_id in held else timedelta())
            for node_id, due_at in followup.asleep.items()
        )
        times.extend(
            due_at + (settings.redispatch_after if is_carried else timedelta())
            for due_at, is_carried in followup.still_asleep.items()
        )
        wake_at = min(times, default=run.now + LOOK_DAILY)
        if run.wake_at is not None and run.wake_at <= wake_at:
            wake_at = run.wake_at
        else:
            values["wake_at"] = wake_at
        if values:
            runs.update_run(tx, run.run_id, **values)
        return wake_at

    def cut(
        self, tx: Transaction, run: RunRow, followup: Followup, plan: Plan | None = None, *,
        has_tail: bool = True, opens: bool = False,
    ) -> tuple[list[Piece], set[NodeId]]:  # fmt: skip
        """Cut what must be published now, and note which sleeps those messages carry.

        If there are more steps than a window holds, the rest is held back until claims make room.

        Args:
            tx: A transaction that has locked the run.
            run: The run.
            followup: What has become possible.
            plan: The plan that is left, where it is at hand.
            opens: Others are held back already, for which these make room.
            has_tail: Whether what follows the steps goes with them. To know it, the whole plan must be read.
        """
        if not followup.ready and not followup.asleep:
            return [], set()
        if not has_tail and not followup.asleep and len(followup.ready) <= FEW:
            rows = [followup.rows.get(node_id) for node_id in followup.ready]
            tasks = [
                Task(row.node_id, row.name, row.generation, attempts=row.attempt)
                for row in rows
                if row is not None
            ]
            if len(tasks) == len(rows):
                return [Chain((task,)) for task in tasks], set()
        if plan is None:
            plan = nodes.load_plan(tx, run.run_id)
        ready = [node_id for node_id in followup.ready if node_id in plan.nodes]
        held = ready[WINDOW:]
        windows.hold(tx, run.run_id, ready[:WINDOW], held, followup.rows)
        asleep = [node_id for node_id in followup.asleep if node_id in plan.nodes]
        plan = with_time_left(plan, followup.asleep, run.now)
        horizon = self.settings.horizon
        pieces = cut_pieces(plan, [*ready[:WINDOW], *asleep], horizon=horizon, opens=opens or bool(held))
        carried = {node_id for node_id in asleep if cut_pieces(plan, [node_id], horizon=horizon)}
        records.mark_carried(tx, run.run_id, carried)
        return pieces, carried

    def end_run(
        self, tx: Transaction, run: RunRow, end: str | None = None, *,
        known: Mapping[NodeId, str] | None = None,
    ) -> bool:  # fmt: skip
        """Finish a run whose body has ended and which waits for nothing.

        `end` says how the body ended, when that is not in the row yet; `known` results need not be read.

        Returns:
            `False` when only the body can work out its result (a property, say), begins the run's next life, or is to be told
            that the run is to be cancelled: it must go on.

        Raises:
            UnreadableValueError: A part of the result cannot be rebuilt here.
        """
        if run.has_untold_request:
            return False
        data = codec.loads(end or large.whole(tx, run.run_id, run.plan or "null"))
        if not isinstance(data, dict):
            msg = f"run {run.run_id} has no recorded end"
            raise AssertionError(msg)  # noqa: TRY004  # only our bug can raise it
        if NEXT_LIFE in data:
            return False
        output = error = None
        status = RunStatus.FAILED
        if "error" in data:
            error = codec.dumps(data["error"])
        elif "cancelled" in data:
            status, error = RunStatus.CANCELLED, codec.dumps(data["cancelled"])
        else:
            status = RunStatus.COMPLETED
            try:
                output = codec.pack(resolve_tree(tx, run.run_id, data["result"], known))
            except UnresolvableError:
                return False
            except UnserializableValueError as unstorable:  # what a step's record held a moment ago
                status, error = RunStatus.FAILED, failures.dumps(unstorable)
        self.finish(tx, run, Ending(status, output, error))
        return True

    def try_to_end(
        self, tx: Transaction, run: RunRow, *, known: Mapping[NodeId, str] | None = None
    ) -> bool:
        """Do what `end_run` does, in a transaction that others may share.

        A result that cannot be rebuilt here is left to a continuation, which is held for it; so is the end of a run that has hooks,
        which are rows that runs share.
        """
        if run.has_hooks:
            return False
        try:
            return self.end_run(tx, run, known=known)
        except UnreadableValueError:
            return False

    def finish(self, tx: Transaction, run: RunRow, ending: Ending, **values: object) -> None:
        """Write the final state of a run, and perhaps other columns of it; of one that has hooks, in a transaction of its own."""
        left_over = hooks.close_all(tx, run) if run.has_hooks else 0
        if run.parent is not None:
            node_id = notes.parent_node(tx, run.run_id)
            notes.leave(tx, run, [Note(NoteKind.ENDED, run.parent, node_id)])
            values["has_notes"] = True
        if run.has_notes or run.is_child:
            # A clock delivers what is not delivered at once.
            values["wake_at"] = run.now + self.redispatch_after(0)
            self.owes_notes(run.run_id)
        runs.finish_run(tx, run, ending, **values)
        plans.abandon_rest(tx, run)
        # The transaction may be run again, or undone: `notify` says it.
        self._endings[run.run_id] = run.workflow, ending, left_over

    def _log_ending(self, run_id: RunId, workflow: str, ending: Ending, left_over: int) -> None:
        level, how, error = logging.INFO, str(ending.status), ending.error
        if ending.status is RunStatus.FAILED and error is not None:
            level = logging.WARNING
            how = f"failed: {failures.outline(error)}. `ckworkflow runs show {run_id}` has the message"
            how += f"\n{failures.with_traceback(error)}" if self.settings.log_tracebacks else ""
        left = f". Its body has not taken {counted(left_over, 'payload')}" if left_over else ""
        logger.log(
            level,
            "run %s (%s) %s%s",
            run_id,
            workflow,
            how,
            left,
            extra={"run_id": run_id, "workflow": workflow},
        )


def with_time_left(plan: Plan, asleep: dict[NodeId, datetime], now: datetime) -> Plan:
    """Replace the length of sleeps that have begun by the time that is left."""
    if not asleep:
        return plan
    changed = dict(plan.nodes)
    for node_id, due_at in asleep.items():
        node = changed.get(node_id)
        if node is not None and node.kind is NodeKind.SLEEP:
            changed[node_id] = PlanNode(
                node.node_id, node.kind, node.name, node.next, 0, node.generation,
                max(due_at - now, timedelta()), node.until,
            )  # fmt: skip
    return Plan(changed, plan.joins)
