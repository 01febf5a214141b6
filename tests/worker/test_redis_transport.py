"""The Redis transport: it sends what kombu's sends, through one client for each channel."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from celery import Celery
from kombu import Connection
from kombu.transport import redis as kombu_redis
from redis import Redis
from redis.exceptions import ResponseError

import services
from ckworkflow.worker.broker import redis_transport

SECONDS = 20


def test_a_channel_keeps_one_client_and_makes_another_for_a_new_pool(redis_url: str) -> None:
    redis_transport.install()
    with Connection(redis_url) as connection:
        channel = connection.channel()
        assert isinstance(channel, redis_transport.Channel)
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
        channel._disconnect_pools()
        with channel.conn_or_acquire() as after:
            assert after is not first
            assert after.ping()


def test_a_server_that_refuses_to_keep_bindings_is_told_in_one_line(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: object) -> None:
        raise ResponseError("OOM command not allowed when used memory > 'maxmemory'")

    redis_transport.install()
    monkeypatch.setattr(kombu_redis.Channel, "maybe_refresh_binding_expiry", refuse)
    with Connection(redis_url) as connection:
        channel = connection.channel()
        channel._active_queues.append("celery")  # so that its timer asks
        connection.transport.cycle._channels = {channel}
        connection.transport.cycle.maybe_refresh_binding_expiry()
    (record,) = [each for each in caplog.records if "bindings" in each.getMessage()]
    assert record.exc_info is None
    assert "OOM" in record.getMessage()


def test_threads_that_share_a_channels_client_lose_and_mix_nothing(redis_url: str) -> None:
    redis_transport.install()
    with Connection(redis_url) as connection:
        channel = connection.channel()

        def push(name: str) -> None:
            for number in range(200):
                with channel.conn_or_acquire() as client:
                    client.rpush(name, number)

        threads = [threading.Thread(target=push, args=(f"list-{index}",)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)

    with Redis.from_url(redis_url) as direct:
        for index in range(8):
            found = direct.lrange(f"list-{index}", 0, -1)
            assert [int(value) for value in found] == list(range(200))


def test_a_message_goes_through_and_the_url_is_as_it_was(redis_url: str) -> None:
    redis_transport.install()
    app = Celery(broker=redis_url)
    with app.connection_for_write() as connection:
        queue = connection.SimpleQueue("letters")
        queue.put("hello")
        letter = queue.get(timeout=SECONDS)
        letter.ack()
        assert letter.payload == "hello"
        assert connection.as_uri().startswith("redis://")


def test_what_is_noted_as_delivered_and_is_no_message_is_forgotten_and_keeps_no_other(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    redis_transport.install()
    with Connection(redis_url) as connection, Redis.from_url(redis_url) as direct:
        queue = connection.SimpleQueue("letters")
        queue.put("a letter")
        queue.get(timeout=SECONDS)
        for tag, text in (("no-json", "{"), ("a-number", "5"), ("a-list", "[1, 2]")):
            direct.hset("unacked", tag, text)
            direct.zadd("unacked_index", {tag: 1})
        for tag in direct.zrange("unacked_index", 0, -1):
            direct.zadd("unacked_index", {tag: 1})  # delivered long ago

        queue.channel.qos.restore_visible(num=10, interval=1)

        assert direct.hlen("unacked") == direct.zcard("unacked_index") == 0
        assert queue.get(timeout=SECONDS).payload == "a letter"
        assert caplog.text.count("from queue 'unacked' rejected for good") == 3


def test_what_was_delivered_is_noted_until_it_is_acknowledged(redis_url: str) -> None:
    redis_transport.install()
    with Connection(redis_url) as connection, Redis.from_url(redis_url) as direct:
        queue = connection.SimpleQueue("letters")
        for word in ("first", "second"):
            queue.put(word)
        first, second = queue.get(timeout=SECONDS), queue.get(timeout=SECONDS)
        assert direct.hlen("unacked") == direct.zcard("unacked_index") == 2

        first.ack()
        assert [tag.decode() for tag in direct.hkeys("unacked")] == [second.delivery_tag]
        assert [tag.decode() for tag in direct.zrange("unacked_index", 0, -1)] == [second.delivery_tag]

        second.requeue()
        assert direct.hlen("unacked") == direct.zcard("unacked_index") == 0
        assert queue.get(timeout=SECONDS).payload == "second"


def test_a_redis_that_refuses_to_write_is_no_error_of_what_restores(tmp_path: Path) -> None:
    program = shutil.which("redis-server")
    if program is None:
        services.absent("Redis", "install redis-server: this test makes it refuse")
    redis_transport.install()
    server = services.RedisProcess(program, tmp_path)
    try:
        with Connection(f"{server.url}/0") as connection, Redis(port=server.port) as direct:
            queue = connection.SimpleQueue("letters")
            queue.put("a letter")
            queue.get(timeout=SECONDS)
            direct.zadd("unacked_index", {direct.zrange("unacked_index", 0, -1)[0]: 1})
            direct.config_set("min-replicas-to-write", 1)
            queue.channel.qos.restore_visible(num=10, interval=1)

            direct.config_set("min-replicas-to-write", 0)
            queue.channel.qos.restore_visible(num=10, interval=1)
            assert queue.get(timeout=SECONDS).payload == "a letter"
    finally:
        server.kill()
