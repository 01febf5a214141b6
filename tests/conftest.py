"""What every test may use: the servers of `services.py`, and the tiers.

A test that needs a server gets the marker of that server by asking for its fixture; a test that starts
processes or takes seconds says `@pytest.mark.slow`; every other test is of the tier `fast`.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

import services
import totals
from services import (
    postgres_server,
    postgres_url,
    rabbitmq_server,
    rabbitmq_url,
    redis_server,
    redis_url,
)

__all__ = [
    "postgres_server",
    "postgres_url",
    "rabbitmq_server",
    "rabbitmq_url",
    "redis_server",
    "redis_url",
]

MEMORY = Path("/dev/shm")
MEMORY_BYTES = 1_000_000_000
SEED = "CKWORKFLOW_SEED"
SERVICES = {"redis_url": "redis", "rabbitmq_url": "rabbitmq", "postgres_url": "postgres"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # To look into this folder is to import pytest-celery, for which those in a hurry are not to wait.
    is_integration = collection_path == Path(__file__).parent / "integration"
    return True if is_integration and config.option.markexpr == "fast" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        wanted = {SERVICES[name] for name in getattr(item, "fixturenames", ()) if name in SERVICES}
        for marker in wanted:
            item.add_marker(marker)
        if not _has_tier(item):
            item.add_marker("fast")


def _has_tier(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(tier) for tier in ("slow", *SERVICES.values()))


def pytest_configure(config: pytest.Config) -> None:
    """Keep temporary folders in memory where there is room.

    Tests kill processes and not the machine, so waiting for a disk would only make them slow. And draw the seed of
    those that draw lots, once for all processes of `pytest -n`.
    """
    os.environ[SEED] = os.environ.get(SEED) or str(random.SystemRandom().randrange(10**6))
    with contextlib.suppress(OSError):
        if shutil.disk_usage(MEMORY).free >= MEMORY_BYTES:
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_report_header() -> str:
    return f"seed: {SEED}={os.environ[SEED]}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the long tests have counted."""
    totals.report(terminalreporter)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Say as the very last thing what was not run, so that nobody takes a short run for a whole one."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    # From the reports, which also come from the processes of `pytest -n`.
    reasons = (
        str(report.longrepr[2]) for report in reporter.stats.get("skipped", ()) if report.longrepr
    )
    not_run = Counter(
        reason.removeprefix("Skipped: ") for reason in reasons if services.NOT_AVAILABLE in reason
    )
    if not not_run:
        return
    reporter.section("not run", bold=True, yellow=True)
    for reason, count in sorted(not_run.items()):
        reporter.write_line(f"{count} test{'s' if count > 1 else ''}: {reason}", yellow=True)
