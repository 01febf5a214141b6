"""What SQL guarantees: one owner of a node, late and doubled messages without effect, no run forgotten, a shared store."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from ckworkflow import sleep, start_sync, step, workflow
from ckworkflow.engine import attempts, claims, liveness
from ckworkflow.engine.advance import advance
from ckworkflow.engine.answer import Answer, carry_out
from ckworkflow.engine.claims import Claimed, Dropped, Early
from ckworkflow.engine.identity import pid_started, this_process
from ckworkflow.engine.shared import SharedStore
from ckworkflow.errors import FatalError, UnserializableValueError
from ckworkflow.hooks import use_commandkit
from ckworkflow.model import NodeStatus, RunId, RunStatus
from ckworkflow.plan import Chain
from ckworkflow.store import nodes, tables
from ckworkflow.testing import worker
from desk import Desk
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckworkflow.engine.installation import Installation

SECOND = timedelta(seconds=1)


# --- the shared store ----------------------------------------------------------------------------------


@step
async def counts(key: str) -> dict[str, Any]:
    store = use_commandkit().store
    had = await store.has(key)
    await store.set(key, {"number": (await store.get(key, {"number": 0}))["number"] + 1})
    return {"had": had, "number": (await store.get(key))["number"], "nothing": await store.get("no key")}


@step
async def forgets_to_await(key: str) -> None:
    store = use_commandkit().store
    for number in range(20):
        store.set(key, number)


@step
def writes_in_a_thread(key: str) -> list[Any]:
    store = use_commandkit().store.sync
    found = [store.get(key, "default"), store.has(key)]
    store.set(key, (1, 2))
    return [*found, store.get(key), store.delete(key), store.delete(key), store.has(key)]


@step(max_retries=0)
async def stores_an_object() -> None:
    await use_commandkit().store.set("thing", {"a": [object()]})


@workflow
async def counting(key: str) -> Any:
    return [await counts(key), await counts(key)]


@workflow
async def forgetting(key: str) -> None:
    await forgets_to_await(key)


@workflow
async def writing_in_a_thread(key: str) -> Any:
    return await writes_in_a_thread(key)


@workflow
async def storing_an_object() -> None:
    await stores_an_object()


@pytest.fixture
def bots_store(home: Installation) -> Iterator[SharedStore]:
    """The store as the bot's own process has it."""
    home.engine.ensure_schema()
    store = SharedStore(home.engine)
    yield store
    store.close()


def test_bot_and_steps_share_the_store(running: Installation, bots_store: SharedStore) -> None:
    bots_store.set("visits", {"number": 41}).result(5)

    first, second = start_sync(counting, "visits").return_value(10)

    assert first == {"had": True, "number": 42, "nothing": None}
    assert second["number"] == 43
    assert bots_store.sync.get("visits") == {"number": 43}


def test_a_call_of_the_store_that_nobody_awaits_is_not_lost(
    running: Installation, bots_store: SharedStore
) -> None:
    start_sync(forgetting, "number").return_value(10)

    until(lambda: bots_store.sync.get("number") == 19)


def test_calls_that_nobody_awaits_are_carried_out_before_the_worker_ends(
    home: Installation, bots_store: SharedStore
) -> None:
    with worker():
        start_sync(forgetting, "number").return_value(10)

    assert bots_store.sync.get("number") == 19


def test_a_sync_step_has_the_sync_twin(running: Installation) -> None:
    assert start_sync(writing_in_a_thread, "k").return_value(10) == [
        "default", False, (1, 2), True, False, False,
    ]  # fmt: skip


def test_calls_of_the_store_take_effect_in_their_order(bots_store: SharedStore) -> None:
    async def both() -> tuple[Any, bool, bool]:
        bots_store.set("k", 1)
        bots_store.set("k", 2)
        return await bots_store.get("k"), await bots_store.delete("k"), await bots_store.has("k")

    assert asyncio.run(both()) == (2, True, False)


def test_a_value_that_cannot_be_stored_is_refused_at_the_call(
    running: Installation, bots_store: SharedStore
) -> None:
    with pytest.raises(UnserializableValueError, match=r"^store\['thing'\]\['a'\]\[0\] is an object"):
        bots_store.set("thing", {"a": [object()]})
    run = start_sync(storing_an_object)
    until(lambda: run.status().is_final)
    assert "store['thing']['a'][0] is an object" in (run.steps()[0].error or "")


