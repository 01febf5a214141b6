"""Bodies kept alive between continuations, so that the next one need not replay.

An optimisation and nothing else: a body that is not here, or that another process has advanced since, is
replayed from SQL with the same result.

With a body goes what this process has recorded since for it. When that is all that the body waits for, the
continuation can be made together with the last of these records, in one transaction (`advance.foresee`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from ckworkflow.model import Json, NodeId, RunId
    from ckworkflow.store.records import JoinRows
    from ckworkflow.store.runs import RunRow
    from ckworkflow.tracing import Tracer


@dataclass(slots=True)
class Body:
    """A body, and how its run stood when it was advanced last.

    Attributes:
        tracer: The body.
        epoch: The run's, under which it was advanced.
        signals: What the run had counted when its outcomes were read.
        delivered: How many outcomes it has been told.
        told_at: What it takes for the present time.
        waits_for: The nodes of the run that were not recorded then and that this process has not recorded since, but for timers.
        timers: Its timers, with their ends.
        joins: The joins of the run as they were written; `None` when some may have counted since.
        run: The run as it was left.
        recorded: What this process has recorded of the nodes since, in that order, encoded.
    """

    tracer: Tracer
    epoch: int
    signals: int
    delivered: int
    told_at: datetime
    waits_for: set[NodeId]
    timers: dict[NodeId, datetime] = field(default_factory=dict)
    joins: JoinRows | None = None
    run: RunRow | None = None
    recorded: list[tuple[NodeId, Json]] = field(default_factory=list)


class BodyCache:
    """The bodies that were advanced last.

    Args:
        size: How many; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._bodies: OrderedDict[RunId, Body] = OrderedDict()

    def take(self, run_id: RunId, epoch: int) -> Tracer | None:
        """Remove and return the body, if its last continuation was the run's last."""
        with self._lock:
            found = self._bodies.pop(run_id, None)
        if found is None:
            return None
        if found.epoch != epoch:
            found.tracer.close()
            return None
        return found.tracer

    def is_waiting_for(self, run_id: RunId, node_id: NodeId) -> bool:
        """Whether a body is here that waits for nothing but this node."""
        found = self._bodies.get(run_id)
        return found is not None and found.waits_for == {node_id}

    def take_waiting_for(self, run_id: RunId, node_id: NodeId, *, at: datetime) -> Body | None:
        """Remove and return a body that waits for nothing but this node, and of which no timer is due at a given time."""
        with self._lock:
            found = self._bodies.get(run_id)
            if found is None or found.waits_for != {node_id}:
                return None
            if any(due_at <= at for due_at in found.timers.values()):
                return None
            return self._bodies.pop(run_id)

    def note(self, run_id: RunId, node_id: NodeId, output: Json) -> None:
        """Note that this process has recorded the result of a node."""
        with self._lock:
            found = self._bodies.get(run_id)
            if found is not None and node_id in found.waits_for:
                found.waits_for.remove(node_id)
                found.recorded.append((node_id, output))
                found.joins = None

    def keep(self, run_id: RunId, body: Body) -> None:
        """Keep a body that can go on; the one that was used least goes."""
        with self._lock:
            evicted = [self._bodies.pop(run_id)] if run_id in self._bodies else []
            if body.tracer.has_ended:
                evicted.append(body)
            else:
                self._bodies[run_id] = body
            while len(self._bodies) > self._size:
                evicted.append(self._bodies.popitem(last=False)[1])
        for old in evicted:
            old.tracer.close()

    def clear(self) -> None:
        """Close every body."""
        with self._lock:
            bodies, self._bodies = list(self._bodies.values()), OrderedDict()
        for body in bodies:
            body.tracer.close()
