"""A worker without processes, broker or clock: the real engine on a real database, step by step.

`SimWorker` takes published pieces apart into messages as Celery does (a chain carries its rest, the members
of a chord its body), and lets a script or a seeded random generator say which message is next and when
time passes. A process can be killed at any transaction; a second one can come in between any two.

A *family* is a run with the runs that it starts, in all their lives: it is driven until nothing of it is left to do, and what the end of a
life takes away is read before (`LifeEnd`).

Not here: the workers of `ckworkflow.worker`, which do the same by Celery (`tests/worker`).
"""

from __future__ import annotations

import inspect
import random
import re
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import sqlalchemy as sa

from ckworkflow import codec
from ckworkflow.background import AtOnce
from ckworkflow.definition import registry
from ckworkflow.engine import attempts, cancellation, claims, judging, liveness, lives, recovery, resume
from ckworkflow.engine.advance import advance, go_on
from ckworkflow.engine.answer import Answer
from ckworkflow.engine.claims import Claimed, Dropped, Early
from ckworkflow.engine.core import Engine
from ckworkflow.engine.detector import FailureDetector
from ckworkflow.engine.identity import Identity, Look, Standing
from ckworkflow.engine.settings import Settings
from ckworkflow.engine.start import start_run
from ckworkflow.errors import FatalError, HookNotFoundError
from ckworkflow.model import (
    CANCEL,
    HookKey,
    Namespace,
    NodeId,
    NodeKind,
    NodeStatus,
    RunId,
    RunStatus,
    payload_id,
)
from ckworkflow.plan import Chain, Chord, Group, Piece, Task
from ckworkflow.store import large, nodes, processes, runs, schema, tables
from ckworkflow.store.database import Database
from ckworkflow.store.expectations import ExpectationError
from ckworkflow.store.processes import ProcessRow
from ckworkflow.store.transaction import Transaction
from ckworkflow.store.writer import Work, finish

T = TypeVar("T")

