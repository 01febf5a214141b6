"""Random workflows in the engine and under plain asyncio: live, replayed, with failing steps, with deaths.

Always the same ones, so that a change is judged by what it does and not by luck. `CKWORKFLOW_PROGRAMS` says how many others,
`CKWORKFLOW_PROGRAMS_SEED` which. A failure prints the smallest program that Hypothesis finds. New ones are the matter of
`make soak`: `python -m tests.differential.programs` runs any number of them, and keeps on after a difference.
"""

from __future__ import annotations

import functools
import gc
import inspect
import logging
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, reject, seed, settings

import totals
from ckworkflow.codec import large
from differential.programs import KINDS_OF_PROGRAMS, Bench, Unfit, program, programs
from services import empty_postgres_database

COUNT = int(os.environ.get("CKWORKFLOW_PROGRAMS") or 800)
SAMPLE = 30
SAMPLE_OF_KIND = 5
SHARES = 8
SEED = int(os.environ.get("CKWORKFLOW_PROGRAMS_SEED") or 1)

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:coroutine:RuntimeWarning"
    ),  # a program need not await what it calls
    pytest.mark.filterwarnings("ignore::SyntaxWarning"),
]


@pytest.fixture(autouse=True)
def _coroutines_that_cannot_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a coroutine that is not awaited, Python warns where it happens to be collected. In the constructor of a namedtuple,
    whose code has no builtins, it finds no `__import__` for that, and says so instead of what the filter above ignores."""
    tell = sys.unraisablehook

    def hook(told: Any) -> None:
        is_no_warning = isinstance(told.exc_value, KeyError) and told.exc_value.args == ("__import__",)
        if not (is_no_warning and inspect.iscoroutine(told.object)):
            tell(told)

    monkeypatch.setattr(sys, "unraisablehook", hook)


def test_a_coroutine_may_be_collected_where_there_are_no_builtins() -> None:
    async def helper() -> None: ...

    ring: list[Any] = [helper()]
    ring.append(ring)
    del ring
    eval("lambda collect: collect()", {"__builtins__": {}})(gc.collect)


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("programs"))
    logging.disable(logging.CRITICAL)
    yield bench
    logging.disable(logging.NOTSET)
    bench.close()


@pytest.fixture
def postgres_bench(bench: Bench, postgres_server: str | None) -> Bench:
    """On a database of its own, and another after each program that has failed."""
    bench.databases = functools.partial(empty_postgres_database, postgres_server)
    return bench


def run(bench: Bench, count: int, first: int, kind: str | None = None) -> Counter[str]:
    counts: Counter[str] = Counter()

    @seed(first)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(programs(kind))
    def does_the_same(text: str) -> None:
        note(f"CKWORKFLOW_PROGRAMS_SEED={SEED}, the program:\n\n{text}")
        try:
            # Of the text, so that each program meets other orders and deaths, and always the same ones.
            bench.check(text, seed=zlib.crc32(text.encode()) + first)
        except Unfit:
            counts["unfit"] += 1
            reject()
        counts["programs"] += 1

    does_the_same()
    return counts


@pytest.mark.slow
@pytest.mark.each_python
@pytest.mark.timeout(900)  # most of it is for making a program smaller
@pytest.mark.parametrize("share", range(SHARES))
def test_programs_do_the_same(
    bench: Bench, share: int, record_property: Callable[[str, object], None]
) -> None:
    counts = run(bench, COUNT // SHARES, SEED * SHARES + share)
    totals.record(
        record_property, "random programs", f"share {share}", **counts, **{f"{kind} runs": runs for kind, runs in bench.runs.items()}
    )  # fmt: skip


@pytest.mark.timeout(400)
def test_a_sample_of_programs_does_the_same(bench: Bench) -> None:
    run(bench, SAMPLE, SEED)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["plain", "hooks", "requests"])
def test_programs_do_the_same_whose_values_are_apart_from_their_rows(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(large, "LARGE", 40)
    run(bench, SAMPLE_OF_KIND, SEED, kind)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["requests", "children", "lives", "families"])
def test_a_sample_of_each_kind_does_the_same(bench: Bench, kind: str) -> None:
    run(bench, SAMPLE_OF_KIND, SEED, kind)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kind", ["hooks", "families"])
def test_a_sample_of_programs_does_the_same_on_postgresql(postgres_bench: Bench, kind: str) -> None:
    run(postgres_bench, SAMPLE_OF_KIND, SEED, kind)


def test_every_kind_of_program_is_written() -> None:
    for _, kind in KINDS_OF_PROGRAMS:
        texts = [program(1, number, kind) for number in range(40)]
        has_children, has_lives = (
            any(word in text for text in texts) for word in ("await start(", "continue_as_new(")
        )
        assert has_children == (kind in {"children", "families"})
        assert has_lives == (kind in {"lives", "families"})


def test_a_number_of_a_seed_is_always_the_same_program() -> None:
    assert program(1, 2) == program(1, 2) != program(1, 3)
