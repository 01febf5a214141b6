"""The result backend of an app: joins of workflows, and for all else the backend that the app had.

The id of a task says whose it is. For a task of ours nothing is stored, since its record is in SQL before
Celery asks; when Celery reports a member of a chord, the task is asked whether its record completed the
join and left the body to Celery. For any other task every call goes to the
backend of the user's configuration, so ordinary results and chords are what they were.

It must be the app's backend: Celery uses `app.backend` for one half of a chord and `task.backend` for the
other, and a chord whose halves differ waits for ever without an error.

Errors here are logged and not raised. The outcome of the step is on record, and an exception would make
Celery call it a failure; the clock fires again what was not fired.

Not here: when a join is complete (`ckworkflow.engine`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo
from celery import current_app, maybe_signature, states

from ckworkflow.canvas import parse_task_id

if TYPE_CHECKING:
    from celery import Celery
    from celery.app.task import Context
    from celery.backends.base import Backend
    from celery.canvas import Signature
    from kombu.messaging import Producer

__all__ = ["Fire", "WorkflowBackend", "install"]

logger = logging.getLogger(__name__)

Fire = Callable[[str], bool]
"""Given the id of a task that has just ended on this thread: is Celery to publish the body of its chord?"""


class WorkflowBackend:
    """See the module. One for an app, shared by its threads.

    Not a subclass of Celery's backends on purpose: what is not said here is said by the user's backend,
    also what a later Celery adds.

    Attributes:
        fire: Decides whether the body of a chord is to be published; until it is set, none is.
        fired: Told the id of the task once the body that it made ready is published.
    """

    thread_safe = True

    def __init__(self, app: Celery, make_inner: Callable[[], Backend]) -> None:
        """Use `install`.

        Args:
            app: The app whose backend this is.
            make_inner: Makes the backend of the app's configuration.
        """
        self.app = app
        self.fire: Fire | None = None
        self.fired: Callable[[str], object] = lambda _task_id: None
        self._make_inner = make_inner
        # Of a result that is thrown away while this is held, in this thread, the backend is asked for, too.
        self._inner_lock = threading.RLock()
        self._inner: Backend | None = None
        self._local = threading.local()

    @property
    def inner(self) -> Backend:
        """The backend of the app's configuration; one for this thread if it cannot be shared."""
        if self._inner is not None:
            return self._inner
        found = getattr(self._local, "inner", None)
        if found is None:
            with self._inner_lock:
                found = self._local.inner = self._made()
        return found

    def _made(self) -> Backend:
        """Return the first backend that all threads can use: a result is waited for where it was asked for."""
        made = self._inner or self._make_inner()
        if made.thread_safe:
            made = self._inner = self._inner or made
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return _backend_of_current_app, ()

    # --- results: nothing is kept of ours -----------------------------------------------------------

    def store_result(
        self, task_id: str, result: object, state: str, *args: object, **kwargs: object
    ) -> object:
        """Store a result of an ordinary task."""
        if _is_ours(task_id):
            return result
        return self.inner.store_result(task_id, result, state, *args, **kwargs)

    def mark_as_started(self, task_id: str, **meta: object) -> object:
        """Note that an ordinary task has started."""
        return None if _is_ours(task_id) else self.inner.mark_as_started(task_id, **meta)

    def mark_as_done(self, task_id: str, result: object, *args: Any, **kwargs: Any) -> object:
        """Store the result of an ordinary task, or fire the join of one of ours."""
        if not _is_ours(task_id):
            return self.inner.mark_as_done(task_id, result, *args, **kwargs)
        self._part(kwargs.get("request") or (args[0] if args else None))
        return None

    def mark_as_failure(
        self, task_id: str, exc: BaseException, *args: object, **kwargs: object
    ) -> object:
        """Store the failure of an ordinary task; ours is recorded already, and what follows it is up to the body."""
        if not _is_ours(task_id):
            return self.inner.mark_as_failure(task_id, exc, *args, **kwargs)
        return None

    def mark_as_revoked(self, task_id: str, *args: object, **kwargs: object) -> object:
        """Note that an ordinary task was revoked; what that means for a step is in SQL (`.revokes`)."""
        return None if _is_ours(task_id) else self.inner.mark_as_revoked(task_id, *args, **kwargs)

    def mark_as_retry(self, task_id: str, exc: BaseException, *args: object, **kwargs: object) -> object:
        """Note that an ordinary task is tried again."""
        return None if _is_ours(task_id) else self.inner.mark_as_retry(task_id, exc, *args, **kwargs)

    def fail_from_current_stack(self, task_id: str, exc: BaseException | None = None) -> ExceptionInfo:
        """Store the error that is being handled as the result of an ordinary task."""
        return ExceptionInfo() if _is_ours(task_id) else self.inner.fail_from_current_stack(task_id, exc)

    def chord_error_from_stack(self, callback: Signature, exc: BaseException | None = None) -> object:
        """Fail the body of an ordinary chord."""
        if not _is_ours(_id_of(callback)):
            return self.inner.chord_error_from_stack(callback, exc)
        task_id = _id_of(callback)
        logger.warning(
            "chord %s of a workflow reported %s; the clock goes on with its run",
            task_id, type(exc).__name__, extra={"task_id": task_id},
        )  # fmt: skip
        return ExceptionInfo()

    def forget(self, task_id: str) -> None:
        """Delete the result of an ordinary task."""
        if not _is_ours(task_id):
            self.inner.forget(task_id)

    def get_task_meta(self, task_id: str, *args: object, **kwargs: object) -> object:
        """Return what is known of an ordinary task; `Run` tells about ours."""
        return _unknown() if _is_ours(task_id) else self.inner.get_task_meta(task_id, *args, **kwargs)

    def _get_task_meta_for(self, task_id: str, *args: object, **kwargs: object) -> object:
        if _is_ours(task_id):
            return _unknown()
        return self.inner._get_task_meta_for(task_id, *args, **kwargs)  # noqa: SLF001

    def get_state(self, task_id: str) -> object:
        """Return the state of an ordinary task."""
        return states.PENDING if _is_ours(task_id) else self.inner.get_state(task_id)

    def on_task_call(self, producer: Producer, task_id: str) -> object:
        """Prepare to receive the result of an ordinary task (Redis subscribes to it)."""
        return {} if _is_ours(task_id) else self.inner.on_task_call(producer, task_id)

    # --- chords --------------------------------------------------------------------------------------

    def ensure_chords_allowed(self) -> None:
        """Allow chords to be made; of ordinary ones an app without results hears when they are applied."""

    def apply_chord(
        self, header_result_args: Sequence[object], body: Signature, **kwargs: object
    ) -> object:
        """Prepare an ordinary chord; ours are counted in SQL."""
        if not _is_ours(_id_of(body)):
            return self.inner.apply_chord(header_result_args, body, **kwargs)
        # Celery sets the size next, on this thread, and names the group only.
        self._local.group_id = header_result_args[0]
        return None

    def set_chord_size(self, group_id: str, chord_size: int) -> object:
        """Store the size of an ordinary chord."""
        if getattr(self._local, "group_id", None) == group_id:
            self._local.group_id = None
            return None
        return self.inner.set_chord_size(group_id, chord_size)

    def on_chord_part_return(
        self, request: Context, state: str, result: object, **kwargs: object
    ) -> object:
        """Count a part of an ordinary chord, or fire the join of ours if it is complete."""
        if not _is_ours(request.id):
            return self.inner.on_chord_part_return(request, state, result, **kwargs)
        self._part(request)
        return None

    def _part(self, request: Context) -> None:
        body = getattr(request, "chord", None)
        if not body:
            return
        if self.fire is None:
            logger.error("step %s: no engine is connected to the result backend", request.id)
            return
        try:
            if self.fire(request.id):
                self._publish(request, body)
                self.fired(request.id)
        except Exception:
            logger.exception("join of step %s not fired, the clock will do it", request.id)

    def _publish(self, request: Context, body: Mapping[str, object]) -> None:
        signature = maybe_signature(body, app=self.app)
        # As Celery publishes the body of a chord: with a retry policy meant for callbacks.
        self.app.amqp._retry_publish(  # noqa: SLF001
            signature.apply_async, root_id=request.root_id or request.id, parent_id=request.id
        )


