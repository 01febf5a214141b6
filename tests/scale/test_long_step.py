"""A step that takes longer than Redis' visibility timeout is delivered again, and runs once.

The step lasts until the test has seen its message delivered a second time. Two workers, so that it may be the one
that knows nothing of the step that is asked to run it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from scale.conftest import SERVERS
from scale.stage import Stage

VISIBILITY_SECONDS = 2
REDELIVERY = {
    "visibility_timeout": VISIBILITY_SECONDS, "unacked_restore_interval": 0.2,
    "unacked_restore_throttle": 1,
}  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["holding", "holding_async"])
def test_a_step_longer_than_the_visibility_timeout_runs_once(
    make_stage: Callable[..., Stage], kind: str
) -> None:
    stage = make_stage(SERVERS, broker_transport_options=REDELIVERY)
    stage.start_worker()
    stage.start_worker()
    client = stage.start_client()

    run_id = client.start(f"scaling:{kind}", kind)
    held = stage.home.wait_for_note("held", place=kind)
    received = stage.home.wait_for(
        lambda: [note for note in stage.home.journal("received") if run_id in note["task"]][1:],
        "a second delivery",
    )
    Path(stage.home.folder / f"{kind}.open").touch()

    assert client.result(run_id) == kind
    # It was out for as long as it may be, and the same message came again.
    assert received[0]["at"] - held["at"] > VISIBILITY_SECONDS / 2
    (task,) = {note["task"] for note in stage.home.journal("received")}
    assert task.endswith(":1")
    counts = Counter(note["what"] for note in stage.home.journal(place=kind))
    assert counts == {"held": 1, "after": 1}
    assert {step["attempt"] for step in client.steps(run_id)} == {1}
