"""The arena: one database for all the runs of a module, and the world that bodies and steps share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compiler import bodies, steps
from differential.comparison import Arena
from differential.world import World


def reset() -> None:
    steps.reset_world()
    bodies.FLAG = False


def arena_at(url: str) -> Iterator[Arena]:
    arena = Arena(url, reset, World([steps.STATE, steps.NOTES], [(bodies.__dict__, "FLAG")]))
    yield arena
    arena.close()
    reset()


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    yield from arena_at(f"sqlite:///{tmp_path_factory.mktemp('arena') / 'runs.sqlite3'}")


@pytest.fixture
def postgres_arena(postgres_url: str) -> Iterator[Arena]:
    yield from arena_at(postgres_url)
