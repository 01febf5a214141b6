"""Brokers that answer on a connection that stays open, and cannot be worked with: a failover of Redis, and RabbitMQ's
`consumer_timeout`. The worker connects again and goes on; nothing runs twice."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from amqp.exceptions import NotFound, PreconditionFailed
from redis import Redis
from redis._parsers.base import BaseParser

import services
from ckworkflow.worker.broker.broker_loss import means_loss
from matrix.test_faults import BROKER_IS_LOST, Stage, stage
from waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator


# --- Redis -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "is_loss"),
    [
        ("UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)", True),
        ("READONLY You can't write against a read only replica.", True),
        ("LOADING Redis is loading the dataset in memory", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        ("CLUSTERDOWN The cluster is down", True),
        ("TRYAGAIN Multiple keys request during rehashing of slot", True),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist on disk.", True),
        ("NOREPLICAS Not enough good replicas to write.", True),
        ("OOM command not allowed when used memory > 'maxmemory'.", True),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
        ("ERR unknown command 'BRPOP', with args beginning with: 'readonly'", False),
        ("NOPERM this user has no permissions to run the 'brpop' command", False),
        ("MOVED 3999 127.0.0.1:6381", False),
    ],
)  # fmt: skip
def test_replies_of_redis_that_mean_a_lost_connection(reply: str, is_loss: bool) -> None:
    error = BaseParser.parse_error(reply)

    assert means_loss(error) is is_loss


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A worker on a Redis of its own."""
    program = shutil.which("redis-server")
    if program is None:
        services.absent("Redis", "install redis-server: this test makes a replica of it")
    folder = tmp_path_factory.mktemp("failover")
    with contextlib.ExitStack() as stack:
        broker = services.RedisProcess(program, tmp_path_factory.mktemp("redis"))
        stack.callback(broker.kill)
        found = stack.enter_context(
            stage(folder, ["--pool=threads", "--concurrency=20"], broker_url=f"{broker.url}/0")
        )
        found.servers = {"redis": broker}
        yield found


@pytest.mark.slow
@pytest.mark.redis
@pytest.mark.parametrize(
    ("begin", "end"),
    [
        # What a failover does to the old master; nobody is at the port, as if the new one were behind a firewall.
        (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
        (
            ["CONFIG", "SET", "min-replicas-to-write", "1"],
            ["CONFIG", "SET", "min-replicas-to-write", "0"],
        ),
        (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
    ],
    ids=["replica", "no-replicas", "full"],
)
def test_runs_go_on_after_a_redis_that_refused(
    redis: Stage, begin: list[str], end: list[str], request: pytest.FixtureRequest
) -> None:
    with Redis(port=redis.servers["redis"].port) as server:
        redis.ride_out(
            f"redis-{request.node.callspec.id}",
            lambda: server.execute_command(*begin),
            lambda: server.execute_command(*end),
            sign=BROKER_IS_LOST,
            client_works=True,
        )
    assert redis.worker.poll() is None


@pytest.mark.slow
@pytest.mark.redis
def test_runs_go_on_after_a_sentinel_has_made_another_redis_the_master(tmp_path: Path) -> None:
    program = shutil.which("redis-server")
    if program is None:
        services.absent("Redis", "install redis-server: this test has a Sentinel and two of them")
    with contextlib.ExitStack() as stack:
        folders = [tmp_path / name for name in ("one", "two", "sentinel", "stage")]
        for folder in folders:
            folder.mkdir()
        one, two = (services.RedisProcess(program, folder) for folder in folders[:2])
        for server in (one, two):
            stack.callback(server.kill)
        second = stack.enter_context(Redis(port=two.port, decode_responses=True))
        with Redis(port=one.port) as first:
            first.config_set("repl-diskless-sync-delay", 0)
        second.replicaof("127.0.0.1", one.port)
        port = services.free_port()
        config = folders[2] / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\nsentinel monitor bots 127.0.0.1 {one.port} 1\n"
            f"sentinel known-replica bots 127.0.0.1 {two.port}\n"  # or it would ask only after ten seconds
            "sentinel down-after-milliseconds bots 1000\nsentinel failover-timeout bots 2000\n"
        )
        sentinel = subprocess.Popen([program, str(config), "--sentinel"], stdout=subprocess.DEVNULL)
        stack.callback(sentinel.wait)
        stack.callback(sentinel.kill)
        assert services.wait_for_port(port, sentinel)
        judge = stack.enter_context(Redis(port=port, decode_responses=True))
        until(lambda: second.info("replication")["master_link_status"] == "up")
        until(lambda: len(judge.sentinel_slaves("bots")) == 1)
        found = stack.enter_context(
            stage(
                folders[3], ["--pool=threads", "--concurrency=20"], broker_url=f"sentinel://127.0.0.1:{port}/0",
                broker_transport_options={"master_name": "bots"},
            )
        )  # fmt: skip

        found.ride_out(
            "sentinel", lambda: judge.execute_command("SENTINEL", "FAILOVER", "bots"),
            lambda: until(lambda: second.info("replication")["role"] == "master"),
            sign=BROKER_IS_LOST, client_works=True,
        )  # fmt: skip
        assert found.worker.poll() is None


# --- RabbitMQ ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "is_loss"),
    [
        (PreconditionFailed("PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value "
                            "used: 1800000 ms. This timeout value can be configured", (0, 0), "", 406), True),
        (PreconditionFailed("PRECONDITION_FAILED - unknown delivery tag 3", (60, 80), "Basic.ack", 406), True),
        (NotFound("NOT_FOUND - home node 'rabbit@b' of durable queue 'ckworkflow' in vhost '/' is down or "
                  "inaccessible", (50, 10), "Queue.declare", 404), True),
        (PreconditionFailed("PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'ckworkflow' in vhost '/'",
                            (50, 10), "Queue.declare", 406), False),
        (NotFound("NOT_FOUND - no exchange 'x' in vhost '/'", (50, 20), "Queue.bind", 404), False),
    ],
)  # fmt: skip
def test_errors_of_rabbitmqs_channels_that_mean_a_lost_connection(
    error: Exception, is_loss: bool
) -> None:
    assert means_loss(error) is is_loss


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_a_step_longer_than_rabbitmqs_consumer_timeout_runs_once(tmp_path: Path) -> None:
    program = services.rabbitmq_program()
    if program is None:
        services.absent("RabbitMQ", "install rabbitmq-server: this test sets its consumer_timeout")
    with contextlib.ExitStack() as stack:
        server = services.RabbitMQProcess(program, consumer_timeout=1500, channel_tick_interval=250)
        stack.callback(server.close)
        url = stack.enter_context(services.empty_rabbitmq_vhost(server))
        long = stack.enter_context(
            stage(tmp_path, ["--pool=prefork", "--concurrency=2"], broker_url=url)
        )
        long.home.wait_for(lambda: " ready." in long.log(), "the worker")
        run_id = long.program.start("gated:long", "long")
        long.home.wait_for(lambda: long.held("long"), "the step")

        long.home.wait_for(
            lambda: re.search("delivery acknowledgement on channel", long.log()), "the time-out"
        )
        long.home.wait_for(lambda: long.log().count("Connected to") > 1, "another connection")
        long.open("long")

        assert long.program.result(run_id) == 2
        assert [note["step"] for note in long.home.journal("ran", place="long")] == ["held", "after"]
        assert long.worker.poll() is None
        assert "Traceback" not in long.log()
