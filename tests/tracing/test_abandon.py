"""Bodies that never go on: nothing of theirs runs, whoever holds it and however it goes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from ckworkflow import step, workflow
from ckworkflow.definition import Workflow
from ckworkflow.model import NodeId, RunId
from ckworkflow.tracing import Outcome, Trace, Tracer
from ckworkflow.tracing import loop as loop_module
from ckworkflow.tracing.abandon import REACH_LIMIT

START = datetime(2030, 1, 1, tzinfo=UTC)
LOG: list[str] = []


@step
async def ping(n: int = 0) -> Any:
    return n


def tracer(definition: Workflow[..., Any]) -> Tracer:
    LOG.clear()
    return Tracer(RunId("run"), lambda: definition.body.function(), started_at=START)


def done(node_id: str, output: Any = None) -> Outcome:
    return Outcome(NodeId(node_id), output, None, START)


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Collect nothing but where the test says so."""
    # The collector ends the oldest first, and so a tracer before what its body holds. A collection while that body is
    # alive may change their order; who drops a body without closing it then has no promise.
    gc.freeze()  # what other tests have left is not looked at, which would take most of the time
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


class Noisy:
    def __enter__(self) -> None:
        LOG.append("enter")

    def __exit__(self, *error: object) -> None:
        LOG.append("exit")


class AsyncNoisy:
    async def __aenter__(self) -> None:
        LOG.append("enter")

    async def __aexit__(self, *error: object) -> None:
        LOG.append("exit")


@contextlib.contextmanager
def managed() -> Iterator[None]:
    try:
        yield
    finally:
        LOG.append("managed")


def numbers() -> Iterator[int]:
    try:
        yield 1
        yield 2
    finally:
        LOG.append("numbers")


async def async_numbers() -> AsyncIterator[int]:
    try:
        yield 1
        yield 2
    finally:
        LOG.append("async numbers")


async def helper() -> Any:
    with Noisy():
        try:
            return await ping()
        except BaseException:
            LOG.append("helper saw it")
            raise
        finally:
            LOG.append("helper's finally")


class Awaited:
    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            return (yield from ping().__await__())
        finally:
            LOG.append("awaited")


@workflow
async def in_finally() -> None:
    try:
        if await ping():
            return
    finally:
        LOG.append("finally")


@workflow
async def in_with() -> None:
    with Noisy():
        await ping()


@workflow
async def in_async_with() -> None:
    async with AsyncNoisy():
        await ping()


@workflow
async def in_handler() -> None:
    try:
        if await ping():
            return
    except BaseException:
        LOG.append("handler")
        raise


@workflow
async def in_bare_handler() -> None:
    try:
        if await ping():
            return
    except:  # noqa: E722
        LOG.append("bare")


@workflow
async def in_star_handler() -> None:
    try:
        if await ping():
            return
    except* BaseException:
        LOG.append("star")


@workflow
async def in_a_helper() -> Any:
    return await helper()


@workflow
async def in_a_gathered_helper() -> Any:
    return await asyncio.gather(helper(), ping())


@workflow
async def in_a_task() -> Any:
    task = asyncio.create_task(helper())
    await ping()
    return await task


@workflow
async def tidies() -> None:
    try:
        await ping()
    finally:
        LOG.append("tidied")
        await ping()


@workflow
async def in_a_task_of_a_workflow() -> None:
    task = asyncio.create_task(tidies())
    await ping()
    await task


@workflow
async def in_a_nested_function() -> Any:
    async def inner() -> Any:
        try:
            return await ping()
        finally:
            LOG.append("inner")

    return await inner()


@workflow
async def in_a_manager() -> None:
    with managed():
        await ping()


@workflow
async def in_an_exit_stack() -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(managed())
        stack.callback(LOG.append, "callback")
        await ping()


@workflow
async def in_a_loop_over_a_generator() -> None:
    for number in numbers():
        await ping(number)


@workflow
async def in_a_loop_over_a_map_of_a_generator() -> None:
    for number in map(str, numbers()):
        await ping(int(number))


@workflow
async def in_an_async_loop() -> None:
    async for number in async_numbers():
        await ping(number)


@workflow
async def after_an_async_loop() -> None:
    async for _number in async_numbers():
        break
    await ping()


