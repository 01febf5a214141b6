"""Malformed messages: what a message must look like before kombu and Celery may act on it.

Whoever can write to the broker can put anything into a queue: another program, an older release, a hand with `redis-cli`.
kombu and Celery trust what they read, and much of what they raise over it would end the worker, or leave the message
unacknowledged so that it comes again after each restart. So a message is checked where it comes in, and one that fails the
check is rejected for good, with one line in the log.

`check_envelope` is for the transports that wrap a message in JSON (Redis, the broker file); the others are for every broker:
`check_task` and `check_step` before Celery makes a request of a message, `check_order` in the mailbox of remote control. All
raise `MalformedMessageError`; none shows arguments or bodies.

Not here: who rejects (`ckworkflow.worker.consumer` and the transports).
"""

# mypy: disallow-untyped-calls=False
# kombu says that it is typed, and most of its methods are not.

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol, TypeGuard

from kombu.transport import virtual

from ckworkflow.canvas import first_nodes

__all__ = [
    "CheckedMessage",
    "MalformedMessageError",
    "Message",
    "check_envelope",
    "check_order",
    "check_step",
    "check_task",
    "refuse",
]

logger = logging.getLogger(__name__)

LONGEST_TEXT: Final = 80
"""How much of a value an error shows, in characters."""
LONGEST_LIMIT: Final = 10 * 366 * 24 * 3600.0
"""The longest time limit that a message may ask for, in seconds."""
LARGEST_GENERATION: Final = 2**31 - 1
"""What the database's column can hold."""


class Message(Protocol):
    """What is used of a message, whose class in kombu has no types. What is in it anybody may have written."""

    channel: object
    delivery_info: Mapping[str, object] | None
    headers: object

    @property
    def acknowledged(self) -> bool:
        """Whether it was acknowledged or rejected."""
        ...

    @property
    def payload(self) -> Any:
        """Its decoded body."""
        ...

    def ack(self, multiple: bool = ...) -> None:  # noqa: FBT001
        """Acknowledge it."""
        ...

    def reject(self, requeue: bool = ...) -> None:  # noqa: FBT001
        """Reject it for good, unless it is to come again."""
        ...

    def reject_log_error(self, logger: logging.Logger, errors: tuple[type[Exception], ...]) -> None:
        """Reject it for good, on a connection that may be lost."""
        ...


class MalformedMessageError(ValueError):
    """A message is not one that kombu or Celery could have sent."""


def refuse(error: BaseException, *, queue: object, name: object = None, id_: object = None) -> None:
    """Log that a message is rejected for good.

    Args:
        error: What is wrong with it.
        queue: Where it came from.
        name: The task that it names, if it can be told.
        id_: The id of that task.
    """
    what = "" if name is None else f" (task {_brief(name)}, id {_brief(id_)})"
    reason = (
        str(error)
        if isinstance(error, MalformedMessageError)
        else f"{type(error).__name__}: {_cut(str(error))}"
    )
    logger.error(
        "message%s from queue %s rejected for good, it cannot be read: %s", what, _brief(queue), reason,
        extra={"queue": queue, "reason": reason},
    )  # fmt: skip


# --- the envelope -------------------------------------------------------------------------------------


class CheckedMessage(virtual.Message):
    """A message of a virtual transport, which raises only `MalformedMessageError` for what it was made from."""

    def __init__(self, payload: object, channel: object = None, **kwargs: object) -> None:
        check_envelope(payload)
        try:
            super().__init__(payload, channel=channel, **kwargs)
        except Exception as error:
            raise MalformedMessageError(f"its body cannot be unpacked: {_cut(str(error))}") from error


def check_envelope(payload: object) -> None:
    """Check the object in which a virtual transport wraps a message.

    Raises:
        MalformedMessageError: It is not one.
    """
    envelope = _mapping(payload, "its envelope")
    if envelope.get("headers") is not None:
        _mapping(envelope["headers"], "`headers`")
    properties = _mapping(envelope.get("properties"), "`properties`")
    delivery = _mapping(properties.get("delivery_info"), "`delivery_info`")
    for name, value in (
        ("delivery_tag", properties.get("delivery_tag")),
        ("exchange", delivery.get("exchange")),
        ("routing_key", delivery.get("routing_key")),
    ):
        _text(value, name)
    for name, value in (
        ("body", envelope.get("body")),
        ("content-type", envelope.get("content-type")),
        ("content-encoding", envelope.get("content-encoding")),
        ("body_encoding", properties.get("body_encoding")),
    ):
        if value is not None:
            _text(value, name)


# --- the task -----------------------------------------------------------------------------------------


def check_task(message: Message) -> str | None:
    """Check what Celery's consumer and its pool read of a task message; its body is decoded here.

    Returns:
        The task that it names; `None` if it names none, which Celery finds out by itself.

    Raises:
        MalformedMessageError: Celery would fail over it.
    """
    headers = _mapping(message.headers, "`headers`")
    try:
        payload = message.payload
    except Exception as error:
        raise MalformedMessageError(f"its body cannot be decoded: {_cut(str(error))}") from error
    if "task" not in headers:  # protocol 1
        if not isinstance(payload, Mapping) or "task" not in payload:
            return None
        name = _check_fields(payload)
        _check_arguments(payload.get("args", ()), payload.get("kwargs", {}))
        return name
    name = _check_fields(headers)
    if isinstance(payload, Mapping) and "args" in payload:  # protocol 1 with the headers of 2
        _check_arguments(payload["args"], payload.get("kwargs", {}))
        return name
    if not _is_list(payload) or len(payload) != 3:  # noqa: PLR2004  # arguments, keyword arguments, what follows
        raise MalformedMessageError(f"its body is {_kind(payload)}, not a list of three")
    args, kwargs, embed = payload
    _check_arguments(args, kwargs)
    if embed is not None:
        _mapping(embed, "the third part of its body")
    return name


