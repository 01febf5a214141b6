"""Malformed messages: each is one line in the log and is gone, and the worker goes on, on every broker."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.events.event import get_exchange
from kombu import Connection, Exchange
from redis import Redis

import services
from broker.malformed import GONE, ODD, SHAPES, STEP, Shape, bomb
from ckworkflow.engine.procfs import read_file
from ckworkflow.worker.broker.broker_file import BrokerFile
from worker_home import WorkerHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

CODE = Path(__file__).parent
QUEUE = "ckworkflow"
SHOP = f"""
from celery import Celery
from ckworkflow import WorkflowPlugin

app = Celery("shop")
app.config_from_object("celeryconfig")
app.conf.task_default_queue = "{QUEUE}"
WorkflowPlugin(app)
"""
"""An app of a user's own: its workers gossip."""
MOST_BYTES = 600 * 1024 * 1024
LINE = re.compile(r"message.* from queue .* rejected for good, it cannot be read: .+")
EVENTS: list[Any] = [[], "x", {"hostname": []}, {"no": "host name"}]
ORDERS: list[Any] = [
    [], "x", {}, {"method": []}, {"method": "ping", "arguments": "x"}, {"method": "ping", "destination": "x"},
    {"method": "ping", "reply_to": "x"}, {"method": "ping", "reply_to": {"exchange": 5}}, {"method": "ping", "pattern": 5},
]  # fmt: skip
TAKEN = re.compile(rf"Task {STEP}\[{GONE}\] received")


class Stage:
    """A worker, and a way to put what one likes into its queue."""

    def __init__(
        self, broker: str, url: str, home: WorkerHome, pool: str, put: Callable[[bytes | Shape, int], object],
        left: Callable[[], int],
    ) -> None:  # fmt: skip
        self.broker, self.url, self.home, self.put, self.left = broker, url, home, put, left
        app = QUEUE if broker == "file" else "shop"
        words = ["celery", "-A", app, "worker", "--loglevel=DEBUG", "--concurrency=1", f"--pool={pool}"]
        self.worker = home.spawn("worker", *words)
        home.wait_for(lambda: " ready." in home.logs(), "the worker")
        self.program = home.start_program()
        self._seen = 0

    def look(self) -> None:
        """Look only at what is logged from now on."""
        self._seen = len(self.log())

    def log(self) -> str:
        return (self.home.folder / "worker.log").read_text(errors="replace")

    def count(self, pattern: re.Pattern[str]) -> int:
        return len(pattern.findall(self.log()[self._seen :]))

    def carried(self, shapes: list[Shape]) -> list[Shape]:
        if self.broker == "rabbitmq":
            return [shape for shape in shapes if shape.is_amqp]
        if self.broker == "file":
            # Its transport makes the tags itself, so it does not care for those in the file.
            return [shape for shape in shapes if "delivery_tag" not in shape.path]
        return shapes

    def see_rejected(self, shapes: list[Shape]) -> None:
        """Put messages into the queue one by one, and see each told of in one line, and gone."""
        for number, shape in enumerate(shapes):
            self.put(shape, number)
            self.home.wait_for(lambda: self.count(LINE) > number, shape.name)  # noqa: B023
        assert self.count(LINE) == len(shapes)
        assert self.count(TAKEN) == 0
        self.see_it_works()

    def see_it_works(self) -> None:
        assert self.program.result(self.program.start("greeting:with_a_retry", "w")) == "result-w"
        self.home.wait_for(lambda: self.left() == 0, "the end of every message")
        assert self.worker.poll() is None
        log = self.log()[self._seen :]
        assert "Traceback" not in log
        assert "Trying to re-establish" not in log


def on_redis(folder: Path, url: str, stack: contextlib.ExitStack) -> Stage:
    redis = stack.enter_context(Redis.from_url(url))
    home = home_in(folder, stack, broker_url=url)
    return Stage(
        "redis", url, home, "threads", lambda shape, number: redis.lpush(QUEUE, shape.on_redis(f"tag-{number}")),
        lambda: redis.llen(QUEUE) + redis.hlen("unacked"),
    )  # fmt: skip