@pytest.mark.parametrize("key", [5, None, b"key", ("a", "b")])
def test_a_key_that_is_no_text_is_refused_at_the_call(desk: Desk, key: Any) -> None:
    store = SharedStore(desk.engine)
    for use in (
        lambda: store.set(key, 1), lambda: store.get(key), lambda: store.delete(key), lambda: store.has(key),
        lambda: store.sync.set(key, 1), lambda: store.sync.get(key), lambda: store.sync.delete(key),
        lambda: store.sync.has(key),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="a key of the store is text"):
            use()
    store.close()


def test_two_that_write_a_new_key_at_once_do_not_disturb_each_other(desk: Desk) -> None:
    store = SharedStore(desk.engine)
    start = threading.Barrier(6)

    def write(number: int) -> None:
        start.wait()
        store.sync.set("key", number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))

    assert store.sync.get("key") in range(6)
    store.close()


# --- claims and records --------------------------------------------------------------------------------


@step
def first() -> int:
    return 1


@step
def second(number: int) -> int:
    return number + 1


@workflow
async def pair() -> int:
    return await second(await first())


@pytest.fixture
def desk(either_desk: Desk) -> Desk:
    return either_desk


@pytest.fixture
def other(desk: Desk) -> Iterator[Desk]:
    """A second process on the database of `desk`."""
    other = desk.another("other")
    yield other
    other.close()


def test_of_many_that_claim_a_node_one_gets_it(desk: Desk) -> None:
    run_id = desk.start(pair)
    start = threading.Barrier(8)

    def claim(_: int) -> Any:
        start.wait()
        return desk.claim(run_id)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(claim, range(8)))

    assert sorted(type(answer).__name__ for answer in answers) == ["Claimed"] + ["Dropped"] * 7
    assert desk.node(run_id).attempt == 1


def test_a_message_before_its_turn_is_dropped(desk: Desk) -> None:
    run_id = desk.start(pair)

    assert desk.claim(run_id, "0:2") == Dropped("the node waits for others")


def test_a_doubled_message_of_a_recorded_node_is_dropped(desk: Desk) -> None:
    run_id = desk.start(pair)
    desk.succeed(desk.claim(run_id), 1)

    assert desk.claim(run_id) == Dropped("the node is completed")


def test_a_message_of_an_earlier_plan_is_dropped(desk: Desk) -> None:
    run_id = desk.start(pair)
    row = desk.node(run_id)

    for generation, name in ((row.generation + 1, row.name), (row.generation, "another step")):
        answer = claims.claim(desk.engine, run_id, row.node_id, generation, step=name)
        assert answer == Dropped("the plan has changed")


def test_a_message_of_a_run_that_has_ended_is_dropped(desk: Desk) -> None:
    run_id = desk.start(pair)
    desk.succeed(desk.claim(run_id), 1)
    assert desk.succeed(desk.claim(run_id, "0:2"), 2).has_ended

    assert desk.claim(run_id, "0:2") == Dropped("the run has ended")
    assert desk.run(run_id).status is RunStatus.COMPLETED
    assert desk.run(run_id).output == "2"


@pytest.mark.parametrize("late", ["success", "failure", "release"])
def test_the_record_of_an_owner_that_lost_its_node_writes_nothing(
    desk: Desk, other: Desk, late: str
) -> None:
    run_id = desk.start(pair)
    stale = other.claim(run_id)
    desk.lose(other)
    desk.tick()
    fresh = desk.claim(run_id)
    before = (desk.node(run_id), desk.run(run_id), desk.attempts(run_id))

    if late == "success":
        recorded = other.succeed(stale, "stale")
    elif late == "failure":
        recorded = other.fail(stale, FatalError("stale"), first)
    else:
        recorded = attempts.release(other.engine, stale)

    assert recorded == Answer(is_refused=True)
    assert (desk.node(run_id), desk.run(run_id), desk.attempts(run_id)) == before
    desk.succeed(fresh, 1)
    assert desk.node(run_id).output == "1"
    assert fresh.row.attempt == 2


def test_two_messages_of_one_record_do_not_run_what_follows_twice(desk: Desk, other: Desk) -> None:
    run_id = desk.start(pair)
    desk.succeed(desk.claim(run_id), 1)

    answers = [desk.claim(run_id, "0:2"), other.claim(run_id, "0:2")]

    assert [type(answer) for answer in answers] == [Claimed, Dropped]
    assert answers[0].args == (1,)


def test_an_early_message_is_told_how_long_to_wait(desk: Desk) -> None:
    run_id = desk.start(sleeping_pair)
    desk.succeed(desk.claim(run_id), 1)

    assert desk.claim(run_id, "0:3") == Early(10 * SECOND)
    desk.clock.advance(10 * SECOND)
    assert isinstance(desk.claim(run_id, "0:3"), Claimed)


