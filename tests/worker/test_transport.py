from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from celery import Celery
from kombu import Connection, Consumer, Exchange, Queue
from kombu.asynchronous import Hub

from ckworkflow.engine.detector import FailureDetector
from ckworkflow.engine.procfs import children_of
from ckworkflow.worker.broker.broker_file import LEASE, BrokerFile, BrokerFileReplacedError
from ckworkflow.worker.broker.transport import Transport

HERE = Path(__file__).parent
QUEUE = Queue("work")
PATIENCE_SECONDS = 20


@pytest.fixture
def path(tmp_path):
    return tmp_path / "broker.sqlite3"


@pytest.fixture
def url(path):
    return f"ckworkflow+sqlite:///{path}"


@pytest.fixture
def connection(url):
    with Connection(url) as connection:
        yield connection


@pytest.fixture
def child(url):
    """Start `broker_child.py`; whatever still runs is killed at the end."""
    children = []

    def start(mode, *arguments):
        command = [sys.executable, str(HERE / "broker_child.py"), mode, url, *map(str, arguments)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        children.append(process)
        return process

    yield start
    for process in children:
        process.kill()
        process.wait()
        process.stdout.close()


def until(condition, what):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)
    return answer


def publish(connection, *ids, **options):
    producer = connection.Producer()
    for id_ in ids:
        producer.publish({"id": id_}, routing_key=QUEUE.name, **options)


@contextlib.contextmanager
def consuming(connection, *, prefetch=0, ack=True, queue=QUEUE):
    """Collect messages in a list."""
    got = []

    def on_message(body, message):
        got.append((body["id"], message))
        if ack:
            message.ack()

    with connection.channel() as channel:
        channel.basic_qos(0, prefetch, False)
        with Consumer(channel, [queue], callbacks=[on_message]):
            yield got


def execute(path, sql):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        return db.execute(sql).fetchall()


def messages(path):
    """Count all messages, held or not."""
    return execute(path, "SELECT count(*) FROM messages")[0][0]


def drain(connection, seconds=0):
    with contextlib.suppress(TimeoutError):
        while True:
            connection.drain_events(timeout=seconds)


def ids(got):
    return [id_ for id_, _ in got]


# --- one process -------------------------------------------------------------------------------------


def test_a_message_that_cannot_be_given_back_is_given_back_as_soon_as_the_file_can_be_written(
    path, url, caplog
):
    with Connection(url) as connection:
        QUEUE(connection.channel()).declare()
        publish(connection, "a", "b")
        with consuming(connection, ack=False) as got:
            drain(connection)
            assert ids(got) == ["a", "b"]
            execute(
                path,
                "CREATE TRIGGER full BEFORE UPDATE ON messages BEGIN SELECT RAISE(FAIL, 'full'); END",
            )
    assert not [record for record in caplog.records if "RESTORE" in record.message]

    execute(path, "DROP TRIGGER full")
    with Connection(url) as connection, consuming(connection) as got:
        drain(connection)
        assert ids(got) == ["a", "b"]
    assert messages(path) == 0


def test_messages_arrive_in_order_and_are_gone_once_acknowledged(connection):
    publish(connection, "a", "b", "c")

    with consuming(connection) as got:
        drain(connection)

    assert ids(got) == ["a", "b", "c"]
    assert BrokerFile.at(connection.transport.file.path).size("work") == 0


def test_a_higher_priority_overtakes(connection):
    publish(connection, "low", priority=1)
    publish(connection, "high", priority=9)

    with consuming(connection) as got:
        drain(connection)

    assert ids(got) == ["high", "low"]


def test_the_prefetch_window_is_kept_and_opens_with_an_acknowledgement(connection):
    publish(connection, "a", "b", "c")

    with consuming(connection, prefetch=2, ack=False) as got:
        drain(connection)
        assert ids(got) == ["a", "b"]
        got[0][1].ack()
        drain(connection)

    assert ids(got) == ["a", "b", "c"]


def test_a_rejected_message_is_deleted(connection):
    publish(connection, "a")

    with consuming(connection, ack=False) as got:
        drain(connection)
        got[0][1].reject(requeue=False)

    with consuming(connection) as again:
        drain(connection)
    assert again == []


def test_a_requeued_message_comes_back_first_and_says_so(connection):
    publish(connection, "a", "b")

    with consuming(connection, prefetch=1, ack=False) as got:
        drain(connection)
        got[0][1].requeue()
        drain(connection)

        assert ids(got) == ["a", "a"]
        assert [m.delivery_info["redelivered"] for _, m in got] == [False, True]


