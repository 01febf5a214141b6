from __future__ import annotations

import logging
import sys
import threading
import traceback
from types import SimpleNamespace

import pytest
from celery import Celery, chord, states
from celery.exceptions import ChordError

from ckworkflow import start_sync
from ckworkflow.canvas import task_id
from ckworkflow.testing import worker
from ckworkflow.worker.backend import WorkflowBackend
from waiting import until
from worker_flows import joining

OURS = task_id("r1", "0:1", 1)
PATIENCE_SECONDS = 20

# Celery's Redis backend calls what redis-py has deprecated; as an error it would end the thread of the pool.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


def register_ordinary_tasks(app: Celery) -> None:
    @app.task(name="plus", shared=False)
    def plus(one, two):
        return one + two

    @app.task(name="total", shared=False)
    def total(numbers):
        return sum(numbers)

    @app.task(name="fail", shared=False)
    def fail():
        raise LookupError("on purpose")


@pytest.fixture(params=["memory", "redis"])
def shop(request, make_app):
    """A user's app with ordinary tasks and a result backend of its own, and a worker in this process."""
    redis_url = request.getfixturevalue("redis_url")
    broker = redis_url if request.param == "redis" else "memory://"
    app = make_app(broker_url=broker, result_backend=redis_url)
    register_ordinary_tasks(app)
    with worker():
        yield app
    # What memory:// keeps is the process's, not the connection's.
    app.control.purge()


# --- with everything real ----------------------------------------------------------------------------


def test_ordinary_results_and_chords_are_what_they_were(shop):
    plus, total, fail = (shop.tasks[name] for name in ("plus", "total", "fail"))

    assert plus.delay(1, 2).get(timeout=PATIENCE_SECONDS) == 3
    assert chord([plus.s(n, n) for n in range(5)], total.s())().get(timeout=PATIENCE_SECONDS) == 20
    with pytest.raises(LookupError, match="on purpose"):
        fail.delay().get(timeout=PATIENCE_SECONDS)
    # Which of the two depends on what Celery sees first: the failed body, or the member that failed it.
    with pytest.raises((ChordError, LookupError), match="on purpose"):
        chord([plus.s(1, 1), fail.si()], total.s())().get(timeout=PATIENCE_SECONDS)


def test_joins_of_workflows_fire_and_leave_nothing_in_the_result_backend(shop, redis_url):
    import redis

    runs = [start_sync(joining, number) for number in range(5)]

    assert [run.return_value(timeout=PATIENCE_SECONDS) for run in runs] == [6 + 6 * n for n in range(5)]
    with redis.Redis.from_url(redis_url) as server:
        assert [key for key in server.keys() if b"celery-task-meta" in key or b"ckw:" in key] == []
        assert [key for key in server.keys() if key.endswith((b".j", b".t", b".s"))] == []


def test_without_a_result_backend_workflows_join_and_ordinary_chords_say_why_not(make_app):
    app = make_app(broker_url="memory://")
    register_ordinary_tasks(app)
    with worker():
        assert start_sync(joining, 1).return_value(timeout=PATIENCE_SECONDS) == 12

        with pytest.raises(NotImplementedError, match="chords requires a result backend"):
            chord([app.tasks["plus"].s(1, 1)], app.tasks["total"].s())()


# --- the backend alone -------------------------------------------------------------------------------


class Inner:
    """A user's backend that only notes what it is asked."""

    def __init__(self, *, thread_safe: bool = True) -> None:
        self.thread_safe = thread_safe
        self.calls: list[str] = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append(name)


@pytest.fixture
def published():
    return []


@pytest.fixture
def backend(make_app, published, monkeypatch):
    app = make_app(broker_url="memory://")
    backend = WorkflowBackend(app, Inner)
    monkeypatch.setattr(
        app.amqp,
        "_retry_publish",
        lambda publish, **options: published.append((publish.__self__, options)),
    )
    return backend


def member(id_=OURS):
    body = {"task": "body", "args": [], "kwargs": {}, "options": {"task_id": task_id("r1", "0:2", 1)}}
    return SimpleNamespace(id=id_, chord=body, root_id="r1")


CALLS = {
    "store_result": (1, states.SUCCESS),
    "mark_as_started": (),
    "mark_as_done": (1,),
    "mark_as_failure": (ValueError(),),
    "mark_as_revoked": (),
    "mark_as_retry": (ValueError(),),
    "forget": (),
    "get_task_meta": (),
    "get_state": (),
}


