"""The kinds of bodies that a review of the compiler compared, one by one and in pairs, against plain asyncio.

`test_bodies.py` runs few bodies through every order, failure and death; this runs many bodies, of every kind, through
what tells a compiler's fault: live with a kept body, always replayed, and with each step failing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compiler import steps
from differential import (
    kinds_breaking,
    kinds_comprehensions,
    kinds_errors,
    kinds_faults,
    kinds_flow,
    kinds_inlined,
    kinds_names,
    kinds_order,
    kinds_pairs,
    kinds_parts,
    kinds_shared,
    kinds_tasks,
    people,
)
from differential.comparison import Arena, Body, kills
from differential.people import KINDS
from differential.simulator import Move
from differential.world import World

MODULES = (
    kinds_breaking, kinds_comprehensions, kinds_errors, kinds_faults, kinds_flow, kinds_inlined, kinds_names, kinds_order,
    kinds_pairs, kinds_parts, kinds_shared, kinds_tasks,
)  # fmt: skip
ALL = [body for theme in sorted(KINDS) for body in KINDS[theme]]
SAMPLE = ALL[::26]
ORDERS = 3


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    places = [(module.__dict__, name) for module in MODULES for name in getattr(module, "GLOBALS", ())]
    start = [space[name] for space, name in places]
    world = World([steps.STATE, steps.NOTES, people.Room.cache], [(people.__dict__, "LEVEL"), *places])

    def reset() -> None:
        people.reset()
        for (space, name), value in zip(places, start, strict=True):
            space[name] = value

    arena = Arena(f"sqlite:///{tmp_path_factory.mktemp('arena') / 'runs.sqlite3'}", reset, world)
    yield arena
    arena.close()
    reset()


def named(bodies: list[Body]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("body", bodies, ids=lambda body: body.name)


def modes() -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "bodies_kept", [pytest.param(64, id="kept"), pytest.param(0, id="replayed")]
    )


class Expected:
    """What plain asyncio says of a body, asked once for all modes."""

    def __init__(self) -> None:
        self._orders: dict[str, list[list[Move]]] = {}
        self._steps: dict[str, list[str]] = {}

    def orders(self, arena: Arena, body: Body) -> list[list[Move]]:
        if body.name not in self._orders:
            self._orders[body.name] = arena.orders(body, limit=ORDERS)
        return self._orders[body.name]

    def steps(self, arena: Arena, body: Body) -> list[str]:
        if body.name not in self._steps:
            self._steps[body.name] = arena.steps_of(body)
        return self._steps[body.name]


EXPECTED = Expected()


def in_order(arena: Arena, body: Body, moves: list[Move], bodies_kept: int) -> None:
    run = arena.compare(body, "orders", bodies_kept=bodies_kept, script=moves)
    assert run is not None
    # A run that spins may still come to its end, by luck and much later.
    assert run.transactions <= 6 * (len(run.rows) + 2), f"{run.transactions} for {len(run.rows)} nodes"


@pytest.mark.slow
@pytest.mark.each_python
@modes()
@named(ALL)
def test_a_body_of_any_kind_does_the_same(arena: Arena, body: Body, bodies_kept: int) -> None:
    for moves in EXPECTED.orders(arena, body):
        in_order(arena, body, moves, bodies_kept)


@pytest.mark.slow
@modes()
@named(ALL)
def test_a_body_of_any_kind_does_the_same_when_any_of_its_steps_fails(
    arena: Arena, body: Body, bodies_kept: int
) -> None:
    for number, node in enumerate(EXPECTED.steps(arena, body)):
        arena.compare(body, "faults", bodies_kept=bodies_kept, seed=number, faults={node: "fatal"})


@modes()
@named(SAMPLE)
def test_a_sample_does_the_same(arena: Arena, body: Body, bodies_kept: int) -> None:
    in_order(arena, body, EXPECTED.orders(arena, body)[0], bodies_kept)
    for node in EXPECTED.steps(arena, body)[:1]:
        arena.compare(body, "faults", bodies_kept=bodies_kept, faults={node: "fatal"})


def test_there_are_bodies_of_every_kind() -> None:
    assert len(KINDS) == len(MODULES)
    assert len({body.name for body in ALL}) == len(ALL)


def cancels(body: Body) -> bool:
    return any(part in body.name for part in ("tg", "cancel", "end", "group"))


@pytest.mark.slow
@named([body for body in KINDS["breaking"] if cancels(body)])
@pytest.mark.parametrize("bodies_kept", [64, 0], ids=["kept", "replayed"])
def test_a_body_that_cancels_does_the_same_in_two_processes(
    arena: Arena, body: Body, bodies_kept: int
) -> None:
    """A plan that changes while another process goes on with the old one leaves nothing waiting for ever."""
    with arena.unruly(interrupts=0.3):
        for seed in range(8):
            assert arena.compare(body, "two", bodies_kept=bodies_kept, seed=seed, process_count=2)


@pytest.mark.slow
def test_a_death_does_not_let_a_task_overtake_a_part_that_has_no_value(arena: Arena) -> None:
    (body,) = (body for body in KINDS["breaking"] if body.name == "breaking-missing_part_beside_a_task")
    for seed in range(10):
        for kill in kills(
            arena.compare(body, "base", bodies_kept=0, seed=seed) or pytest.fail("it hangs")
        ):
            arena.compare(body, "kills", bodies_kept=0, seed=seed, kill=kill)
