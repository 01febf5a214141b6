"""Events past Celery: sent together, and no reason to wait for a broker that is down."""

from __future__ import annotations

import contextlib
import itertools
import threading

import pytest
from celery import Celery

import services
from ckworkflow import start_sync
from ckworkflow.testing import worker
from ckworkflow.worker.steps.events import Events
from worker_flows import failing_twice

SECONDS = 20


def test_events_reach_who_listens_in_their_order(redis_url: str) -> None:
    app = Celery(broker=redis_url)
    seen: list[str] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(
            connection, handlers={"*": lambda event: seen.append(f"{event['type']} {event['uuid']}")}
        )
        events = Events(app, "celery@here")
        with receiver.consumer_context() as (listening, _, _):
            with contextlib.suppress(TimeoutError):
                listening.drain_events(timeout=0.1)  # it subscribes when it first looks
            for number in range(3):
                events.add("task-started", uuid=str(number))
            events.flush()
            while len(seen) < 3:
                listening.drain_events(timeout=SECONDS)

    assert seen == ["task-started 0", "task-started 1", "task-started 2"]


def test_retries_are_counted_from_the_first_attempt_however_that_was_carried(make_app) -> None:
    """The first attempt goes without a message, and those that follow it with one."""
    app = make_app(is_own=True)
    seen = []
    with app.connection_for_read() as connection, worker():
        receiver = app.events.Receiver(
            connection, handlers={"task-received": lambda event: seen.append(event["retries"])}
        )
        with receiver.consumer_context() as (listening, _, _):
            for round_ in itertools.count():
                if round_ == 1:  # it subscribes when it first looks
                    run = start_sync(failing_twice)
                with contextlib.suppress(TimeoutError):
                    listening.drain_events(timeout=0.1)
                if len(seen) == 3:
                    break
            assert run.return_value(timeout=SECONDS) == 3

    assert seen == [0, 1, 2]


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{}/0", "amqp://127.0.0.1:{}//"])
def test_a_broker_that_is_down_holds_up_nobody(url: str) -> None:
    events = Events(Celery(broker=url.format(services.free_port())), None)
    events.add("task-started", uuid="1")

    flushed = threading.Thread(target=events.flush, daemon=True)
    flushed.start()
    flushed.join(SECONDS)

    assert not flushed.is_alive()
