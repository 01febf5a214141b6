"""Limits: token buckets by name, in bounded memory.

A bucket starts full and refills at a steady rate. When there are too many, the least recently used one is dropped: it is probably full again, and a full
bucket says nothing. To make the limiter forget a bucket, a sender needs thousands of other names.

Source:
    Turner, "New directions in communications", IEEE Communications Magazine 24 (10), 1986.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from ckworkflow.engine.settings import Rate

__all__ = ["Buckets"]

MOST_BUCKETS: Final = 10_000


class Buckets:
    """See the module. For one event loop.

    Args:
        rate: How fast each fills, and how much it holds; `None`: nothing is limited.
        most: How many are remembered.
        clock: Seconds that never go back.
    """

    def __init__(
        self, rate: Rate | None, *, most: int = MOST_BUCKETS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._most, self._clock = rate, most, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What each held, and when."""

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._levels)

    def take(self, name: str) -> float:
        """Take a token; return 0, or, if there is none, after how many seconds there is one."""
        if self._rate is None:
            return 0.0
        now, per_second = self._clock(), self._rate.count / self._rate.seconds
        level, at = self._levels.pop(name, (float(self._rate.count), now))
        level = min(float(self._rate.count), level + (now - at) * per_second)
        is_granted = level >= 1
        self._levels[name] = (level - 1 if is_granted else level, now)
        if len(self._levels) > self._most:
            self._levels.popitem(last=False)
        return 0.0 if is_granted else (1 - level) / per_second
