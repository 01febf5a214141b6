"""What else can be in a queue: one good message of a step, and what is wrong with each of the others.

A shape is an edit of the good message: a path and what is put there, or a text instead of the whole.
"""

from __future__ import annotations

import base64
import copy
import json
import math
import zlib
from dataclasses import dataclass
from typing import Any

STEP = "greeting.look"
GONE = "ckw:11111111-1111-1111-1111-111111111111:0:1:1"
BOMB_BYTES = 512 * 1024 * 1024


def arguments() -> list[Any]:
    _, run_id, *_ = GONE.split(":")
    return [run_id, "0:1", 1]


def good() -> dict[str, Any]:
    """A message as Celery sends it on Redis; of a run that is gone, so it would be dropped."""
    headers = {
        "lang": "py", "task": STEP, "id": GONE, "shadow": None, "eta": None, "expires": None, "group": None,
        "retries": 0, "timelimit": [None, None], "root_id": GONE, "parent_id": None, "argsrepr": "()",
        "kwargsrepr": "{}", "origin": "somebody", "ignore_result": True,
    }  # fmt: skip
    properties = {
        "correlation_id": GONE, "reply_to": "", "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
        "delivery_tag": "a-tag", "delivery_info": {"exchange": "", "routing_key": "ckworkflow"},
    }  # fmt: skip
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return {
        "body": [arguments(), {}, embed], "content-encoding": "utf-8", "content-type": "application/json",
        "headers": headers, "properties": properties,
    }  # fmt: skip


GONE_FIELD = object()


@dataclass(frozen=True)
class Shape:
    """A malformed message."""

    name: str
    path: tuple[str | int, ...] = ()
    value: Any = None
    raw: bytes | None = None

    @property
    def is_amqp(self) -> bool:
        """Whether RabbitMQ carries it: there the envelope is made of typed frames."""
        is_typed = self.path[:1] not in {("headers",), ("body",)} or self.path == ("headers",)
        is_infinite = isinstance(self.value, float) and not math.isfinite(
            self.value
        )  # Erlang knows none
        return not is_typed and not is_infinite

    def edited(self) -> dict[str, Any]:
        message = copy.deepcopy(good())
        *way, last = self.path
        place: Any = message
        for key in way:
            place = place[key]
        if self.value is GONE_FIELD:
            del place[last]
        else:
            place[last] = self.value
        return message

    def body(self) -> bytes:
        body = self.edited()["body"]
        return body if isinstance(body, bytes) else json.dumps(body).encode()

    def on_redis(self, tag: str) -> bytes:
        if self.raw is not None:
            return self.raw
        message = self.edited()
        message["body"] = base64.b64encode(self.body()).decode()
        text = json.dumps(message)
        return text.replace('"a-tag"', f'"{tag}"').encode()  # of two with one tag Redis would keep one


def _headers(name: str, *values: Any) -> list[Shape]:
    return [Shape(f"{name} is {str(value)[:20]}", ("headers", name), value) for value in values]


def _raw(name: str, raw: bytes) -> Shape:
    return Shape(name, raw=raw)


def _protocol_1(name: str, **body: Any) -> Shape:
    """A message of Celery 3: all that is said of the task is in the body."""
    message = good()
    message["headers"] = {}
    message["body"] = base64.b64encode(json.dumps({"task": STEP, "id": GONE, **body}).encode()).decode()
    return _raw(f"protocol 1, {name}", json.dumps(message).encode())


