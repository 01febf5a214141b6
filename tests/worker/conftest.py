"""Apps for the tests of the worker's parts: of the user's own, in the test's folder, forgotten at the end."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery

from ckworkflow import WorkflowPlugin
from ckworkflow.engine import installation
from ckworkflow.worker import wiring

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_names = itertools.count()


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the installation of the test be nobody else's."""
    for name in ("DISCORD_TOKEN", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    before = installation._current
    yield
    made = installation._current
    if made is not None and made is not before:
        made.forget_engine()
    installation._current = before


@pytest.fixture
def make_app(tmp_path: Path, forget: None) -> Callable[..., Celery]:
    """Make an app with these settings that carries workflows: the user's own, or ours (`is_own`)."""

    def make(*, is_own: bool = False, **settings: Any) -> Celery:
        app = Celery(f"shop-{next(_names)}", set_as_current=False)
        settings.setdefault("workflow_database_url", f"sqlite:///{tmp_path / 'runs.sqlite3'}")
        app.conf.update(settings)
        if is_own:
            wiring.install(app, is_own=True)
        else:
            WorkflowPlugin(app)
        return app

    return make
