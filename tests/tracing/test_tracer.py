"""The tracer alone, without a database: what a body is told, what it may not do, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ckworkflow import (
    BodyAwaitError,
    BodyStuckError,
    FatalError,
    ReplayDivergenceError,
    now,
    random,
    sleep,
    step,
    uuid4,
    workflow,
)
from ckworkflow.definition import Workflow
from ckworkflow.model import Json, NodeId, NodeKind, RunId
from ckworkflow.tracing import Deferred, Known, Outcome, ReplayNeededError, Trace, TracedNode, Tracer
from ckworkflow.tracing.loop import TraceTask

START = datetime(2030, 1, 1, tzinfo=UTC)
LOG: list[str] = []


@step
async def ping(n: int = 0) -> Any:
    return n


@step
async def pong() -> Any:
    return None


def tracer(definition: Workflow[..., Any], *args: Any, **options: Any) -> Tracer:
    return Tracer(RunId("run"), lambda: definition.body.function(*args), started_at=START, **options)


def done(node_id: str, output: Json = None, *, hours: float = 0) -> Outcome:
    return Outcome(NodeId(node_id), output, None, START + timedelta(hours=hours))


def failed(node_id: str, error: BaseException | None = None) -> Outcome:
    return Outcome(NodeId(node_id), None, error or FatalError("boom"), START)


def known(
    node_id: str, name: str, args: Iterable[Json] = (), *, is_delivered: bool = False
) -> dict[Any, Known]:
    tree: dict[str, Json] = {"args": list(args), "kwargs": {}}
    return {NodeId(node_id): Known(NodeKind.STEP, name, tree, is_delivered)}


def ids(trace: Trace) -> list[str]:
    return [node.node_id for node in trace.nodes]


@workflow
async def three_pings() -> None:
    await ping()
    await ping()
    await ping()


def test_three_equal_calls_are_three_nodes() -> None:
    trace = tracer(three_pings).resume()

    assert ids(trace) == ["0:1", "0:2", "0:3"]
    assert [sorted(node.after) for node in trace.nodes] == [[], ["0:1"], ["0:2"]]


# -- divergence -------------------------------------------------------------------------------------


def test_another_step_at_a_recorded_node_is_named_with_the_recorded_one() -> None:
    found = tracer(three_pings, known=known("0:2", "tests.edited"))

    with pytest.raises(ReplayDivergenceError) as caught:
        found.resume([done("0:1")])

    assert caught.value.node_id == "0:2"
    assert caught.value.recorded == "tests.edited"
    assert caught.value.traced == ping.name
    assert "tests.edited" in str(caught.value)
    assert ping.name in str(caught.value)


def test_other_arguments_of_an_unchanged_source_are_a_divergence() -> None:
    found = tracer(three_pings, known=known("0:1", ping.name, [7]))

    with pytest.raises(ReplayDivergenceError, match=r"other arguments.*body is not repeatable"):
        found.resume()


def test_other_arguments_of_an_edited_source_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = tracer(three_pings, known=known("0:1", ping.name, [7]), is_same_source=False)

    with caplog.at_level(logging.WARNING):
        found.resume()

    assert "has other arguments; its recorded result counts" in caplog.text


def test_a_body_that_no_longer_reaches_a_delivered_node_has_diverged() -> None:
    found = tracer(three_pings, known=known("0:4", ping.name, is_delivered=True))

    with pytest.raises(ReplayDivergenceError, match="its end"):
        found.resume([done("0:1"), done("0:2"), done("0:3"), done("0:4")])


@workflow
async def swallows() -> str:
    try:
        await ping()
    except BaseException:
        return "swallowed"
    return "went on"


def test_a_handler_cannot_swallow_a_divergence() -> None:
    found = tracer(swallows, known=known("0:1", "tests.edited"))

    with pytest.raises(ReplayDivergenceError):
        found.resume()


# -- bounded segments -------------------------------------------------------------------------------


@workflow
async def endless() -> None:
    while True:
        await ping()
        await sleep("1h")


def test_an_endless_loop_runs_in_segments_of_bounded_size() -> None:
    found = tracer(endless, segment_limit=10)
    trace = found.resume()

    for segment in range(50):
        assert len(trace.nodes) == 10
        assert trace.end is None
        assert trace.nodes[0].node_id == f"0:{10 * segment + 1}"
        trace = found.resume([done(node.node_id) for node in trace.nodes])
    assert len(found.live) == 10


@workflow
async def wide() -> None:
    await asyncio.gather(*[ping(n) for n in range(50)])
    await pong()


def test_a_segment_is_never_cut_inside_a_gather() -> None:
    trace = tracer(wide, segment_limit=5).resume()

    assert len(trace.nodes) == 51


@workflow
async def enters_a_number(number: Any) -> str:
    try:
        with number:
            await ping()
    except TypeError as error:
        return str(error)
    return "entered"


def test_what_is_no_context_manager_is_refused_as_python_does() -> None:
    end = tracer(enters_a_number, 5).resume().end

    assert end is not None
    assert end.result == "'int' object does not support the context manager protocol"


# -- outside the durable world ------------------------------------------------------------------------


@workflow
async def opens_a_connection() -> None:
    await asyncio.open_connection("127.0.0.1", 1)


@workflow
async def waits_for_nothing() -> None:
    await asyncio.get_running_loop().create_future()


@workflow
async def uses_a_thread() -> None:
    await asyncio.to_thread(print)


@workflow
async def hides_it() -> None:
    try:
        await asyncio.open_connection("127.0.0.1", 1)
    except Exception:
        await ping()


@workflow
async def yields_only() -> str:
    await asyncio.sleep(0)
    return "fine"


@pytest.mark.parametrize(
    "definition",
    [opens_a_connection, uses_a_thread, hides_it],
    ids=lambda d: d.name.rpartition(".")[2],
)
def test_what_is_not_durable_is_refused_with_the_way_out(definition: Workflow[..., Any]) -> None:
    with pytest.raises(BodyAwaitError, match=r"Move it into a @step"):
        tracer(definition).resume()


def test_what_is_not_durable_is_refused_with_its_line_in_the_body() -> None:
    def refused(definition: Workflow[..., Any]) -> str:
        with pytest.raises(BodyAwaitError) as caught:
            tracer(definition).resume()
        return str(caught.value)

    def line(definition: Workflow[..., Any], nth: int) -> str:
        return f"(line {definition.function.__code__.co_firstlineno + nth} of test_tracer.py)"

    assert f"create_connection()) {line(opens_a_connection, 2)}. Move" in refused(opens_a_connection)
    assert line(hides_it, 3) in refused(hides_it)


def test_what_nothing_can_move_is_told_with_its_line() -> None:
    with pytest.raises(BodyStuckError) as caught:
        tracer(waits_for_nothing).resume()
    line = waits_for_nothing.function.__code__.co_firstlineno + 2
    assert caught.value.tasks == (f"task 0, line {line} of test_tracer.py, waits for a future",)


def test_to_yield_is_no_wait() -> None:
    end = tracer(yields_only).resume().end

    assert end is not None
    assert end.result == "fine"


# -- values -----------------------------------------------------------------------------------------


@workflow
async def chances() -> list[Any]:
    return [random(), random(), str(uuid4())]


def test_random_values_are_the_same_in_every_replay_and_differ_among_each_other() -> None:
    ends = [tracer(chances).resume().end for _ in range(2)]

    assert ends[0] == ends[1]
    assert ends[0] is not None
    assert len(set(ends[0].result)) == 3


@workflow
async def clocks() -> list[str]:
    first = now().isoformat()
    await sleep("1h")
    return [first, now().isoformat()]


def test_now_is_what_the_body_has_been_told() -> None:
    kept = tracer(clocks)
    kept.resume()
    alive = kept.resume([done("0:1", hours=1)]).end
    replayed = tracer(clocks).resume([done("0:1", hours=1)]).end

    assert alive == replayed
    assert alive is not None
    assert alive.result == [START.isoformat(), (START + timedelta(hours=1)).isoformat()]


@workflow
async def projects() -> Any:
    made = await ping()
    await pong()
    return made["id"]


def test_a_projection_stands_for_its_value_until_that_is_known() -> None:
    end = tracer(projects).resume().end

    assert end is not None
    assert end.result == {"$": "ref", "v": ["0:1", [["item", "id"]]]}
    assert end.after == {"0:2"}


def test_a_projection_that_does_not_resolve_raises_in_the_body() -> None:
    end = tracer(projects).resume([done("0:1", {}), done("0:2")]).end

    assert end is not None
    assert isinstance(end.error, KeyError)


# -- failures ---------------------------------------------------------------------------------------


@workflow
async def handles() -> str:
    try:
        await ping(1)
        await ping(2)
    except FatalError:
        await pong()
        return "handled"
    return "done"


def test_a_failure_behind_a_lazy_await_asks_for_a_replay() -> None:
    found = tracer(handles)
    found.resume()

    with pytest.raises(ReplayNeededError):
        found.resume([failed("0:1")])


def test_a_replay_raises_the_failure_at_its_await() -> None:
    trace = tracer(handles).resume([failed("0:1")])

    assert [(node.node_id, node.name) for node in trace.nodes] == [("0:2", pong.name)]
    assert trace.end is not None
    assert trace.end.result == "handled"


@workflow
async def first_of_two_failures() -> str:
    try:
        await asyncio.gather(ping(1), ping(2))
    except FatalError as error:
        return str(error)
    return "none"


@pytest.mark.parametrize("order", [("0.1:1", "0.2:1"), ("0.2:1", "0.1:1")])
def test_gather_raises_the_failure_that_is_delivered_first(order: tuple[str, str]) -> None:
    end = tracer(first_of_two_failures).resume([failed(node, FatalError(node)) for node in order]).end

    assert end is not None
    assert end.result == order[0]


@workflow
async def cleans_up(n: int) -> None:
    try:
        await ping(n)
        await ping(n + 1)
    finally:
        await pong()


@workflow
async def fails_beside() -> str:
    try:
        await asyncio.gather(ping(0), cleans_up(1))
    except FatalError:
        return "over"
    return "fine"


def test_tasks_that_are_left_at_the_end_are_cancelled_and_clean_up() -> None:
    found = tracer(fails_beside)
    trace = found.resume([failed("0.1:1")])

    assert [(node.node_id, node.name) for node in trace.nodes] == [("0.2:2", pong.name)]
    assert trace.end is None
    end = found.resume([done("0.2:2")]).end
    assert end is not None
    assert end.result == "over"


def test_who_is_told_of_the_end_first_is_cancelled_where_it_stands() -> None:
    """What is told in the same breath, but later, finds the body ended: the clean-up is the second node."""
    trace = tracer(fails_beside).resume([failed("0.1:1"), done("0.2:1")])

    assert [(node.node_id, node.name) for node in trace.nodes] == [("0.2:2", pong.name)]


BEGUN: list[str] = []
"""What has begun in `begins_at_its_end`."""


@workflow
async def begins_at_its_end() -> str:
    """Asyncio lets a task begin that the body makes just before it ends, and none that such a task makes."""

    async def last(name: str) -> None:
        BEGUN.append(name)
        if name == "child":
            asyncio.create_task(last("grandchild"))  # noqa: RUF006  # it is to be left
        await asyncio.Event().wait()

    asyncio.create_task(last("child"))  # noqa: RUF006
    return "over"


def test_what_would_begin_after_the_end_never_does() -> None:
    BEGUN.clear()
    assert asyncio.run(begins_at_its_end.function()) == "over"
    expected = list(BEGUN)
    BEGUN.clear()
    end = tracer(begins_at_its_end).resume().end
    assert end is not None
    assert end.result == "over"
    assert BEGUN == expected == ["child"]


@workflow
async def waits_before_it_ends() -> str:
    try:
        await asyncio.gather(ping(0), cleans_up(1))
    except FatalError:
        await pong()
    return "over"


def test_siblings_go_on_until_what_the_body_awaits_at_its_end_is_recorded() -> None:
    trace = tracer(waits_before_it_ends).resume([failed("0.1:1")])

    assert {node.node_id for node in trace.nodes} == {"0:1", "0.2:1"}
    assert trace.end is None
    assert "0" in {wait.path for wait in trace.waits}

    trace = tracer(waits_before_it_ends).resume([failed("0.1:1"), done("0.2:1"), done("0:1")])
    # Cancelled at its second step.
    assert [(node.node_id, node.name) for node in trace.nodes] == [("0.2:3", pong.name)]


def test_a_body_kept_alive_is_told_of_its_last_step_together_with_a_siblings() -> None:
    found = tracer(gathers_singles)
    with pytest.raises(ReplayNeededError):
        found.resume()
        found.resume([failed("0.1:1")])
    found = tracer(gathers_singles)
    trace = found.resume([failed("0.1:1")])
    assert {node.node_id for node in trace.nodes} == {"0:1", "0:2", "0.2:1"}

    end = found.resume([done("0:1"), done("0.2:1"), done("0:2")]).end

    assert end is not None
    assert end.after == frozenset()


@workflow
async def gathers_singles() -> str:
    try:
        await asyncio.gather(ping(0), ping(1))
    except FatalError:
        await pong()
        await pong()
    return "over"


@workflow
async def counts_up() -> int:
    total = 0
    for _ in range(3):
        total += await ping()
    return total


def test_a_body_kept_alive_and_a_replay_come_to_the_same() -> None:
    kept = tracer(counts_up)
    kept.resume()
    kept.resume([done("0:1", 1)])
    kept.resume([done("0:2", 2)])
    alive = kept.resume([done("0:3", 3)]).end

    assert alive == tracer(counts_up).resume([done(f"0:{n}", n) for n in (1, 2, 3)]).end
    assert alive is not None
    assert alive.result == 6


@workflow
async def gives_a_cycle() -> list[Any]:
    await ping()
    found: list[Any] = []
    found.append(found)
    return found


@workflow
async def takes_a_cycle() -> bool:
    found = await gives_a_cycle()
    return found[0] is found


def test_a_value_that_holds_itself_may_pass_between_bodies() -> None:
    end = tracer(takes_a_cycle).resume([done("0:1")]).end

    assert end is not None
    assert end.result is True


def test_a_part_is_worked_out_as_python_does_where_all_is_recorded() -> None:
    tracer = Tracer(RunId("r"), lambda: None, started_at=datetime.now(UTC))  # type: ignore[arg-type,return-value]
    node = TracedNode(NodeId("0:1"), NodeKind.STEP, "s", None, frozenset(), 1)
    node.outcome = Outcome(NodeId("0:1"), {"id": "abc"}, None, datetime.now(UTC))
    part = Deferred(node, (("item", "id"), ("item", 0)))
    missing = Deferred(node, (("item", "nothing"),))

    assert tracer.resolve([part]) == ["a"]
    with pytest.raises(KeyError):
        tracer.resolve([missing])


@workflow
async def waits_for_a_set() -> list[str]:
    async def one(number: int) -> int:
        await ping(number)
        return number

    tasks = {asyncio.create_task(one(number)) for number in range(20)}
    return [task.get_name() for task in tasks]


def test_a_set_of_tasks_has_one_order_in_every_replay() -> None:
    padding: list[Any] = []
    found = []
    for _ in range(5):
        end = tracer(waits_for_a_set).resume().end
        assert end is not None
        found.append(end.result)
        padding.append([object() for _ in range(1_000)])  # so that objects lie elsewhere

    assert all(names == found[0] for names in found)


def test_a_body_costs_as_much_to_begin_beside_a_thousand_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # asyncio keeps one set of the tasks of all bodies: were their hashes the same, each new task would be compared
    # with every other.
    compared = 0

    def counting(self: object, other: object) -> bool:
        nonlocal compared
        compared += 1
        return self is other

    @workflow(name="begun beside others")
    async def body() -> Any:
        return await ping() == 1

    alive = [tracer(body) for _ in range(1_000)]
    monkeypatch.setattr(TraceTask, "__eq__", counting)
    for one in alive:
        one.resume()
    for one in alive:
        one.close()
    assert compared < 2 * len(alive)


def test_a_set_of_tasks_has_the_same_order_in_every_body() -> None:
    orders: list[list[str]] = []

    @workflow(name="a set of tasks")
    async def body() -> Any:
        tasks = {asyncio.create_task(one(n), name=str(n)) for n in range(50)}
        orders.append([task.get_name() for task in tasks])
        await asyncio.gather(*tasks)

    @workflow(name="one of a set")
    async def one(n: int) -> Any:
        return await ping(n)

    for _ in range(100):
        with contextlib.closing(tracer(body)) as found:
            found.resume()
    assert len(orders) == 100
    assert all(order == orders[0] for order in orders)


@workflow(name="rounds of tasks")
async def rounds_of_tasks(rounds: int) -> int:
    seen = 0
    for _ in range(rounds):
        for value in await asyncio.gather(asyncio.create_task(ping_of(1)), ping_of(2)):
            seen += value
    return seen


@workflow(name="a ping of its own")
async def ping_of(n: int) -> Any:
    return await ping(n)


def test_a_body_that_lives_long_keeps_few_of_the_tasks_that_have_ended() -> None:
    most = 0
    with contextlib.closing(tracer(rounds_of_tasks, 200)) as alive:
        trace = alive.resume()
        while trace.end is None or trace.end.after:
            outcomes = [done(node.node_id, node.args["args"][0]) for node in trace.nodes]  # type: ignore[index,call-overload]
            trace = alive.resume(outcomes)
            most = max(most, len(alive.loop.tasks))

    assert trace.end.result == 600
    assert most < 50


# -- surprises ----------------------------------------------------------------------------------------


@workflow
async def three_in_a_row() -> None:
    await ping(1)
    await ping(2)
    await ping(3)


@workflow
async def row_beside_one() -> str:
    try:
        await asyncio.gather(ping(0), three_in_a_row())
    except FatalError:
        await pong()
    return "over"


def test_a_caught_failure_does_not_keep_others_from_running_ahead() -> None:
    found = tracer(row_beside_one)
    trace = found.resume([failed("0.1:1")], strict=1)

    assert {node.node_id: sorted(node.after) for node in trace.nodes} == {
        "0:1": [], "0.2:1": [], "0.2:2": ["0.2:1"], "0.2:3": ["0.2:2"],
    }  # fmt: skip


def test_a_body_that_has_run_ahead_is_not_told_of_a_surprise() -> None:
    found = tracer(row_beside_one)
    found.resume()

    with pytest.raises(ReplayNeededError) as caught:
        found.resume([done("0.2:1"), failed("0.1:1")], strict=2)

    assert caught.value.strict == 2


@workflow
async def waits_for_one_of_two() -> str:
    tasks = [asyncio.create_task(of_its_own(ping(number))) for number in range(2)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return "failed" if any(task.exception() for task in done) else "done"


async def of_its_own(call: Any) -> Any:
    return await call


def test_a_body_that_stands_at_its_awaits_is_told_of_a_surprise_as_it_is() -> None:
    found = tracer(waits_for_one_of_two)
    found.resume()

    end = found.resume([failed("0.1:1")], strict=1).end

    assert end is not None
    assert end.result == "failed"


def test_a_success_that_ends_a_body_is_a_surprise_to_what_has_run_ahead_beside_it() -> None:
    history = [failed("0.1:1"), done("0:1")]
    with pytest.raises(ReplayNeededError) as caught:
        tracer(row_beside_one).resume(history, strict=1)
    assert caught.value.strict == 2

    trace = tracer(row_beside_one).resume(history, strict=2)

    assert trace.end is not None
    assert trace.nodes == ()
    assert trace.let_go == {"0.2:1"}


@workflow
async def ends_all_tasks() -> str:
    async def end_them() -> None:
        await ping(9)
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()

    ending = asyncio.create_task(end_them())
    try:
        await asyncio.gather(ping(0), three_in_a_row())
    except asyncio.CancelledError:
        await pong()
    await ending
    return "over"


def test_a_success_of_which_a_task_is_cancelled_is_a_surprise_to_it() -> None:
    found = tracer(ends_all_tasks)
    assert set(ids(found.resume())) == {"0.1:1", "0.2:1", "0.3:1", "0.3:2", "0.3:3"}

    with pytest.raises(ReplayNeededError) as caught:
        found.resume([done("0.1:1")])

    assert caught.value.strict == 1
    trace = tracer(ends_all_tasks).resume([done("0.1:1")], strict=1)
    assert "0:1" in ids(trace)
    assert {"0.2:1", "0.3:1"} <= trace.let_go
    assert not {"0.3:2", "0.3:3"} & trace.let_go


@workflow
async def gathers_what_fails() -> list[Any]:
    found = await asyncio.gather(ping(1), ping(2), return_exceptions=True)
    return [str(each) for each in found]


def test_a_failure_that_a_gather_returns_is_a_value() -> None:
    found = tracer(gathers_what_fails)

    assert [node.fails_as_value for node in found.resume().nodes] == [True, True]
    assert found.resume([failed("0.1:1")]).end is None
    end = found.resume([done("0.2:1", 2)]).end
    assert end is not None
    assert end.result == ["boom", "2"]


# -- timers -------------------------------------------------------------------------------------------


@workflow
async def limited() -> str:
    try:
        async with asyncio.timeout(60):
            await ping(1)
            await ping(2)
    except TimeoutError:
        await pong()
        return "too late"
    return "in time"


def test_a_timeout_is_a_timer_that_lasts_as_long_as_its_block() -> None:
    found = tracer(limited)
    trace = found.resume()
    assert [(node.node_id, node.kind, node.name, node.args) for node in trace.nodes if node.kind is NodeKind.SLEEP] == [
        ("0:1", NodeKind.SLEEP, "timer", {"seconds": 60.0})
    ]  # fmt: skip

    trace = found.resume([done("0:2"), done("0:3")])

    assert trace.end is not None
    assert trace.end.result == "in time"
    assert "0:1" not in ids(trace)
    assert trace.let_go >= {"0:1"}


def test_a_timeout_that_comes_due_cancels_what_is_awaited() -> None:
    trace = tracer(limited).resume([done("0:2"), done("0:1", hours=1)], strict=2)

    assert ids(trace) == ["0:4"]
    assert trace.let_go == {"0:3"}
    end = tracer(limited).resume([done("0:2"), done("0:1", hours=1), done("0:4")], strict=2).end
    assert end is not None
    assert end.result == "too late"


@workflow
async def waits_as_asyncio_does() -> list[Any]:
    found: list[Any] = []
    try:
        found.append(await asyncio.wait_for(of_its_own(ping(1)), 5))
    except TimeoutError:
        found.append("late")
    done_, pending = await asyncio.wait([asyncio.create_task(of_its_own(ping(2)))], timeout=5)
    found.append([len(done_), len(pending)])
    found.append(await asyncio.sleep(5, "slept"))
    return found


def test_the_timers_of_asyncio_have_the_same_places_on_each_python() -> None:
    found = tracer(waits_as_asyncio_does)

    assert ids(found.resume()) == ["0:1", "0:2"]
    assert set(ids(found.resume([done("0:2", 1)]))) == {"0.1:1", "0:3"}
    assert set(ids(found.resume([done("0:3", hours=1)], strict=1))) == {"0.1:1", "0:4"}
    end = found.resume([done("0:4", hours=2)], strict=1).end
    assert end is not None
    assert end.result == [1, [0, 1], "slept"]


@workflow
async def makes_timers() -> list[str]:
    loop, rang = asyncio.get_running_loop(), list[str]()
    loop.call_later(0, rang.append, "at once")
    loop.call_later(-1, rang.append, "before")
    loop.call_later(float("inf"), rang.append, "never")
    loop.call_later(1e12, rang.append, "in a thousand years")
    loop.call_at(loop.time() + 60, rang.append, "in a minute")
    cancelled = loop.call_later(60, rang.append, "cancelled")
    cancelled.cancel()
    await ping()
    await asyncio.sleep(120)
    return rang


def test_a_timer_of_the_loop_rings_once_at_its_time_and_not_after_it_was_cancelled() -> None:
    found = tracer(makes_timers)
    trace = found.resume()
    assert [node.args for node in trace.nodes if node.kind is NodeKind.SLEEP] == [{"seconds": 60.0}]
    (timer,) = [node.node_id for node in trace.nodes if node.kind is NodeKind.SLEEP]

    found = tracer(makes_timers)
    (last,) = ids(found.resume([done("0:3"), done(timer, hours=1)], strict=2))
    end = found.resume([done(last, hours=2)], strict=1).end

    assert end is not None
    assert end.result == ["at once", "before", "in a minute"]


@workflow
async def begins_tasks_in_callbacks() -> str:
    loop = asyncio.get_running_loop()
    done_ = loop.create_future()

    async def later() -> None:
        await ping(1)
        done_.set_result("by a task of a callback")

    def begin() -> None:
        loop.call_later(5, lambda: loop.create_task(later()))

    loop.call_soon(begin)
    return str(await done_)


def test_what_callbacks_make_has_places_of_its_own() -> None:
    found = tracer(begins_tasks_in_callbacks)

    assert ids(found.resume()) == ["~:1"]
    assert ids(found.resume([done("~:1", hours=1)], strict=1)) == ["~.1:1"]
    end = found.resume([done("~.1:1")]).end
    assert end is not None
    assert end.result == "by a task of a callback"


async def named(number: int) -> int:
    await ping(number)
    return number


@workflow
async def takes_as_they_come(kind: str) -> list[int]:
    coroutines = [named(number) for number in range(8)]
    given: Any = coroutines
    if kind == "tasks":
        given = {asyncio.create_task(each) for each in coroutines}
    elif kind == "calls":
        for each in coroutines:
            each.close()
        given = [ping(number) for number in range(8)]
    found = []
    for each in asyncio.as_completed(given, timeout=60):
        found.append(await each)
    return found


@pytest.mark.parametrize("kind", ["list", "tasks", "calls"])
def test_as_completed_begins_what_it_is_given_in_the_order_of_its_list(kind: str) -> None:
    numbers = [0, 7, 3, 1, 2, 6, 5, 4]
    for _ in range(3):
        found = tracer(takes_as_they_come, kind)
        nodes = {node.node_id: node for node in found.resume().nodes if node.name == ping.name}
        by_number = {node.args["args"][0]: node_id for node_id, node in nodes.items()}  # type: ignore[index,call-overload]
        assert [by_number[number] for number in range(8)] == [f"0.{n + 1}:1" for n in range(8)]

        end = found.resume([done(by_number[number], number) for number in numbers]).end
        assert end is not None
        assert end.result == numbers


@workflow
async def takes_what_has_no_order(kind: str) -> None:
    coroutines = [named(number) for number in range(8)]
    given: Any = set(coroutines) if kind == "set" else iter(coroutines)
    try:
        for each in asyncio.as_completed(given):
            await each
    finally:
        for each in coroutines:
            each.close()


@pytest.mark.parametrize("kind", ["set", "iterator"])
def test_as_completed_of_what_has_no_order_is_refused(kind: str) -> None:
    with pytest.raises(BodyAwaitError, match="Pass a list of coroutines or of tasks"):
        tracer(takes_what_has_no_order, kind).resume()


# -- what is not the body's own -------------------------------------------------------------------------

REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("REQUEST")


@workflow
async def looks_at_a_context_variable() -> list[str]:
    found = [REQUEST.get("nothing")]
    REQUEST.set("its own")
    if await ping(1) == 1:
        found.append(REQUEST.get("nothing"))
    return found


def test_a_body_sees_no_context_variables_but_its_own() -> None:
    REQUEST.set("of the command that started it")
    found = tracer(looks_at_a_context_variable)
    found.resume()
    REQUEST.set("of the worker that continues it")
    end = found.resume([done("0:1", 1)]).end

    assert end is not None
    assert end.result == ["nothing", "its own"]


@workflow
async def makes_tasks_eager() -> None:
    asyncio.get_running_loop().set_task_factory(None)
    await ping()


def test_eager_tasks_are_refused_by_name() -> None:
    with pytest.raises(
        BodyAwaitError, match=r"as of eager tasks \(line \d+ of test_tracer\.py\)\. Make tasks with"
    ):
        tracer(makes_tasks_eager).resume()