SHAPES = [
    _raw("no text", b""),
    _raw("no JSON", b"{not json"),
    _raw("no UTF-8", b"\xff\xfe\x00"),
    _raw("a list", b"[]"),
    _raw("null", b"null"),
    _raw("a number", b"5"),
    _raw("a text", b'"text"'),
    _raw("an empty object", b"{}"),
    _raw("nesting without end", b"[" * 200_000),
    _raw("an unknown type of kombu's", b'{"__type__": "nothing", "__value__": 1}'),
    _raw("a UUID that is none", b'{"__type__": "uuid", "__value__": {"hex": "x", "y": 1}}'),
    _raw("an unhashable type of kombu's", b'{"__type__": [], "__value__": 1}'),
    Shape("no properties", ("properties",), GONE_FIELD),
    Shape("properties are a list", ("properties",), []),
    Shape("no delivery info", ("properties", "delivery_info"), GONE_FIELD),
    Shape("delivery info is a text", ("properties", "delivery_info"), "x"),
    Shape("no exchange", ("properties", "delivery_info", "exchange"), GONE_FIELD),
    Shape("an exchange that is a list", ("properties", "delivery_info", "exchange"), []),
    Shape("no routing key", ("properties", "delivery_info", "routing_key"), GONE_FIELD),
    Shape("no delivery tag", ("properties", "delivery_tag"), GONE_FIELD),
    Shape("a delivery tag that is an object", ("properties", "delivery_tag"), {}),
    Shape("a delivery tag that is half a character", ("properties", "delivery_tag"), "\ud800"),
    Shape("an unknown body encoding", ("properties", "body_encoding"), "rot13"),
    Shape("a body encoding that is a list", ("properties", "body_encoding"), []),
    Shape("headers are a list", ("headers",), [1]),
    Shape("headers are a text", ("headers",), "x"),
    Shape("headers are null", ("headers",), None),
    Shape("content type is a list", ("content-type",), []),
    Shape("content type is unknown", ("content-type",), "application/x-nothing"),
    Shape("content type is pickle", ("content-type",), "application/x-python-serialize"),
    Shape("content encoding is an object", ("content-encoding",), {}),
    Shape("no body", ("body",), b""),
    Shape("the body is no JSON", ("body",), b"{not json"),
    Shape("the body is no UTF-8", ("body",), b"\xff\xfe"),
    Shape("the body nests without end", ("body",), b"[" * 200_000),
    Shape("the body has a number too long", ("body",), b"[" + b"9" * 5000 + b"]"),
    Shape("the body is a text of three", ("body",), "abc"),
    Shape("the body is an object", ("body",), {"a": 1}),
    Shape("the body is a list of two", ("body",), [[], {}]),
    Shape("the body is a list of four", ("body",), [[], {}, {}, {}]),
    Shape("arguments are a text", ("body", 0), "abc"),
    Shape("arguments are an object", ("body", 0), {"a": 1}),
    Shape("too few arguments", ("body", 0), ["run"]),
    Shape("too many arguments", ("body", 0), ["run", "0:1", 1, 2]),
    Shape("the run id is a number", ("body", 0, 0), 7),
    Shape("the run id has a NUL", ("body", 0, 0), "a\0b"),
    Shape("the run id is half a character", ("body", 0, 0), "\ud800"),
    Shape("the node id is a list", ("body", 0, 1), []),
    Shape("the generation is a text", ("body", 0, 2), "1"),
    Shape("the generation is true", ("body", 0, 2), True),
    Shape("the generation is too large", ("body", 0, 2), 2**70),
    Shape("keyword arguments are a list", ("body", 1), [1]),
    Shape("a step with keyword arguments", ("body", 1), {"a": 1}),
    Shape("what follows is a text", ("body", 2), "x"),
    Shape("the chain is a number", ("body", 2, "chain"), 5),
    Shape("the chain is of numbers", ("body", 2, "chain"), [5]),
    Shape("the chain has a group of nothing", ("body", 2, "chain"), [{"subtask_type": "group"}]),
    Shape("the chord is a text", ("body", 2, "chord"), "x"),
    Shape("callbacks are a number", ("body", 2, "callbacks"), 5),
    Shape("no task", ("headers", "task"), GONE_FIELD),
    *_headers("task", [], {}, 5, "a\0b"),
    Shape("no id", ("headers", "id"), GONE_FIELD),
    *_headers("id", None, [], {}),
    *_headers("shadow", [], 5),
    *_headers("timelimit", "x", 5, [1], ["a", "b"], [1, 2, 3], [-1, None], [1e300, None]),
    *_headers("expires", {}, [], 5, "yesterday", ""),
    *_headers("eta", {}, [], 5, "tomorrow", ""),
    *_headers("retries", "x", []),
    *_headers("stamped_headers", 5),
    *_headers("stamps", 5),
    _protocol_1("no arguments"),
    _protocol_1("a task that is a list", task=[]),
    _protocol_1("an id that is an object", id={}),
    _protocol_1("arguments that are a text", args="abc"),
    _protocol_1("a time limit that is a text", args=arguments(), timelimit="x"),
    *_headers("compression", "application/x-gzip", "nothing", [1]),
]
"""Each of them is rejected."""

ODD = [
    *_headers("ckworkflow_published_at", 1e300, -1e300, float("inf"), float("nan"), [], "x"),
    *_headers("ckworkflow_opens", [], "x"),
    Shape("content encoding is unknown", ("content-encoding",), "klingon"),
]
"""Good in all that matters: they are taken, and here dropped, since their run is gone."""


def bomb() -> Shape:
    """A body that unpacks to half a gigabyte."""
    packer = zlib.compressobj(9)
    block = b"0" * (1 << 20)
    packed = b"".join(packer.compress(block) for _ in range(BOMB_BYTES >> 20)) + packer.flush()
    return Shape("a gzip bomb", ("body",), packed)