def test_a_closed_channel_gives_back_what_it_held(connection):
    publish(connection, "a", "b")
    with consuming(connection, ack=False) as got:
        drain(connection)
        assert ids(got) == ["a", "b"]

    with consuming(connection) as again:
        drain(connection)

    assert ids(again) == ["a", "b"]


def test_a_consumer_that_leaves_early_gives_back_what_was_taken_ahead(connection):
    publish(connection, "a", "b", "c")

    with consuming(connection) as got:
        connection.drain_events(timeout=0)
    assert ids(got) == ["a"]

    with consuming(connection) as got:
        drain(connection)
    assert ids(got) == ["b", "c"]


def test_a_publisher_in_the_same_process_wakes_the_consumer_at_once(url):
    with Connection(url, transport_options={"polling_interval": 3600}) as connection:
        with consuming(connection) as got:
            waiting = threading.Thread(target=drain, args=(connection, 1))
            waiting.start()
            with Connection(url) as other:
                publish(other, "a")
            waiting.join(PATIENCE_SECONDS)

    assert ids(got) == ["a"]


def test_a_publisher_in_another_process_wakes_an_event_loop_at_once(url, child):
    # A look by the clock never comes.
    with Connection(url, transport_options={"polling_interval": 3600}) as connection:
        with consuming(connection) as got:
            hub = Hub()
            connection.register_with_event_loop(hub)
            hub.call_later(PATIENCE_SECONDS, hub.stop)
            publisher = child("publish", "m", 3)
            with contextlib.suppress(StopIteration):
                turns = hub.create_loop()
                while len(got) < 3 and publisher.poll() in {None, 0}:
                    next(turns)
            connection.transport.unregister_from_event_loop(connection, hub)
            hub.close()

    assert len(got) == 3


def test_a_consumer_that_comes_later_gets_what_has_waited_for_it(connection):
    publish(connection, "a")
    other = Queue("other")
    with consuming(connection, queue=other):
        drain(connection)

        with consuming(connection) as got:
            drain(connection)

    assert ids(got) == ["a"]


def test_every_queue_of_a_fanout_gets_the_message(connection):
    exchange = Exchange("news", type="fanout")
    with connection.channel() as channel:
        for name in ("one", "two"):
            Queue(name, exchange, durable=False, auto_delete=True)(channel).declare()
        connection.Producer(channel).publish({"id": "a"}, exchange=exchange, declare=[exchange])

        assert [channel.basic_get(name, no_ack=True).decode() for name in ("one", "two")] == [
            {"id": "a"}
        ] * 2


def test_a_message_past_its_time_to_live_is_not_delivered(connection):
    with connection.channel() as channel:
        Queue("brief", message_ttl=-1)(channel).declare()
        connection.Producer(channel).publish({"id": "a"}, routing_key="brief")

        assert channel.basic_get("brief") is None


def test_a_deleted_file_is_noticed_and_made_anew(connection, path):
    with consuming(connection):
        drain(connection)
        for file in path.parent.glob("broker.sqlite3*"):
            file.unlink()
        with pytest.raises(BrokerFileReplacedError, match="deleted or replaced"):
            connection.drain_events(timeout=1)

    assert issubclass(BrokerFileReplacedError, Transport.connection_errors)
    with Connection(connection.as_uri()) as anew:
        publish(anew, "a")
        with consuming(anew) as got:
            drain(anew)
    assert ids(got) == ["a"]


def test_a_late_acknowledgement_does_not_hit_a_message_of_the_next_file(connection, path):
    publish(connection, "old")
    with consuming(connection, ack=False) as got:
        drain(connection)
        for file in path.parent.glob("broker.sqlite3*"):
            file.unlink()
        publish(connection, "new")
        got[0][1].ack()

    assert connection.transport.file.size("work") == 1


def test_a_file_of_another_layout_is_refused_with_advice(connection, path):
    execute(path, "PRAGMA user_version = 99")

    with pytest.raises(sqlite3.OperationalError, match="another version of ckworkflow.*delete it"):
        connection.transport.establish_connection()


def test_a_path_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(sqlite3.OperationalError, match="nowhere/broker.sqlite3 cannot be opened"):
        Connection(
            f"ckworkflow+sqlite:///{tmp_path}/nowhere/broker.sqlite3"
        ).transport.establish_connection()


