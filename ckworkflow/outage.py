"""Outages: something that cannot be reached is said once, and once more when it is back.

Two hundred threads that wait for one database would say it two hundred times a second.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref

__all__ = ["Outage"]


_all: weakref.WeakSet[Outage] = weakref.WeakSet()


class Outage:
    """Whether something is out of reach, as far as this process knows.

    Args:
        logger: Where to say it.
        what: Its name: `database`, `broker`.
        problem: What is wrong with it.
    """

    def __init__(self, logger: logging.Logger, what: str, *, problem: str = "unreachable") -> None:
        self._logger, self._what, self._problem = logger, what, problem
        self._lock = threading.Lock()
        _all.add(self)
        self._since: float | None = None

    def begins(self, error: BaseException, text: object = None) -> None:
        """Note that it was not reached; the first to note it says so, with a text that may replace the error's."""
        with self._lock:
            is_new = self._since is None
            if is_new:
                self._since = time.monotonic()
        if is_new:
            self._logger.warning("%s %s: %s", self._what, self._problem, text or error)

    def ends(self) -> None:
        """Note that it was reached."""
        if self._since is None:
            return
        with self._lock:
            since, self._since = self._since, None
        if since is not None:
            seconds = round(time.monotonic() - since, 1)
            self._logger.warning("%s is back after %s s", self._what, seconds)


def _start_over() -> None:
    """In a forked child: locks may have been held in that moment, by threads that are not here."""
    for outage in _all:
        outage._lock = threading.Lock()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over)
