"""The oracle: what a run may look like after its worker was killed, and how often each step may have run.

A step runs once, plus once for each attempt that it was meant to fail, plus once for each kill that came between
its effect and the commit of its record. Which kills these are is not guessed from the point where they were
made: right after each one the harness has looked which attempts had had their effect (the file of effects)
and which were on record (the database, once the server is done with what the dead process had sent).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ckworkflow.model import NodeId, life_of

if TYPE_CHECKING:
    from crash_everywhere.site import Seen
    from effect_flows import Flow


def faults(flow: Flow, crashes: Sequence[Seen], end: Seen) -> Iterator[str]:
    """What is wrong with a run that has ended.

    Args:
        flow: What it was to come to.
        crashes: What was seen after each kill.
        end: What it is now.
    """
    yield from _wrong_end(flow, end)
    yield from _wrong_effects(flow, crashes, end)
    yield from _out_of_order(flow, end)
    for crash in crashes:
        yield from _undone(crash, end)
        if not crash.is_final and not crash.has_wake_at:
            yield "the run lived and had no wake_at"
    for node_id, count in Counter(
        node_id for node_id, _, outcome in end.attempts if outcome in {"completed", "failed"}
    ).items():
        if count > 1:
            yield f"{node_id} was recorded {count} times"


def _wrong_end(flow: Flow, end: Seen) -> Iterator[str]:
    if flow.error is not None:
        if end.status != "failed" or flow.error not in (end.error or ""):
            yield f"the run is {end.status} ({end.output or end.error}) and not failed with {flow.error!r}"
    elif end.status != "completed" or json.loads(end.output or "null") != flow.result:
        yield f"the run is {end.status} ({end.output or end.error}) and not completed with {flow.result!r}"


def _wrong_effects(flow: Flow, crashes: Sequence[Seen], end: Seen) -> Iterator[str]:
    done = Counter(line.label for line in end.effects)
    allowed = Counter(flow.effects)
    for crash in crashes:
        allowed.update(line.label for line in _unrecorded(crash))
    for label, least in flow.effects.items():
        if done[label] < least and label not in flow.optional:
            yield f"{label!r} ran {done[label]} times and not {least}"
    for label, count in done.items():
        if count > allowed[label]:
            yield f"{label!r} ran {count} times, and no more than {allowed[label]} can be explained"
    for (key, attempt), count in Counter((line.key, line.attempt) for line in end.effects).items():
        if count > 1:
            yield f"attempt {attempt} of {key} ran {count} times"


def _out_of_order(flow: Flow, end: Seen) -> Iterator[str]:
    for before, after in flow.in_order:
        first = min((line.at for line in end.effects if line.label == after), default=float("inf"))
        for line in end.effects:
            if line.label == before and line.at > first:
                yield f"{before!r} came {line.at - first:.3f} s after {after!r}"


def _unrecorded(crash: Seen) -> list[object]:
    """The effects whose record the kill prevented."""
    recorded = {(node_id, attempt) for node_id, attempt, _ in crash.attempts}
    recorded |= {(node.node_id, node.attempt) for node in crash.nodes.values() if node.is_recorded}
    return [
        line
        for line in crash.effects
        if (line.node_id, line.attempt) not in recorded and not _is_past(line.node_id, crash)
    ]


def _is_past(node_id: str, seen: Seen) -> bool:
    """Whether a node is of a life that has ended, which it does only when all is recorded."""
    return life_of(NodeId(node_id)) < seen.life


def _undone(crash: Seen, end: Seen) -> Iterator[str]:
    """What was recorded before a kill and is not so any more."""
    seen_before = {(line.key, line.attempt) for line in crash.effects}
    for node in crash.nodes.values():
        if not node.is_recorded:
            continue
        now = end.nodes.get(node.node_id)
        if now is None and _is_past(node.node_id, end):
            now = node  # deleted
        if now is None or (now.status, now.output, now.error) != (node.status, node.output, node.error):
            yield f"the record of {node.node_id} was {node} and is {now}"
        for line in end.effects:
            if line.node_id == node.node_id and (line.key, line.attempt) not in seen_before:
                yield f"{line.label!r} ran again (attempt {line.attempt}) although it was on record"
    if crash.is_final and (crash.status, crash.output, crash.error) != (
        end.status,
        end.output,
        end.error,
    ):
        yield f"the run had ended as {crash.status} {crash.output or crash.error}"
