"""Errors as data: what comes back of an exception."""

from __future__ import annotations

from ckworkflow.engine import failures


def test_a_group_of_errors_keeps_its_members_and_its_shape() -> None:
    inner = ExceptionGroup("inner", [KeyError("k")])
    group = ExceptionGroup("things", [ValueError("v"), inner])

    again = failures.loads(failures.dumps(group))

    assert isinstance(again, ExceptionGroup)
    assert again.message == "things"
    assert repr(again) == repr(group)
    assert again.split(KeyError)[0] is not None
