"""The fork server of a test process, and the sites of a module."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

import pytest

import services
from crash_everywhere.experiments import Benches
from crash_everywhere.site import Combination, ForkServer, Site

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def benches(
    request: pytest.FixtureRequest, fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Benches]:
    """Sites on servers that the tests have started; each has a broker and a database of its own."""
    numbers = itertools.count(1)
    with contextlib.ExitStack() as servers:

        def make(combination: Combination) -> Site:
            broker_url = database_url = None
            if combination.broker == "redis":
                broker_url = services.empty_redis_database(request.getfixturevalue("redis_server"))
            if combination.broker == "rabbitmq":
                rabbitmq = request.getfixturevalue("rabbitmq_server")
                broker_url = servers.enter_context(services.empty_rabbitmq_vhost(rabbitmq))
            if combination.database == "postgres":
                server = request.getfixturevalue("postgres_server")
                database_url = servers.enter_context(services.empty_postgres_database(server))
            folder = tmp_path_factory.mktemp(f"site-{next(numbers)}")
            return Site(
                folder, fork_server, combination, broker_url=broker_url, database_url=database_url
            )

        found = Benches(make)
        yield found
        found.close()
