"""The nemesis: hundreds of runs on Redis and PostgreSQL while everything under them breaks, again and again.

`CKWORKFLOW_NEMESIS_SECONDS` says for how long, `CKWORKFLOW_SEED` in which order; what it came to is printed at
the end of the report. See `nemesis.faults` for what breaks and `nemesis.witness` for what must hold.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import services
import totals
from crash_everywhere.site import ForkServer, wait_for
from nemesis.cluster import Cluster, wait_until_up
from nemesis.faults import Nemesis
from nemesis.witness import Witness

SECONDS = float(os.environ.get("CKWORKFLOW_NEMESIS_SECONDS") or 90)
SEED = int(os.environ["CKWORKFLOW_SEED"])
RUNS_PER_SECOND = 3.0
LEAST_RUNS_PER_SECOND = 1.0
RECOVERY_SECONDS = 60.0
"""How long after the last fault every run must have ended: retries, sleeps and re-dispatches that had backed off."""
LOOK_SECONDS = 0.5
MUST_HAPPEN = [
    "workers killed", "workers stopped beyond their lease", "times that messages were flushed",
    "messages were flushed", "messages were doubled", "messages were reordered", "broker restarts", "database restarts (fast)",
    "database restarts (immediate)", "blows at a running step", "attempts lost with their worker",
    "runs that were cancelled while they were live",
]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(SECONDS + RECOVERY_SECONDS + 180)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    redis = shutil.which("redis-server")
    initdb, postgres = services.postgres_program("initdb"), services.postgres_program("postgres")
    if redis is None:
        services.absent("Redis", "install redis-server: a server that is not ours cannot be killed")
    if initdb is None or postgres is None:
        services.absent("PostgreSQL", "install postgresql: a server that is not ours cannot be killed")
    folder = tmp_path / "redis"
    folder.mkdir()
    server = ForkServer()
    broker, database = services.RedisProcess(redis, folder), services.PostgresProcess(initdb, postgres)
    try:
        with services.empty_postgres_database(database.url) as url:
            found = Cluster(tmp_path, server, broker, database, url)
            wait_until_up(found)
            yield found
            found.close()
    finally:
        server.close()
        broker.kill()
        database.close()


def test_every_run_ends_right_whatever_breaks_under_it(
    cluster: Cluster, record_property: Callable[[str, object], None]
) -> None:
    chance = random.Random(SEED)
    witness = Witness(cluster)
    began = time.monotonic()
    looked = 0.0

    def each_moment() -> None:
        nonlocal looked
        now = time.monotonic()
        if not cluster.is_client_busy and len(cluster.started) < (now - began) * RUNS_PER_SECOND:
            cluster.order_run(chance)
        if now - looked > LOOK_SECONDS:
            witness.look()
            looked = now
        time.sleep(0.01)

    def is_over() -> bool:
        cluster.supervise()
        each_moment_without_starts()
        return not cluster.is_client_busy and witness.look() and not witness.unfinished()

    def each_moment_without_starts() -> None:
        cluster.listen()
        time.sleep(0.1)

    try:
        Nemesis(cluster, SEED).work(SECONDS, each_moment=each_moment)
        calm_at = time.monotonic()
        wait_for(
            is_over,
            lambda: "\n".join(["the end of these runs:", *witness.unfinished(), cluster.logs()]),
            RECOVERY_SECONDS,
        )
        recovered = time.monotonic() - calm_at
        witness.judge()
    finally:
        totals.record(
            record_property, "nemesis", f"seed {SEED}, {SECONDS:.0f} s", runs=len(cluster.started),
            steps_recorded=witness.record_count, looks=witness.looks, wrong=len(witness.wrong),
            notes=[f"{count} {what}" for what, count in sorted(cluster.counts.items())],
        )  # fmt: skip

    assert not witness.wrong, f"seed {SEED}\n" + "\n".join(witness.wrong[:50])
    print(f"all runs had ended {recovered:.1f} s after the last fault")
    if SECONDS >= 60:
        assert len(cluster.started) >= LEAST_RUNS_PER_SECOND * SECONDS
        assert not [what for what in MUST_HAPPEN if not cluster.counts[what]]