@workflow
async def with_a_generator_in_a_closure() -> None:
    source = numbers()
    next(source)
    follow = lambda: next(source)  # noqa: E731
    await ping()
    follow()


@workflow
async def with_a_generator_in_an_object() -> None:
    source = numbers()
    next(source)
    held = {"partial": functools.partial(next, source)}
    del source
    await ping()
    held["partial"]()


@workflow
async def with_more_than_is_looked_at() -> Any:
    held = [[number] for number in range(REACH_LIMIT + 1)]
    found = await helper()
    return found, len(held)


@workflow
async def in_an_awaitable() -> Any:
    return await Awaited()


@workflow
async def not_rewritten() -> Any:
    try:
        locals()
        return await ping()
    finally:
        LOG.append("finally")


# Dropped without a word, so many objects may be collected in another order than they were made in.
CLOSED_ONLY = {with_more_than_is_looked_at}
EVERY = [value for value in list(globals().values()) if isinstance(value, Workflow)]
each_body = pytest.mark.parametrize("definition", EVERY, ids=lambda d: d.name.rpartition(".")[2])


@pytest.mark.parametrize(
    ("definition", "way"),
    [
        pytest.param(one, way, id=f"{way}-{one.name.rpartition('.')[2]}")
        for one in EVERY
        for way in ("closed", "dropped")
        if way == "closed" or one not in CLOSED_ONLY
    ],
)
def test_an_abandoned_body_runs_no_user_code(
    no_collection: None, definition: Workflow[..., Any], way: str
) -> None:
    found = tracer(definition)
    assert found.resume().waits
    before = list(LOG)
    gone = weakref.ref(found.loop)

    if way == "closed":
        found.close()
        assert before == LOG
    del found
    gc.collect()

    assert before == LOG
    assert gone() is None, "an abandoned body is kept for ever"


@each_body
def test_a_body_that_goes_on_runs_all_of_it(definition: Workflow[..., Any]) -> None:
    """The other side: the code that must not run when abandoned does run when it is not."""
    found = tracer(definition)
    trace = found.resume()
    told = 0
    while trace.end is None:
        new = [node.node_id for node in trace.nodes]
        trace = found.resume([done(node_id, 1) for node_id in new])
        told += 1
        assert told < 10

    expected = {"in_handler", "in_bare_handler", "in_star_handler"}  # those catch failures only
    assert set(LOG) - {"enter"} or definition.__name__ in expected
    found.close()


# -- the living --------------------------------------------------------------------------------------


class Service:
    """What the process has, and a body only knows."""

    def __init__(self) -> None:
        self.held: list[Any] = []


SERVICE = Service()


def service() -> Service:
    return SERVICE


def holds_the_lock() -> Iterator[int]:
    with LOCK:
        yield 1
        yield 2


@workflow
async def knows_the_service() -> int:
    found = service()
    await ping()
    return len(found.held)


def test_what_others_hold_as_well_is_left_alone() -> None:
    living, finished = holds_the_lock(), numbers()
    next(living), next(finished)
    SERVICE.held = [living, finished]
    found = tracer(knows_the_service)
    found.resume()

    found.close()

    assert LOCK.locked()
    assert next(living) == 2
    living.close()
    del finished
    SERVICE.held.clear()
    gc.collect()
    assert LOG == ["numbers"]


def test_a_body_that_is_alive_keeps_its_lock_when_another_is_abandoned() -> None:
    alive = tracer(holds_a_lock)
    alive.resume()
    SERVICE.held = [alive.loop.tasks[0].get_coro()]
    found = tracer(knows_the_service)
    found.resume()

    found.close()

    assert LOCK.locked()
    SERVICE.held.clear()
    alive.close()
    assert not LOCK.locked()


# -- locks -------------------------------------------------------------------------------------------

LOCK = threading.Lock()
RLOCK = threading.RLock()
CONDITION = threading.Condition()
SEMAPHORE = threading.Semaphore(1)


@contextlib.contextmanager
def locked() -> Iterator[None]:
    with LOCK:
        yield


@workflow
async def holds_a_lock() -> None:
    with LOCK:
        await ping()


