"""An installation per test: its own Celery app, SQLite files and queue; with a worker in this process, or none.

Three levels of reality, the lowest that shows the thing: `running` has a real embedded worker, `home` has
everything but a worker, `desk` is an engine whose clock and whose messages are in the test's hand.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from ckworkflow.engine import advance as advancing
from ckworkflow.engine import installation
from ckworkflow.testing import worker
from ckworkflow.worker import wiring
from desk import Desk, ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ckworkflow.engine.installation import Installation

_names = itertools.count()


@pytest.fixture
def app(tmp_path: Path) -> Celery:
    """An app that is configured as the default one without a celeryconfig.py, but in the test's folder."""
    app = Celery(f"test-{next(_names)}", set_as_current=False)
    app.conf.workflow_database_url = f"sqlite:///{tmp_path / 'runs.sqlite3'}"
    return app


@pytest.fixture
def home(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """What `start` uses in this test; no worker is there."""
    # A token in the developer's shell must not reach these workers.
    monkeypatch.setenv("DISCORD_TOKEN", "")
    before = installation._current
    found = wiring.install(app, is_own=True)
    yield found
    found.forget_engine()
    installation._current = before


@pytest.fixture
def running(home: Installation) -> Iterator[Installation]:
    """The same with a worker in this process."""
    with worker():
        yield home


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(f"sqlite:///{tmp_path / 'desk.sqlite3'}", ManualClock(), "here")
    yield desk
    desk.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def either_desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    """An engine in the test's hand, on either database."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'desk.sqlite3'}"
    else:
        url = request.getfixturevalue("postgres_url")
    desk = Desk(url, ManualClock(), "here")
    yield desk
    desk.close()


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Do something once, between the reading of what the body is told and the commit of what it came to."""

    def install(act: Callable[[], object]) -> None:
        really, acts = advancing._trace, [act]

        def trace(*args: Any) -> Any:
            told = really(*args)
            while acts:
                acts.pop()()
            return told

        monkeypatch.setattr(advancing, "_trace", trace)

    return install
