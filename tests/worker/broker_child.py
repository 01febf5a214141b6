"""A process that publishes to, or consumes from, a broker file: `python broker_child.py MODE URL …`."""

from __future__ import annotations

import sys
import threading

from kombu import Connection, Consumer, Queue

import ckworkflow.worker.broker.transport  # noqa: F401 - makes the scheme known

QUEUE = Queue("work")


def publish(url: str, name: str, number: str) -> None:
    with Connection(url) as connection:
        producer = connection.Producer()
        for index in range(int(number)):
            producer.publish({"id": f"{name}-{index}"}, routing_key=QUEUE.name)


def consume(url: str, prefetch: str, acknowledge: str) -> None:
    """Print the id of each message, once it is acknowledged where that is wanted; never end."""

    def on_message(body, message):
        if acknowledge == "ack":
            message.ack()
        print(body["id"], flush=True)

    with Connection(url) as connection, connection.channel() as channel:
        channel.basic_qos(0, int(prefetch), False)
        with Consumer(channel, [QUEUE], callbacks=[on_message]):
            print("ready", flush=True)
            while True:
                connection.drain_events()


def mailbox(url: str) -> None:
    """Declare the mailbox of a monitor, and wait to be killed."""
    with Connection(url) as connection, connection.channel() as channel:
        queue = Queue("monitor", auto_delete=True, durable=False, message_ttl=60)
        queue(channel).declare()
        print("ready", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    {"publish": publish, "consume": consume, "mailbox": mailbox}[sys.argv[1]](*sys.argv[2:])
