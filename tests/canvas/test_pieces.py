"""What a body becomes: the plan of its first segment, the pieces cut from it, and Celery's own objects."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.canvas import Signature

from ckworkflow import sleep, step, workflow
from ckworkflow.canvas import build, first_nodes, parse_task_id, task_id
from ckworkflow.definition import Workflow
from ckworkflow.model import NodeId, RunId
from ckworkflow.plan import CHAIN_LIMIT, Chain, Chord, Piece, Task, build_plan, cut_pieces
from ckworkflow.tracing import Tracer

HORIZON = timedelta(seconds=15)
RUN = RunId("run")
app = Celery("canvas-tests", broker="memory://", set_as_current=False)


@step
async def ping(n: int = 0) -> dict[str, int]:
    return {"n": n}


@workflow
async def greet() -> dict[str, bool]:
    await ping()
    await sleep("5 seconds")
    await ping(1)
    return {"success": True}


@workflow
async def onboarding() -> None:
    await ping()
    await sleep("7 days")
    await ping(1)


@workflow
async def setup() -> dict[str, Any]:
    a, b = await asyncio.gather(ping(1), ping(2))
    await ping(a["n"])
    return {"b": b}


@workflow
async def branch(n: int) -> None:
    await ping(n)
    await ping(n + 1)


@workflow
async def branches() -> None:
    await asyncio.gather(branch(1), branch(2), ping(3))
    await ping(4)


@workflow
async def fork_in_a_chain() -> None:
    await ping()
    await asyncio.gather(ping(1), ping(2))
    await ping(3)


@workflow
async def last_gather() -> None:
    await asyncio.gather(ping(1), ping(2))


@workflow
async def two_gathers() -> None:
    await asyncio.gather(ping(1), ping(2))
    await asyncio.gather(ping(3), ping(4))


@workflow
async def slow_member() -> None:
    await asyncio.gather(ping(1), sleep("7 days"))
    await ping(2)


@workflow
async def looks_at_the_world() -> None:
    await ping(await ping(helper()))


def helper() -> int:
    return 3


@workflow
async def two_wait_for_a_sleep() -> None:
    await sleep(5)
    await asyncio.gather(looks_at_the_world(), ping(2))


@workflow
async def decides() -> None:
    found = await ping(1)
    if found["n"]:
        await ping(2)


@workflow
async def many(n: int) -> None:
    for _ in range(n):
        await ping()


@workflow
async def wide(n: int) -> None:
    await asyncio.gather(*[ping(i) for i in range(n)])
    await ping(-1)
    await ping(-2)


def pieces_of(definition: Workflow[..., Any], *args: Any, horizon: timedelta = HORIZON) -> list[Piece]:
    tracer = Tracer(RUN, lambda: definition.body.function(*args), started_at=datetime.now(UTC))
    plan = build_plan(tracer.resume())
    pieces = cut_pieces(plan, plan.ready(), horizon=horizon)
    tracer.close()
    return pieces


def shape(piece: Piece | Task) -> Any:
    """Nodes as text, chains as lists, forks as tuples of a word and their parts."""
    if isinstance(piece, Task):
        return (
            piece.node_id
            if piece.delay is None
            else f"{piece.node_id} after {piece.delay.total_seconds():g}"
        )
    if isinstance(piece, Chain):
        return [shape(item) for item in piece.items]
    members = sorted(shape(member) for member in piece.members)
    return ("chord", members, shape(piece.body)) if isinstance(piece, Chord) else ("group", members)


@pytest.mark.parametrize(
    ("definition", "shapes"),
    [
        (greet, [["0:1", "0:3 after 5"]]),
        (onboarding, [["0:1"]]),
        (setup, [("chord", [["0.1:1"], ["0.2:1"]], ["0:1"])]),
        (branches, [("chord", [["0.1:1", "0.1:2"], ["0.2:1", "0.2:2"], ["0.3:1"]], ["0:1"])]),
        (fork_in_a_chain, [["0:1", ("chord", [["0.1:1"], ["0.2:1"]], ["0:2"])]]),
        (last_gather, [("group", [["0.1:1"], ["0.2:1"]])]),
        (two_gathers, [("group", [["0.1:1"], ["0.2:1"]])]),
        (slow_member, [["0.1:1"]]),
        (decides, [["0:1"]]),
        # The body waits for the sleep, too: it is the clock's, which comes in time, and not a message's.
        (two_wait_for_a_sleep, []),
    ],
    ids=lambda value: value.name.rpartition(".")[2] if isinstance(value, Workflow) else "",
)
def test_a_body_becomes(definition: Workflow[..., Any], shapes: list[Any]) -> None:
    assert [shape(piece) for piece in pieces_of(definition)] == shapes


def test_a_sleep_beyond_the_horizon_ends_the_piece() -> None:
    assert [shape(p) for p in pieces_of(greet, horizon=timedelta(seconds=4))] == [["0:1"]]


def test_a_long_chain_is_cut() -> None:
    [piece] = pieces_of(many, 2 * CHAIN_LIMIT)

    assert isinstance(piece, Chain)
    assert len(piece.items) == CHAIN_LIMIT


def test_the_body_of_a_wide_chord_carries_no_tail() -> None:
    [piece] = pieces_of(wide, 200)

    assert isinstance(piece, Chord)
    assert len(piece.members) == 200
    assert len(piece.body.items) == 1


@pytest.mark.parametrize(
    ("definition", "kind"),
    [
        (greet, chain),
        (setup, chord),
        (last_gather, group),
        (fork_in_a_chain, chain),
        (onboarding, Signature),
    ],
    ids=lambda value: getattr(value, "__name__", None) or value.name.rpartition(".")[2],
)
def test_a_piece_is_a_real_celery_object(definition: Workflow[..., Any], kind: type[Any]) -> None:
    [piece] = pieces_of(definition)

    assert isinstance(build(app, RUN, piece), kind)


def test_messages_name_run_node_and_generation_and_carry_nothing_else() -> None:
    [piece] = pieces_of(greet)
    first, second = build(app, RUN, piece).tasks

    assert tuple(first.args) == ("run", "0:1", 0)
    assert first.kwargs == {}
    assert first.options["task_id"] == "ckw:run:0:1:0"
    assert second.options["countdown"] == 5


def test_the_first_nodes_of_a_signature_are_found() -> None:
    [piece] = pieces_of(setup)

    assert first_nodes(dict(build(app, RUN, piece))) == {("0.1:1", 0), ("0.2:1", 0)}


@pytest.mark.parametrize(
    "text", [None, "", "abc", "ckw:run:0:1", "ckw::0:1:2", "x:run:0:1:2", "ckw:run:0:1:x"]
)
def test_other_task_ids_are_not_ours(text: str | None) -> None:
    assert parse_task_id(text) is None


def test_task_ids_are_read_back() -> None:
    assert parse_task_id(task_id(RUN, NodeId("0.2:13"), 7)) == (RUN, "0.2:13", 7)
