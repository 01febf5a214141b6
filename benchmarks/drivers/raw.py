"""The client of the peer: raw Celery chains and chords of the same tasks.

With `--embedded THREADS` the worker runs in this process, as ours does without a broker.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from typing import Any

from celery import chain, chord
from protocol import serve
from raw_app import app, clock, noop, quiet, rest, total

TIMEOUT_SECONDS = 600.0
LOOK_SECONDS = 0.002
"""Between two looks at a result that is kept in memory (Celery: 0.5); those on Redis and RabbitMQ are pushed."""


def of_length(length: int) -> Any:
    """A chain whose last task alone stores its result."""
    return chain(*[quiet.si(number) for number in range(length - 1)], noop.si(length))


def finish(results: list[Any]) -> list[Any]:
    """Wait for results, one after the other."""
    return [result.get(timeout=TIMEOUT_SECONDS, interval=LOOK_SECONDS) for result in results]


def chains(runs: int) -> dict[str, float]:
    """Many chains of five tasks."""
    began = time.perf_counter()
    finish([of_length(5).apply_async() for _ in range(runs)])
    return {"seconds": time.perf_counter() - began}


def lone(times: int, pause: float) -> dict[str, list[float]]:
    """One chain of five at a time, on an idle system."""
    taken = []
    for _ in range(times):
        time.sleep(pause)
        began = time.perf_counter()
        of_length(5).apply_async().get(timeout=TIMEOUT_SECONDS, interval=LOOK_SECONDS)
        taken.append(time.perf_counter() - began)
    return {"seconds": taken}


def long(kind: str, length: int) -> dict[str, float]:
    """One long chain; or a client that looks at each result before it sends the next task."""
    began = time.perf_counter()
    if kind == "chain":
        of_length(length).apply_async().get(timeout=TIMEOUT_SECONDS, interval=LOOK_SECONDS)
    else:
        for number in range(length):
            assert noop.delay(number).get(timeout=TIMEOUT_SECONDS, interval=LOOK_SECONDS) == number
    return {"seconds": time.perf_counter() - began}


def wide(width: int) -> dict[str, float]:
    """One chord."""
    began = time.perf_counter()
    answer = chord([noop.si(number) for number in range(width)])(total.s()).get(
        timeout=TIMEOUT_SECONDS, interval=LOOK_SECONDS
    )
    assert answer == width, answer
    return {"seconds": time.perf_counter() - began}


def timers(count: int, seconds: float, pace: float) -> dict[str, list[float]]:
    """Lateness of tasks with a countdown, one sent every `pace` seconds."""
    began, results = time.monotonic(), []
    for number in range(count):
        time.sleep(max(began + number * pace - time.monotonic(), 0))
        results.append(clock.apply_async(countdown=seconds))
    return {"late": finish(results)}


def awaits(count: int, seconds: float) -> dict[str, float]:
    """Many tasks that wait."""
    began = time.perf_counter()
    finish([rest.delay(seconds) for _ in range(count)])
    return {"seconds": time.perf_counter() - began}


def sleepers(count: int, seconds: float) -> dict[str, float]:
    """Send tasks that are due after days."""
    began = time.perf_counter()
    for _ in range(count):
        quiet.apply_async((0,), countdown=seconds)
    return {"seconds": time.perf_counter() - began}


@contextlib.contextmanager
def worker_inside(threads: int) -> Any:
    """Celery's own worker for tests, which runs in a thread."""
    from celery.contrib.testing.worker import start_worker

    with start_worker(
        app, pool="threads", concurrency=threads, perform_ping_check=False, loglevel="warning",
        without_heartbeat=True,
    ):  # fmt: skip
        from celery import _state

        _state._set_task_join_will_block(False)  # noqa: SLF001, FBT003 - the client waits in this process
        yield


def main() -> None:
    """Serve the workloads."""
    logging.basicConfig(level=logging.WARNING)
    threads = int(sys.argv[sys.argv.index("--embedded") + 1]) if "--embedded" in sys.argv else 0
    with worker_inside(threads) if threads else contextlib.nullcontext():
        serve({f.__name__: f for f in (chains, lone, long, wide, timers, awaits, sleepers)})


if __name__ == "__main__":
    main()
