"""Every body in the engine and under plain asyncio: same result or exception, same steps, same world.

The bodies are the compiler's table and the harder ones of `differential.bodies`. The engine is the real one
on a real database; messages, time and death are in the test's hands (`differential.simulator`). Plain
asyncio follows what happened in the engine; for the orders of completion it leads.
"""

from __future__ import annotations

import random

import pytest

from compiler.bodies import CASES
from differential import faults
from differential.bodies import BODIES
from differential.comparison import Arena, Body, kills
from differential.simulator import Fault, Kill

TABLE = [Body(case.name, case.workflow, case.args) for case in CASES]
ALL = [*TABLE, *BODIES]
SAMPLE = [
    body
    for body in ALL
    if body.name
    in {
        "greet", "reads_module_state", "members_share_a_dict", "handles_a_failure", "with_between_steps",
        "gather_beside_a_chain", "while_on_state", "failure_and_a_long_wait", "cancelled_members_clean_up",
        "missing_attribute", "chances", "polls_until",
    }
    or body.workflow.module == faults.__name__
]  # fmt: skip
READS_WHAT_SIBLINGS_CHANGE = {"members_that_read_the_world"}
"""What such a body sees depends on when exactly a step beside it has run: with two workers, on luck."""

CHAOS_SEEDS = 2


def named(bodies: list[Body]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("body", bodies, ids=lambda body: body.name)


def modes() -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "bodies_kept", [pytest.param(64, id="kept"), pytest.param(0, id="replayed")]
    )


@pytest.mark.slow
@pytest.mark.each_python
@modes()
@named(ALL)
def test_a_body_does_the_same_in_every_order_of_completion(
    arena: Arena, body: Body, bodies_kept: int
) -> None:
    for moves in arena.orders(body):
        arena.compare(body, "orders", bodies_kept=bodies_kept, script=moves)


@pytest.mark.slow
@named(ALL)
def test_a_body_does_the_same_when_any_of_its_steps_fails_for_good(arena: Arena, body: Body) -> None:
    for number, node in enumerate(arena.steps_of(body)):
        for at, moves in enumerate(arena.orders(body, faults={node: "fatal"}, limit=2)):
            # Kept and replayed in turn.
            kept = 64 * ((number + at) % 2)
            arena.compare(body, "faults", bodies_kept=kept, script=moves, faults={node: "fatal"})
        if number % 2 == 0:  # at every attempt: four of them, with a second in between
            arena.compare(
                body, "faults", bodies_kept=64 * (number % 4 == 0), seed=number, faults={node: "error"}
            )


@pytest.mark.slow
@named(ALL)
def test_a_body_does_the_same_when_its_process_dies_at_any_transaction(arena: Arena, body: Body) -> None:
    base = arena.compare(body, "base", bodies_kept=0)
    assert base is not None
    for kill in kills(base):
        arena.compare(body, "kills", bodies_kept=64 * (kill.at % 2), kill=kill, seed=kill.at)


@pytest.mark.slow
@named([body for body in ALL if body.name not in READS_WHAT_SIBLINGS_CHANGE])
def test_a_body_does_the_same_with_two_processes_and_a_bad_broker(arena: Arena, body: Body) -> None:
    for seed in range(CHAOS_SEEDS):
        in_chaos(arena, body, seed)


def in_chaos(arena: Arena, body: Body, seed: int) -> None:
    """Messages come twice or not at all, steps overlap and fail, a process comes in between or dies."""
    rng = random.Random(f"{body.name}/{seed}")
    kill = Kill(rng.randrange(1, 25), rng.random() < 0.5, rng.random() < 0.5) if seed % 2 else None
    faults: dict[str, Fault] = {node: "fatal" for node in arena.steps_of(body) if rng.random() < 0.2}
    with arena.unruly(interrupts=0.4, doubles=0.2, drops=0.1):
        arena.compare(
            body, "chaos", bodies_kept=rng.choice([0, 64]), process_count=2, seed=seed, kill=kill, faults=faults
        )  # fmt: skip


# -- the sample of the fast tier ------------------------------------------------------------------


@modes()
@named(SAMPLE)
def test_a_sample_does_the_same_in_every_order_and_failure(
    arena: Arena, body: Body, bodies_kept: int
) -> None:
    for moves in arena.orders(body, limit=3):
        arena.compare(body, "orders", bodies_kept=bodies_kept, script=moves)
    for node in arena.steps_of(body)[:2]:
        arena.compare(body, "faults", bodies_kept=bodies_kept, faults={node: "fatal"})


@named(SAMPLE)
def test_a_sample_does_the_same_when_its_process_dies(arena: Arena, body: Body) -> None:
    for at in (2, 5):
        arena.compare(body, "kills", bodies_kept=64, kill=Kill(at, is_committed=at == 2), seed=at)


# -- PostgreSQL -----------------------------------------------------------------------------------


def test_a_sample_does_the_same_on_postgresql(postgres_arena: Arena) -> None:
    for number, body in enumerate(SAMPLE):
        kept = 64 * (number % 2)
        for moves in postgres_arena.orders(body, limit=2):
            postgres_arena.compare(body, "orders", bodies_kept=kept, script=moves)
        for node in postgres_arena.steps_of(body)[:1]:
            postgres_arena.compare(body, "faults", bodies_kept=kept, faults={node: "error"})
        for at in (3, 4, 6):
            postgres_arena.compare(body, "kills", bodies_kept=kept, kill=Kill(at, at % 2 == 0), seed=at)
        in_chaos(postgres_arena, body, number)