@pytest.mark.parametrize(
    "bad", ["ckworkflow+sqlite://", "ckworkflow+sqlite:///", "ckworkflow+sqlite:///:memory:"]
)
def test_a_url_without_a_file_is_refused(bad):
    with pytest.raises(ValueError, match="names no broker file"):
        Connection(bad).transport  # noqa: B018


def test_the_url_survives_a_clone(connection, url):
    assert connection.as_uri() == connection.clone().as_uri() == url


# --- several processes -------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_killed_consumer_held_comes_back_at_once(connection, child):
    publish(connection, *"abcdefgh")
    consumer = child("consume", 5, "hold")
    held = [consumer.stdout.readline().strip() for _ in range(6)]
    assert held == ["ready", *"abcde"]
    with consuming(connection) as got:
        drain(connection)
        assert ids(got) == ["f", "g", "h"]

        consumer.kill()
        killed = time.monotonic()
        consumer.wait()
        until(lambda: drain(connection) or len(got) == 8, "the messages of the dead process")

    assert ids(got)[3:] == list("abcde")
    assert time.monotonic() - killed < 2


@pytest.mark.slow
def test_a_living_process_keeps_its_messages_beyond_every_lease(connection, child, path):
    publish(connection, "a")
    consumer = child("consume", 1, "hold")
    assert [consumer.stdout.readline().strip() for _ in range(2)] == ["ready", "a"]
    consumer.send_signal(signal.SIGSTOP)  # it cannot renew anything now
    execute(path, "UPDATE holders SET alive_until = 0")

    connection.transport.file.collect()

    assert connection.transport.file.size("work") == 0
    consumer.send_signal(signal.SIGCONT)


@pytest.mark.slow
def test_a_holder_on_another_host_keeps_its_messages_for_its_lease_only(connection, child, path):
    publish(connection, "a")
    consumer = child("consume", 1, "hold")
    assert [consumer.stdout.readline().strip() for _ in range(2)] == ["ready", "a"]
    execute(path, "UPDATE holders SET host = 'elsewhere'")
    consumer.kill()
    file, seconds = connection.transport.file, itertools.count(0.0, LEASE.total_seconds() / 10)
    with file._lock:  # the keeper's looks are not to be counted
        file._detector = FailureDetector(LEASE, LEASE / 10, clock=lambda: next(seconds))
        for _ in range(10):
            file.collect()
            assert file.size("work") == 0

        file.collect()

        assert file.size("work") == 1


@pytest.mark.slow
def test_a_clock_that_jumps_takes_no_message_from_a_holder_on_another_host(connection, child, path):
    publish(connection, "a")
    consumer = child("consume", 1, "hold")
    assert [consumer.stdout.readline().strip() for _ in range(2)] == ["ready", "a"]
    execute(path, "UPDATE holders SET host = 'elsewhere', alive_until = 0")

    connection.transport.file.collect()

    assert connection.transport.file.size("work") == 0


@pytest.mark.slow
def test_three_publishers_and_two_consumers_lose_and_double_nothing(child, path):
    consumers = [child("consume", 10, "ack") for _ in range(2)]
    for consumer in consumers:
        assert consumer.stdout.readline() == "ready\n"
    publishers = [child("publish", name, 500) for name in "abc"]
    for publisher in publishers:
        assert publisher.wait() == 0

    got = Counter()
    readers = [
        threading.Thread(target=lambda c=c: got.update(line.strip() for line in c.stdout))
        for c in consumers
    ]
    for reader in readers:
        reader.start()
    until(lambda: messages(path) == 0, "an empty file")
    for consumer in consumers:
        consumer.kill()
    for reader in readers:
        reader.join()

    assert got == Counter(f"{name}-{index}" for name in "abc" for index in range(500))


@pytest.mark.slow
def test_consumers_killed_in_the_middle_lose_nothing(connection, child, path):
    expected, seen = set(), set()
    for number in range(3):
        # New ones for each: on a busy machine the one before may have taken all that there were before it was killed.
        new = {f"m-{number}-{index}" for index in range(100)}
        publish(connection, *sorted(new))
        expected |= new
        consumer = child("consume", 20, "ack")
        for _ in range(40):
            seen.add(consumer.stdout.readline().strip())
        consumer.kill()
        consumer.wait()
        seen.update(consumer.stdout.read().split())

    with consuming(connection) as got:
        until(lambda: drain(connection) or messages(path) == 0, "the rest")
        drain(connection)

    # The child acknowledges before it prints: the very last line of each may be missing.
    assert len(expected - seen - set(ids(got))) <= 3


