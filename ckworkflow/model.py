"""The words of the project as types: identifiers, states, and what a reader sees of a run.

Nothing here decides or touches anything; every other module may import this one.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NewType

if TYPE_CHECKING:
    from datetime import datetime

RunId = NewType("RunId", str)
NodeId = NewType("NodeId", str)

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]


class RunStatus(enum.StrEnum):
    """The state of a run. `COMPLETED`, `FAILED` and `CANCELLED` are final."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing can happen to the run any more."""
        return self in {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED}


class Ending(NamedTuple):
    """How a run has ended.

    Attributes:
        status: `COMPLETED`, `FAILED` or `CANCELLED`.
        output: Its encoded result, if it completed.
        error: What its body raised, or what stood in its way, encoded; `None` of a run that was cancelled without its body.
    """

    status: RunStatus
    output: str | None = None
    error: str | None = None


class NodeRef(NamedTuple):
    """A node as a message names it: one that was planned anew since has another generation."""

    node_id: NodeId
    generation: int


class NodeKind(enum.StrEnum):
    """What a trace may record. `CLOSE`: a body waits until its hook is closed. `CHILD`: a run that a body has started.

    `CANCEL`: a body has asked such a run to end.
    """

    STEP = "step"
    SLEEP = "sleep"
    HOOK = "hook"
    CLOSE = "close"
    CHILD = "child"
    CANCEL = "cancel"


CANCEL: Final = NodeId("cancel")
"""What stands, among the events of a run, for the request to cancel it."""
CALL_OPTIONS: Final = "options"
"""Under which name the options of one call of a step are stored beside its arguments."""
TIMER: Final = "timer"
"""The name of a sleep that nobody awaits: a timer of the body's event loop, as of `asyncio.timeout`."""


def life_of(node_id: NodeId) -> int:
    """Return in which life of its run a node is: the number with which its place begins."""
    digits = 0
    while digits < len(node_id) and node_id[digits].isdecimal():
        digits += 1
    return int(node_id[:digits] or 0)


def child_id(run_id: RunId, node_id: NodeId) -> RunId:
    """The id of the run that the body of another starts at a place: the same in each replay."""
    return RunId(hashlib.sha256(f"{run_id}/{node_id}/child".encode()).hexdigest()[:32])


def waits_for_child(place: NodeId) -> dict[str, Json]:
    """The arguments of a node that waits for a run which was started at a place in a life before."""
    return {"child": place}


AWAITS_CHILD: Final = '{"child":'
"""How those arguments begin as text; those of a child itself begin otherwise."""

_PAYLOAD: Final = "payload"


def payload_id(number: int) -> NodeId:
    """What stands, among the events of a run, for the payload with this number."""
    return NodeId(f"{_PAYLOAD}:{number}")


def payload_number(event_id: NodeId) -> int | None:
    """The number of a payload; `None` of any other event."""
    kind, _, number = event_id.partition(":")
    return int(number) if kind == _PAYLOAD else None


class Namespace(enum.StrEnum):
    """By which door payloads come to a hook: `CODE`: `resume_hook` and typed hooks. `HTTP`: requests to a webhook."""

    CODE = "code"
    HTTP = "http"


class HookKey(NamedTuple):
    """What a hook is found by.

    Attributes:
        namespace: By which door payloads come to it.
        token_hash: SHA-256 of its token, in hexadecimal digits.
    """

    namespace: Namespace
    token_hash: str

    @classmethod
    def of(cls, namespace: Namespace, token: str) -> HookKey:
        """Make the key of a token."""
        return cls(namespace, hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest())


UNTYPED_HOOK: Final = "hook"
"""What a hook is called that was not defined."""
WEBHOOK: Final = "webhook"
"""What a webhook is called."""


def hook_in_words(name: str) -> str:
    """What a sentence says of a hook: `hook decision`, or `a hook` if it has no name of its own."""
    return f"a {name}" if name in (UNTYPED_HOOK, WEBHOOK) else f"hook {name}"


@dataclass(frozen=True, slots=True)
class HookInfo:
    """A hook as a reader sees it.

    Attributes:
        run_id: The run that has made it.
        workflow: The registered name of its workflow.
        name: What `define_hook` was given; `hook` of one made by `create_hook`.
        created_at: When it was made, UTC.
        expires_at: From when on it takes nothing, UTC; `None`: it does not expire.
    """

    run_id: RunId
    workflow: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    _metadata: Callable[[], Any] = field(repr=False, compare=False)

    @property
    def metadata(self) -> Any:
        """What the body has said of it.

        Raises:
            UnreadableValueError: This process cannot rebuild it.
        """
        return self._metadata()


class NodeStatus(enum.StrEnum):
    """The state of a node of a run's plan.

    `PLANNED`: not yet claimed (or waiting for its next attempt). `RUNNING`: a process owns it; of a
    sleep: it has begun. `COMPLETED`, `FAILED`: recorded. `ABANDONED`: it ran or runs, and the body
    no longer wants it: its record feeds nothing.
    """

    PLANNED = "planned"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    ABANDONED = "abandoned"

    @property
    def is_recorded(self) -> bool:
        """Whether the outcome is known and can never change."""
        return self in {NodeStatus.COMPLETED, NodeStatus.FAILED}


class AttemptOutcome(enum.StrEnum):
    """How an attempt of a step ended that was not its last, or failed.

    `RETRIED`: it failed and is tried again. `FAILED`: it failed for good. `RELEASED`: its worker gave it back. `HELD`: it
    needs another deploy. `LOST`: its process died. `CANCELLED`: it was to stop, and has given no result.
    """

    RETRIED = "retried"
    FAILED = "failed"
    RELEASED = "released"
    HELD = "held"
    LOST = "lost"
    CANCELLED = "cancelled"


class ProcessRole(enum.StrEnum):
    """What a process that has registered itself is for: so far only to run steps."""

    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One node of a run as a reader sees it.

    Attributes:
        node_id: Its place in the body: path of asyncio tasks, then ordinal (`0:2`, `0.1:1`).
        kind: A step, a sleep, a hook, a run that the body has started, and so on.
        name: The registered name of the step, or of the workflow of the run; `sleep` for a sleep; what the hook is called.
        status: See `NodeStatus`.
        attempt: Tries so far; 0 when none has begun.
        due_at: When a sleep ends or a waiting attempt may begin, UTC; else `None`.
        started_at: When the last attempt began, UTC.
        finished_at: When the outcome was recorded, UTC.
        error: One line about the last failure.
        cancelled_at: Since when a step that ran is to stop, UTC: its await was cancelled, or its run has ended; else `None`. What it
            gave all the same is given to nobody.
        child_run_id: Of a run that the body has started: its id; else `None`.
    """

    node_id: NodeId
    kind: NodeKind
    name: str
    status: NodeStatus
    attempt: int
    due_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    error: str | None
    cancelled_at: datetime | None = None
    child_run_id: RunId | None = None
