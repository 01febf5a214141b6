"""Bodies kept alive between continuations, so that the next one need not replay.

An optimisation and nothing else: a body that is not here, or that another process has advanced since, is
replayed from SQL with the same result.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckworkflow.model import RunId
    from ckworkflow.tracing import Tracer


class BodyCache:
    """The bodies that were advanced last.

    Args:
        size: How many; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._bodies: OrderedDict[RunId, tuple[int, Tracer]] = OrderedDict()

    def take(self, run_id: RunId, epoch: int) -> Tracer | None:
        """Remove and return the body, if its last continuation was the run's last."""
        with self._lock:
            found = self._bodies.pop(run_id, None)
        if found is None:
            return None
        if found[0] != epoch:
            found[1].close()
            return None
        return found[1]

    def keep(self, run_id: RunId, epoch: int, tracer: Tracer) -> None:
        """Keep a body; the one that was used least goes."""
        with self._lock:
            evicted = [self._bodies.pop(run_id)] if run_id in self._bodies else []
            self._bodies[run_id] = (epoch, tracer)
            while len(self._bodies) > self._size:
                evicted.append(self._bodies.popitem(last=False)[1])
        for _, old in evicted:
            old.close()

    def clear(self) -> None:
        """Close every body."""
        with self._lock:
            bodies, self._bodies = list(self._bodies.values()), OrderedDict()
        for _, tracer in bodies:
            tracer.close()
