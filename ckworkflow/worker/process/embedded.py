"""A worker inside this process: Celery's `WorkController` in a thread of a program that is something else.

It consumes every queue to which the known steps go, by their `queue` or by `task_routes`, also those defined while it runs. What Celery changes
in a process is put back when it stops, and it can be started again. It is one per process, as Celery keeps
the state of its worker in a module. Celery's logging is not set up: its records go where the program sends
its own.

Not here: the loop of the async steps and the clock (`ckworkflow.worker.process.runtime`, `.clock`); who starts it
(the bot extension, `ckworkflow.testing.worker`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import billiard.pool
from celery import _state
from celery.app import trace
from celery.worker import WorkController, state
from kombu.asynchronous import get_event_loop, set_event_loop

from ckworkflow import canvas
from ckworkflow.background import BackgroundThread
from ckworkflow.definition import Step, registry
from ckworkflow.worker.consumer import Consumer
from ckworkflow.worker.process import pools, runtime
from ckworkflow.worker.settings import check_broker

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Sequence

    from celery import Celery

    from ckworkflow.definition.callables import Definition

__all__ = ["EmbeddedWorker", "start"]

logger = logging.getLogger(__name__)

READY_TIMEOUT: Final = timedelta(seconds=30)
_DRAIN_SECONDS: Final = 0.2
_FINISH_SECONDS: Final = runtime.GIVE_UP_SECONDS + 5.0

_running: EmbeddedWorker | None = None
_running_lock = threading.Lock()


class EmbeddedWorker:
    """A worker that runs in this process. `start` makes it.

    Attributes:
        name: Its name as Celery prints it.
    """

    def __init__(self, app: Celery, *, concurrency: int, queues: Sequence[str] | None) -> None:
        """Use `start`."""
        self.name = f"embedded-{os.getpid()}@{socket.gethostname()}"
        self._app = app
        self._queues = None if queues is None else set(queues)
        self._ready = threading.Event()
        with contextlib.ExitStack() as undo:
            undo.enter_context(_process_as_it_was(app))
            self._controller = self._make_controller(concurrency)
            undo.callback(registry.on_register(self._on_register))
            self._undo = undo.pop_all()
        self._is_asked_to_end = False
        self._thread = BackgroundThread(
            self._run, name="ckworkflow-embedded-worker", loss="no step runs in this process"
        )

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def stop(self, *, grace: timedelta = timedelta(seconds=runtime.GRACE_SECONDS)) -> None:
        """Take no more messages, let running steps end, and put the process back as it was; blocks.

        Async steps that still run after `grace` are cancelled and released. A sync step cannot be
        interrupted: after some seconds more the worker is left to end with it.

        Args:
            grace: How long async steps may still run.
        """
        self._is_asked_to_end = True
        seconds = grace.total_seconds()
        logger.info("embedded worker %s stops; its steps may run %g s longer", self.name, seconds)
        if (opened := runtime.peek()) is not None:
            opened.begin_shutdown(grace.total_seconds())
        if self._thread.is_alive():
            state.should_stop = os.EX_OK
            self._thread.join(grace.total_seconds() + _FINISH_SECONDS)
        if self._thread.is_alive():
            running = [] if opened is None else sorted(opened.engine.active)
            steps = ", ".join(f"{node_id} of run {run_id}" for run_id, node_id in running)
            logger.warning(
                "embedded worker %s ends only with a plain `def` step that does not end: %s",
                self.name,
                steps,
            )
            return
        runtime.stop()
        self._end()

    def _start(self, timeout: timedelta) -> None:
        self._thread.start()
        while not self._ready.wait(0.02):
            timeout -= timedelta(seconds=0.02)
            if not self._thread.is_alive():
                self._end()
                raise RuntimeError(
                    "The embedded worker ended before it was ready; Celery has logged why."
                )
            if timeout <= timedelta():
                self.stop(grace=timedelta())
                raise RuntimeError(
                    "The embedded worker was not ready in time: the broker does not answer. Celery logs what it "
                    "tries under the logger 'celery'."
                )

    def _make_controller(self, concurrency: int) -> WorkController:
        with _made_as_it_was(self._app):
            trace.setup_worker_optimizations(self._app, self.name)
            controller = WorkController(
                app=self._app,
                hostname=self.name,
                pool_cls=pools.POOL,
                concurrency=concurrency,
                queues=self._wanted_queues(),
                consumer_cls=_Consumer,
                without_gossip=True,
                without_mingle=True,
                ready_callback=self._on_ready,
            )
            controller.ckworkflow_is_embedded = True
            return controller

    def _run(self) -> None:
        # WorkController.start catches what goes wrong, logs it and stops.
        self._controller.start()
        if self._ready.is_set() and not self._is_asked_to_end:
            logger.critical(
                "the embedded worker %s has ended by itself, for the reason logged before. No step runs in this process "
                "any more, and what is started waits for another worker: restart this process.",
                self.name,
            )
            # Or its heartbeat would go on, and others would wait for a worker that does nothing.
            runtime.stop()
            self._end()

    def _end(self) -> None:
        global _running  # noqa: PLW0603 - one worker per process, as Celery has it
        self._undo.close()
        with _running_lock:
            if _running is self:
                _running = None

    def _on_ready(self, _consumer: object) -> None:
        # Celery takes a process with a worker for a task that must not wait for results; a bot may.
        _state._set_task_join_will_block(False)  # noqa: FBT003, SLF001
        self._ready.set()

    # --- queues --------------------------------------------------------------------------------------

    def _wanted_queues(self) -> list[str]:
        if self._queues is not None:
            return sorted(self._queues)
        named = {canvas.queue_of(self._app, name) for name in registry.steps}
        return sorted({self._app.conf.task_default_queue, *self._app.amqp.queues, *filter(None, named)})

    def _on_register(self, definition: Definition) -> None:
        """Let the running consumer know a step that was defined after it was started."""
        consumer = getattr(self._controller, "consumer", None)
        if consumer is None or not isinstance(definition, Step):
            return

        def learn() -> None:
            task = self._app.tasks[definition.name]
            consumer.strategies[task.name] = task.start_strategy(self._app, consumer)
            task.__trace__ = trace.build_tracer(
                task.name, task, self._app.loader, self.name, app=self._app
            )
            queue = canvas.queue_of(self._app, definition.name)
            if queue is not None and self._queues is None and consumer.task_consumer is not None:
                consumer.add_task_queue(queue)

        consumer.call_soon(learn)  # on the thread that owns the connection


class _Consumer(Consumer):
    """A consumer that checks often whether it was asked to stop."""

    def connect(self) -> Any:
        """Connect; where Celery waits two seconds for messages, wait a fifth of one."""
        connection = super().connect()
        drain = connection.drain_events

        def drain_briefly(timeout: float | None = None, **kwargs: object) -> object:
            return drain(timeout=min(timeout or _DRAIN_SECONDS, _DRAIN_SECONDS), **kwargs)

        if self.hub is None:
            connection.drain_events = drain_briefly
        return connection


def start(
    app: Celery,
    *,
    loop: asyncio.AbstractEventLoop | None = None,
    concurrency: int = pools.CONCURRENCY,
    queues: Sequence[str] | None = None,
    timeout: timedelta = READY_TIMEOUT,
) -> EmbeddedWorker:
    """Start a worker in this process, and return when it consumes.

    Never call it on `loop`: it waits for what it opens there.

    Args:
        app: A wired app.
        loop: Where async steps run; `None`: on a loop and thread of the worker's own.
        concurrency: Slots of its pool.
        queues: What to consume; `None`: the app's queues and those to which steps go.
        timeout: How long it may take.

    Raises:
        RuntimeError: A worker runs here already, or this one did not come up.
        CkWorkflowError: The broker is refused, the database or a token is not usable; nothing was consumed.
    """
    global _running  # noqa: PLW0603 - one worker per process, as Celery has it
    check_broker(app)
    with _running_lock:
        if _running is not None:
            raise RuntimeError(
                "A worker runs in this process already, and Celery allows one. Stop it first, or start a second "
                "process: `celery -A ckworkflow worker`."
            )
        # The runtime first: what it raises reaches the caller as it is, and before anything is consumed.
        runtime.start(loop)
        try:
            worker = EmbeddedWorker(app, concurrency=concurrency, queues=queues)
        except BaseException:
            runtime.stop()
            raise
        _running = worker
    try:
        worker._start(timeout)  # noqa: SLF001 - the other half of its constructor
    except BaseException:
        runtime.stop()
        raise
    return worker


@contextlib.contextmanager
def _made_as_it_was(app: Celery) -> Iterator[None]:
    """Put back at once what making a worker changes and running it does not need."""
    # The locks are replaced by ones that do not lock, which other threads of this program would feel.
    mutex, lock = app.clock.mutex, billiard.pool.Lock
    current = _state._tls.current_app  # noqa: SLF001
    try:
        yield
    finally:
        app.clock.mutex, billiard.pool.Lock = mutex, lock
        _state._tls.current_app = current  # noqa: SLF001


@contextlib.contextmanager
def _process_as_it_was(app: Celery) -> Iterator[None]:
    """Put back at the end what a running worker needs to change in its process."""
    default_app, hub = _state.default_app, get_event_loop()
    time_out, joins_block = socket.getdefaulttimeout(), _state.task_join_will_block()
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    consumed = app.amqp.queues._consume_from  # noqa: SLF001
    set_event_loop(None)  # a hub that a former worker has closed must not be used again
    state.should_stop = state.should_terminate = None
    try:
        yield
    finally:
        trace.reset_worker_optimizations(app)
        app.amqp.queues._consume_from = consumed  # noqa: SLF001
        _state.default_app = default_app
        _state._set_task_join_will_block(joins_block)  # noqa: SLF001
        set_event_loop(hub)
        socket.setdefaulttimeout(time_out)
        root.setLevel(level)
        root.handlers[:] = handlers
        # What was held for its time is back in the queue; the module must not know it any more.
        state.reset_state()
        state.should_stop = state.should_terminate = None
