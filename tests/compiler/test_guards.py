"""An abandoned body runs no user code."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from compiler import bodies, steps
from compiler.plain import Ops
from compiler.test_table import compiled, original


class Never:
    """An await that never ends."""

    def __await__(self) -> Generator[None, None, None]:
        while True:
            yield


class Stuck(Ops):
    """Every await of the body but the first few waits for ever."""

    def __init__(self, passing: int) -> None:
        super().__init__(suspicious=False)
        self.passing = passing

    def callee(self, function: Any) -> Any:
        self.passing -= 1
        return (lambda *_, **__: asyncio.sleep(0)) if self.passing >= 0 else (lambda *_, **__: Never())


@pytest.mark.parametrize(
    "name", ["notes_finally", "cleans_up", "try_else_finally", "bare_except_in_a_loop"]
)
def test_an_abandoned_body_runs_neither_finally_nor_broad_handlers(name: str) -> None:
    steps.reset_world()
    ops = Stuck(0)
    case = next(case for case in bodies.CASES if case.name == name)
    coroutine = compiled(case.workflow, ops).function(*case.args)
    coroutine.send(None)

    ops.is_alive = False
    coroutine.close()  # raises RuntimeError if the body catches it and goes on

    assert (steps.NOTES, steps.CALLS) == ([], [])


@pytest.mark.parametrize("name", ["with_between_steps", "async_with_between_steps"])
def test_an_abandoned_body_leaves_its_with_without_a_word(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.reset_world()
    ops = Stuck(1)
    case = next(case for case in bodies.CASES if case.name == name)
    function = compiled(case.workflow, ops).function
    monkeypatch.setattr(bodies, "count_up", Never)  # inside the block it is awaited as it is
    coroutine = function(*case.args)
    while not steps.NOTES:
        coroutine.send(None)

    ops.is_alive = False
    coroutine.close()

    assert steps.NOTES == ["enter x 0"]


def test_a_body_that_is_alive_still_cleans_up() -> None:
    steps.reset_world()
    ops = Stuck(0)
    coroutine = compiled(bodies.notes_finally, ops).function("x")
    coroutine.send(None)

    with pytest.raises(ValueError, match="now"):
        coroutine.throw(ValueError("now"))

    assert steps.NOTES == ["x 0"]


def test_the_original_of_a_body_is_left_alone() -> None:
    before = original(bodies.notes_finally).__code__

    compiled(bodies.notes_finally, Ops(suspicious=False))

    assert original(bodies.notes_finally).__code__ is before
