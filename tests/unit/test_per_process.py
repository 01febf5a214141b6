"""What each process has one of."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from ckworkflow.per_process import PerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_SECONDS = 10.0


class Made:
    """Something that says when it is collected."""

    def __init__(self, ends: list[int]) -> None:
        self._ends = ends

    def __del__(self) -> None:
        self._ends.append(1)


def in_child(act: Callable[[], bool]) -> bool:
    """Whether something holds in a forked child."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            code = 0 if act() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_it_is_made_once_whoever_asks_first() -> None:
    place: PerProcess[object] = PerProcess()
    assert place.peek() is None

    with ThreadPoolExecutor(8) as pool:
        found = {id(each) for each in pool.map(lambda _: place.get(object), range(100))}

    assert len(found) == 1
    assert place.peek() is place.get(object)


def test_what_cannot_be_made_is_made_the_next_time() -> None:
    place: PerProcess[int] = PerProcess()

    with pytest.raises(ZeroDivisionError):
        place.get(lambda: 1 // 0)
    assert place.peek() is None
    assert place.get(lambda: 5) == 5


def test_taken_it_is_gone() -> None:
    place: PerProcess[int] = PerProcess()
    place.set(5)

    assert (place.take(), place.take(), place.peek()) == (5, None, None)


def test_a_forked_child_makes_its_own_and_keeps_that_of_its_parent_from_being_collected() -> None:
    place: PerProcess[object] = PerProcess()
    ends: list[int] = []
    place.set(Made(ends))

    def act() -> bool:
        return place.peek() is None and place.get(lambda: "own") == "own" and not ends

    assert in_child(act)
    assert isinstance(place.peek(), Made)


def test_a_child_that_is_forked_while_it_is_made_does_not_wait_for_the_thread_that_makes_it() -> None:
    place: PerProcess[str] = PerProcess()
    begun, may_end = threading.Event(), threading.Event()

    def make() -> str:
        begun.set()
        may_end.wait(PATIENCE_SECONDS)
        return "parent's"

    making = threading.Thread(target=place.get, args=(make,))
    making.start()
    assert begun.wait(PATIENCE_SECONDS)
    assert in_child(lambda: place.get(lambda: "child's") == "child's")
    may_end.set()
    making.join()

    assert place.peek() == "parent's"