_TOLD = sa.select(
    tables.runs.c.cancel_delivered, tables.runs.c.cancel_requested_at, tables.runs.c.cancel_delivered_at
).where(tables.runs.c.id == sa.bindparam("b_run"), tables.runs.c.cancel_delivered.is_not(None))
_PAYLOADS = (
    sa.select(*[tables.hook_payloads.c[name] for name in (
        "number", "token_hash", "body", "dedup_key", "received_at", "delivered", "delivered_at", "is_taken", "life",
    )])
    .where(tables.hook_payloads.c.run_id == sa.bindparam("b_run"))
    .order_by(tables.hook_payloads.c.number)
)  # fmt: skip
_HOOKS = (
    sa.select(*[tables.hooks.c[name] for name in (
        "node_id", "token_hash", "name", "created_at", "expires_at", "closed_at",
    )])
    .where(tables.hooks.c.run_id == sa.bindparam("b_run"))
    .order_by(tables.hooks.c.created_at, tables.hooks.c.node_id)
)  # fmt: skip
_LAST_HOOK = (
    sa.select(tables.hooks.c.run_id)
    .where(tables.hooks.c.token_hash == sa.bindparam("b_token"))
    .order_by(tables.hooks.c.created_at.desc())
    .limit(1)
)
_SECRET = sa.select(tables.runs.c.secret, tables.runs.c.delivered).where(tables.runs.c.id == sa.bindparam("b_run"))  # fmt: skip
_RUNS = (
    sa.select(*[tables.runs.c[name] for name in (
        "id", "workflow", "status", "input", "output", "error", "created_at", "finished_at", "life", "life_began_at", "parent", "parent_node",
        "secret", "delivered", "cancel_requested_at", "cancel_reason", "cancel_delivered", "cancel_delivered_at",
    )])
    .where(tables.runs.c.created_at >= sa.bindparam("b_since", type_=tables.runs.c.created_at.type))
    .order_by(tables.runs.c.created_at, tables.runs.c.id)
)  # fmt: skip
_ROOT = (
    sa.select(tables.runs.c.id)
    .where(
        tables.runs.c.created_at >= sa.bindparam("b_since", type_=tables.runs.c.created_at.type),
        tables.runs.c.parent.is_(None),
    )
    .limit(1)
)
_TO_DO = sa.select(tables.runs.c.id).where(tables.runs.c.wake_at.is_not(None)).limit(1)
"""A run that is live, or has something to tell."""
FIRST_PAYLOAD = 100
"""Payloads are the numbers after it, so that each is found again."""
MOST_SENT = 30
"""So many are sent to a run of which it does not wait for one: each continues its body, and no time passes meanwhile."""
DEDUP_KEYS = ("click", "retry")
REASON = "it was to be"
"""Why a run is cancelled."""
START = datetime(2030, 1, 1, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
SLACK = timedelta(milliseconds=1)
"""How much later than in a script things come due in the engine, where more moments pass."""
AHEAD = 0.7
"""How often the worker goes on in place, where it may."""
EVENT_LIMIT = 2_000
TOLD = ("recorded", "stopped")
"""How things end of which a body is told."""
TICKS_IN_TIME = 3
"""How often the clocks look at a run while the script lets time pass; then they come late."""


class ManualClock:
    """A clock that stands still until it is told to go."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def tick(self) -> None:
        """Let a moment pass, so that no two records have the same time."""
        self.now += MOMENT


class Killed(BaseException):
    """The process that runs is gone; nothing in it may notice."""


class StuckError(Exception):
    """A live run for which nothing is left to do."""


class CannotFollowError(Exception):
    """The script wants a step that the engine does not offer."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Where a process dies.

    Attributes:
        at: At which write transaction since the start, from 1.
        is_committed: Whether that transaction still takes effect.
        keeps_messages: Whether the broker outlives it and delivers again what was not acknowledged.
    """

    at: int
    is_committed: bool
    keeps_messages: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened in a run, in the order of time.

    Attributes:
        outcome: Of an attempt of a step: `recorded` (for good), `retried`, `lost` with its process, or `stopped`: it was to stop, and its
            process has died before its function began. Of a sleep, of a close and of a payload: `recorded`.
        told_at: The time at which the body was told of it; `None`: it was not.
    """

    at: datetime
    node_id: str
    kind: NodeKind
    name: str
    args: str
    outcome: str
    told_at: datetime | None = None
    run_id: str = ""

    @property
    def life(self) -> int:
        """In which life of its run it is."""
        return life_of(self.node_id)


def life_of(node_id: str) -> int:
    """The life of a run in which a node is: its place begins with that number, but for callbacks of the first."""
    number = re.match(r"\d*", node_id)
    return int(number[0]) if number is not None and number[0] else 0


class PayloadFact(NamedTuple):
    """A payload as the database has it."""

    number: int
    token_hash: str
    body: str
    dedup_key: str | None
    received_at: datetime
    delivered: int | None
    delivered_at: datetime | None
    is_taken: bool
    life: int


class HookFact(NamedTuple):
    """A hook as the database has it."""

    node_id: str
    token_hash: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    closed_at: datetime | None

    def is_open(self, now: datetime) -> bool:
        """Whether it takes payloads, if its run is live."""
        return self.closed_at is None and (self.expires_at is None or self.expires_at > now)


@dataclass(frozen=True, slots=True)
class Sending:
    """Somebody has sent a payload.

    Attributes:
        key: To what.
        body: What.
        dedup_key: The name of the sending.
        expected: What was to come of it by what the database held: `accepted`, `repeated` or `refused`.
        found: What came of it; `unknown`: the sender died.
    """

    key: HookKey
    body: str
    dedup_key: str | None
    expected: str
    found: str


class Told(NamedTuple):
    """A request to cancel a run, of which its body was told: as which event, when it was made, and the time of the body."""

    number: int
    requested_at: datetime
    told_at: datetime | None


class RunFact(NamedTuple):
    """A run as the database has it."""

    run_id: RunId
    workflow: str
    status: str
    input: str
    output: str | None
    error: str | None
    created_at: datetime
    finished_at: datetime | None
    life: int
    life_began_at: datetime | None
    parent: str | None
    parent_node: str | None
    secret: str | None
    delivered: int
    cancel_requested_at: datetime | None
    cancel_reason: str | None
    cancel_delivered: int | None
    cancel_delivered_at: datetime | None

    @property
    def request(self) -> Told | None:
        """That it is to be cancelled, if its body was told so in this life."""
        if not self.cancel_delivered or self.cancel_requested_at is None:
            return None
        return Told(self.cancel_delivered, self.cancel_requested_at, self.cancel_delivered_at)


@dataclass(frozen=True, slots=True)
class LifeEnd:
    """What was in the database when a life of a run ended for the next one; most of it is deleted afterwards.

    Attributes:
        run: The run, before the next life was written.
        delivered: How many events the body of the life was told.
        rows: The nodes of the life, as they were left.
        payloads: What was sent to its hooks and not carried over from it before; what was taken then, too.
        hooks: All hooks of the run that there were.
        next_input: The arguments of the next life.
        carried: The numbers of the payloads that have gone over.
        at: When.
    """

    run: RunFact
    delivered: int
    rows: list[nodes.NodeRow]
    payloads: list[PayloadFact]
    hooks: list[HookFact]
    next_input: str
    carried: frozenset[int]
    at: datetime


@dataclass(slots=True)
class EngineRun:
    """A run as the engine ended it; or one life of it.

    Attributes:
        run_id: Its id.
        started_at: When it was started.
        outcome: `{"result": ...}` or `{"error": ...}`, as stored.
        log: What happened.
        transactions: How many write transactions there were.
        records: Those of them that recorded an attempt.
        rows: Its nodes.
        payloads: What was sent to its hooks.
        hooks: Its hooks.
        sendings: All that was sent while it went on.
        still_found: The tokens that are found after its end.
        secret: From what its tokens are derived.
        delivered: How many events the run says that its body was told.
        request: As which of them it was told that it was to be cancelled, and when that was asked.
        status: How it has ended.
        reason: Why it was to be cancelled.
        life: Which life of the run it is.
        fact: The row of the run; of a life before its last, as it was then.
        carried: Of a life that has ended for the next one: the payloads that have gone over to that.
        ended_at: When that was.
        requests: Of the run that was started: when somebody has asked that it be cancelled, and was told that it was live.
        family: Of the run that was started: it, and the runs that it and they have started, each life by itself.
    """

    run_id: RunId
    started_at: datetime
    outcome: dict[str, Any]
    log: list[Entry]
    transactions: int
    records: frozenset[int]
    rows: list[nodes.NodeRow] = field(default_factory=list)
    payloads: list[PayloadFact] = field(default_factory=list)
    hooks: list[HookFact] = field(default_factory=list)
    sendings: list[Sending] = field(default_factory=list)
    still_found: list[str] = field(default_factory=list)
    secret: str | None = None
    delivered: int = 0
    request: Told | None = None
    status: RunStatus | None = None
    reason: str | None = None
    life: int = 0
    fact: RunFact | None = None
    carried: frozenset[int] = frozenset()
    ended_at: datetime | None = None
    requests: list[datetime] = field(default_factory=list)
    family: list[EngineRun] = field(default_factory=list)


Fault = str
"""How a step is made to fail: `fatal` at once, `error` at each attempt."""

Move = tuple[str, Any]
"""`("time", since the start of the run)`, `("attempt", node id)` or `("payload", (node id of the hook, value))`."""


def call_step(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], fault: Fault | None) -> Any:
    """Run a step's function, or fail in its place."""
    short = name.rpartition(".")[2]
    if fault == "fatal":
        raise FatalError(f"{short} was made to fail", code=50007, kind="made_up")
    if fault == "error":
        raise ValueError(f"{short} was made to fail")
    value = registry.require_step(name).function(*args, **kwargs)
    return drive(value) if inspect.iscoroutine(value) else value


