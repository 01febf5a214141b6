"""A message that is not claimed in time: lost, or only in a long queue."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ckworkflow import canvas, step, workflow
from ckworkflow.engine.core import MessageLatency
from ckworkflow.engine.host import Host
from ckworkflow.engine.recovery import TURNS_WHILE_FULL
from ckworkflow.model import NodeId, RunId
from ckworkflow.plan import Chain, Task
from waiting import until

if TYPE_CHECKING:
    from celery import Celery

    from ckworkflow.engine.installation import Installation
    from desk import Desk

MISSING = RunId("01a2b3c4d5e6f7a8b9c0d1e2f3")


@step
async def greet() -> None: ...


@workflow
async def one_step() -> None:
    await greet()


class Full(Host):
    is_full = True


def looks_until_published_again(desk: Desk) -> int:
    """Start a run whose message never comes; how often the clock looks for it before it publishes another."""
    run_id = desk.start(one_step)
    first = len(desk.messages)
    for look in range(1, 20):
        wake_at = desk.run(run_id).wake_at
        assert wake_at is not None
        desk.clock.now = wake_at
        desk.tick()
        if run_id in [published_for for published_for, _ in desk.messages[first:]]:
            return look
    raise AssertionError("it never was")


def test_a_message_that_is_late_is_published_again_at_once_where_others_come_in_time(
    desk: Desk,
) -> None:
    assert looks_until_published_again(desk) == 1


def test_a_message_that_is_late_is_waited_for_twice_as_long_as_others_take(desk: Desk) -> None:
    # They are looked for 2, 6, 14 and 30 s after they were published.
    for seconds, look in ((0.9, 1), (1.0, 2), (6.9, 3), (7.0, 4)):
        desk.engine.message_latency = MessageLatency(lambda: 0.0)
        desk.engine.message_latency.note(timedelta(seconds=seconds))

        assert looks_until_published_again(desk) == look


def test_a_worker_without_a_free_slot_waits_longer_for_a_message_that_is_late(desk: Desk) -> None:
    desk.engine.attach(Full())

    assert looks_until_published_again(desk) == TURNS_WHILE_FULL + 1


def test_what_messages_have_taken_is_forgotten_within_seconds() -> None:
    now = 100.0
    latency = MessageLatency(lambda: now)
    latency.note(timedelta(seconds=9))
    latency.note(timedelta(seconds=5))

    now += 2.1
    assert latency.recent() == timedelta(seconds=9)
    latency.note(timedelta(seconds=1))
    now += 2.1
    assert latency.recent() == timedelta(seconds=1)
    now += 4.1
    assert latency.recent() == timedelta()


def test_a_worker_sees_how_long_messages_take_to_it(running: Installation, app: Celery) -> None:
    piece = Chain((Task(NodeId("0:1"), greet.name, 1),))
    at = datetime.now(UTC) - timedelta(seconds=5)

    # Of a run that is gone: its time is seen, then it is dropped.
    canvas.publish(app, MISSING, [piece], at=at)

    until(lambda: running.engine.message_latency.recent() > timedelta(seconds=4.9))


def test_of_a_message_that_comes_a_second_time_nobody_knows_how_long_it_took() -> None:
    headers = {canvas.PUBLISHED_AT: 1.5, "delivery_info": {"redelivered": False}}
    assert canvas.published_at(headers) == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)

    assert canvas.published_at({**headers, "delivery_info": {"redelivered": True}}) is None
    assert canvas.published_at({"delivery_info": None}) is None