@workflow
async def holds_it_in_a_manager() -> None:
    with locked():
        await ping()


@workflow
async def holds_an_rlock() -> None:
    with RLOCK:
        await ping()


@workflow
async def holds_a_condition() -> None:
    with CONDITION:
        await ping()


@workflow
async def holds_a_semaphore() -> None:
    with SEMAPHORE:
        await ping()


def is_free(acquire: Callable[..., bool], release: Callable[[], None]) -> bool:
    """Whether another thread can have a lock at once."""
    found: list[bool] = []

    def attempt() -> None:
        found.append(acquire(blocking=False))
        if found[0]:
            release()

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(
    ("definition", "lock"),
    [
        (holds_a_lock, LOCK),
        (holds_it_in_a_manager, LOCK),
        (holds_an_rlock, RLOCK),
        (holds_a_condition, CONDITION),
        (holds_a_semaphore, SEMAPHORE),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_abandoned_body_gives_back_its_locks(definition: Workflow[..., Any], lock: Any) -> None:
    found = tracer(definition)
    found.resume()
    assert not is_free(lock.acquire, lock.release)

    found.close()

    assert is_free(lock.acquire, lock.release)


ASYNC_LOCK = asyncio.Lock()


@workflow
async def waits_for_an_async_lock() -> None:
    async def second() -> None:
        async with ASYNC_LOCK:
            await ping(2)

    async with ASYNC_LOCK:
        task = asyncio.create_task(second())
        await ping(1)
    await task


def test_a_lock_that_is_only_waited_for_is_released_once() -> None:
    found = tracer(waits_for_an_async_lock)
    found.resume()
    assert ASYNC_LOCK.locked()

    found.close()

    assert not ASYNC_LOCK.locked()
    assert ended(tracer(waits_for_an_async_lock)).end is not None


def ended(found: Tracer) -> Trace:
    trace = found.resume()
    for _ in range(10):
        if trace.end is not None:
            break
        trace = found.resume([done(node.node_id) for node in trace.nodes])
    return trace


# -- asynchronous generators -------------------------------------------------------------------------


async def cleaned_up(name: str) -> AsyncIterator[int]:
    try:
        yield 1
        yield 2
    finally:
        LOG.append(f"{name} begins to end")
        await ping()
        LOG.append(f"{name} has ended")


@workflow
async def leaves_two_generators() -> str:
    async for _ in cleaned_up("first"):
        break
    async for _ in cleaned_up("second"):
        break
    await ping()
    LOG.append("body ends")
    return "end"


def test_generators_that_are_left_end_in_order_after_the_body() -> None:
    found = tracer(leaves_two_generators)

    end = ended(found).end

    assert end is not None
    assert end.result == "end"
    assert LOG == [
        "body ends",
        "first begins to end",
        "first has ended",
        "second begins to end",
        "second has ended",
    ]


def test_the_hooks_of_the_thread_are_its_own_again() -> None:
    import sys

    before = sys.get_asyncgen_hooks()

    tracer(leaves_two_generators).resume()

    assert sys.get_asyncgen_hooks() == before


def test_a_body_that_has_ended_is_let_go_without_a_look_at_what_it_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[object] = []  # other bodies may be collected meanwhile
    monkeypatch.setattr(loop_module, "abandon", lambda roots, **_: looked.extend(roots))

    @workflow(name="ends without a look")
    async def body() -> Any:
        return await asyncio.gather(*[ping(n) for n in range(100)])

    one = tracer(body)
    assert one.resume().end is not None
    tasks = list(one.loop.tasks)
    one.close()
    assert tasks
    assert not [task for task in tasks if task in looked]


def test_a_generator_that_a_finished_task_gave_does_not_run_on() -> None:
    def noisy() -> Generator[int, None, None]:
        try:
            yield 1
        finally:
            LOG.append("finally")

    async def begun() -> Any:
        generator = noisy()
        next(generator)
        return generator

    @workflow(name="leaves a generator")
    async def body() -> Any:
        task = asyncio.create_task(begun())
        await ping()
        await ping()
        return len(await task)

    one = tracer(body)
    one.resume()
    one.resume([done("0:1")])
    one.close()
    del one
    gc.collect()
    assert LOG == []
