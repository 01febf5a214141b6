"""Canvas: pieces of a plan as Celery chains, groups and chords, and their publishing.

A message names its run, node and generation and carries nothing else: arguments, results and tokens stay
in SQL. The id of a Celery task says the same (`ckw:<run>:<node>:<generation>`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery import chain, chord, group
from kombu.exceptions import SerializerNotInstalled

from ckworkflow.definition import registry
from ckworkflow.model import NodeId, NodeRef, RunId
from ckworkflow.outage import Outage
from ckworkflow.plan import Chain, Chord, Group, Piece, Task
from ckworkflow.scrub import scrub

if TYPE_CHECKING:
    from celery import Celery
    from celery import Task as CeleryTask
    from celery.canvas import Signature
    from kombu.messaging import Producer

logger = logging.getLogger(__name__)

PREFIX = "ckw"
_broker = Outage(logger, "broker")
_publishing = Outage(logger, "publishing", problem="fails")
_OF_THE_APP = (
    ArithmeticError, AttributeError, ImportError, LookupError, SerializerNotInstalled, TypeError, ValueError,
)  # fmt: skip
"""What the settings and the code of an app raise: a serializer or a route that is not there, a receiver of signals."""

OPENS = "ckworkflow_opens"
"""The header of a message that is one of a window, while others are held back."""
PUBLISHED_AT = "ckworkflow_published_at"
"""The header that tells when a message was published, in seconds since 1970 by the clock of the database."""

Serialized = Mapping[str, Any]
"""A signature as it travels in a message: anybody may have written it."""


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
    """Publish pieces. It never raises: what they are of is committed, and the clock publishes again what is missing.

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
        with app.producer_or_acquire() as producer, _given_up_if_it_fails(producer):
            for piece in pieces:
                # Celery's canvas would run tasks in this process where `task_always_eager` is set.
                chains = _heads(piece) if app.conf.task_always_eager else _plain_chains(piece)
                if chains is None:
                    build(app, run_id, piece).apply_async(root_id=run_id, producer=producer)
                    continue
                for tasks in chains:
                    _send(app, producer, run_id, tasks, at, tell_sent)
    except _OF_THE_APP as error:
        _publishing.begins(
            error, f"{_why(app, error)}. The runs are in the database, and it is tried again"
        )
        return False
    except Exception as error:  # noqa: BLE001  # of a failover, a damaged file, a driver: each has its own
        # The run is in SQL and has a wake_at: a broker that is down costs time and nothing else.
        _broker.begins(error)
        return False
    _publishing.ends()
    _broker.ends()
    return True


@contextmanager
def _given_up_if_it_fails(producer: Any) -> Iterator[None]:
    """Let go of the connection over any error: a Redis that has become a replica keeps it open, and refuses for ever."""
    try:
        yield
    except BaseException:
        with suppress(Exception):  # the error that counts is under way
            producer.connection.collect()
        raise


def _why(app: Celery, error: Exception) -> str:
    try:
        app.connection_for_write()  # connects to nothing
    except Exception:  # noqa: BLE001  # the same again
        # Without the text: it may quote what it took for the port, which may be a part of the password.
        return f"`broker_url` cannot be used ({type(error).__name__})"
    return f"{type(error).__name__}: {scrub(str(error))}"


