"""The default app: what `celery -A ckworkflow worker` finds, and what a bot uses that has no app of its own.

Its configuration is the `celeryconfig.py` of the working directory (or the module that Celery's own
`CELERY_CONFIG_MODULE` names); without one everything has its default: SQLite files in the working
directory, and no server.

Not here: how an app is made to carry workflows (`ckworkflow.worker.wiring`).
"""

from __future__ import annotations

import importlib.util
import os
import sys

from celery import Celery

from ckworkflow.worker import wiring

__all__ = ["app"]

_CONFIG_VARIABLE = "CELERY_CONFIG_MODULE"
_CONFIG = "celeryconfig"


def _make_app() -> Celery:
    # `celery` starts with its own folder on the path, a bot with the bot's: both mean the project's. Inserted
    # even if it is there, since Celery takes its own entry away again when it has found the app.
    if "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # noqa: PTH109 - the path holds texts
    made = Celery("ckworkflow", set_as_current=False)
    # A module that is named and not there is an error; the one that is only looked for is not.
    if (named := os.environ.get(_CONFIG_VARIABLE)) or importlib.util.find_spec(_CONFIG) is not None:
        made.config_from_object(named or _CONFIG)
    wiring.install(made, is_own=True)
    return made


app = _make_app()
