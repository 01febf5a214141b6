"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from ckworkflow.errors import RunFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckworkflow import SyncRun

TIMEOUT_SECONDS = 20.0


def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def failure_of(run: SyncRun[Any]) -> BaseException:
    """Wait until a run has failed; the error that its body raised."""
    with pytest.raises(RunFailedError) as caught:
        run.return_value(TIMEOUT_SECONDS)
    assert caught.value.__cause__ is not None
    return caught.value.__cause__
