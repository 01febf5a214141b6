"""Canvas: pieces of a plan as Celery chains, groups and chords, and their publishing.

A message names its run, node and generation and carries nothing else: arguments, results and tokens stay
in SQL. The id of a Celery task says the same (`ckw:<run>:<node>:<generation>`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from celery import chain, chord, group
from kombu.exceptions import OperationalError

from ckworkflow.definition import registry
from ckworkflow.model import NodeId, RunId
from ckworkflow.outage import Outage
from ckworkflow.plan import Chain, Chord, Group, Piece, Task

if TYPE_CHECKING:
    from datetime import datetime

    from celery import Celery
    from celery.canvas import Signature

logger = logging.getLogger(__name__)

PREFIX = "ckw"
_broker = Outage(logger, "broker")

OPENS = "ckworkflow_opens"
"""The header of a message that is one of a window, while others are held back."""
PUBLISHED_AT = "ckworkflow_published_at"
"""The header that tells when a message was published, in seconds since 1970 by the clock of the database."""


def task_id(run_id: RunId, node_id: NodeId, generation: int) -> str:
    """Return the id of the Celery task of a node."""
    return f"{PREFIX}:{run_id}:{node_id}:{generation}"


def parse_task_id(text: str | None) -> tuple[RunId, NodeId, int] | None:
    """Return run, node and generation of a task id; `None` when it is not one of ours."""
    prefix, _, rest = (text or "").partition(":")
    run_id, _, rest = rest.partition(":")
    node_id, _, generation = rest.rpartition(":")
    if prefix != PREFIX or not run_id or ":" not in node_id or not generation.isdigit():
        return None
    return RunId(run_id), NodeId(node_id), int(generation)


def publish(
    app: Celery,
    run_id: RunId,
    pieces: Sequence[Piece],
    *,
    at: datetime,
    tell_sent: Callable[..., object] | None = None,
) -> bool:
    """Publish pieces.

    Args:
        app: The app.
        run_id: Their run.
        pieces: What to publish.
        at: Now, by the clock of the database, for those who see how long their messages take.
        tell_sent: Told the fields of `task-sent` events.

    Returns:
        `False` when the broker did not take all of them.
    """
    try:
        with app.producer_or_acquire() as producer:
            for piece in pieces:
                chains = _plain_chains(piece)
                if chains is None:
                    build(app, run_id, piece).apply_async(root_id=run_id, producer=producer)
                    continue
                for tasks in chains:
                    _send(app, producer, run_id, tasks, at, tell_sent)
    except (OperationalError, OSError) as error:
        # The run is in SQL and has a wake_at: a broker that is down costs time and nothing else.
        _broker.begins(error)
        return False
    _broker.ends()
    return True


def _plain_chains(piece: Piece) -> list[list[Task]] | None:
    """The chains of a piece that is nothing but chains of steps, due now."""
    if isinstance(piece, Chord):
        return None
    chains = piece.members if isinstance(piece, Group) else (piece,)
    found = []
    for chain_ in chains:
        tasks = [item for item in chain_.items if isinstance(item, Task)]
        if len(tasks) != len(chain_.items) or tasks[0].delay or tasks[0].until is not None:
            return None
        found.append(tasks)
    return found


def _send(
    app: Celery,
    producer: Any,
    run_id: RunId,
    tasks: Sequence[Task],
    at: datetime,
    tell_sent: Callable[..., object] | None,
) -> None:
    """Send a chain as Celery sends it, without the objects that make it up: they cost as much as the rest."""
    first, *rest = tasks
    options = _options(run_id, first)
    task_id = options.pop("task_id")
    options["headers"] = {**options.get("headers", {}), PUBLISHED_AT: at.timestamp()}
    route = app.amqp.router.route(options, first.name)
    args = _args(run_id, first)
    message = app.amqp.as_task_v2(
        task_id, first.name, args, {}, root_id=run_id, ignore_result=True, argsrepr=repr(args), kwargsrepr="{}",
        chain=[_plain_signature(run_id, task) for task in reversed(rest)] or None,
        create_sent_event=tell_sent is not None,
    )  # fmt: skip
    app.amqp.send_task_message(producer, first.name, message._replace(sent_event=None), **route)
    if tell_sent is not None:
        tell_sent("task-sent", **message.sent_event)


def _plain_signature(run_id: RunId, task: Task) -> dict[str, Any]:
    return {
        "task": task.name, "args": _args(run_id, task), "kwargs": {}, "options": _options(run_id, task),
        "subtask_type": None, "immutable": True,
    }  # fmt: skip


def build(app: Celery, run_id: RunId, piece: Piece | Task) -> Signature:
    """Build the Celery canvas of a piece."""
    if isinstance(piece, Task):
        return _signature(app, run_id, piece)
    if isinstance(piece, Chain):
        items = [build(app, run_id, item) for item in piece.items]
        return items[0] if len(items) == 1 else chain(*items, app=app)
    members = [build(app, run_id, member) for member in piece.members]
    if isinstance(piece, Chord):
        return chord(members, build(app, run_id, piece.body), app=app)
    return group(members, app=app)


def _signature(app: Celery, run_id: RunId, task: Task) -> Signature:
    return app.signature(task.name, args=_args(run_id, task), immutable=True, **_options(run_id, task))


def _args(run_id: RunId, task: Task) -> tuple[Any, ...]:
    # Of the release before this one, too: what its workers do not know travels as a header.
    return run_id, task.node_id, task.generation


def _options(run_id: RunId, task: Task) -> dict[str, Any]:
    options: dict[str, Any] = {"task_id": task_id(run_id, task.node_id, task.generation)}
    step = registry.steps.get(task.name)
    if step is not None:
        options.update(
            (name, value)
            for name, value in (("queue", step.options.queue), ("priority", step.options.priority))
            if value is not None
        )
    if task.opens:
        options["headers"] = {OPENS: True}
    if task.until is not None:
        options["eta"] = task.until
    elif task.delay:
        options["countdown"] = task.delay.total_seconds()
    return options


def published_at(headers: Mapping[str, Any]) -> float | None:
    """Return when a message was published that is delivered for the first time, in seconds since 1970.

    `None` where that is not known.
    """
    is_first = not (headers.get("delivery_info") or {}).get("redelivered")
    at = headers.get(PUBLISHED_AT)
    return at if is_first and isinstance(at, float) else None


def first_nodes(signature: Mapping[str, Any] | None) -> frozenset[tuple[NodeId, int]]:
    """Return the nodes, with their generation, that a serialized signature begins with."""
    if not signature:
        return frozenset()
    kind = signature.get("subtask_type")
    if kind == "chain":
        return first_nodes(signature["kwargs"]["tasks"][0])
    if kind == "group":
        return _union(signature["kwargs"]["tasks"])
    if kind == "chord":
        header = signature["kwargs"]["header"]
        return first_nodes(header) if isinstance(header, Mapping) else _union(header)
    found = parse_task_id(signature.get("options", {}).get("task_id"))
    return frozenset() if found is None else frozenset({(found[1], found[2])})


def _union(signatures: Iterable[Mapping[str, Any]]) -> frozenset[tuple[NodeId, int]]:
    return frozenset(node for signature in signatures for node in first_nodes(signature))
