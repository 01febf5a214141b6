"""The consumer's acknowledgements, on messages of a real transport; what a lost broker does is in `tests/matrix`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from celery.concurrency.solo import TaskPool as SoloPool
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu import Connection

from ckworkflow import canvas
from ckworkflow.worker import consumer as consumers
from ckworkflow.worker.consumer import Consumer, _handing_over
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kombu import Message

ERRORS = (ConnectionError,)
logger = logging.getLogger(__name__)


@pytest.fixture
def message() -> Iterator[Message]:
    """A message that was taken and not acknowledged."""
    with Connection("memory://") as connection, connection.SimpleQueue("steps") as queue:
        queue.put("a step")
        yield queue.get(block=False)


class Hub:
    """An event loop that has not come to what it was given."""

    def __init__(self) -> None:
        self.ready: list[Any] = []

    def call_soon(self, callback: Any) -> Any:
        self.ready.append(callback)
        return callback


def consumer(pool: type) -> Consumer:
    made = Consumer.__new__(Consumer)
    made.pool, made.hub = pool.__new__(pool), Hub()
    return made


def test_the_solo_pool_acknowledges_before_the_loop_sleeps(message: Message) -> None:
    consumer(SoloPool).call_soon_ack(message.ack_log_error, logger, ERRORS)

    assert message.acknowledged


def test_other_pools_acknowledge_on_the_thread_of_the_loop(message: Message) -> None:
    threads = consumer(ThreadPool)

    threads.call_soon_ack(message.ack_log_error, logger, ERRORS)
    assert not message.acknowledged
    for callback in threads.hub.ready:
        callback()

    assert message.acknowledged


@pytest.mark.parametrize("end", ["ack_log_error", "reject_log_error"])
def test_a_message_of_a_lost_connection_ends_nothing_and_is_not_made_a_story_of(
    message: Message, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    # What a channel of kombu's Redis transport raises once its connection has been given up.
    def lose(*args: Any, **kwargs: Any) -> None:
        raise AttributeError("'NoneType' object has no attribute 'hostname'")

    message.channel.basic_ack = message.channel.basic_reject = lose
    solo = consumer(SoloPool)

    with caplog.at_level(logging.INFO):
        solo.call_soon_ack(getattr(message, end), logger, ERRORS)

    assert not message.acknowledged
    assert caplog.records == []


def test_the_prefork_pool_finds_the_acknowledgements_that_it_must_send_at_its_end(
    message: Message,
) -> None:
    from celery.concurrency.prefork import _is_ack_callback

    threads = consumer(ThreadPool)

    threads.call_soon_ack(message.reject_log_error, logger, ERRORS)

    assert all(_is_ack_callback(callback) for callback in threads.hub.ready)


def test_a_pool_that_takes_nothing_more_is_not_blamed_on_the_message(message: Message) -> None:
    threads = consumer(ThreadPool)
    threads.connection_errors = threads.channel_errors = ERRORS

    def closed(request: object) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    with pytest.raises(RuntimeError, match="after shutdown"):
        threads._guarded(_handing_over(closed))(message)

    assert not message.acknowledged


@pytest.mark.parametrize("headers", [{}, {canvas.PUBLISHED_AT: 1.5}], ids=["Celery's own", "published"])
@pytest.mark.parametrize(("id_", "is_ours"), [("ckw:run:0:1:2", True), ("ckw:run:0:1:3", False)])
def test_a_step_that_this_worker_does_not_know_is_held_whoever_has_sent_its_message(
    message: Message, monkeypatch: pytest.MonkeyPatch, headers: dict[str, Any], id_: str, is_ours: bool
) -> None:
    held: list[Any] = []
    theirs: list[Any] = []
    monkeypatch.setattr(consumers, "_hold_unknown", lambda *what: held.append(what))
    monkeypatch.setattr(CeleryConsumer, "on_unknown_task", lambda *what: theirs.append(what))
    message.headers.update(headers, task="flows.gone", id=id_)
    message._decoded_cache = [["run", "0:1", 2], {}, {}]
    taker = consumer(ThreadPool)
    taker.connection_errors = ERRORS

    taker.on_unknown_task(None, message, KeyError("flows.gone"))

    if is_ours:
        until(lambda: held == [("run", "0:1", 2, "flows.gone")])
        assert message.acknowledged  # rejected for good
    assert len(theirs) == int(not is_ours)


def test_a_connection_that_is_lost_as_soon_as_it_is_made_is_not_made_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Celery counts how often it is made, and says with a traceback that this is too often."""
    slept: list[float] = []
    monkeypatch.setattr(consumers.time, "sleep", slept.append)
    monkeypatch.setattr(CeleryConsumer, "on_connection_error_after_connected", lambda *_: None)
    made = consumer(ThreadPool)
    full = OSError("database or disk is full")

    made.on_connection_error_after_connected(full)
    assert slept == []
    made.on_connection_error_after_connected(full)
    made.on_connection_error_after_connected(full)
    assert slept == [consumers.LOST_SECONDS] * 2

    made._lost_at -= consumers.LOST_SECONDS
    made.on_connection_error_after_connected(full)
    assert slept == [consumers.LOST_SECONDS] * 2
