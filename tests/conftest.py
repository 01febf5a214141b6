"""What every test may use: the servers of `services.py`, and the tiers.

A test that needs a server gets the marker of that server by asking for its fixture; a test that starts
processes or takes seconds says `@pytest.mark.slow`; every other test is of the tier `fast`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import services
from services import postgres_server, postgres_url, redis_server, redis_url

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["postgres_server", "postgres_url", "redis_server", "redis_url"]

SERVICES = {"redis_url": "redis", "postgres_url": "postgres"}


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        wanted = {SERVICES[name] for name in getattr(item, "fixturenames", ()) if name in SERVICES}
        for marker in wanted:
            item.add_marker(marker)
        if not _has_tier(item):
            item.add_marker("fast")


def _has_tier(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(tier) for tier in ("slow", "redis", "postgres"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Say as the very last thing what was not run, so that nobody takes a short run for a whole one."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not services.not_run:
        return
    reporter.section("not run", bold=True, yellow=True)
    for reason, count in sorted(services.not_run.items()):
        reporter.write_line(f"{count} test{'s' if count > 1 else ''}: {reason}", yellow=True)
