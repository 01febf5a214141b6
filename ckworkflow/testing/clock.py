"""The clock of an environment: time stands still until the test lets it pass."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

__all__ = ["TestClock"]

MOMENT = timedelta(microseconds=1)


class TestClock:
    """See the module.

    Each look at it takes a moment, so that no two records have the same time. Moments do not count as time that has
    passed: what is due after a day is due when the test has let a day pass, however much was done meanwhile.

    Args:
        start: The time at first, with a time zone.
    """

    __test__ = False  # pytest takes classes of this name for tests

    def __init__(self, start: datetime) -> None:
        self._start = start.astimezone(UTC)
        self._passed = self._moments = timedelta()

    def __call__(self) -> datetime:
        """Look at it: the time, and the moments."""
        self._moments += MOMENT
        return self._start + self._passed + self._moments

    @property
    def now(self) -> datetime:
        """The time, without the moments."""
        return self._start + self._passed

    def is_due(self, at: datetime, by: datetime) -> bool:
        """Whether what is due at a time that was counted from a look at this clock is due at `by`, without the moments."""
        return at - self._moments <= by

    def pass_until(self, at: datetime) -> None:
        """Let time pass until `at`, a time without the moments; it never goes back."""
        self._passed = max(self._passed, at - self._start)

    def pass_until_due(self, at: datetime) -> None:
        """Let time pass until a look shows `at`, or later."""
        self.pass_until(at - self._moments)