def install(app: Celery, *, fire: Fire | None = None) -> None:
    """Put our backend in front of the one that an app has; nothing is made before it is needed.

    Args:
        app: The app.
        fire: Becomes the backend's `fire`.
    """
    make_inner = app._get_backend  # noqa: SLF001 - where Celery makes it, also in a subclass

    def make() -> WorkflowBackend:
        made = WorkflowBackend(app, make_inner)
        made.fire = fire
        return made

    app._get_backend = make  # noqa: SLF001
    # Whatever was made before does not know us.
    app._backend_cache = None  # noqa: SLF001
    app._local.__dict__.pop("backend", None)  # noqa: SLF001


def _is_ours(task_id: str | None) -> bool:
    return parse_task_id(task_id) is not None


def _id_of(signature: Mapping[str, Any]) -> str | None:
    """Return the task id of a signature; a chord's body may be a chain, which is known by its first task."""
    options: Mapping[str, Any] = signature.get("options") or {}
    tasks = (signature.get("kwargs") or {}).get("tasks")
    found: str | None = _id_of(tasks[0]) if tasks else options.get("task_id")
    return found


def _unknown() -> dict[str, object]:
    return {"status": states.PENDING, "result": None, "traceback": None, "children": []}


def _backend_of_current_app() -> object:
    return current_app.backend
