"""Errors as data: what comes back of an exception."""

from __future__ import annotations

import traceback
from datetime import timedelta
from typing import Any

import pytest

from ckworkflow import FatalError, codec
from ckworkflow.engine import failures
from ckworkflow.engine.failures import CAUSE_LIMIT, MEMBER_LIMIT, TOTAL_LIMIT
from ckworkflow.inspection import Failure


def through(error: BaseException) -> BaseException:
    """What an exception is after it has been to the database."""
    return failures.loads(failures.dumps(error))


def members(data: dict[str, Any]) -> int:
    """How many members are recorded, at all levels."""
    found = data.get("members", ())
    return len(found) + sum(members(one) for one in found)


def leaves(error: BaseException) -> int:
    if not isinstance(error, BaseExceptionGroup):
        return 1
    return sum(leaves(one) for one in error.exceptions)


def omitted(data: dict[str, Any]) -> int:
    """How many exceptions were left out, at all levels."""
    own: int = data.get("members_omitted", 0)
    return own + sum(omitted(one) for one in data.get("members", ()))


def test_a_group_of_errors_keeps_its_members_and_its_shape() -> None:
    inner = ExceptionGroup("inner", [KeyError("k")])
    group = ExceptionGroup("things", [ValueError("v"), inner])

    again = failures.loads(failures.dumps(group))

    assert isinstance(again, ExceptionGroup)
    assert again.message == "things"
    assert repr(again) == repr(group)
    assert again.split(KeyError)[0] is not None


def test_a_group_that_is_recorded_whole_says_nothing_of_others() -> None:
    group = ExceptionGroup("all", [ValueError(str(number)) for number in range(MEMBER_LIMIT)])

    again = through(group)

    assert isinstance(again, ExceptionGroup)
    assert len(again.exceptions) == MEMBER_LIMIT
    assert not hasattr(again, "__notes__")
    assert "members_omitted" not in failures.to_data(group)


def test_a_wide_group_says_how_many_of_its_members_are_not_recorded() -> None:
    group = ExceptionGroup("wide", [ValueError(str(number)) for number in range(MEMBER_LIMIT + 30)])

    data = failures.to_data(group)
    again = through(group)

    assert data["members_omitted"] == 30
    assert isinstance(again, ExceptionGroup)
    assert len(again.exceptions) == MEMBER_LIMIT
    assert again.__notes__ == ["... and 30 more exceptions, not recorded"]
    assert "... and 30 more exceptions, not recorded" in "".join(traceback.format_exception(again))


def test_what_was_left_out_is_told_after_each_further_record() -> None:
    group = ExceptionGroup("wide", [ValueError(str(number)) for number in range(MEMBER_LIMIT + 1)])

    again = through(through(through(group)))

    assert again.__notes__ == ["... and 1 more exception, not recorded"]
    assert failures.to_data(again)["members_omitted"] == 1


def test_a_deep_group_says_how_many_exceptions_are_not_recorded() -> None:
    error: Exception = ValueError("deepest")
    for level in range(CAUSE_LIMIT + 3):
        error = ExceptionGroup(f"level {level}", [error, KeyError(level)])

    data = failures.to_data(error)
    again = through(error)

    assert leaves(error) == CAUSE_LIMIT + 4
    assert omitted(data) == 4  # and one beside each of the five levels is there
    innermost: Any = again
    while isinstance(innermost, ExceptionGroup):
        innermost = innermost.exceptions[0]
    assert innermost.__notes__ == ["... and 4 more exceptions, not recorded"]


def test_the_record_of_a_group_of_groups_is_bounded_and_still_counts_all() -> None:
    inner = [ValueError(str(number)) for number in range(MEMBER_LIMIT)]
    middle = [ExceptionGroup("inner", inner) for _ in range(MEMBER_LIMIT)]
    group = ExceptionGroup("outer", [ExceptionGroup("middle", middle) for _ in range(MEMBER_LIMIT)])

    data = failures.to_data(group)

    assert members(data) <= TOTAL_LIMIT
    assert leaves(through(group)) < leaves(group) == MEMBER_LIMIT**3
    recorded = codec.dumps(data).count('"type":"builtins:ValueError"')
    assert recorded + omitted(data) == MEMBER_LIMIT**3


