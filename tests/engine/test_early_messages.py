"""A message that comes long before its step's time is not kept: the database has the time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from celery.worker import state

from ckworkflow import sleep, start_sync, workflow
from ckworkflow.model import NodeId, RunStatus
from ckworkflow.plan import Chain, Task
from engine_flows import one
from waiting import until

if TYPE_CHECKING:
    from ckworkflow.engine.installation import Installation


@workflow
async def much_later() -> int:
    await sleep("1 hour")
    return await one()


def test_a_message_that_is_an_hour_early_is_dropped_and_its_run_sleeps_on(
    running: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ckworkflow")
    run = start_sync(much_later)
    step = run.steps()[1]

    for _ in range(3):
        running.engine.publish(run.run_id, [Chain((Task(NodeId(step.node_id), step.name, 1),))])

    until(lambda: caplog.text.count(" dropped: the node's time comes in 0:59:5") == 3)
    until(lambda: not state.reserved_requests)
    assert not state.scheduled_requests
    assert run.status() is RunStatus.RUNNING
