"""Wiring: what makes a Celery app one that carries workflows.

The default app and `WorkflowPlugin` do the same here, with one difference: on an app of the user's own,
settings that ordinary tasks feel are left alone. Nothing is read, imported or connected before the app's
configuration is; an app may be wired before or after it is configured, finalized or used.

Not here: each of the parts that are put together.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from celery.signals import import_modules, worker_shutting_down
from celery.utils.imports import cwd_in_path

from ckworkflow import canvas
from ckworkflow.definition import discover
from ckworkflow.engine import installation
from ckworkflow.engine.installation import Installation
from ckworkflow.worker import backend, settings
from ckworkflow.worker.process import embedded, pools, runtime
from ckworkflow.worker.process.clock import Clock
from ckworkflow.worker.steps import events, reports, revokes, task

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from celery import Celery

    from ckworkflow.engine.settings import Settings
    from ckworkflow.model import RunId
    from ckworkflow.plan import Piece
    from ckworkflow.worker.process.embedded import EmbeddedWorker

__all__ = ["install"]

logger = logging.getLogger(__name__)

_SAID: Final = "_ckworkflow_said"
_WIRED: Final = "_ckworkflow_installation"


def install(app: Celery, *, is_own: bool = False) -> Installation:
    """Make an app carry workflows, and make it the one on which this process starts them.

    Args:
        app: The app; a second time changes nothing but which app is the current one.
        is_own: Whether it is the default app, which carries nothing else.
    """
    found: Installation | None = getattr(app, _WIRED, None)
    if found is None:
        found = Installation(
            app,
            settings=partial(_read_settings, app, is_own=is_own),
            publish=partial(_publish, app),
            start_embedded=partial(_start_embedded, app),
            is_embedded=partial(settings.is_embedded, app),
        )
        setattr(app, _WIRED, found)
        _wire(app, is_own=is_own)
    installation.install(found)
    return found


def _wire(app: Celery, *, is_own: bool) -> None:
    backend.install(app, fire=task.completes_join)
    pools.install(app, is_own=is_own)
    revokes.install()
    app.steps["worker"].add(Clock)
    reports.quieten_celery()

    def on_configured(**_: object) -> None:
        settings.configure(app, is_own=is_own)

    def on_finalized(**_: object) -> None:
        task.register_steps(app)

    def on_import(**_: object) -> None:
        # Not all of the settings: what else is wrong with them, the worker says a moment later, in one line.
        with (
            cwd_in_path()
        ):  # as for Celery's own `imports`: `celery -A shop` has it on the path only for `shop`
            discover(settings.packages(app))

    app.on_after_configure.connect(on_configured, weak=False)
    app.on_after_finalize.connect(on_finalized, weak=False)
    import_modules.connect(on_import, sender=app, weak=False)
    if app.configured:
        on_configured()
    if app.finalized:
        on_finalized()


def _read_settings(app: Celery, *, is_own: bool) -> Settings:
    """Read the settings for this process's engine, and say where it works: another folder is another database."""
    found = settings.read(app)
    place = settings.describe(app, is_own=is_own)
    if getattr(app, _SAID, None) != place:  # not in each child of a pool
        setattr(app, _SAID, place)
        logger.info("%s", place)
        if (stray := settings.stray_file(app)) is not None:
            logger.warning("%s", stray)
    return found


def _publish(app: Celery, run_id: RunId, pieces: Sequence[Piece]) -> bool:
    sent = events.events_of(app) if app.conf.task_send_sent_event else None
    carrier: Installation = getattr(app, _WIRED)
    return canvas.publish(
        app, run_id, pieces,
        at=carrier.engine.database.about_now(), tell_sent=None if sent is None else sent.add,
    )  # fmt: skip


def _start_embedded(app: Celery, loop: asyncio.AbstractEventLoop | None) -> EmbeddedWorker:
    return embedded.start(app, loop=loop)


@worker_shutting_down.connect
def _let_steps_end(**_: object) -> None:
    """Begin the grace time of a warm shutdown; a signal handler must return at once."""
    running = runtime.peek()
    if running is not None:
        running.begin_shutdown()
