"""The counting of points."""

from __future__ import annotations

from collections import Counter

import pytest

from crash_everywhere.points import under_way


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
