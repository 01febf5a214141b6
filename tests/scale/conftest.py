"""Stages on the embedded default and on servers; closed with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import services
from scale.stage import Stage

EMBEDDED, SERVERS = "embedded, sqlite", "redis, postgres"
PLACES = [EMBEDDED, SERVERS]


@pytest.fixture
def make_stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(place: str, **settings: Any) -> Stage:
        if place == SERVERS:
            settings["broker_url"] = services.empty_redis_database(
                request.getfixturevalue("redis_server")
            )
            settings["database_url"] = request.getfixturevalue("postgres_url")
        stage = Stage(tmp_path_factory.mktemp("home"), **settings)
        made.append(stage)
        return stage

    yield make
    for stage in made:
        stage.close()
