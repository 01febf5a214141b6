"""The counting of points."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from crash_everywhere.points import Control, Points, under_way
from crash_everywhere.site import WORKER


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["before take", "after take"], {}),
        (["before commit runs", "before take", "after take"], {"commit runs": 1}),
        (["before commit runs", "failed commit runs"], {}),
        # It had begun when the counting began.
        (["after commit runs", "before take", "after take"], {}),
        (["after commit runs", "before commit runs"], {"commit runs": 1}),
    ],
)
def test_what_has_begun_and_not_ended_is_under_way(lines: list[str], expected: dict[str, int]) -> None:
    assert under_way(lines) == Counter(expected)


def test_a_process_dies_at_the_deadly_point_though_another_one_has_come_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = Control(tmp_path)
    points = Points(control, WORKER)
    control.arm(1, role=WORKER, is_group=False)
    goes, went = os.pipe(), os.pipe()
    write = os.write

    def writing(file: int, data: bytes) -> Any:
        answer = write(file, data)
        if data.startswith(b"the deadly point"):
            write(goes[1], b".")
            os.read(went[0], 1)
        return answer

    def first() -> None:
        monkeypatch.setattr(os, "write", writing)
        points.reach("the deadly point")

    def second() -> None:
        os.read(goes[0], 1)
        points.reach("the next one")
        write(went[1], b".")

    children = {_fork(act): act.__name__ for act in (first, second)}
    ended = {name: os.waitpid(pid, 0)[1] for pid, name in children.items()}

    assert control.trace() == ["the deadly point", "the next one"]
    assert {name: os.WTERMSIG(status) for name, status in ended.items()} == {
        "first": signal.SIGKILL,
        "second": 0,
    }


def _fork(act: Any) -> int:
    if (pid := os.fork()) == 0:
        try:
            act()
        finally:
            os._exit(0)
    return pid