def drive(coro: Any) -> Any:
    """Run a coroutine that never waits."""
    try:
        coro.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a step of these tests may not wait")


def canonical_args(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Arguments as text that can be compared."""
    return canonical(
        {
            "args": [codec.encode(arg, path=f"args[{index}]") for index, arg in enumerate(args)],
            "kwargs": {key: codec.encode(arg, path=key) for key, arg in kwargs.items()},
        }
    )


def canonical(tree: Any) -> str:
    """A stored value as text: equal exactly when the values are."""
    import json

    return json.dumps(tree, sort_keys=True)


class SimDatabase(Database):
    """Counts write transactions, dies at one of them, and lets others in between."""

    def __init__(self, url: str, clock: ManualClock) -> None:
        super().__init__(url, clock=clock)
        if self.is_sqlite:
            # Processes die here, not the machine: nothing need reach the disk.
            sa.event.listen(self.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF"))
        self.count = 0
        self.kill: Kill | None = None
        self.between: Callable[[], None] = lambda: None
        self.on_commit: Callable[[], None] = lambda: None
        self.on_loss: Callable[[], None] = lambda: None

    def transact(self, work: Callable[[Transaction], T]) -> T:
        return self._counted(work, super().transact)

    def transact_run(self, run_id: RunId, work: Work[T], *, is_lasting: bool = True) -> T:
        go_on = super().transact_run
        return self._counted(work, lambda counted: go_on(run_id, counted, is_lasting=is_lasting))

    def _counted(self, work: Work[T], transact: Callable[[Callable[[Transaction], T]], T]) -> T:
        self.count += 1
        kill = self.kill if self.kill is not None and self.kill.at == self.count else None

        def counted(tx: Transaction) -> T:
            result = finish(work, tx)
            if kill and not kill.is_committed:
                raise Killed
            return result

        try:
            result = transact(counted)
        except ExpectationError:
            self.count -= 1  # nothing was done: it is tried again in another way
            raise
        except BaseException:
            self.on_loss()
            raise
        self.on_commit()
        if kill:
            raise Killed
        self.between()
        return result


class SimEngine(Engine):
    """An engine that is a process of its own to the database."""

    def __init__(
        self, name: str, database: SimDatabase, settings: Settings, publish: Callable[..., bool]
    ) -> None:
        super().__init__(settings, publish)
        self.beside = AtOnce()
        self.database = database
        self.has_news = True
        self._name = name

    @property
    def owner(self) -> str:
        return self._name

    def notify(self, run_id: RunId) -> None:
        super().notify(run_id)
        self.has_news = True


@dataclass(slots=True)
class Message:
    """A task message as the broker holds it."""

    run_id: RunId
    task: Task
    rest: tuple[Any, ...]
    chord: Chain | None
    eta: datetime


class SimWorker:
    """See the module.

    Args:
        url: An empty database.
        bodies_kept: As in the settings: 0 always replays.
        processes: How many processes take the messages in turn.
    """

    def __init__(self, url: str, *, bodies_kept: int = 64, process_count: int = 1) -> None:
        self.clock = ManualClock()
        self.database = SimDatabase(url, self.clock)
        self.settings = Settings(database_url=url, bodies_kept=bodies_kept)
        self.queue: list[Message] = []
        self.log: list[Entry] = []
        self.records: set[int] = set()
        self.faults: Mapping[str, Fault] = {}
        self.rng = random.Random(0)
        self.interrupts = 0.0
        self.doubles = 0.0
        self.drops = 0.0
        self.ahead = 0.0
        self._depth = 0
        self._outer: _Process | None = None
        self._born = 0
        self._in_hand: list[Message] = []
        self._started_at = START
        self._slack = timedelta()
        self._running: Entry | None = None
        self._cancel_at: list[int] = []
        self._asked = 0
        self._accepted: list[datetime] = []
        self._named: set[str] = set()
        self._is_family = False
        self._ends: dict[tuple[RunId, int], LifeEnd] = {}
        self._run_id: RunId | None = None
        self._sends: float | None = None
        self._tokens: tuple[str, ...] = ()
        self._sent = 0
        self._sendings: list[Sending] = []
        self._client = SimEngine("client", self.database, self.settings, self._publish)
        schema.upgrade(self.database)
        self._dead: set[str] = set()
        self.processes = [self._process() for _ in range(process_count)]

    # -- one run --------------------------------------------------------------------------------------

    def run(
        self,
        workflow: Any,
        args: Sequence[Any] = (),
        *,
        script: Sequence[Move] = (),
        seed: int = 0,
        faults: Mapping[str, Fault] | None = None,
        kill: Kill | None = None,
        cancel_at: int | Sequence[int] | None = None,
        sends: float | None = None,
        tokens: Sequence[str] = (),
        is_strict: bool = True,
        is_family: bool = False,
    ) -> EngineRun | None:
        """Start a workflow and drive it to its end.

        Args:
            workflow: The workflow.
            args: Its arguments.
            script: What happens, in this order; after it the seed decides.
            seed: Of what the script leaves open.
            faults: The nodes whose steps are made to fail.
            kill: Where a process dies.
            cancel_at: After which write transaction somebody asks that the run be cancelled; or after which ones, each time for another
                reason.
            sends: How often somebody sends to a hook, where that need not be; `None`: the run has none.
            tokens: Those that its body may have chosen.
            is_strict: Whether a script that cannot be followed is an error.
            is_family: Whether the run may start others, or begin its life anew.

        Returns:
            The run, or `None` when the process died before it was started.
        """
        self.rng = random.Random(seed)
        self.faults = faults or {}
        self.queue.clear()
        self.log = []
        self.records = set()
        self.database.count, self.database.kill = 0, kill
        times = (cancel_at,) if isinstance(cancel_at, int) else cancel_at or ()
        self._cancel_at = sorted(times)
        self._asked, self._accepted = 0, []
        self._is_family = is_family
        self._ends = {}
        self._sends, self._tokens = sends, tuple(tokens)
        self._sent, self._sendings = 0, []
        self.database.between = self._interrupt
        self._run_id = None
        self.clock.tick()
        self._started_at = self.clock.now
        self._slack = timedelta()
        with ExitStack() as stack:
            if is_family:
                stack.enter_context(mock.patch.object(lives, "write", self._writing(lives.write)))
            return self._run_it(workflow, args, script, is_strict=is_strict)

    def _run_it(
        self, workflow: Any, args: Sequence[Any], script: Sequence[Move], *, is_strict: bool
    ) -> EngineRun | None:
        try:
            run_id: RunId | None = start_run(self.processes[0].engine, workflow, tuple(args), {})
        except Killed:
            run_id = None
        if run_id is None:
            run_id = self.database.read(
                lambda tx: tx.execute(_ROOT, {"b_since": self._started_at}).scalar()
            )
            self._reap(self.processes[0])
            if run_id is None:
                return None
        self._run_id = run_id
        try:
            if self._may_send(1):
                self._send_something()
            self.ahead = 0.0  # what a script names comes by a message
            self._named = {value for what, value in script if what == "attempt"}
            for move in script:
                if self._is_over(run_id):
                    break
                try:
                    self._follow(run_id, move)
                except CannotFollowError:
                    if is_strict:
                        raise
                    break
            self.ahead = AHEAD
            self._finish(run_id)
        finally:
            self.database.kill, self.database.between = None, lambda: None
        return self._family_of(run_id) if self._is_family else self._result(run_id)

    def _is_over(self, run_id: RunId) -> bool:
        if self._is_family:
            return not self.database.read(lambda tx: tx.execute(_TO_DO, {}).all())
        return self._has_ended(run_id)

    def _finish(self, run_id: RunId) -> None:
        for _ in range(EVENT_LIMIT):
            if self._is_over(run_id):
                return
            if self._may_send(1):
                self._send_something()
                continue
            ready = [message for message in self.queue if message.eta <= self.clock.now]
            if ready and not (self.rng.random() < 0.1 and self._may_pass_time()):
                self._guard(self.rng.choice(ready))
            elif self._sends is None or self.rng.random() < 0.5 or not self._send_to_open(run_id):
                self._pass_time(run_id)
        raise StuckError(f"{run_id} has not ended after {EVENT_LIMIT} events")

    def _may_pass_time(self) -> bool:
        return any(message.eta > self.clock.now for message in self.queue) or self.interrupts > 0

    def _pass_time(self, run_id: RunId) -> None:
        wake_at = self.database.read(lambda tx: runs.next_wake_at(tx, self.database)[1])
        times = [message.eta for message in self.queue if message.eta > self.clock.now]
        if wake_at is not None:
            times.append(wake_at)
        if not times:
            raise StuckError(f"{run_id} has nothing to wait for")
        self.advance_to(max(min(times), self.clock.now))

    def _follow(self, run_id: RunId, move: Move) -> None:
        what, value = move
        if what == "time":
            self._slack += SLACK
            self.advance_to(self._started_at + value + self._slack)
            return
        if what == "payload":
            node_id, payload = value
            self.advance_to(self.clock.now)
            hook = next((hook for hook in self._open_hooks(run_id) if hook.node_id == node_id), None)
            if hook is None:
                raise CannotFollowError(f"hook {node_id} is not open: {self._hooks(run_id)}")
            self._send_payload(HookKey(Namespace.CODE, hook.token_hash), payload, None)
            return
        seen: list[Message] = []
        # `start` leaves it to a clock to tell the body of a close in it; and a clock comes late to a sleep for which a message was
        # under way, which a surprise has made void.
        waits = [] if self._sends is None else [timedelta(), self.settings.redispatch_after]
        while True:
            found = next(
                (
                    message
                    for message in self.queue
                    if message.task.node_id == value
                    and message.eta <= self.clock.now
                    and not any(message is old for old in seen)
                ),
                None,
            )
            never = next((each for each in self.queue if self._is_never_begun(each)), None)
            if found is None and never is not None:
                # An argument of it cannot be worked out, as its claim finds: where it is called, the body raises.
                self._guard(never)
                continue
            if found is None and waits:
                self.advance_to(self.clock.now + waits.pop(0))
                continue
            if found is None:
                raise CannotFollowError(f"{value} cannot run now; there is {self.queue}")
            seen.append(found)
            if self._guard(found):
                return

    def _is_never_begun(self, message: Message) -> bool:
        """Whether a script that names all steps does not name this one."""
        return message.eta <= self.clock.now and message.task.node_id not in self._named

    def _result(self, run_id: RunId) -> EngineRun:
        record = self.database.read(lambda tx: runs.with_parts(tx, runs.read_run(tx, run_id)))
        rows = self.database.read(
            lambda tx: nodes.with_parts(tx, run_id, nodes.load_nodes(tx, run_id).get())
        )
        payloads = self.database.read(lambda tx: _payloads(tx, run_id))
        ((secret, count),) = self.database.read(lambda tx: tx.execute(_SECRET, {"b_run": run_id}).all())
        told = self.database.read(lambda tx: tx.execute(_TOLD, {"b_run": run_id}).all())
        request = Told._make(told[0]) if told else None
        outcome = (
            {"result": codec.loads(record.output)}
            if record.output is not None
            else {"error": codec.loads(record.error or "null")}
        )
        return EngineRun(
            run_id, self._started_at, outcome, self._told(self.log, rows, payloads, request), self.database.count,
            frozenset(self.records), rows, payloads, self._hooks(run_id), self._sendings, self._still_found(run_id), secret, count,
            request, record.status, record.cancel_reason,
        )  # fmt: skip

    @staticmethod
    def _told(
        steps: Sequence[Entry], rows: Sequence[nodes.NodeRow], payloads: Sequence[PayloadFact],
        request: Told | None,
    ) -> list[Entry]:  # fmt: skip
        """What happened, in the order in which the body was told."""
        log = [
            *steps,
            *(
                Entry(
                    row.finished_at,
                    row.node_id,
                    row.kind,
                    row.name,
                    canonical(codec.loads(row.args)),
                    "recorded",
                )
                for row in rows
                if row.finished_at is not None
                and (row.kind in (NodeKind.SLEEP, NodeKind.CLOSE) or _is_end_of_child(row))
            ),
        ]
        attempted = {entry.node_id for entry in steps}
        log += [
            Entry(row.finished_at, row.node_id, row.kind, row.name, row.args, "stopped")
            for row in rows
            if row.finished_at is not None and row.delivered and _has_died_before(row, attempted)
        ]
        positions = {row.node_id: row.position for row in rows}
        # A hook is no event, and a request to another run is none.
        delivered = {row.node_id: row.delivered or None for row in rows}
        for each in payloads:
            if each.delivered is None:
                continue
            node_id = payload_id(each.number)
            log.append(
                Entry(each.received_at, node_id, NodeKind.HOOK, each.token_hash, each.body, "recorded")
            )
            delivered[node_id], positions[node_id] = each.delivered, sys.maxsize
        if request is not None:
            log.append(Entry(request.requested_at, CANCEL, NodeKind.SLEEP, "cancel", "", "recorded"))
            delivered[CANCEL], positions[CANCEL] = request.number, sys.maxsize
        log.sort(key=lambda entry: (entry.at, positions.get(NodeId(entry.node_id), 0)))
        told_at = {row.node_id: row.delivered_at for row in rows}
        told_at |= {payload_id(each.number): each.delivered_at for each in payloads}
        if request is not None:
            told_at[CANCEL] = request.told_at
        return [
            replace(entry, told_at=told_at.get(NodeId(entry.node_id)))
            if entry.outcome in TOLD
            else entry
            for entry in _as_delivered(log, delivered)
        ]

    # -- families -------------------------------------------------------------------------------------

    def _writing(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """Note what there is when a life of a run ends for the next one."""

        def writes(engine: Any, tx: Transaction, run: Any, trace: Any, life: Any, **options: Any) -> Any:
            run_id = run.run_id
            before = {fact.run_id: fact for fact in self._runs(tx)}[run_id]
            payloads = [each for each in _payloads(tx, run_id) if each.life == run.life]
            answer = write(engine, tx, run, trace, life, **options)
            ((secret, _),) = tx.execute(_SECRET, {"b_run": run_id}).all()
            taken = set(trace.hooks.taken)
            payloads = [
                each._replace(is_taken=each.is_taken or each.number in taken) for each in payloads
            ]
            rows = [
                row._replace(delivered=row.delivered or None) for row in nodes.load_life(tx, run_id, run.life).get()
            ]  # fmt: skip
            # If this is undone, another end of the same life takes its place.
            self._ends[run_id, run.life] = LifeEnd(
                before._replace(secret=secret), options["delivered"], rows, payloads,
                [HookFact._make(row) for row in tx.execute(_HOOKS, {"b_run": run_id}).all()], codec.dumps(life.args),
                frozenset(each.number for each in _payloads(tx, run_id) if each.life == life.number and not each.is_taken),
                self.clock.now,
            )  # fmt: skip
            return answer

        return writes

    def _runs(self, tx: Transaction) -> list[RunFact]:
        return [
            RunFact._make(row)
            for row in tx.execute(_RUNS, {"b_since": self._started_at}).all()
        ]  # fmt: skip

    def _family_of(self, root: RunId) -> EngineRun:
        facts = self.database.read(self._runs)
        family = [life for fact in facts for life in self._lives_of(fact)]
        found = [life for life in family if life.run_id == root][-1]
        found.requests = self._accepted
        found.sendings, found.still_found, found.family = (
            self._sendings,
            [token for each in facts for token in self._still_found(each.run_id)],
            family,
        )
        return found

    def _lives_of(self, fact: RunFact) -> Iterable[EngineRun]:
        run_id = fact.run_id
        for number in range(fact.life):
            end = self._ends[run_id, number]
            hooks = [hook for hook in end.hooks if life_of(hook.node_id) == number]
            yield self._life(
                end.run, {"next": codec.loads(end.next_input)}, end.rows, end.payloads, hooks, end.delivered, end.run.request, end.carried, end.at,
            )  # fmt: skip
        rows = self.database.read(lambda tx: nodes.load_life(tx, run_id, fact.life).get())
        payloads = self.database.read(lambda tx: _payloads(tx, run_id))
        outcome = (
            {"result": codec.loads(fact.output)}
            if fact.output is not None
            else {"error": codec.loads(fact.error or "null")}
        )
        yield self._life(
            fact, outcome, rows, [each for each in payloads if each.life == fact.life],
            [hook for hook in self._hooks(run_id) if life_of(hook.node_id) == fact.life], fact.delivered, fact.request,
        )  # fmt: skip

    def _life(
        self, fact: RunFact, outcome: dict[str, Any], rows: list[nodes.NodeRow], payloads: list[PayloadFact],
        hooks: list[HookFact], delivered: int, request: Told | None, carried: frozenset[int] = frozenset(),
        ended_at: datetime | None = None,
    ) -> EngineRun:  # fmt: skip
        steps = [entry for entry in self.log if entry.run_id == fact.run_id and entry.life == fact.life]
        began_at = self._started_at if fact.parent is None and not fact.life else fact.created_at
        return EngineRun(
            fact.run_id, fact.life_began_at or began_at, outcome, self._told(steps, rows, payloads, request), self.database.count,
            frozenset(self.records), rows, payloads, hooks, secret=fact.secret, delivered=delivered, request=request, life=fact.life,
            fact=fact, carried=carried, ended_at=ended_at,
        )  # fmt: skip

    def _has_ended(self, run_id: RunId) -> bool:
        # Asked only when a process says that some run has ended, or when one has died.
        engines = [*(process.engine for process in self.processes), self._client]
        if not any(engine.has_news for engine in engines):
            return False
        for engine in engines:
            engine.has_news = False
        status = self.database.read(lambda tx: runs.read_status(tx, run_id))
        return status is not None and status.is_final

    # -- hooks ----------------------------------------------------------------------------------------

    def _hooks(self, run_id: RunId) -> list[HookFact]:
        return self.database.read(
            lambda tx: [HookFact._make(row) for row in tx.execute(_HOOKS, {"b_run": run_id}).all()]
        )

    def _family_ids(self, run_id: RunId) -> list[RunId]:
        """The runs that somebody may send to."""
        if not self._is_family:
            return [run_id]
        return [fact.run_id for fact in self.database.read(self._runs)]

    def _open_hooks(self, run_id: RunId) -> list[HookFact]:
        found = []
        for each in self._family_ids(run_id):
            status = self.database.read(lambda tx, of=each: runs.read_status(tx, of))  # type: ignore[misc]
            if status is not None and not status.is_final:
                found += [hook for hook in self._hooks(each) if hook.is_open(self.clock.now)]
        return found

    def _holder_of(self, token_hash: str) -> RunId | None:
        """The run that has an open hook of a token."""
        assert self._run_id is not None
        for each in self._family_ids(self._run_id):
            status = self.database.read(lambda tx, of=each: runs.read_status(tx, of))  # type: ignore[misc]
            if status is None or status.is_final:
                continue
            if any(h.token_hash == token_hash and h.is_open(self.clock.now) for h in self._hooks(each)):
                return each
        return None

    def _may_send(self, weight: float) -> bool:
        """Whether somebody sends though nobody need."""
        return bool(self._sends and self._sent < MOST_SENT and self.rng.random() < weight * self._sends)

    def _send_to_open(self, run_id: RunId) -> bool:
        """Send to a hook of the run; whether there was one."""
        hooks = self._open_hooks(run_id)
        if hooks:
            self._send_value(HookKey(Namespace.CODE, self.rng.choice(hooks).token_hash))
        return bool(hooks)

    def _send_something(self) -> None:
        """Send to a hook of the run, or to a token that may be unknown or closed."""
        assert self._run_id is not None
        hooks = [
            hook.token_hash for each in self._family_ids(self._run_id) for hook in self._hooks(each)
        ]
        if hooks and self.rng.random() < 0.8:
            key = HookKey(Namespace.CODE, self.rng.choice(hooks))
        else:
            key = HookKey.of(Namespace.CODE, self.rng.choice(self._tokens))
        for _ in range(self.rng.choice((1, 1, 1, 2, 3))):
            self._send_value(key)

    def _send_value(self, key: HookKey) -> None:
        self._sent += 1
        value: Any = FIRST_PAYLOAD + self._sent
        if self.rng.random() < 0.1:
            value = f"no number {value}"
        dedup_key = self.rng.choice(DEDUP_KEYS) if self.rng.random() < 0.4 else None
        self._send_payload(key, value, dedup_key)

    def _send_payload(self, key: HookKey, value: Any, dedup_key: str | None) -> None:
        """Send, in a process that runs no steps, and may die of it."""
        self._depth += 1
        running, self._running = self._running, None
        self.clock.tick()
        body = codec.dumps(codec.encode(value, path="payload"))
        expected, found = self._expected(key, dedup_key), "unknown"
        try:
            resume.resume(self._client, key, body, dedup_key=dedup_key)
            found = "taken"
        except HookNotFoundError:
            found = "refused"
        except Killed:
            self.database.kill = None
            self._client.bodies.clear()
            self._client.has_news = True  # as of any process that comes after it
        finally:
            self._depth -= 1
            self._running = running
        self._sendings.append(Sending(key, body, dedup_key, expected, found))

    def _expected(self, key: HookKey, dedup_key: str | None) -> str:
        """What is to come of a sending, by the plain rows."""
        holder = self._holder_of(key.token_hash)
        run_id = holder
        if run_id is None:
            run_id = self.database.read(
                lambda tx: tx.execute(_LAST_HOOK, {"b_token": key.token_hash}).scalar()
            )
        known = self.database.read(lambda tx: tx.execute(_PAYLOADS, {"b_run": run_id}).all())
        if dedup_key is not None and any(
            (row[1], row[3]) == (key.token_hash, dedup_key) for row in known
        ):
            return "repeated"
        return "accepted" if holder is not None else "refused"

    def _still_found(self, run_id: RunId) -> list[str]:
        """The tokens of a run that has ended which are found."""
        found = []
        for hook in self._hooks(run_id):
            try:
                resume.find(self._client, HookKey(Namespace.CODE, hook.token_hash))
            except HookNotFoundError:
                continue
            found.append(hook.token_hash)
        return found

    # -- time -----------------------------------------------------------------------------------------

    def advance_to(self, time: datetime) -> None:
        """Let time pass; the clocks of the processes do what comes due, not all of it in time."""
        for _ in range(TICKS_IN_TIME):
            wake_at = self.database.read(lambda tx: runs.next_wake_at(tx, self.database)[1])
            if wake_at is None or wake_at > time:
                break
            self.clock.now = max(self.clock.now, wake_at)
            self._tick()
        self.clock.now = max(self.clock.now, time)
        wake_at = self.database.read(lambda tx: runs.next_wake_at(tx, self.database)[1])
        if wake_at is not None and wake_at <= self.clock.now:
            self._tick()

    def _tick(self) -> None:
        process = self.rng.choice(self.processes)
        self.clock.tick()
        try:
            recovery.tick(process.engine)
        except Killed:
            pass  # as in `_guard`
        else:
            return
        self._reap(process)

    # -- messages -------------------------------------------------------------------------------------

    def _publish(self, run_id: RunId, pieces: Sequence[Piece]) -> bool:
        for piece in pieces:
            if self.rng.random() < self.drops:
                continue
            self._send(run_id, piece, (), None)
            if self.rng.random() < self.doubles:
                self._send(run_id, piece, (), None)
        return True

    def _send(self, run_id: RunId, item: Any, rest: tuple[Any, ...], chord: Chain | None) -> None:
        if isinstance(item, Task):
            eta = item.until if item.until is not None else self.clock.now + (item.delay or timedelta())
            self.queue.append(Message(run_id, item, rest, chord, eta))
        elif isinstance(item, Chain):
            self._send(run_id, item.items[0], (*item.items[1:], *rest), chord)
        else:
            assert not rest, "a fork ends what it stands in"
            assert chord is None, "a fork ends what it stands in"
            for member in item.members:
                self._send(run_id, member, (), item.body if isinstance(item, Chord) else None)

    def _guard(self, message: Message) -> bool:
        """Handle a message in a process that may die of it."""
        # One whose process came in between two others' transactions is another process.
        process = self.rng.choice([other for other in self.processes if other is not self._outer])
        self.queue = [other for other in self.queue if other is not message]
        self._in_hand.append(message)
        outer, self._outer = self._outer, process
        try:
            return self._handle(process.engine, message)
        except Killed:
            pass  # and on, outside: what bodies raise later must not have this for its context
        finally:
            self._in_hand = [other for other in self._in_hand if other is not message]
            self._outer = outer
        kill, running, self._running = self.database.kill, self._running, None
        if running is not None:
            self._log_lost(message.run_id, running)
        if kill is not None and not kill.keeps_messages:
            self.queue.clear()
        else:
            self.queue.append(replace(message, eta=self.clock.now))
        self._reap(process)
        return True

    def _handle(self, engine: SimEngine, message: Message) -> bool:
        """As `ckworkflow.worker.steps.task` does; whether the step was claimed."""
        run_id, task = message.run_id, message.task
        claimed = claims.claim(engine, run_id, task.node_id, task.generation, step=task.name)
        if isinstance(claimed, Early):
            self.queue.append(replace(message, eta=self.clock.now + claimed.wait))
            return False
        if isinstance(claimed, Dropped):
            if claimed.wakes_body:
                advance(engine, run_id)
            return False
        engine.publish(run_id, claimed.pieces)
        following, message = self._run(engine, claimed, message)
        while following is not None:
            row = following.row
            rest = message.rest
            is_next = bool(rest) and _first_nodes(rest[0]) == {(row.node_id, row.generation)}
            task = Task(row.node_id, row.name, row.generation)
            message = Message(run_id, task, rest[1:] if is_next else (), None, self.clock.now)
            following, message = self._run(engine, following, message)
        return True

    def _run(
        self, engine: SimEngine, claimed: Claimed, message: Message
    ) -> tuple[Claimed | None, Message]:
        """Run a claimed step, and do what follows from its record."""
        run_id = message.run_id
        carries = _first_nodes(message.rest[0] if message.rest else message.chord)
        recorded, is_success = self._attempt(engine, claimed, message.task.name, carries)
        following = go_on(engine, run_id, recorded, may_run=self._may_run)
        if recorded.retry_in is not None:
            self.queue.append(replace(message, eta=self.clock.now + recorded.retry_in))
        elif is_success and recorded.keeps_chain and message.rest:
            self._send(run_id, message.rest[0], message.rest[1:], message.chord)
        elif is_success and recorded.keeps_chain and message.chord is not None:
            self._send(run_id, message.chord, (), None)
        if not recorded.keeps_chain and recorded.here is None:
            message = replace(message, rest=())
        return following, message

    def _may_run(self, _name: str) -> bool:
        return self.rng.random() < self.ahead

    def _attempt(
        self, engine: SimEngine, claimed: Claimed, name: str, carries: frozenset[tuple[NodeId, int]]
    ) -> tuple[Answer, bool]:
        node_id = claimed.row.node_id
        self.clock.tick()
        entry = Entry(
            self.clock.now,
            node_id,
            NodeKind.STEP,
            name,
            canonical_args(claimed.args, claimed.kwargs),
            "lost",
            run_id=claimed.run_id,
        )
        self._running = entry
        step = registry.require_step(name)
        failure: judging.Failure | None = None
        try:
            value = call_step(name, claimed.args, claimed.kwargs, self.faults.get(node_id))
        except Exception as error:
            failure = judging.judge(error, now=self.clock)
        self.records.add(self.database.count + 1)
        # Outside the handler: another process may come in between.
        if failure is None:
            recorded = attempts.record_success(
                engine, claimed, value, carries=carries, may_run=self._may_run
            )
        else:
            recorded = attempts.record_failure(engine, claimed, failure, step=step, carries=carries)
        self._running = None
        self.log.append(replace(entry, outcome="recorded" if recorded.retry_in is None else "retried"))
        return recorded, failure is None

    # -- processes ------------------------------------------------------------------------------------

    def _process(self, *, replaces: _Process | None = None) -> _Process:
        self._born += 1
        name = f"process-{self._born}"
        here = Identity(name, "machine", "boot", self._born, "start")
        row = ProcessRow(
            name, "worker", here.host, here.boot_id, here.pid, here.pid_started, self.clock.now
        )
        known = [row] if replaces is None else [row, replaces.row]

        def renew(tx: Transaction) -> None:
            for each in known:
                processes.renew_process(tx, each, now=self.clock.now)

        self.database.transact(renew)
        if replaces is not None:
            self._dead.add(replaces.row.process_id)
        engine = SimEngine(name, self.database, self.settings, self._publish)
        engine.detector = FailureDetector(
            self.settings.silence, self.settings.silence, here=lambda: here, ask=self._ask_kernel
        )
        return _Process(engine, row)

    def _ask_kernel(self, process: Identity) -> Look:
        return Look(Standing.ENDED if process.process_id in self._dead else Standing.RUNNING)

    def _reap(self, process: _Process) -> None:
        """Replace a process that has died, and let the new one clean up after it."""
        self.database.kill = None
        between, self.database.between = self.database.between, lambda: None
        process.engine.bodies.clear()
        born = self._process(replaces=process)
        self.processes = [born if other is process else other for other in self.processes]
        liveness.reap_dead(born.engine)
        self.clock.tick()
        recovery.tick(born.engine)
        self.database.between = between

    def _log_lost(self, run_id: RunId, entry: Entry) -> None:
        rows = self.database.read(lambda tx: nodes.load_nodes(tx, run_id).get())
        found = next((row for row in rows if row.node_id == entry.node_id), None)
        is_recorded = found is not None and found.finished_at == entry.at and found.owner is None
        is_retried = found is not None and found.status is NodeStatus.PLANNED
        self.log.append(
            replace(entry, outcome="recorded" if is_recorded else "retried" if is_retried else "lost")
        )

    def _interrupt(self) -> None:
        """Between two transactions of one process, another may do something."""
        is_to_cancel = self._cancel_at and self.database.count >= self._cancel_at[0]
        if is_to_cancel and not self._depth and self._run_id is not None:
            self._cancel(self._run_id)
        if not self._depth and self._run_id is not None and self._may_send(0.5):
            self._send_something()
        if self._depth or self.rng.random() >= self.interrupts:
            return
        ready = [message for message in self.queue if message.eta <= self.clock.now]
        if not ready:
            return
        self._depth += 1
        running, self._running = self._running, None
        try:
            self._guard(self.rng.choice(ready))
        finally:
            self._depth -= 1
            self._running = running

    def _cancel(self, run_id: RunId) -> None:
        """Ask that the run be cancelled, in a process that runs no steps, and may die of it."""
        self._cancel_at.pop(0)
        reason = REASON if not self._asked else f"{REASON}, {self._asked}"
        self._asked += 1
        self._depth += 1
        running, self._running = self._running, None
        self.clock.tick()
        at = self.clock.now
        try:
            if cancellation.cancel(self._client, run_id, reason=reason, grace=None):
                self._accepted.append(at)
        except Killed:
            self.database.kill = None
            self._client.bodies.clear()
            self._client.has_news = True  # as of any process that comes after it
        finally:
            self._depth -= 1
            self._running = running

    def close(self) -> None:
        """Close bodies and connections."""
        for process in self.processes:
            process.engine.bodies.clear()
            process.engine.database.dispose()


def _payloads(tx: Transaction, run_id: RunId) -> list[PayloadFact]:
    found = [PayloadFact._make(row) for row in tx.execute(_PAYLOADS, {"b_run": run_id}).all()]
    return [each._replace(body=large.whole(tx, run_id, each.body)) for each in found]


def _has_died_before(row: nodes.NodeRow, attempted: Container[str]) -> bool:
    """Whether a step was to stop, and its process has died between the claim and the beginning of its function."""
    return row.kind is NodeKind.STEP and row.cancelled_at is not None and row.node_id not in attempted


def _is_end_of_child(row: nodes.NodeRow) -> bool:
    """Whether the body was told that a run has ended which it has started."""
    return row.kind is NodeKind.CHILD and row.delivered is not None


def _as_delivered(log: list[Entry], delivered: Mapping[NodeId, int | None]) -> list[Entry]:
    """Hold back what the body was told of later than of things that happened after it."""
    open_ = sorted(number for number in delivered.values() if number is not None)
    held: list[tuple[int, Entry]] = []
    ordered: list[Entry] = []
    for entry in log:
        number = delivered.get(NodeId(entry.node_id))
        if entry.outcome not in TOLD or number is None:
            ordered.append(entry)
            continue
        held.append((number, entry))
        held.sort(key=lambda item: item[0])
        while held and open_ and held[0][0] == open_[0]:
            ordered.append(held.pop(0)[1])
            open_.pop(0)
    return ordered + [entry for _, entry in held]


@dataclass(slots=True)
class _Process:
    engine: SimEngine
    row: ProcessRow


def _first_nodes(item: Any) -> frozenset[tuple[NodeId, int]]:
    """As `canvas.first_nodes`, of a piece that is not a signature yet."""
    if item is None:
        return frozenset()
    if isinstance(item, Task):
        return frozenset({(item.node_id, item.generation)})
    if isinstance(item, Chain):
        return _first_nodes(item.items[0])
    assert isinstance(item, Group | Chord)
    return _union(item.members)


def _union(items: Iterable[Any]) -> frozenset[tuple[NodeId, int]]:
    return frozenset(node for item in items for node in _first_nodes(item))