def _heads(piece: Piece | Task) -> list[list[Task]]:
    """The steps that a piece begins with, each by itself; what follows them the record of each finds in SQL."""
    if isinstance(piece, Task):
        return [[piece]]
    if isinstance(piece, Chain):
        return _heads(piece.items[0])
    return [head for member in piece.members for head in _heads(member)]


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
    producer: Producer,
    run_id: RunId,
    tasks: Sequence[Task],
    at: datetime,
    tell_sent: Callable[..., object] | None,
) -> None:
    """Send a chain as Celery sends it, without the objects that make it up: they cost as much as the rest."""
    first, *rest = tasks
    options: dict[str, Any] = {**_of_task(app, first.name), **_options(run_id, first)}
    task_id = options.pop("task_id")
    extra = {name: options.pop(name) for name in ("countdown", "eta", "retries") if name in options}
    options["headers"] = {**options.get("headers", {}), PUBLISHED_AT: at.timestamp()}
    route = app.amqp.router.route(options, first.name)
    args = _args(run_id, first)
    message = app.amqp.as_task_v2(
        task_id, first.name, args, {}, root_id=run_id, ignore_result=True, argsrepr=repr(args), kwargsrepr="{}",
        chain=[_plain_signature(run_id, task) for task in reversed(rest)] or None,
        create_sent_event=tell_sent is not None, **extra,
    )  # fmt: skip
    app.amqp.send_task_message(producer, first.name, message._replace(sent_event=None), **route)
    if tell_sent is not None:
        tell_sent("task-sent", **message.sent_event)


def _of_task(app: Celery, name: str) -> Mapping[str, object]:
    """What the task of a step says of its messages, as `task_annotations` and the app's defaults have it."""
    task = task_of(app, name)
    found = {option: getattr(task, option, None) for option in _OF_TASK}
    # As the class of the task has it: a message holds nothing but ids, and the app's own serializer may need more.
    return {"serializer": "json"} | {
        option: value for option, value in found.items() if value is not None
    }


_OF_TASK = ("queue", "exchange", "routing_key", "priority", "delivery_mode", "compression")


def _plain_signature(run_id: RunId, task: Task) -> dict[str, object]:
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


def _args(run_id: RunId, task: Task) -> tuple[RunId, NodeId, int]:
    # Of the release before this one, too: what its workers do not know travels as a header.
    return run_id, task.node_id, task.generation


def _options(run_id: RunId, task: Task) -> dict[str, object]:
    options: dict[str, object] = {"task_id": task_id(run_id, task.node_id, task.generation)}
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
    if task.attempts:  # or Flower would count the retries from here on
        options["retries"] = task.attempts
    return options


def task_of(app: Celery, name: str) -> CeleryTask | None:
    """Return the task of a step; `None` where the app has none of that name."""
    # Celery finalizes an app under one lock and looks up its tasks under another, from within which it finalizes it. A
    # thread that finalizes it (a worker that starts) registers tasks meanwhile: the two would wait for each other. So not
    # by `app.tasks`, which also costs a lock each time: this is asked several times for each step.
    if not app.finalized:
        app.finalize(auto=True)
    return app._tasks.get(name)  # noqa: SLF001  # see above


def queue_of(app: Celery, name: str) -> str | None:
    """Return the queue to which a step's message goes, by its `queue`, that of its task, or `task_routes`.

    `None` where a route names no queue but an exchange, or raises, which is told where a message is published.
    """
    step = registry.steps.get(name)
    queue = (step and step.options.queue) or getattr(task_of(app, name), "queue", None)
    try:
        return _queue_of(app, name, queue)
    except Exception:  # noqa: BLE001  # a route is the user's code
        return None


@functools.lru_cache(maxsize=4096)
def _queue_of(app: Celery, name: str, queue: str | None) -> str | None:
    found = app.amqp.router.route({} if queue is None else {"queue": queue}, name).get("queue")
    return None if found is None else str(getattr(found, "name", found))


def published_at(headers: Mapping[str, Any]) -> datetime | None:
    """Return when a message was published that is delivered for the first time.

    `None` where that is not known, or the message says something that is no time.
    """
    is_first = not (headers.get("delivery_info") or {}).get("redelivered")
    at = headers.get(PUBLISHED_AT)
    if not is_first or not isinstance(at, float):
        return None
    try:
        return datetime.fromtimestamp(at, UTC)
    except (OverflowError, ValueError, OSError):  # infinite, no number, beyond what a date can be
        return None


def first_nodes(signature: Serialized | None) -> frozenset[NodeRef]:
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
    return frozenset() if found is None else frozenset({NodeRef(found[1], found[2])})


def _union(signatures: Iterable[Serialized]) -> frozenset[NodeRef]:
    return frozenset(node for signature in signatures for node in first_nodes(signature))