def check_step(message: Message) -> None:
    """Check a message that `check_task` has passed and that names a step of ours.

    Raises:
        MalformedMessageError: Its arguments are not those of a step, or what follows it is no canvas.
    """
    payload = message.payload
    args, kwargs = (
        (payload.get("args", ()), payload.get("kwargs")) if isinstance(payload, Mapping) else payload[:2]
    )
    embed: Mapping[str, Any] = {} if isinstance(payload, Mapping) else payload[2] or {}
    if kwargs or len(args) != 3:  # noqa: PLR2004  # run, node, generation
        raise MalformedMessageError("its arguments are not the run, node and generation of a step")
    run_id, node_id, generation = args
    _text(run_id, "the run id")
    _text(node_id, "the node id")
    if type(generation) is not int or not 0 < generation <= LARGEST_GENERATION:
        raise MalformedMessageError(
            f"the generation is {_brief(generation)}, not a whole number from 1 on"
        )
    for name in ("callbacks", "errbacks", "chain"):
        if not _is_list(embed.get(name) or []):
            raise MalformedMessageError(f"`{name}` is {_kind(embed[name])}, not a list")
    try:
        for signature in embed.get("chain") or []:
            first_nodes(_mapping(signature, "a part of its chain"))
        first_nodes(embed.get("chord"))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, MalformedMessageError):
            raise
        raise MalformedMessageError(
            f"what follows the step is no canvas: {_cut(repr(error))}"
        ) from error


def check_order(body: object) -> None:
    """Check an order to the mailbox of remote control.

    Raises:
        MalformedMessageError: kombu would fail over it.
    """
    order = _mapping(body, "the order")
    _text(order.get("method"), "method")
    for name in ("pattern", "matcher"):
        if order.get(name):
            _text(order[name], name)
    if order.get("arguments"):
        _mapping(order["arguments"], "`arguments`")
    if not _is_list(order.get("destination") or []):
        raise MalformedMessageError(f"`destination` is {_kind(order['destination'])}, not a list")
    if order.get("reply_to"):
        reply_to = _mapping(order["reply_to"], "`reply_to`")
        for name in ("exchange", "routing_key"):
            _text(reply_to.get(name), name)


def _check_fields(fields: Mapping[str, object]) -> str:
    task = _text(fields["task"], "task")
    if fields.get("id") is None or not isinstance(fields["id"], Hashable):
        raise MalformedMessageError(f"`id` is {_kind(fields.get('id'))}, not text")
    if fields.get("shadow") is not None:
        _text(fields["shadow"], "shadow")
    for name in ("eta", "expires"):
        value = fields.get(name)
        if value is not None and not isinstance(value, (str, datetime)):
            raise MalformedMessageError(f"`{name}` is {_kind(value)}, not a time")
    _check_limits(fields.get("timelimit"))
    retries = fields.get("retries")
    if retries is not None and not isinstance(retries, int):
        raise MalformedMessageError(f"`retries` is {_kind(retries)}, not a number")
    if not _is_list(fields.get("stamped_headers") or []):
        raise MalformedMessageError("`stamped_headers` is not a list")
    if not isinstance(fields.get("stamps") or {}, Mapping):
        raise MalformedMessageError("`stamps` is not an object")
    return task


def _check_limits(limits: object) -> None:
    if not limits:
        return
    if _is_list(limits) and len(limits) == 2 and all(map(_is_limit, limits)):  # noqa: PLR2004  # hard and soft
        return
    raise MalformedMessageError(f"`timelimit` is {_brief(limits)}, not two numbers of seconds")


def _is_limit(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and 0 <= value <= LONGEST_LIMIT)


def _check_arguments(args: object, kwargs: object) -> None:
    if not _is_list(args):
        raise MalformedMessageError(f"its arguments are {_kind(args)}, not a list")
    _mapping(kwargs, "its keyword arguments")


# --- values -------------------------------------------------------------------------------------------


def _mapping(value: object, what: str) -> Mapping[str, object]:
    # What JSON and AMQP give is a dict: to ask an abstract class costs more than all else here.
    if type(value) is not dict and not isinstance(value, Mapping):
        raise MalformedMessageError(f"{what}: {_kind(value)}, not an object")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise MalformedMessageError(f"`{what}` is {_kind(value)}, not text")
    if "\0" in value or (not value.isascii() and _has_surrogates(value)):
        raise MalformedMessageError(f"`{what}` is no valid text: {_brief(value)}")
    return value


def _has_surrogates(value: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in value)


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return type(value) is list or (isinstance(value, Sequence) and not isinstance(value, (str, bytes)))


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def _brief(value: object) -> str:
    return ascii(value[:LONGEST_TEXT]) if isinstance(value, str) else _cut(ascii(value))


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
