"""Large values: one copy of each, outside the rows that every transaction reads and writes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from ckworkflow import codec, continue_as_new, create_hook, start, step, workflow
from ckworkflow.engine import outcomes, retention
from ckworkflow.engine import resume as sending
from ckworkflow.engine.advance import advance
from ckworkflow.errors import HookFullError
from ckworkflow.inspection.reading import read_details
from ckworkflow.model import HookKey, Namespace, RunId, RunStatus
from ckworkflow.store import large, tables
from desk import Desk

SIZE = 1_200_000
ROW = 2_000
"""The longest text that a row may have when all of the values are apart."""


@pytest.fixture
def desk(either_desk: Desk) -> Desk:
    return either_desk


@step
async def one(what: Any = 1) -> Any:
    return what


@workflow
async def passes_on(size: int) -> Any:
    """A result goes to two steps and to the caller: the body adds nothing to it."""
    found = await one(size)
    first = await one(found)
    second = await one([first, {"again": found}])
    return second[1]["again"]


@workflow
async def begins_large(text: str) -> int:
    await one()
    await one()
    return len(text)


@workflow
async def branches(text: str) -> int:
    if await one() and await one():
        return len(text)
    return 0


@workflow
async def loops_beside(text: str) -> None:
    beside = asyncio.ensure_future(one(text))
    while await one():
        pass
    await beside


@workflow
async def takes_two(life: int) -> Any:
    hook = create_hook("large")
    payload = await hook
    return [payload, life] if life else continue_as_new(life + 1)


@workflow
async def takes_none() -> None:
    create_hook("large")
    await one()


@workflow
async def child(text: str) -> Any:
    await one()
    return [text, text + "!"]


@workflow
async def parent(size: int) -> int:
    run = await start(child, "x" * size)
    return len((await run.return_value())[1])


@workflow
async def grows(text: str, life: int) -> int:
    await one(text)
    return len(text) if life == 2 else continue_as_new(text + "x", life + 1)


def work(desk: Desk, run_id: RunId) -> None:
    """Run every step, and its body, to the end."""
    while (
        row := next((row for row in desk.nodes(run_id) if row.status == "planned"), None)
    ) is not None:
        claimed = desk.claim(run_id, row.node_id)
        value = claimed.args[0] if claimed.args else None
        desk.succeed(claimed, "x" * value if isinstance(value, int) and value > 1 else value)
        advance(desk.engine, run_id)


def value(desk: Desk, run_id: RunId) -> Any:
    return outcomes.wait(desk.engine, run_id, 1)


def parts(desk: Desk, run_id: RunId) -> list[int]:
    table = tables.large_values
    query = sa.select(sa.func.length(table.c.value)).where(table.c.run_id == run_id)
    return sorted(
        desk.engine.database.read(lambda tx: tx.execute(query.order_by(table.c.digest)).scalars().all())
    )


def longest(desk: Desk, run_id: RunId) -> int:
    """The longest text in a row of a run."""
    columns = [
        *[(tables.runs.c.id, tables.runs.c[name]) for name in ("input", "output", "plan")],
        *[(tables.nodes.c.run_id, tables.nodes.c[name]) for name in ("args", "output")],
        (tables.hook_payloads.c.run_id, tables.hook_payloads.c.body),
    ]

    def read(tx: Any) -> list[int | None]:
        return [
            tx.execute(sa.select(sa.func.max(sa.func.length(column))).where(run == run_id)).scalar_one()
            for run, column in columns
        ]

    return max(length or 0 for length in desk.engine.database.read(read))


def send(desk: Desk, payload: Any) -> None:
    body = codec.pack(codec.encode(payload, path="payload"))
    sending.resume(desk.engine, HookKey.of(Namespace.CODE, "large"), body, dedup_key=None)


def test_a_result_that_is_passed_on_is_stored_once(desk: Desk) -> None:
    run_id = desk.start(passes_on, SIZE)
    work(desk, run_id)
    assert value(desk, run_id) == "x" * SIZE
    assert parts(desk, run_id) == [SIZE + 2]
    assert longest(desk, run_id) < ROW


def test_what_is_planned_already_is_not_written_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop goes on beside a step that has a large argument."""
    run_id = desk.start(loops_beside, "x" * SIZE)
    kept: list[str | None] = []
    keep = large.keep
    monkeypatch.setattr(
        large, "keep", lambda tx, of, texts, life: keep(tx, of, kept_in(kept, texts), life=life)
    )
    for number in range(1, 4):
        desk.succeed(desk.claim(run_id, f"0:{number}"), number)
        advance(desk.engine, run_id)
    assert not any(isinstance(text, codec.Packed) for text in kept)


