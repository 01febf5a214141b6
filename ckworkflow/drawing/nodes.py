"""Nodes of a trace in words: the call of a step, and how long a sleep is."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, cast

from ckworkflow.drawing import words
from ckworkflow.model import NodeKind
from ckworkflow.plan import sleep_delay, sleep_until

if TYPE_CHECKING:
    from ckworkflow.model import Json
    from ckworkflow.tracing import TracedNode

__all__ = ["length", "name_result", "node_words"]


def node_words(node: TracedNode) -> str:
    """Say a node: `greet_user('42')`, `sleep 7 days`, `timer 7 days`."""
    if node.kind is NodeKind.STEP:
        return words.call(node.name, node.args, ref=name_result)
    return f"{node.name} {length(node)}"


def length(node: TracedNode) -> str:
    """Say how long a sleep is: `7 days`, `until 2026-01-01 00:00:00 UTC`."""
    until = sleep_until(node.args)
    if until is not None:
        return f"until {words.moment(until)}"
    return words.span(sleep_delay(node.args) or timedelta())


def name_result(reference: Json) -> _Result:
    """Return what stands for the result of a node where a value is shown: `<0:1>.id`."""
    node_id, path = cast("tuple[str, list[tuple[str, str | int]]]", reference)
    return _Result(f"<{node_id}>" + "".join(_part(kind, key) for kind, key in path))


class _Result:
    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _part(kind: str, key: str | int) -> str:
    return f".{key}" if kind == "attr" else f"[{key!r}]"