@pytest.mark.parametrize(("name", "arguments"), CALLS.items())
def test_of_a_task_of_ours_nothing_reaches_the_users_backend(backend, name, arguments):
    getattr(backend, name)(OURS, *arguments)

    assert backend.inner.calls == []


@pytest.mark.parametrize(("name", "arguments"), CALLS.items())
def test_of_an_ordinary_task_everything_does(backend, name, arguments):
    getattr(backend, name)("5f1c0708-1f1c", *arguments)

    assert backend.inner.calls == [name]


def test_what_is_not_known_here_is_asked_of_the_users_backend(backend):
    backend.some_method_of_a_later_celery()

    assert backend.inner.calls == ["some_method_of_a_later_celery"]


def test_the_body_is_published_when_the_engine_says_so(backend, published):
    told = []
    backend.fire, backend.fired = lambda *args: told.append(args) or True, told.append
    request = member()

    backend.mark_as_done(OURS, None, request, store_result=False)

    assert told == [(OURS,), OURS]
    [(signature, options)] = published
    assert signature.id == task_id("r1", "0:2", 1)
    assert options == {"root_id": "r1", "parent_id": OURS}


def test_the_body_is_not_published_while_the_join_is_open(backend, published):
    backend.fire = lambda *_: False

    backend.on_chord_part_return(member(), states.SUCCESS, None)

    assert published == []


def test_a_task_that_is_no_member_fires_nothing(backend):
    backend.fire = pytest.fail
    request = member()
    request.chord = None

    backend.mark_as_done(OURS, None, request)


def test_an_engine_that_fails_is_logged_and_does_not_fail_the_task(backend, published, caplog):
    def fire(*_):
        raise OSError("no database")

    backend.fire = fire
    with caplog.at_level(logging.ERROR):
        backend.mark_as_done(OURS, None, member())

    assert published == []
    assert "not fired, the clock will do it" in caplog.text


def test_a_chord_of_ours_is_neither_prepared_nor_counted(backend):
    backend.apply_chord(("group", []), member().chord)
    backend.set_chord_size("group", 3)
    assert backend.inner.calls == []

    backend.set_chord_size("group", 3)
    assert backend.inner.calls == ["set_chord_size"]


def test_a_backend_that_threads_must_not_share_is_made_for_each(make_app):
    backend = WorkflowBackend(make_app(), lambda: Inner(thread_safe=False))
    mine, theirs = backend.inner, []

    thread = threading.Thread(target=lambda: theirs.append(backend.inner))
    thread.start()
    thread.join()

    assert backend.inner is mine
    assert theirs[0] is not mine


def test_a_result_that_is_thrown_away_while_the_backend_is_made_may_ask_for_it(make_app):
    made = []

    def make() -> Inner:
        inner = Inner()
        made.append(inner)
        if len(made) == 1:
            backend.remove_pending_result(None)  # as the finalizer of a result does, wherever it runs
        return inner

    backend = WorkflowBackend(make_app(), make)
    asking = threading.Thread(target=lambda: backend.inner, daemon=True)
    asking.start()
    asking.join(PATIENCE_SECONDS)

    assert not asking.is_alive()
    assert backend.inner is made[1]


def test_a_thread_that_asks_while_the_backend_is_made_is_given_that_one(make_app):
    has_begun, found = threading.Event(), []

    def make() -> Inner:
        has_begun.set()
        # As long as the other one asks: it has looked before, and waits.
        until(lambda: "inner" in _names_of_frames(asking[1]))
        return Inner()

    backend = WorkflowBackend(make_app(), make)
    asking = [threading.Thread(target=lambda: found.append(backend.inner)) for _ in range(2)]
    asking[0].start()
    assert has_begun.wait(PATIENCE_SECONDS)
    asking[1].start()
    for thread in asking:
        thread.join(PATIENCE_SECONDS)

    assert found[0] is found[1]


def _names_of_frames(thread: threading.Thread) -> list[str]:
    frame = sys._current_frames().get(thread.ident or 0)
    return [] if frame is None else [each.f_code.co_name for each, _ in traceback.walk_stack(frame)]


def test_a_subclass_of_celery_keeps_the_backend_that_it_makes(forget):
    from ckworkflow import WorkflowPlugin

    inner = Inner()

    class Shop(Celery):
        def _get_backend(self):
            return inner

    app = Shop("shop", set_as_current=False)
    WorkflowPlugin(app)

    assert app.backend.inner is inner
