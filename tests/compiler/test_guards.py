"""An abandoned body runs no user code, and loops fence the turns that could see the world."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from ckworkflow.compiler.turns import FencedTurns
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


def fences_of(iterable: Any, *, elements: int, **options: Any) -> int:
    ops = Ops(suspicious=False)

    async def loop() -> int:
        count = 0
        async for _ in FencedTurns(ops, iterable, **options):
            count += 1
        return count

    assert asyncio.run(loop()) == elements
    return ops.fences


@pytest.mark.parametrize(
    "plain", [[1, 2], (1, 2), {1: 1, 2: 2}, {1, 2}, "ab", range(2), {1: 1, 2: 2}.items()]
)
def test_turns_over_exact_builtins_are_free(plain: Any) -> None:
    assert fences_of(plain, elements=2) == 0


def test_turns_over_anything_else_are_fenced_the_first_and_the_last_one_too() -> None:
    class Mine(list[int]):
        pass

    assert fences_of(Mine([1, 2]), elements=2) == 3
    assert fences_of(iter([1, 2]), elements=2) == 3
    assert fences_of(enumerate([1, 2]), elements=2) == 3


def test_a_builtin_iterator_is_as_plain_as_what_it_runs_over() -> None:
    assert fences_of(enumerate([1, 2]), elements=2, sources=([1, 2],)) == 0
    assert fences_of(enumerate(steps.Lines(2)), elements=2, sources=(steps.Lines(2),)) == 3


def test_watched_turns_are_fenced_whatever_they_run_over() -> None:
    assert fences_of([1, 2], elements=2, watched=True) == 3


def test_the_iterable_is_asked_for_its_iterator_after_the_first_fence() -> None:
    order: list[str] = []

    class Told(Ops):
        async def fence(self) -> None:
            order.append("fence")

    class Iterable:
        def __iter__(self) -> Any:
            order.append("iter")
            return iter([1])

    async def loop() -> None:
        async for _ in FencedTurns(Told(suspicious=False), Iterable()):
            order.append("turn")

    asyncio.run(loop())

    assert order == ["fence", "iter", "turn", "fence"]


def test_the_original_of_a_body_is_left_alone() -> None:
    before = original(bodies.notes_finally).__code__

    compiled(bodies.notes_finally, Ops(suspicious=False))

    assert original(bodies.notes_finally).__code__ is before