@pytest.mark.slow
def test_the_mailbox_of_a_killed_monitor_goes_with_it(connection, child):
    monitor = child("mailbox")
    assert monitor.stdout.readline() == "ready\n"
    file = connection.transport.file
    file.put(["monitor"], "{}")
    assert file.is_declared("monitor")

    monitor.kill()
    monitor.wait()
    file.collect()

    assert not file.is_declared("monitor")
    assert file.size("monitor") == 0


@pytest.mark.slow
def test_a_forked_child_can_publish(connection):
    publish(connection, "parent")
    if (pid := os.fork()) == 0:
        try:
            publish(Connection(connection.as_uri()), "child")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

    with consuming(connection) as got:
        drain(connection)
    assert ids(got) == ["parent", "child"]


# --- Celery ------------------------------------------------------------------------------------------


@pytest.fixture
def worker(url, tmp_path):
    """Start worker processes of `ordinary_app.py`."""
    marks = tmp_path / "marks"
    marks.mkdir()
    workers = []

    def start(name, pool="threads"):
        environment = {
            **os.environ,
            "CELERY_BROKER_URL": url,
            "MARKS": str(marks),
            "PYTHONPATH": str(HERE),
        }
        celery = [sys.executable, "-m", "celery", "-A", "ordinary_app", "worker"]
        command = [*celery, "-P", pool, "-c", "2", "-l", "INFO", "-n", f"{name}@test"]
        with (tmp_path / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        workers.append(process)
        until(lambda: " ready." in (tmp_path / f"{name}.log").read_text(), f"worker {name}")
        return process

    def stop(process):
        process.terminate()
        try:
            return process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:  # Celery writes the stacks of its threads into its log
            process.send_signal(signal.SIGUSR1)
            logs = [tmp_path / f"{name}.log" for name in ("one", "two")]
            read = lambda: "".join(log.read_text() for log in logs if log.exists())  # noqa: E731
            until(lambda: "=====" in read(), "the stacks of a worker that does not stop")
            return read()

    start.stop = stop
    start.marks = lambda: sorted(mark.name.rpartition("-")[0] for mark in marks.iterdir())
    yield start
    for process in workers:
        process.kill()
        process.wait()


@pytest.fixture
def app(url):
    with Celery("client", broker=url, set_as_current=False) as app:
        app.conf.task_ignore_result = True
        yield app


@pytest.mark.slow
def test_remote_control_and_events_reach_other_processes(worker, app):
    worker("one")
    worker("two")
    with app.connection() as connection:
        answers = app.control.ping(timeout=PATIENCE_SECONDS, limit=2, connection=connection)
        assert sorted(name for answer in answers for name in answer) == ["one@test", "two@test"]

        seen = []
        receiver = app.events.Receiver(connection, handlers={"task-succeeded": seen.append})
        with receiver.consumer_context() as (drained, _, _):
            app.send_task("mark", ["x"])
            until(lambda: _drain_events(drained) or seen, "the event of the task")


@pytest.mark.slow
def test_a_task_held_for_its_time_survives_the_death_of_its_worker(worker, app):
    first = worker("one")
    sent = time.monotonic()
    app.send_task("mark", ["late"], countdown=2.5)
    until(lambda: app.control.inspect(timeout=1, limit=1).scheduled(), "the task to be held")
    app.send_task("mark", ["soon"])
    until(lambda: worker.marks() == ["soon"], "the task beside it")

    first.kill()
    first.wait()
    worker("two")
    # As a set: the death may come between the end of a task and its acknowledgement, and then it runs again.
    until(lambda: set(worker.marks()) == {"late", "soon"}, "the held task")

    assert time.monotonic() - sent >= 2.5


@pytest.mark.slow
def test_idle_pool_processes_that_are_killed_do_not_stop_the_pool(worker, app):
    """Without Celery's event loop, the one that waits for work holds the lock at which the others wait."""
    process = worker("one", pool="prefork")

    for round_ in ("first", "second"):
        for child in children_of(process.pid):
            os.kill(child, signal.SIGKILL)
        app.send_task("mark", [round_])
        until(lambda done=round_: done in worker.marks(), f"the {round_} task")

    assert worker.stop(process) == 0


@pytest.mark.slow
def test_a_worker_stops_at_once_when_it_is_told_to(worker):
    process = worker("one")
    process.terminate()
    asked = time.monotonic()
    assert process.wait(PATIENCE_SECONDS) == 0
    assert time.monotonic() - asked < 5  # Celery alone would wait for what never comes


def _drain_events(connection):
    with contextlib.suppress(TimeoutError):
        connection.drain_events(timeout=0.1)
