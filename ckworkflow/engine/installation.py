"""The installation: which app, settings and engine this process works with.

Wiring (`ckworkflow.celery` or `WorkflowPlugin`) puts it here; everything below the wiring finds it by
`current()`. An installation makes one engine per process: a forked child has its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ckworkflow.engine.core import Engine, Publish
from ckworkflow.per_process import PerProcess

if TYPE_CHECKING:
    import asyncio

    from ckworkflow.engine.settings import Settings

DEFAULT = "ckworkflow.celery"
"""The module of the default app, imported when nothing was installed: as `celery -A ckworkflow` does."""


class EmbeddedWorker(Protocol):
    """A worker inside this process."""

    def stop(self) -> None:
        """Drain and stop; blocks."""
        ...


class Installation:
    """See the module.

    Args:
        app: The Celery app; opaque to the engine.
        settings: Reads the settings, when first asked.
        publish: Publishes pieces of a run's plan.
        start_embedded: Starts a worker inside this process, over a given loop or one of its own.
        is_embedded: Tells whether no broker is configured.
        make_engine: Makes the engine of a process.
    """

    def __init__(
        self,
        app: Any,
        *,
        settings: Callable[[], Settings],
        publish: Publish,
        start_embedded: Callable[[asyncio.AbstractEventLoop | None], EmbeddedWorker],
        is_embedded: Callable[[], bool],
        make_engine: Callable[[Settings, Publish], Engine] = Engine,
    ) -> None:
        self.app = app
        self._settings, self._publish, self._start_embedded = settings, publish, start_embedded
        self._is_embedded, self._make_engine = is_embedded, make_engine
        self._engine: PerProcess[Engine] = PerProcess()

    @property
    def engine(self) -> Engine:
        """The engine of this process, made when first asked."""
        return self._engine.peek() or self._engine.get(self._made)

    def _made(self) -> Engine:
        return self._make_engine(self._settings(), self._publish)

    @property
    def ready_engine(self) -> Engine | None:
        """The engine of this process, if it is made and its database checked: never blocks."""
        found = self._engine.peek()
        return found if found is not None and found.is_ready else None

    @property
    def is_embedded(self) -> bool:
        """Whether no broker is configured, so that the worker belongs into the bot's process."""
        return self._is_embedded()

    def check_settings(self) -> None:
        """Read the settings, and connect to nothing yet.

        Raises:
            CkWorkflowError: One of them cannot be used; names it.
        """
        _ = self.engine

    def start_embedded(self, *, loop: asyncio.AbstractEventLoop | None = None) -> EmbeddedWorker:
        """Start a worker inside this process.

        Args:
            loop: Where async steps run; `None`: a loop of the worker's own.
        """
        return self._start_embedded(loop)

    def forget_engine(self) -> None:
        """Close the engine; the next use makes a new one with the settings of then."""
        if (found := self._engine.take()) is not None:
            found.beside.finish()
            found.bodies.clear()
            found.database.close()


_current: Installation | None = None


def install(installation: Installation) -> None:
    """Make this the installation of the process."""
    global _current  # noqa: PLW0603  # one per process, like Celery's current app
    _current = installation


def ready_engine() -> Engine | None:
    """Return the engine of the process, if asking for it does not block."""
    return None if _current is None else _current.ready_engine


def current() -> Installation:
    """Return the installation of the process; without one, that of the default app."""
    if _current is None:
        importlib.import_module(DEFAULT)
    if _current is None:
        msg = f"{DEFAULT} installed nothing"
        raise AssertionError(msg)
    return _current
