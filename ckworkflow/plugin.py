"""`WorkflowPlugin`: workflows on a Celery app that somebody has already.

The app's ordinary tasks, their results and their chords stay what they were; its settings stay what the
user has written. Its worker runs steps beside them, on the app's default queue.

Not here: how (`ckworkflow.worker.wiring`), and the app for those who have none (`ckworkflow.celery`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckworkflow.worker import wiring

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["WorkflowPlugin"]


class WorkflowPlugin:
    """Lets a Celery app carry workflows.

    Put it where the app is made, so that the process that starts runs and the worker both have it:

        app = Celery("shop", broker="redis://localhost", backend="redis://localhost")
        app.conf.workflow_packages = ["shop.workflows"]
        WorkflowPlugin(app)

    Attributes:
        app: The app.
    """

    def __init__(self, app: Celery) -> None:
        """Wire the app; its configuration may follow.

        Args:
            app: The app; from now on `start` uses it in this process.
        """
        self.app = app
        wiring.install(app)
