"""How log lines and errors write numbers and lists."""

from __future__ import annotations

import pytest

from ckworkflow.engine import failures
from ckworkflow.engine.wording import counted, listed


def test_what_is_counted_has_its_number() -> None:
    assert [counted(count, "run") for count in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "none"),
        (["a"], "a"),
        (list("abcde"), "a, b, c, d, e"),
        (list("abcdefg"), "a, b, c, d, e and 2 more"),
    ],
)
def test_a_list_is_cut_and_says_so(names: list[str], expected: str) -> None:
    assert listed(names) == expected


@pytest.mark.parametrize(("attempts", "expected"), [(1, "after 1 attempt: "), (4, "after 4 attempts: ")])
def test_a_step_that_has_used_up_its_attempts_counts_them(attempts: int, expected: str) -> None:
    data = failures.exhausted("greet", attempts, failures.to_data(ValueError("no")))

    assert data["message"] == f"step greet failed {expected}ValueError: no"