@workflow
async def sleeping_pair() -> int:
    number = await first()
    await sleep("10 s")
    return await second(number)


# --- dead processes ------------------------------------------------------------------------------------


def test_what_a_dead_process_of_this_host_owned_is_free_at_once(desk: Desk, other: Desk) -> None:
    run_id = desk.start(pair)
    other.claim(run_id)
    assert desk.claim(run_id) == Dropped("the node is running")
    ended = subprocess.Popen(["true"])
    started = pid_started(ended.pid) or "0"
    ended.wait()
    desk.register(other, pid=ended.pid, pid_started=started)

    liveness.reap_dead(desk.engine)

    row = desk.node(run_id)
    assert (row.status, row.owner, row.losses, row.free_attempts) == (NodeStatus.PLANNED, None, 1, 1)
    assert desk.run(run_id).wake_at == desk.clock.now
    assert [each.outcome for each in desk.attempts(run_id)] == ["lost"]
    assert desk.claim(run_id).counted_attempt == 1


def test_a_pid_that_another_program_has_now_is_no_life(desk: Desk, other: Desk) -> None:
    run_id = desk.start(pair)
    other.claim(run_id)
    desk.register(other, pid=this_process().pid, pid_started="1")

    liveness.reap_dead(desk.engine)

    assert desk.node(run_id).owner is None


def test_a_process_of_another_host_keeps_what_it_owns_until_it_was_silent_for_long(
    desk: Desk, other: Desk
) -> None:
    run_id = desk.start(pair)
    other.claim(run_id)
    desk.register(other, host="elsewhere")

    desk.watch(29 * SECOND)
    assert desk.node(run_id).owner == other.engine.owner

    desk.watch(2 * SECOND)
    assert desk.node(run_id).owner is None


def test_a_living_process_keeps_what_it_owns(desk: Desk, other: Desk) -> None:
    run_id = desk.start(pair)
    other.claim(run_id)
    desk.register(other)

    liveness.reap_dead(desk.engine)

    assert desk.node(run_id).owner == other.engine.owner


def test_a_run_that_a_dead_process_was_advancing_is_advanced_by_another(desk: Desk, other: Desk) -> None:
    run_id = desk.start(looking)
    recorded = other.succeed(other.claim(run_id), 1)
    assert recorded.must_advance
    other.take_lease(run_id)
    advance(desk.engine, run_id)
    assert not desk.run(run_id).status.is_final  # it is the other's to advance

    desk.lose(other)
    desk.tick()

    assert desk.run(run_id).status is RunStatus.COMPLETED


@workflow
async def looking() -> str:
    return "one" if await first() == 1 else "another"


def test_a_step_that_kills_its_workers_ends_after_ten_losses_with_the_story(
    desk: Desk, other: Desk
) -> None:
    run_id = desk.start(pair)
    beside = desk.start(pair)
    for loss in range(1, 11):
        assert isinstance(other.claim(run_id), Claimed)
        desk.lose(other)
        assert desk.node(run_id).status is (NodeStatus.PLANNED if loss < 10 else NodeStatus.FAILED)
        desk.clock.advance(5 * SECOND)
    desk.tick()

    record = desk.run(run_id)
    assert record.status is RunStatus.FAILED
    assert "first lost its worker 10 times, so it is not tried again" in (record.error or "")
    assert [each.outcome for each in desk.attempts(run_id)] == ["lost"] * 9 + ["failed"]
    desk.succeed(desk.claim(beside), 1)


def test_the_neighbours_of_a_step_that_kills_its_workers_do_not_fail_with_it(
    desk: Desk, other: Desk
) -> None:
    killer = desk.start(pair)
    neighbours = [desk.start(pair) for _ in range(5)]
    finished: set[RunId] = set()
    while desk.node(killer).status is not NodeStatus.FAILED:
        begun = {
            run_id: other.claim(run_id) for run_id in (*neighbours, killer) if run_id not in finished
        }
        if isinstance(begun[killer], Claimed):
            desk.lose(other)  # while all that could begin are running
            continue
        for run_id, claimed in begun.items():
            if isinstance(claimed, Claimed):
                other.succeed(claimed, 1)
                finished.add(run_id)

    # Together until they were suspects, then in smaller and smaller groups.
    assert max(desk.node(run_id).losses for run_id in neighbours) <= 6
    for run_id in neighbours:
        assert desk.node(run_id).status is not NodeStatus.FAILED
        assert desk.node(run_id).attempt - desk.node(run_id).free_attempts <= 1