def test_a_group_as_cause_keeps_its_members_too() -> None:
    error = RuntimeError("outer")
    error.__cause__ = ExceptionGroup("wide", [ValueError(str(number)) for number in range(25)])

    again = through(error)

    assert isinstance(again.__cause__, ExceptionGroup)
    assert again.__cause__.__notes__ == ["... and 5 more exceptions, not recorded"]


def test_a_long_chain_of_causes_says_how_many_are_not_recorded() -> None:
    error = first = ValueError("0")
    for number in range(1, 10):
        error.__cause__ = ValueError(str(number))
        error = error.__cause__

    again: BaseException | None = through(through(first))
    chain = []
    while again is not None:
        chain.append(again)
        again = again.__cause__

    assert [str(one) for one in chain] == ["0", "1", "2", "3", "4", "5"]
    assert chain[-1].__notes__ == ["... and 4 more causes, not recorded"]


def test_a_ring_of_causes_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one

    assert failures.to_data(one)


def test_groups_that_share_their_members_count_them_each_time() -> None:
    error: Exception = ValueError("the only one")
    for _ in range(10):
        error = ExceptionGroup("twice", [error, error])

    data = failures.to_data(error)

    assert members(data) == 2 ** (CAUSE_LIMIT + 1) - 2
    assert omitted(data) == 2**10


def test_notes_come_back_and_are_not_told_twice_after_a_further_record() -> None:
    error = ValueError("no seats")
    error.add_note("row 7")
    error.add_note("of the hall")
    inner = KeyError("seat")
    inner.add_note("inner")
    error.__cause__ = inner
    group = ExceptionGroup("both", [error, KeyError(1)])
    group.add_note("of the group")

    again = failures.loads(failures.dumps(failures.loads(failures.dumps(group))))

    assert isinstance(again, ExceptionGroup)
    assert again.__notes__ == ["of the group"]
    assert again.exceptions[0].__notes__ == ["row 7", "of the hall"]
    assert again.exceptions[0].__cause__.__notes__ == ["inner"]
    assert not hasattr(again.exceptions[1], "__notes__")


def test_notes_are_bounded_and_hold_no_secrets() -> None:
    error = ValueError("no")
    for number in range(30):
        error.add_note(f"{number} postgresql://bot:hunter2@db/{'x' * 5_000}")

    notes = failures.to_data(error)["notes"]

    assert len(notes) == failures.NOTE_LIMIT
    assert notes[3].startswith("3 ")
    assert all(len(note) <= failures.MESSAGE_LIMIT + 10 and "hunter2" not in note for note in notes)


@pytest.mark.parametrize("notes", [7, "text", [7, None], {"a": 1}, None])
def test_notes_that_are_no_notes_are_left_out(notes: Any) -> None:
    error = ValueError("no")
    error.__notes__ = notes

    assert "notes" not in failures.to_data(error)
    assert str(failures.loads(failures.dumps(error))) == "no"
    damaged = failures.from_data({"type": "builtins:ValueError", "message": "no", "notes": notes})
    assert str(damaged) == "no"


def test_what_was_handled_when_an_error_was_raised_is_its_context_and_not_its_cause() -> None:
    try:
        try:
            raise KeyError("seat")
        except KeyError:
            raise ValueError("no seats")
    except ValueError as raised:
        error = raised

    again = failures.loads(failures.dumps(failures.loads(failures.dumps(error))))

    assert again.__cause__ is None
    assert isinstance(again.__context__, KeyError)
    assert not again.__suppress_context__
    assert "KeyError: 'seat'" in failures.with_traceback(failures.dumps(error))
    assert [cause.line for cause in Failure(failures.dumps(error)).causes] == ["KeyError: 'seat'"]


def test_a_context_that_was_hidden_is_not_recorded() -> None:
    try:
        try:
            raise KeyError("seat")
        except KeyError:
            raise ValueError("no seats") from None
    except ValueError as raised:
        error = raised

    assert failures.to_data(error).keys() & {"cause", "context"} == set()


def test_details_are_what_they_were_however_often_they_are_stored() -> None:
    details = {"pair": (1, 2), "at": timedelta(1), "nested": {"tags": {"a"}}}
    error = FatalError("no", code=1, details=details)

    for _ in range(3):
        error = through(error)  # type: ignore[assignment]
        assert error.details == details
