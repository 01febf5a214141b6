"""A fork server: everything imported once, so that a new worker process costs a fork and not a second.

It has one thread, no connection and no engine, so what it forks starts as a fresh process does. Each child is
told what to be (`Orders`) and where, gets a session and a log of its own, and a socket by which the
harness hears of its death and, where it starts runs, tells it which.

Not here: who orders (`crash_everywhere.site`).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import pkgutil
import random
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

# -- what every child needs ---------------------------------------------------------------------------


def import_everything() -> None:
    """Import what a worker would, and nothing that reads the configuration of one."""
    import ckworkflow

    for name in (
        "alembic.command", "alembic.config", "celery.app.amqp", "celery.app.control",
        "celery.app.events", "celery.app.log", "celery.app.trace", "celery.apps.worker",
        "celery.bin.celery", "celery.bin.worker", "celery.concurrency.prefork",
        "celery.concurrency.solo", "celery.concurrency.thread", "celery.events.state",
        "celery.fixups.django", "celery.loaders.app", "celery.worker.autoscale",
        "celery.worker.components", "celery.worker.consumer", "celery.worker.consumer.delayed_delivery",
        "celery.worker.control", "celery.worker.strategy", "concurrent.futures.thread",
        "kombu.asynchronous.hub", "kombu.transport.pyamqp", "kombu.transport.redis", "psycopg", "redis",
        "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite.pysqlite",
    ):  # fmt: skip
        importlib.import_module(name)
    for found in pkgutil.walk_packages(ckworkflow.__path__, "ckworkflow."):
        # These make an app of the working directory, or are scripts.
        if not found.name.startswith(("ckworkflow.celery", "ckworkflow.store.migrations")):
            with contextlib.suppress(
                ModuleNotFoundError
            ):  # what needs discord.py, where that is not here
                importlib.import_module(found.name)


def become(orders: dict[str, Any], line: socket.socket) -> None:
    """Be the process that was ordered, in a child that was just forked."""
    log = os.open(orders["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(orders["folder"])
    os.environ.update(orders["env"])
    sys.path.insert(0, orders["folder"])
    sys.argv = ["celery", "-A", "ckworkflow", "worker", *orders["options"]]
    random.seed()
    importlib.invalidate_caches()
    if orders["role"] is not None:
        from crash_everywhere import points

        points.begin(points.Control(Path(orders["folder"])), orders["role"])
    for name in orders["patches"]:
        module, _, function = name.partition(":")
        getattr(importlib.import_module(module), function)()
    {"worker": be_worker, "embedded": be_program, "client": be_program}[orders["kind"]](orders, line)


def say(line: socket.socket, value: Any) -> None:
    line.sendall(json.dumps(value).encode() + b"\n")


def be_worker(orders: dict[str, Any], line: socket.socket) -> None:
    """What `celery -A ckworkflow worker` is."""
    from celery.bin.celery import main
    from celery.signals import worker_ready

    worker_ready.connect(lambda **_: say(line, "ready"), weak=False)
    main()


def be_program(orders: dict[str, Any], line: socket.socket) -> None:
    """A program that starts runs and cancels them, with a worker inside it or without."""
    from ckworkflow import CkWorkflowError, start_sync
    from ckworkflow.testing import worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    with worker() if orders["kind"] == "embedded" else contextlib.nullcontext():
        say(line, "ready")
        for text in line.makefile():
            module, _, name = json.loads(text).partition(":")
            try:
                if module.startswith("cancel+"):
                    module = module.removeprefix("cancel+")
                    run = start_sync(getattr(importlib.import_module(module), name))
                    time.sleep(random.uniform(0, 0.2))
                    was_live = False
                    with contextlib.suppress(CkWorkflowError):  # then nobody knows
                        was_live = run.cancel(reason="the nemesis")
                    say(line, {"run": run.run_id, "was_live": was_live})
                    continue
                say(line, {"run": start_sync(getattr(importlib.import_module(module), name)).run_id})
            except Exception:
                say(line, {"error": traceback.format_exc()})


# -- the server ---------------------------------------------------------------------------------------


def serve(orders_from: socket.socket) -> None:
    """Fork until the harness is gone.

    A child that has ended stays a zombie until the harness has no more use for its number: a signal for it, or for
    its group, can then never reach a stranger who has been given the same one.
    """
    while True:
        data, files, _, _ = socket.recv_fds(orders_from, 65536, 1)
        if not data:
            return
        if "release" in (orders := json.loads(data)):
            os.waitpid(orders["release"], 0)
            continue
        assert threading.active_count() == 1, threading.enumerate()
        began = time.perf_counter()
        born, is_born = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setsid()
                os.write(is_born, b"!")
                for file in (born, is_born):
                    os.close(file)
                orders_from.close()
                become(orders, socket.socket(fileno=files[0]))
                status = 0
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        for file in (files[0], is_born):
            os.close(file)
        os.read(born, 1)  # from now on it has a group that can be killed
        os.close(born)
        orders_from.sendall(json.dumps({"pid": pid, "seconds": time.perf_counter() - began}).encode())


def main() -> None:
    orders_from = socket.socket(fileno=int(sys.argv[1]))
    import_everything()
    from crash_everywhere import points

    points.install()
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    orders_from.sendall(b"ready")
    serve(orders_from)


if __name__ == "__main__":
    main()
