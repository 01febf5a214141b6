"""A body that is continued again and again without news is held, whatever the cause."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast

import pytest

from ckworkflow.engine import advance
from ckworkflow.engine.advance import SPIN_LIMIT
from ckworkflow.engine.core import Engine
from ckworkflow.store.runs import RunRow


def row(delivered: int) -> RunRow:
    found = SimpleNamespace(run_id="r", workflow="w", delivered=delivered, now=datetime.now(UTC))
    return cast("RunRow", found)


def test_a_body_that_is_told_of_nothing_is_held_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    engine = cast("Engine", SimpleNamespace(spins={}))

    with caplog.at_level(logging.ERROR):
        held = [advance._spins(engine, row(3)) for _ in range(SPIN_LIMIT)]

    assert held == [False] * (SPIN_LIMIT - 1) + [True]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "run held" in caplog.text


def test_a_body_with_news_is_never_held() -> None:
    engine = cast("Engine", SimpleNamespace(spins={}))

    assert not any(advance._spins(engine, row(number)) for number in range(3 * SPIN_LIMIT))