def kept_in(kept: list[str | None], texts: Iterable[str | None]) -> list[str | None]:
    found = list(texts)
    kept += found
    return found


def test_another_process_goes_on_with_all_of_it(desk: Desk) -> None:
    run_id = desk.start(passes_on, SIZE)
    desk.succeed(desk.claim(run_id), "x" * SIZE)
    other = desk.another("b")
    advance(other.engine, run_id)
    work(other, run_id)
    assert value(desk, run_id) == "x" * SIZE
    assert parts(desk, run_id) == [SIZE + 2]


def test_what_a_run_begins_with_is_apart_from_its_row(desk: Desk) -> None:
    run_id = desk.start(begins_large, "x" * SIZE)
    assert longest(desk, run_id) < ROW
    desk.succeed(desk.claim(run_id), 1)
    other = desk.another("b")  # it replays
    advance(other.engine, run_id)
    work(other, run_id)
    assert value(desk, run_id) == SIZE


def test_a_payload_goes_over_to_the_next_life_with_its_parts(desk: Desk) -> None:
    run_id = desk.start(takes_two, 0)
    send(desk, "a" * SIZE)
    send(desk, ["b" * SIZE, "b" * SIZE])
    advance(desk.engine, run_id)
    assert value(desk, run_id) == [["b" * SIZE, "b" * SIZE], 1]
    assert parts(desk, run_id) == [SIZE + 2]  # of the payload of the first life nothing is left
    assert longest(desk, run_id) < ROW


def test_of_lives_that_are_over_no_part_is_left(desk: Desk) -> None:
    run_id = desk.start(grows, "x" * SIZE, 0)
    work(desk, run_id)
    assert value(desk, run_id) == SIZE + 2
    assert parts(desk, run_id) == [SIZE + 4]


def test_a_child_and_its_parent_have_their_own(desk: Desk) -> None:
    run_id = desk.start(parent, SIZE)
    (row,) = desk.nodes(run_id)
    born = RunId(next(iter(all_runs(desk) - {run_id})))
    advance(desk.engine, born)
    work(desk, born)
    desk.clock.advance(timedelta(seconds=5))
    desk.tick()  # tells the parent
    assert value(desk, run_id) == SIZE + 1
    assert parts(desk, born) == [SIZE + 2, SIZE + 3]
    assert parts(desk, run_id) == [SIZE + 2, SIZE + 3]
    assert longest(desk, run_id) < ROW
    assert row.name == child.name


def all_runs(desk: Desk) -> set[str]:
    return set(
        desk.engine.database.read(lambda tx: tx.execute(sa.select(tables.runs.c.id)).scalars().all())
    )


def test_the_room_of_a_hook_counts_them(desk: Desk) -> None:
    desk.start(takes_none)
    for _ in range(5):
        send(desk, "x" * 3_000_000)
    with pytest.raises(HookFullError):
        send(desk, "x" * 3_000_000)


def test_one_that_is_larger_than_the_room_has_room_where_nothing_is_left(desk: Desk) -> None:
    run_id = desk.start(takes_none)
    send(desk, "x" * 17_000_000)
    assert parts(desk, run_id) == [17_000_002]
    with pytest.raises(HookFullError):
        send(desk, "y")


def test_they_go_with_their_run(desk: Desk) -> None:
    run_id = desk.start(passes_on, SIZE)
    work(desk, run_id)
    desk.clock.advance(timedelta(days=2))
    assert retention.prune(desk.engine, older_than=timedelta(days=1)).total == 1
    assert parts(desk, run_id) == []


def test_whoever_looks_at_the_run_sees_them(desk: Desk) -> None:
    run_id = desk.start(passes_on, SIZE)
    work(desk, run_id)
    details = read_details(desk.engine, run_id, queue_of=lambda _: None)
    assert details.return_value == details.steps[0].result == "x" * SIZE


def test_a_part_that_is_gone_holds_the_run(desk: Desk) -> None:
    run_id = desk.start(branches, "x" * SIZE)
    desk.succeed(desk.claim(run_id), 1)
    desk.engine.database.transact(lambda tx: tx.execute(sa.delete(tables.large_values)))
    other = desk.another("b")
    other.succeed(other.claim(run_id, "0:2"), 1)
    advance(other.engine, run_id)
    run = desk.run(run_id)
    assert run.status == RunStatus.RUNNING
    assert "a part of it is not in the database" in (run.held or "")
