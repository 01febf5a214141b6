"""What a trace records, and what it is told: nodes, outcomes, and the trace itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckworkflow import codec
from ckworkflow.model import payload_id

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from ckworkflow.model import HookKey, Json, NodeId, NodeKind


@dataclass(frozen=True, slots=True)
class Outcome:
    """The recorded end of a node, or the request to cancel the run, as the body is told of it.

    Attributes:
        node_id: The node; `CANCEL`.
        output: Its encoded result; meaningless when it failed.
        error: What the body's `await` raises; `None` when it succeeded. Of a request, what the body's task is cancelled with.
        at: The time of the continuation that delivered it: what `now()` says from then on.
    """

    node_id: NodeId
    output: Json
    error: BaseException | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Payload:
    """What was sent to a hook, as the body is told of it.

    Attributes:
        number: Its number among those of its run.
        key: What it was sent to.
        body: It, encoded.
        at: The time of the continuation that delivered it.
        is_taken: Whether the database knows that the body takes it.
    """

    number: int
    key: HookKey
    body: Json
    at: datetime
    is_taken: bool = False

    @property
    def node_id(self) -> NodeId:
        """What stands for it among the nodes."""
        return payload_id(self.number)

    @property
    def error(self) -> None:
        """None of its own."""
        return None


@dataclass(frozen=True, slots=True)
class MadeHook:
    """A hook that a body has made.

    Attributes:
        node_id: Its place in the body.
        name: What it is called.
        args: What a replay must find the same.
        line: Line of the call in the body's file.
        key: What it is found by.
        metadata: What the body has said of it, encoded.
        expires_at: From when on it takes nothing; `None`: it does not expire.
    """

    node_id: NodeId
    name: str
    args: Json
    line: int
    key: HookKey
    metadata: Json
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class ClosedHook:
    """A hook that a body has closed, or that has expired."""

    node_id: NodeId
    key: HookKey


HookChange = MadeHook | ClosedHook


@dataclass(frozen=True, slots=True)
class HookChanges:
    """What a body has done with its hooks since it was told something last.

    Attributes:
        changes: The hooks that it has made and closed, in that order.
        taken: The numbers of the payloads that it has taken, as far as that is news.
        secret: From what it has derived tokens, if that was made for it.
    """

    changes: tuple[HookChange, ...] = ()
    taken: tuple[int, ...] = ()
    secret: str | None = None

    @property
    def makes_hooks(self) -> bool:
        """Whether a hook was made."""
        return any(isinstance(change, MadeHook) for change in self.changes)


@dataclass(frozen=True, slots=True)
class CancelledChild:
    """A run that a body has started, and has asked to end.

    Attributes:
        node_id: The place of the request in the body.
        child: The node of the run.
        name: The name of its workflow.
        args: What a replay must find the same.
        line: Line of the call in the body's file.
        reason: Why, for a person.
        grace: When it is terminated, from then on; `None`: it has all the time that it needs.
    """

    node_id: NodeId
    child: NodeId
    name: str
    args: Json
    line: int
    reason: str | None
    grace: timedelta | None


@dataclass(frozen=True, slots=True)
class AwaitedChild:
    """A run that was started in a life before, and that the body waits for in this one.

    Attributes:
        node_id: The node that ends when it has.
        child: Where it was started.
    """

    node_id: NodeId
    child: NodeId


@dataclass(frozen=True, slots=True)
class Known:
    """A node that the database has and whose shape can no longer change: claimed, or delivered."""

    kind: NodeKind
    name: str
    args: Json
    is_delivered: bool
    is_stopping: bool = False
    """Whether the body has cancelled its await while it ran, and waits or has waited for its end."""
    refusal: BaseException | None = None
    """Of a hook that could not be made: why."""


@dataclass(slots=True)
class TracedNode:
    """A node as this trace met it.

    Attributes:
        node_id: Path of asyncio tasks, then ordinal in the task (`0.2:3`).
        kind: A step or a sleep.
        name: The step's registered name, or `sleep`.
        args: Encoded `{"args": [...], "kwargs": {...}}`; of a sleep `{"seconds": s}` or `{"until": iso}`.
        after: The nodes that must be recorded before this one may begin, among those not yet delivered.
        line: Line of the call in the body's file.
        fails_as_value: A failure of it is a value to the body (`gather` with `return_exceptions`).
        outcome: Set when delivered.
        passed: The body has gone on without its result.
    """

    node_id: NodeId
    kind: NodeKind
    name: str
    args: Json
    after: frozenset[NodeId]
    line: int
    fails_as_value: bool = False
    outcome: Outcome | None = None
    passed: bool = False

    def value(self) -> object:
        """Return a fresh copy of the result, or raise the recorded error."""
        if self.outcome is None:
            msg = f"{self.node_id} has no outcome"
            raise AssertionError(msg)
        if self.outcome.error is not None:
            raise self.outcome.error
        return codec.decode(self.outcome.output)


@dataclass(frozen=True, slots=True)
class Wait:
    """A boundary: a task of the body can go on once all these nodes are recorded; or once a payload comes."""

    path: str
    nodes: frozenset[NodeId]
    line: int
    reason: str
    is_for_payload: bool = False

    @property
    def is_of_timer(self) -> bool:
        """Whether a timer makes it, and no task of the body; then `path` is the timer's node."""
        return ":" in self.path


@dataclass(frozen=True, slots=True)
class End:
    """The body has ended: what is left is to wait for `after`.

    Attributes:
        result: The encoded return value, which may hold references; meaningless with `error`.
        error: What the body raised.
        after: Nodes whose record ends the run.
        next_life: The encoded arguments with which the run begins its next life in place of ending; `None`: it ends.
        at: The time of the body then; of one that ends for the next life.
        leaves_request: Whether the body had ended already when it was told that the run is to be cancelled.
    """

    result: Json
    error: BaseException | None
    after: frozenset[NodeId]
    next_life: Json = None
    at: datetime | None = None
    leaves_request: bool = False


@dataclass(frozen=True, slots=True)
class Trace:
    """What the body came to.

    Attributes:
        nodes: The nodes that it wants and has not been told of.
        waits: Why it stopped.
        end: How it ended, if it did.
        let_go: The nodes that it has come to and wants no longer, and has not been told of.
        stopping: The steps among `nodes` whose await was cancelled while they ran: it is only waited until they have ended.
        hooks: What the body has done with its hooks.
        started: The nodes of runs that the body has started, as far as that is news; whether it still wants them or not.
        cancelled: The runs that the body has started and has asked to end, as far as that is news.
        awaited: The runs of lives before that it has begun to wait for.
        orphans: Of the runs that it has started: those that had not ended when it was told that it is to be cancelled, if it was told so now.
    """

    nodes: tuple[TracedNode, ...]
    waits: tuple[Wait, ...]
    end: End | None
    let_go: frozenset[NodeId] = frozenset()
    stopping: frozenset[NodeId] = frozenset()
    hooks: HookChanges = field(default_factory=HookChanges)
    started: tuple[TracedNode, ...] = ()
    cancelled: tuple[CancelledChild, ...] = ()
    orphans: frozenset[NodeId] = frozenset()
    awaited: tuple[AwaitedChild, ...] = ()

    @property
    def ends_life(self) -> bool:
        """Whether the body has ended for the next life of the run; perhaps before all that it awaited was recorded."""
        return self.end is not None and self.end.next_life is not None

    @property
    def begins_life(self) -> bool:
        """Whether the next life of the run begins now."""
        return self.end is not None and self.end.next_life is not None and not self.end.after
