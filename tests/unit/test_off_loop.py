"""Calls that coroutines hand to a few threads, some of which never come back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from ckworkflow.background import LostThreadError, OffLoop, SpareThreads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckworkflow.background import Lost

pytestmark = pytest.mark.fast

TIMEOUT_SECONDS = 20.0
asker: ContextVar[str] = ContextVar("asker", default="nobody")


def test_calls_beyond_its_size_wait_for_those_before_them() -> None:
    off_loop = OffLoop(2, "test")
    begun: list[int] = []
    gate = threading.Semaphore(0)

    def call(number: int) -> int:
        begun.append(number)
        assert gate.acquire(timeout=TIMEOUT_SECONDS)
        return number

    async def main() -> list[int]:
        asked = asyncio.gather(*[off_loop.run(lambda n=n: call(n)) for n in range(5)])
        while len(begun) < 2:
            await asyncio.sleep(0)
        last = off_loop.run(lambda: len(begun))
        assert sorted(begun) == [0, 1]
        gate.release(5)
        assert await last >= 4  # of five that came before it, and one may be about to begin
        return await asked

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


def test_a_call_runs_in_the_context_of_who_asks() -> None:
    async def main() -> str:
        asker.set("a bot")
        return await OffLoop(1, "test").run(asker.get)

    assert asyncio.run(main()) == "a bot"


@pytest.mark.parametrize(
    ("error", "shown"), [(KeyError("x"), KeyError), (StopIteration(), RuntimeError)]
)
def test_what_a_call_raises_is_raised_where_it_is_awaited(
    error: Exception, shown: type[Exception]
) -> None:
    def fail() -> None:
        raise error

    async def main() -> int:
        off_loop = OffLoop(1, "test")
        with pytest.raises(shown):
            await off_loop.run(fail)
        return await off_loop.run(lambda: 7)

    assert asyncio.run(main()) == 7


def test_a_call_that_nobody_waits_for_any_more_is_not_begun() -> None:
    off_loop = OffLoop(1, "test")
    called: list[str] = []
    gate = threading.Event()

    async def main() -> None:
        first = off_loop.run(lambda: gate.wait(TIMEOUT_SECONDS))
        second = off_loop.run(lambda: called.append("second"))
        third = off_loop.run(lambda: called.append("third"))
        second.cancel()
        gate.set()
        await asyncio.gather(first, third)

    asyncio.run(main())

    assert called == ["third"]


def test_another_thread_takes_the_place_of_one_that_is_lost() -> None:
    """It does what the lost one was to do and then what waited behind it; nobody hears of the lost one again."""
    off_loop = OffLoop(1, "test")
    back = threading.Event()
    threads: list[int] = []

    def hang(lost: Lost[str]) -> str:
        threads.append(threading.get_ident())
        threading.Thread(target=lost, args=(in_its_place,)).start()
        back.wait(TIMEOUT_SECONDS)
        threads.append(threading.get_ident())
        return "too late"

    def in_its_place() -> str:
        threads.append(threading.get_ident())
        return "in its place"

    async def main() -> list[str]:
        found = await asyncio.gather(off_loop.run_body(hang), off_loop.run(lambda: "behind"))
        back.set()
        while len(threads) < 3:
            await asyncio.sleep(0)
        assert await off_loop.run(lambda: "later") == "later"
        return found

    assert asyncio.run(main()) == ["in its place", "behind"]
    assert threads[0] == threads[2] != threads[1]


def test_what_was_begun_is_done_though_nobody_waits_for_it_any_more() -> None:
    done: list[str] = []

    async def main() -> None:
        off_loop = OffLoop(1, "test")
        told: list[Lost[str]] = []
        may_end = threading.Event()

        def hang(lost: Lost[str]) -> str:
            told.append(lost)
            may_end.wait(TIMEOUT_SECONDS)
            raise LostThreadError

        asked = off_loop.run_body(hang)
        while not told:
            await asyncio.sleep(0)
        asked.cancel()
        told[0](lambda: done.append("in its place") or "")
        may_end.set()
        await off_loop.run(lambda: None)

    asyncio.run(main())

    assert done == ["in its place"]


def test_a_process_that_ends_lets_a_call_come_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "done"
    script = f"""
import asyncio, threading
from pathlib import Path
from ckworkflow.background import OffLoop

begun = threading.Event()

def call():
    begun.set()
    threading.Event().wait(0.3)
    Path({str(file)!r}).write_text("all of it")

async def main():
    asyncio.create_task(asyncio.wait_for(OffLoop(1, "test").run(call), None))
    while not begun.is_set():
        await asyncio.sleep(0)

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)

    assert file.read_text() == "all of it"


def test_a_thread_that_is_back_before_it_is_reported_lost_is_nobody_s() -> None:
    told: list[Lost[str]] = []

    def come_back(lost: Lost[str]) -> str:
        told.append(lost)
        raise LostThreadError

    async def main() -> str:
        off_loop = OffLoop(2, "test")
        asked = off_loop.run_body(come_back)
        while not told:
            await asyncio.sleep(0)
        assert await off_loop.run(lambda: not asked.done())
        told[0](lambda: "in its place")
        return await asked

    assert asyncio.run(main()) == "in its place"


def test_what_is_done_in_its_place_may_fail() -> None:
    def fail() -> str:
        raise KeyError("x")

    def hang(lost: Lost[str]) -> str:
        lost(fail)
        return "nobody's"

    async def main() -> None:
        await OffLoop(1, "test").run_body(hang)

    with pytest.raises(KeyError):
        asyncio.run(main())


def test_without_threads_left_the_caller_is_told_and_the_next_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = SpareThreads.begin
    refused = iter([True, False, True])

    def refuse(self: SpareThreads, job: Callable[..., Any], *args: Any) -> None:
        if next(refused, False):
            raise RuntimeError("can't start new thread")
        begin(self, job, *args)

    def hang(lost: Lost[int]) -> int:
        lost(lambda: 1)
        return 2

    async def main() -> None:
        off_loop = OffLoop(2, "test")
        with pytest.raises(RuntimeError, match="new thread"):
            await off_loop.run(lambda: 1)
        with pytest.raises(RuntimeError, match="new thread"):
            await off_loop.run_body(hang)
        assert await off_loop.run(lambda: 3) == 3

    monkeypatch.setattr(SpareThreads, "begin", refuse)
    asyncio.run(main())


def test_a_forked_child_has_threads_of_its_own() -> None:
    off_loop = OffLoop(1, "test")
    gate = threading.Event()

    async def ask() -> int:
        return await asyncio.wait_for(off_loop.run(lambda: 5), TIMEOUT_SECONDS)

    async def main() -> int:
        busy = off_loop.run(lambda: gate.wait(TIMEOUT_SECONDS))
        if (pid := os.fork()) == 0:
            code = 1
            try:
                asyncio.events._set_running_loop(None)  # its parent's
                code = 0 if asyncio.run(ask()) == 5 else 2
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        gate.set()
        await busy
        return status

    assert asyncio.run(main()) == 0