def test_a_message_for_a_run_that_was_deleted_is_dropped(desk: Desk) -> None:
    run_id = desk.start(pair)
    row = desk.node(run_id)
    gone = sa.delete(tables.runs).where(tables.runs.c.id == run_id)
    desk.engine.database.transact(lambda tx: tx.execute(gone))

    late = claims.claim(desk.engine, run_id, row.node_id, row.generation, step=row.name)

    assert late == Dropped("the run is gone")


@pytest.mark.parametrize("raises", [False, True])
def test_a_step_that_was_claimed_counts_as_running_however_long_it_takes_to_publish_the_others(
    desk: Desk, raises: bool
) -> None:
    run_id = desk.start(pair)
    row = desk.node(run_id)
    taken = claims.claim(desk.engine, run_id, row.node_id, row.generation, step=row.name)
    assert isinstance(taken, Claimed)
    desk.engine.active.clear()  # the claim has just been committed with a continuation

    def publish(*_: Any) -> None:
        """Take as long as two heartbeats."""
        suspects = liveness.release_orphans(desk.engine, frozenset())
        assert liveness.release_orphans(desk.engine, suspects) == frozenset()
        if raises:
            raise KeyboardInterrupt

    answer = Answer(pieces=[Chain(())], taken=taken.row)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(desk.engine, "publish", publish)
        carry_out(desk.engine, run_id, answer)

    assert desk.node(run_id).owner == desk.engine.owner
    assert (
        (run_id, row.node_id) in desk.engine.active
    ) is not raises  # what was not carried out, nobody runs


def test_what_a_process_owns_and_does_not_run_is_free_after_a_while(desk: Desk) -> None:
    run_id = desk.start(pair)
    claimed = desk.claim(run_id)
    assert liveness.release_orphans(desk.engine, frozenset()) == frozenset()
    desk.engine.active.clear()  # as after a commit whose answer was lost

    suspects = liveness.release_orphans(desk.engine, frozenset())
    assert desk.node(run_id).owner == desk.engine.owner
    assert liveness.release_orphans(desk.engine, suspects) == frozenset()

    assert desk.node(run_id).owner is None
    desk.succeed(claimed, 1)  # late
    assert desk.node(run_id).status is NodeStatus.PLANNED
    assert isinstance(desk.claim(run_id), Claimed)


# --- no run is forgotten ---------------------------------------------------------------------------------


@step(retry_delay="1 minute", max_retries=1)
def flaky(number: int) -> int:
    return number


@workflow
async def mixed(number: int) -> int:
    total = 0
    for value in await asyncio.gather(flaky(number), second(number), nap(number)):
        total += value or 0
    if total > 3:
        await sleep("1 hour")
    try:
        total += await flaky(total)
    except FatalError:
        total += 100
    return total


@workflow
async def nap(number: int) -> None:
    await sleep(number)


@pytest.mark.slow
def test_at_any_time_every_live_run_has_a_wake_at(desk: Desk) -> None:
    """The database's own constraint says so too: a statement that broke it would raise here."""
    run_ids = [desk.start(mixed, number) for number in range(4)]
    rounds = 0
    while any(not desk.run(run_id).status.is_final for run_id in run_ids):
        rounds += 1
        assert rounds < 500, [
            desk.engine.database.read(lambda tx, r=r: nodes.load_nodes(tx, r).get()) for r in run_ids
        ]
        for run_id in run_ids:
            desk.work(
                run_id, fails=lambda row: row.name.endswith("flaky") and (rounds + row.position) % 3 == 0
            )
            assert not desk.is_live_without_wake_at()
        desk.tick()
        assert not desk.is_live_without_wake_at()
        desk.clock.advance(timedelta(seconds=37))

    assert all(desk.run(run_id).wake_at is None for run_id in run_ids)
    assert {desk.run(run_id).status for run_id in run_ids} == {RunStatus.COMPLETED}


def test_one_run_that_cannot_be_recovered_does_not_hold_up_the_others(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    broken, fine = desk.start(pair), desk.start(pair)
    desk.spoil(broken)
    desk.messages.clear()
    desk.clock.advance(timedelta(seconds=3))

    desk.tick()

    assert "not recovered" in caplog.text
    assert [RunId(run_id) for run_id, _ in desk.messages] == [fine]


def test_a_publish_that_was_lost_is_repeated_less_and_less_often(desk: Desk) -> None:
    run_id = desk.start(pair)
    pauses = []
    for _ in range(9):
        desk.clock.now = desk.run(run_id).wake_at
        before = desk.clock.now
        desk.messages.clear()
        desk.tick()
        assert len(desk.published) == 1
        pauses.append((desk.run(run_id).wake_at - before).total_seconds())

    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 300]