def on_rabbitmq(folder: Path, url: str, stack: contextlib.ExitStack) -> Stage:
    connection = stack.enter_context(Connection(url))
    channel = stack.enter_context(connection.channel())

    def publish(shape: Shape, _number: int) -> None:
        edited = shape.edited()
        message = channel.prepare_message(
            shape.body(), content_type=edited["content-type"], content_encoding=edited["content-encoding"],
            headers=edited["headers"],
        )  # fmt: skip
        channel.basic_publish(message, exchange="", routing_key=QUEUE)

    def waiting() -> int:
        return int(channel.queue_declare(QUEUE, passive=True).message_count)

    return Stage("rabbitmq", url, home_in(folder, stack, broker_url=url), "prefork", publish, waiting)


def on_the_file(folder: Path, stack: contextlib.ExitStack) -> Stage:
    path = folder / "ckworkflow-broker.sqlite3"
    file = BrokerFile.at(str(path))

    def put(shape: Shape, number: int) -> None:
        file.put([QUEUE], shape.on_redis(f"tag-{number}").decode("utf-8", "replace"))

    def waiting() -> int:
        with file._cursor() as db:
            query = "SELECT count(*) FROM messages WHERE queue = ?"
            return int(db.execute(query, [QUEUE]).fetchone()[0])

    return Stage("file", f"ckworkflow+sqlite:///{path}", home_in(folder, stack), "solo", put, waiting)


def home_in(folder: Path, stack: contextlib.ExitStack, **settings: Any) -> WorkerHome:
    home = WorkerHome(folder, CODE, {"workflow_packages": ["greeting"], **settings})
    stack.callback(home.stop)
    (folder / "shop.py").write_text(SHOP)
    return home


@pytest.fixture(scope="module", params=["redis", "rabbitmq", "file"])
def shared_stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("malformed")
    with contextlib.ExitStack() as stack:
        match request.param:
            case "redis":
                server = request.getfixturevalue("redis_server")
                yield on_redis(folder, services.empty_redis_database(server), stack)
            case "rabbitmq":
                server = request.getfixturevalue("rabbitmq_server")
                yield on_rabbitmq(
                    folder, stack.enter_context(services.empty_rabbitmq_vhost(server)), stack
                )
            case "file":
                yield on_the_file(folder, stack)


@pytest.fixture
def stage(shared_stage: Stage) -> Stage:
    """A worker that other tests have had; its log from here on."""
    shared_stage.look()
    return shared_stage


def test_a_malformed_message_is_one_line_and_gone(stage: Stage) -> None:
    assert len(SHAPES) >= 40
    stage.see_rejected(stage.carried(SHAPES))


def test_a_message_that_says_odd_things_that_do_not_matter_is_taken(stage: Stage) -> None:
    shapes = stage.carried(ODD)
    for number, shape in enumerate(shapes):
        stage.put(shape, number)

    stage.home.wait_for(lambda: stage.count(TAKEN) == len(shapes), "the messages")
    stage.see_it_works()


class Packed(Shape):
    """A compressed body, and the header that says so."""

    def edited(self) -> dict[str, Any]:
        message = super().edited()
        message["headers"]["compression"] = "application/x-gzip"
        return message


def test_a_gzip_bomb_is_not_unpacked(stage: Stage) -> None:
    shape = bomb()
    assert len(shape.value) < 600_000

    stage.see_rejected([Packed(shape.name, shape.path, shape.value)])

    status = read_file(stage.worker.pid, "status")
    assert status is not None, stage.log()
    assert int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 < MOST_BYTES


@pytest.mark.parametrize(
    "shared_stage", ["redis", "rabbitmq"], indirect=True
)  # the others have no gossip
def test_a_malformed_event_of_another_worker_is_one_line(stage: Stage) -> None:
    with Connection(stage.url) as connection:
        producer = connection.Producer(exchange=get_exchange(connection), serializer="json")
        for body in EVENTS:
            producer.publish(body, routing_key="worker.nothing")
        stage.home.wait_for(lambda: stage.count(LINE) >= len(EVENTS), "the rejections")

    assert stage.count(LINE) == len(EVENTS)
    stage.see_it_works()


def test_a_malformed_order_to_the_mailbox_is_one_line(stage: Stage) -> None:
    with Connection(stage.url) as connection:
        mailbox = Exchange("celery.pidbox", type="fanout", durable=False, delivery_mode="transient")
        producer = connection.Producer(exchange=mailbox, serializer="json")
        for order in ORDERS:
            producer.publish(order, routing_key="")
        stage.home.wait_for(lambda: stage.count(LINE) >= len(ORDERS), "the rejections")

    assert stage.count(LINE) == len(ORDERS)
    assert Celery("asks", broker=stage.url, set_as_current=False).control.ping(timeout=20, limit=1)
    stage.see_it_works()
