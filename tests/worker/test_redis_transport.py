"""The Redis transport: it sends what kombu's sends, through one client for each channel."""

from __future__ import annotations

import threading

from celery import Celery
from kombu import Connection
from redis import Redis

from ckworkflow.worker import redis_transport

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
