"""Pools: which one a worker of the command line runs on, and which ones are refused.

Steps wait for the network, so `threads` with 200 slots is the default of our own app. It is the default of the option
`-P`, not a setting: Celery lets a `worker_pool` setting win over `-P prefork` without a word. What the
user has set still wins over ours, on the command line and in `celeryconfig.py` alike. On an app of the user's own
(`WorkflowPlugin`) nothing is chosen: its tasks were written for the pool that they have, and rely on its time limits.

Not here: workers inside another process, which choose their pool themselves (`ckworkflow.worker.process.embedded`).
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

import click
from celery.signals import celeryd_init

from ckworkflow.errors import CkWorkflowError, UnsupportedPoolError
from ckworkflow.worker import settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from celery import Celery
    from celery.worker import WorkController

__all__ = ["CONCURRENCY", "POOL", "check_pool", "describe", "exit_on_error", "install"]

POOL: Final = "threads"
CONCURRENCY: Final = 200
"""Slots of the threads pool. Every waiting async step holds one."""

_GREEN: Final = ("gevent", "eventlet")


def install(app: Celery, *, is_own: bool) -> None:
    """Give `celery worker` on our own app our default pool, and have any app refuse pools that cannot work."""
    # The option has no meaning of its own. It is there because its callback runs when the command has its
    # app but has not looked for `-P` yet, however the command was started.
    option = click.Option(
        ["--workflow-defaults"], is_flag=True, hidden=True, expose_value=False, is_eager=True,
        callback=lambda ctx, _option, _value: _set_defaults(ctx, app, is_own=is_own),
    )  # fmt: skip
    app.user_options["worker"].add(option)

    def on_init(instance: WorkController, options: Mapping[str, object], **_: object) -> None:
        if instance.app is app:
            _prepare_worker(app, options, is_own=is_own)

    celeryd_init.connect(on_init, weak=False)


def check_pool(pool: object) -> None:
    """Refuse pools of patched sockets.

    Args:
        pool: The name or the class of a pool.

    Raises:
        UnsupportedPoolError: It is gevent's or eventlet's.
    """
    name = pool if isinstance(pool, str) else getattr(pool, "__module__", "")
    for green in _GREEN:
        if green in name:
            raise UnsupportedPoolError(green)


def describe(worker: WorkController, *, is_embedded: bool = False) -> str:
    """Say on which pool a worker runs its steps, and how to have another, which one inside another process cannot."""
    name = worker.pool_cls.__module__.rpartition(".")[2]
    slots = worker.pool.limit or 1
    text = f"steps run on the {_NAMES.get(name, name)} pool, {slots} at a time"
    if worker.app.conf.value_set_for("worker_pool") or is_embedded:
        return text
    other = "prefork" if name == "thread" else POOL
    return f"{text}; `worker_pool = {other!r}` in the app's settings chooses another"


_NAMES: Final = {"thread": POOL}


def _set_defaults(ctx: click.Context, app: Celery, *, is_own: bool) -> None:
    for option in ctx.command.params:
        if option.name == "pool":
            option.default = partial(_default_pool, app, is_own=is_own)
        elif is_own and option.name in ("without_mingle", "without_gossip"):
            # Workers meet in SQL. To ask for neighbours first would cost each start a second.
            option.default = True


def _default_pool(ours: Celery, *, is_own: bool) -> str:
    """Return what `-P` is when it is not given; "prefork" makes Celery take the `worker_pool` setting."""
    app = click.get_current_context().obj.app
    if not is_own or app is not ours or app.conf.value_set_for("worker_pool"):
        with exit_on_error():
            check_pool(app.conf.worker_pool)  # before Celery tries to import gevent
        return "prefork"
    return POOL


def _prepare_worker(app: Celery, options: Mapping[str, object], *, is_own: bool) -> None:
    """Refuse or choose a pool, at the last moment before a worker program reads its options."""
    conf = app.conf
    pool = options.get("pool") or options.get("pool_cls") or conf.worker_pool
    with exit_on_error():
        check_pool(pool)
        settings.read(app)
    if (
        is_own
        and options.get("concurrency") is None
        and not conf.value_set_for("worker_concurrency")
        and _is_threads(pool)
    ):
        conf["worker_concurrency"] = CONCURRENCY


def _is_threads(pool: object) -> bool:
    return pool == POOL or getattr(pool, "__module__", "") == "celery.concurrency.thread"


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the program with the sentence of an error of ours, not with a traceback."""
    try:
        yield
    except CkWorkflowError as error:
        raise SystemExit(str(error)) from None
