"""Where a command runs: the Celery app that is meant, its settings, and its workflows.

The app is loaded when a command first asks, so that `--help` works in any folder. The working directory is
importable, as it is for a worker that is started in it.

Not here: the default app (`ckworkflow.celery`).
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from celery.app.utils import find_app

from ckworkflow.definition import discover
from ckworkflow.engine.installation import current
from ckworkflow.worker import settings

if TYPE_CHECKING:
    from celery import Celery

    from ckworkflow.engine.core import Engine
    from ckworkflow.engine.installation import Installation
    from ckworkflow.engine.settings import Settings
    from ckworkflow.errors import WorkflowModuleError

__all__ = ["Home", "pass_home"]


class Home:
    """See the module.

    Args:
        find: Finds the app that was named; `None` stands for the default one.
    """

    def __init__(self, find: Callable[[], Celery | None]) -> None:
        self._find = find

    @classmethod
    def of_name(cls, name: str | None) -> Home:
        """Return the home of an app by name, as `celery -A` takes it; `None` is the default app."""
        return cls(lambda: None if name is None else _load_app(name))

    @classmethod
    def of_app(cls, app: Celery) -> Home:
        """Return the home of an app that is loaded already."""
        return cls(lambda: app)

    @functools.cached_property
    def installation(self) -> Installation:
        """What carries workflows on the app."""
        _make_folder_importable()
        app = self._find()
        found = current()
        if app is not None and found.app is not app:
            raise click.ClickException(
                f"The Celery app {app.main or app!r} carries no workflows. Write WorkflowPlugin(app) where it is "
                f"made (`from ckworkflow import WorkflowPlugin`)."
            )
        return found

    @property
    def has_settings(self) -> bool:
        """Whether there is a Celery app that was named, or a `celeryconfig.py` in this folder."""
        return self._find() is not None or Path("celeryconfig.py").exists()

    @property
    def app(self) -> Celery:
        """The Celery app."""
        return self.installation.app

    @functools.cached_property
    def settings(self) -> Settings:
        """What `celeryconfig.py` says; reading it connects to nothing."""
        return settings.read(self.app)

    @property
    def engine(self) -> Engine:
        """The engine over the database, which is checked (a SQLite file: migrated, never made) first."""
        engine = self.installation.engine
        engine.ensure_schema(creates=False)
        return engine

    def load_workflows(self) -> Sequence[WorkflowModuleError]:
        """Import the modules of `workflow_packages`; return what could not be imported."""
        return discover(self.settings.packages)

    def load_everything(self) -> None:
        """Import what a worker of this app would: the modules that Celery itself is told of."""
        try:
            self.app.loader.import_default_modules()
        except Exception as error:
            raise click.ClickException(
                f"A module that the Celery app names cannot be imported: {type(error).__name__}: {error}"
            ) from error


pass_home = click.make_pass_decorator(Home)


def _make_folder_importable() -> None:
    folder = os.getcwd()  # noqa: PTH109  # compared with texts
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _load_app(name: str) -> Celery:
    try:
        return find_app(name)
    except Exception as error:
        raise click.ClickException(
            f"The Celery app {name!r} cannot be loaded: {type(error).__name__}: {error}. Name it as `celery -A` "
            f"does (module, or module:attribute), in the folder that holds the module."
        ) from error
