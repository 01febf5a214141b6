"""What a request is answered, by a server of our own and in an application of the user's."""

from __future__ import annotations

import asyncio
import gzip
import logging
import re
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from ckworkflow import start
from ckworkflow.engine.installation import current
from ckworkflow.engine.settings import Rate
from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.store.transaction import Transaction
from ckworkflow.web import application, reading
from ckworkflow.web.limits import Buckets
from ckworkflow.web.peers import peer_of
from ckworkflow.worker import web_settings
from web import web_flows as flows
from web.serving import KINDS, Served, connection, served

pytestmark = pytest.mark.fast

EACH = pytest.mark.parametrize("kind", KINDS)
MB = 1024 * 1024
UNKNOWN = "A" * 22
IS_BOUNDED = tuple(map(int, re.findall(r"\d+", aiohttp.__version__)[:3])) >= (3, 14, 1)
"""Whether aiohttp decompresses in small steps."""


async def open_webhook(at: Served, workflow: Any = flows.deaf, *args: Any) -> str:
    await start(workflow, *args)
    return await at.url()


# -- who is not let in ----------------------------------------------------------------------------------


async def ended_webhooks(at: Served) -> dict[str, str]:
    """A URL of each kind that takes nothing."""
    closed = await open_webhook(at, flows.one)
    assert await at.post(closed) == 202
    expired = await open_webhook(at, flows.expiring)
    await at.env.advance("2 hours")
    # Expired in this moment, and the run does not know it yet: its row is still open.
    unread = await open_webhook(at, flows.expiring)
    at.env._clock.pass_until(at.env.now.replace(year=at.env.now.year + 1))
    return {
        "unknown": f"{at.address}/{UNKNOWN}", "closed": closed, "expired": expired, "expired just now": unread,
        "no token": f"{at.address}/", "long": f"{at.address}/{'x' * 5_000}", "two parts": f"{at.address}/a/b",
    }  # fmt: skip


@EACH
def test_whatever_takes_nothing_is_answered_with_the_same_bytes(kind, monkeypatch):
    async def test(at: Served):
        answers = {}
        for name, url in (await ended_webhooks(at)).items():
            answers[name] = await raw(at, url, b"x")
        without_dates = {
            b"\r\n".join(line for line in answer.split(b"\r\n") if not line.startswith(b"Date:"))
            for answer in answers.values()
        }
        assert len(without_dates) == 1
        assert without_dates.pop().startswith(b"HTTP/1.1 404 ")

    served(test, monkeypatch, kind=kind)


@pytest.mark.parametrize("dedup_header", [None, "x-id"])
def test_whatever_takes_nothing_costs_the_same_questions(dedup_header, monkeypatch):
    """Each is hashed once, and the database is asked the same: time tells nothing that the answer does not."""

    async def test(at: Served):
        asked: list[str] = []
        execute = Transaction.execute

        def noted(self: Transaction, statement: Any, *args: Any) -> Any:
            asked.append(str(getattr(statement, "statement", statement)))
            return execute(self, statement, *args)

        costs = {}
        urls = await ended_webhooks(at)
        monkeypatch.setattr(Transaction, "execute", noted)
        for name, url in urls.items():
            asked.clear()
            assert await at.post(url, data=b"x", headers={"x-id": "9"}) == 404
            costs[name] = list(asked)
        assert len(costs["unknown"]) == (1 if dedup_header is None else 3)
        assert all(cost == costs["unknown"] for cost in costs.values())

    served(test, monkeypatch, dedup_header=dedup_header)


def test_other_methods_are_refused_whatever_the_token_is(monkeypatch):
    async def test(at: Served):
        url = await open_webhook(at)
        for each in (url, f"{at.address}/{UNKNOWN}"):
            async with at.client.get(each) as answer:
                assert (answer.status, answer.headers["Allow"]) == (405, "POST")

    served(test, monkeypatch)


def test_methods_that_the_setting_names_are_accepted(monkeypatch):
    async def test(at: Served):
        run = await start(flows.one)
        async with at.client.get(await at.url() + "?challenge=7") as answer:
            assert answer.status == 202
        found = await run.return_value()
        assert (found["method"], found["query"]) == ("GET", {"challenge": "7"})

    served(test, monkeypatch, methods=("POST", "GET"))


def test_headers_that_the_setting_names_are_kept_and_no_others(monkeypatch):
    async def test(at: Served):
        run = await start(flows.one)
        headers = [
            ("X-Hub-Signature-256", "a"),
            ("X-Hub-Signature-256", "b"),
            ("Cookie", "c"),
            ("X-Other", "d"),
        ]
        assert await at.post(await at.url(), headers=headers) == 202
        kept = (await run.return_value())["headers"]
        assert kept["x-hub-signature-256"] == "a, b"
        assert kept.keys() <= application.KEPT_HEADERS | {"x-hub-signature-256"}

    served(test, monkeypatch, headers=("x-hub-signature-256",))


def test_headers_and_tokens_of_any_bytes_are_no_error(monkeypatch):
    async def test(at: Served):
        run = await start(flows.one)
        path = (await at.url()).partition("//")[2].partition("/")[2].encode()
        head = b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n"
        for token in (b"%ff%00", b"%ed%a0%80", b"%2e%2e", b"a?b"):
            answer = await send(at, b"POST /hooks/" + token + head + b"\r\n")
            assert answer.startswith(b"HTTP/1.1 404 ")
        odd = b"User-Agent: \xff\xc3\xbc\r\nX-Forwarded-For: \xff\r\n\r\n"
        assert (await send(at, b"POST /" + path + b"?%ff=%00" + head + odd)).startswith(b"HTTP/1.1 202 ")
        found = await run.return_value()
        assert found["headers"] == {"user-agent": "\udcff\xfc"}
        assert found["query"]["\ufffd"] == "\0"

    served(test, monkeypatch)


# -- bodies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "encoding"),
    [
        *[("own", each) for each in (None, "gzip", "x-gzip", "deflate", "raw", "two members")],
        *[("mounted", each) for each in (None, "gzip", "deflate", "raw")],  # the others aiohttp reads in its own way
    ],
)  # fmt: skip
def test_a_body_of_one_mb_is_taken_and_one_byte_more_is_not(kind, encoding, monkeypatch):
    packed = {
        None: lambda data: data, "gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress,
        "raw": lambda data: zlib.compress(data)[2:-4],
        "two members": lambda data: gzip.compress(data[:10]) + gzip.compress(data[10:]),
    }[encoding]  # fmt: skip
    header = {
        None: {},
        "raw": {"Content-Encoding": "deflate"},
        "two members": {"Content-Encoding": "gzip"},
    }
    headers = header.get(encoding, {"Content-Encoding": encoding})

    async def test(at: Served):
        run = await start(flows.handed_to_a_step)
        url = await at.url()
        assert await at.post(url, data=packed(b"a" * (MB + 1)), headers=headers) == 413
        assert await at.post(url, data=packed(b"b" * MB), headers=headers) == 202
        assert await run.return_value() == MB
        assert flows.handled[0].body == b"b" * MB

    served(test, monkeypatch, kind=kind)


@EACH
def test_a_body_without_a_length_is_read_up_to_the_limit_only(kind, monkeypatch):
    async def test(at: Served):
        url, sent = await open_webhook(at), 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 64 * 1024
                yield b"x" * 64 * 1024

        # Its sender hears the answer, or that the connection is gone.
        try:
            status = await asyncio.wait_for(at.post(url, data=endless()), 20)
        except OSError:
            status = 413
        assert status == 413

    monkeypatch.setattr("ckworkflow.web.server.LINGER_SECONDS", 0.1)
    served(test, monkeypatch, kind=kind)


@EACH
def test_a_bomb_is_not_unpacked(kind, monkeypatch):
    """300 MB in 300 kB; what is held of it at a time stays near the limit."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(MB)) for _ in range(300)) + packer.flush()
    assert len(bomb) < MB / 3

    async def test(at: Served):
        url = await open_webhook(at)
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            try:
                status = await at.post(url, data=bomb, headers={"Content-Encoding": "gzip"})
            except OSError:
                status = 413
            grown = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        assert status in ({413} if kind == "own" or IS_BOUNDED else {413, 400})
        assert grown < 8 * MB or (kind == "mounted" and not IS_BOUNDED)

    served(test, monkeypatch, kind=kind)


def test_what_is_left_of_a_bomb_is_not_unpacked_after_the_answer(monkeypatch):
    """In an application of the user's, aiohttp would read on for ten seconds, and decompress what it reads."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = packer.compress(bytes(32 * MB))

    async def test(at: Served):
        url = await open_webhook(at)
        head = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % MB
        async with asyncio.timeout(5):
            answer = await raw(at, url, bomb, head)  # to the end of the connection
        assert answer.startswith(b"HTTP/1.1 413 ")

    served(test, monkeypatch, kind="mounted")


@pytest.mark.parametrize(
    ("kind", "encoding", "body"),
    [
        ("own", "gzip", b"no gzip"), ("mounted", "gzip", b"no gzip"),
        ("own", "deflate", b"\xff\xff"), ("mounted", "deflate", b"\xff\xff"),
        ("own", "gzip", gzip.compress(b"x" * 1000, mtime=0)[:-9]),  # of which aiohttp takes what there is
        ("own", "gzip", b""),
    ],
)  # fmt: skip
def test_a_body_that_is_not_what_it_says_cannot_be_read(kind, encoding, body, monkeypatch):
    async def test(at: Served):
        url = await open_webhook(at)
        assert await at.post(url, data=body, headers={"Content-Encoding": encoding}) == 400

    served(test, monkeypatch, kind=kind)


def test_an_unknown_way_of_compressing_cannot_be_read(monkeypatch):
    async def test(at: Served):
        url = await open_webhook(at)
        assert await at.post(url, data=b"x", headers={"Content-Encoding": "klingon"}) == 400

    served(test, monkeypatch)


@EACH
def test_chunks_that_are_none_cannot_be_read(kind, monkeypatch):
    async def test(at: Served):
        url = await open_webhook(at)
        answer = await raw(at, url, b"zz\r\nxx\r\n", b"Transfer-Encoding: chunked\r\n")
        assert answer.partition(b"\r\n")[0].endswith(b" 400 Bad Request")

    served(test, monkeypatch, kind=kind)


@EACH
def test_a_sender_that_is_gone_is_no_error(kind, monkeypatch, caplog):
    async def test(at: Served):
        url, is_read, read = await open_webhook(at), asyncio.Event(), reading.read
        is_over = asyncio.Event()

        async def noted(*args: Any, **options: Any) -> bytes:
            is_read.set()
            try:
                return await read(*args, **options)
            finally:
                is_over.set()

        monkeypatch.setattr(reading, "read", noted)
        path = url.partition("//")[2].partition("/")[2]
        async with connection(at) as (_, writer):
            writer.write(f"POST /{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1".encode())
            await is_read.wait()
        await asyncio.wait_for(is_over.wait(), 20)
        assert await at.post(url) == 202  # by now aiohttp has heard of it, too

    served(test, monkeypatch, kind=kind)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_body_that_does_not_arrive_is_given_up(monkeypatch):
    async def test(at: Served):
        url = await open_webhook(at)
        monkeypatch.setattr(application, "READ_SECONDS", 0.05)
        answer = await raw(at, url, b"12345", b"Content-Length: 10\r\n")
        assert answer.startswith(b"HTTP/1.1 408 ")

    monkeypatch.setattr("ckworkflow.web.server.LINGER_SECONDS", 0.05)
    served(test, monkeypatch)


async def raw(at: Served, url: str, body: bytes, head: bytes | None = None) -> bytes:
    """Send bytes, and return the answer when the server has closed."""
    path = url.partition("//")[2].partition("/")[2]
    length = b"Content-Length: %d\r\n" % len(body) if head is None else head
    head = b"POST /%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n" % (path.encode(), length)
    return await send(at, head + body)


# -- sending twice, and too much ------------------------------------------------------------------------


def test_what_is_sent_again_under_its_name_is_accepted_once(monkeypatch):
    async def test(at: Served):
        run = await start(flows.several, 3)
        url = await at.url()
        for name in ("1", "1", "ü" * 300, "ü" * 300, "3"):
            assert await at.post(url, data=name.encode(), headers={"X-GitHub-Delivery": name}) == 202
        assert await run.return_value() == [b"1", "ü".encode() * 300, b"3"]
        # Also after the close; what was never accepted is not.
        assert await at.post(url, headers={"X-GitHub-Delivery": "1"}) == 202
        assert await at.post(url, headers={"X-GitHub-Delivery": "4"}) == 404

    served(test, monkeypatch, dedup_header="x-github-delivery")


def test_a_run_that_takes_nothing_is_full_and_says_when_to_come_again(monkeypatch):
    async def test(at: Served):
        url = await open_webhook(at, flows.deaf)
        statuses = [await at.post(url, data=b"x") for _ in range(101)]
        assert statuses == [202] * 100 + [503]
        async with at.client.post(url) as answer:
            assert answer.headers["Retry-After"] == "10"

        url = await open_webhook(at, flows.deaf)
        assert await at.post(url, data=b"x" * (MB - 1_000)) == 202
        assert await at.post(url, data=b"x" * 100_000) == 503

    served(test, monkeypatch, peer_rate=None, token_rate=None)


def test_a_peer_and_a_webhook_have_their_rates(monkeypatch):
    async def test(at: Served):
        url = await open_webhook(at, flows.deaf)
        assert [await at.post(url) for _ in range(3)] == [202, 202, 429]
        async with at.client.post(url) as answer:
            assert answer.status == 429
            assert int(answer.headers["Retry-After"]) in {1800, 1799}
        unknown = f"{at.address}/{UNKNOWN}"  # as a token that is known
        assert [await at.post(unknown) for _ in range(3)] == [404, 404, 429]
        assert await at.post(f"{at.address}/another") == 429  # the peer's: 7 of 7 are used

    served(test, monkeypatch, token_rate=Rate(2, 3600), peer_rate=Rate(7, 360_000))


def test_a_database_that_is_away_is_said_once_and_answered_with_when_to_come_again(monkeypatch, caplog):
    async def test(at: Served):
        run = await start(flows.one)
        url = await at.url()
        with monkeypatch.context() as patch:
            database = current().engine.database
            patch.setattr(database, "read", away)
            for _ in range(3):
                async with at.client.post(url) as answer:
                    assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
        assert caplog.text.count("receiving webhooks fails") == 1
        assert await at.post(url, data=b"x") == 202
        assert "receiving webhooks is back" in caplog.text
        assert (await run.return_value())["body"] == b"x"

    def away(_work: object) -> None:
        raise DatabaseUnavailableError("sqlite:///x", "unable to open database file")

    served(test, monkeypatch)


@pytest.mark.parametrize(("limit", "refused"), [("MOST_AT_ONCE", 503), ("MOST_OF_PEER", 429)])
def test_too_many_at_once_are_told_to_come_again(limit, refused, monkeypatch):
    async def test(at: Served):
        url = await open_webhook(at)
        monkeypatch.setattr(application, limit, 1)
        arrived = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield b"x"
            arrived.set()
            await may_end.wait()

        may_end = asyncio.Event()
        first = asyncio.create_task(at.post(url, data=slow()))
        await arrived.wait()
        while (status := await at.post(url)) == 202:  # the first is on its way
            pass
        assert status == refused
        may_end.set()
        assert await first == 202
        assert await at.post(url) == 202

    served(test, monkeypatch)


def test_the_loop_goes_on_while_the_database_is_slow(monkeypatch):
    async def test(at: Served):
        url = await open_webhook(at)
        database, loop = current().engine.database, asyncio.get_running_loop()
        read, reached, may_go_on = database.read, asyncio.Event(), threading.Event()

        def slow(work: Any) -> Any:
            loop.call_soon_threadsafe(reached.set)
            assert may_go_on.wait(20)
            return read(work)

        with monkeypatch.context() as patch:
            patch.setattr(database, "read", slow)
            sending = asyncio.create_task(at.post(url))
            await reached.wait()
            async with at.client.get(url) as answer:  # the loop answers meanwhile
                assert answer.status == 405
            assert not sending.done()
            may_go_on.set()
            assert await sending == 202

    served(test, monkeypatch)


# -- no token in any log ---------------------------------------------------------------------------------


@EACH
def test_no_token_is_in_any_log_line(kind, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []

    class Everything(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(logging.Formatter().format(record) + repr(vars(record)))

    handler = Everything()
    names = ["", *application.__name__.split(".")[:1], "aiohttp.access", "aiohttp.server"]
    for name in names:
        logging.getLogger(name).addHandler(handler)

    async def test(at: Served):
        run = await start(flows.several, 3)
        url = await at.url()
        token = flows.urls[0].rpartition("/")[2]
        percent = url.replace(token, "".join(f"%{ord(letter):02X}" for letter in token))
        assert await at.post(url + "?x=1", headers={"Referer": url}) == 202
        assert await at.post(URL(percent, encoded=True)) == 202
        async with at.client.get(url) as answer:
            assert answer.status == 405
        for rest in (
            b" HTTP/9.9\r\n\r\n",
            b" HTTP/1.1\r\nHost: x\r\nbad header " + token.encode() + b"\r\n\r\n",
        ):
            await send(at, b"POST /hooks/" + token.encode() + rest)
        await send(at, b"POST /hooks/" + token.encode() + b"/" + b"y" * 9_000 + b" HTTP/1.1\r\n\r\n")
        with monkeypatch.context() as patch:
            patch.setattr(application, "_resume", fails)
            assert await at.post(url) == 500
        assert await at.post(url) == 202
        await run.return_value()
        assert await at.post(url) == 404
        assert shown
        lines = "\n".join(shown)
        quoted = percent.rpartition("/")[2]
        assert token not in lines.replace("web_flows", "")
        assert quoted not in lines
        if kind == "mounted":
            assert "/hooks/[token]" in lines
        assert "RuntimeError" in lines  # what went wrong is there

    def fails(*_: object) -> None:
        raise RuntimeError("a bug")

    try:
        served(test, monkeypatch, kind=kind)
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)


async def send(at: Served, data: bytes) -> bytes:
    async with connection(at) as (reader, writer):
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 20)


# -- parts ----------------------------------------------------------------------------------------------


def networks(*texts: str) -> Any:
    return web_settings.read({"workflow_web_proxies": list(texts)}).proxies


@pytest.mark.parametrize(
    ("remote", "forwarded", "proxies", "peer"),
    [
        ("1.2.3.4", [], [], "1.2.3.4"),
        ("1.2.3.4", ["9.9.9.9"], [], "1.2.3.4"),
        ("1.2.3.4", ["9.9.9.9"], ["10.0.0.0/8"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6, 9.9.9.9"], ["10.0.0.0/8"], "9.9.9.9"),
        ("10.0.0.1", ["6.6.6.6", "9.9.9.9, 10.0.0.2"], ["10.0.0.0/8"], "9.9.9.9"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], ["10.0.0.0/8"], "10.0.0.3"),
        ("10.0.0.1", ["9.9.9.9, unknown"], ["10.0.0.0/8"], "10.0.0.1"),
        ("10.0.0.1", ["9.9.9.9:4711"], ["10.0.0.1"], "9.9.9.9"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], ["10.0.0.1"], "2001:db8::/64"),
        ("::ffff:10.0.0.1", ["9.9.9.9"], ["10.0.0.1"], "9.9.9.9"),
        ("2001:db8:0:0:1:2:3:4", [], [], "2001:db8::/64"),
        ("fe80::1%eth0", [], [], "fe80::/64"),
        ("", ["9.9.9.9"], ["10.0.0.1"], "unknown"),
        (None, [], [], "unknown"),
    ],
)  # fmt: skip
def test_a_peer_is_who_a_trusted_proxy_says(remote, forwarded, proxies, peer):
    assert peer_of(remote, forwarded, networks(*proxies)) == peer


def test_a_proxy_that_is_trusted_speaks_for_others(monkeypatch):
    async def test(at: Served):
        url = f"{at.address}/{UNKNOWN}"
        for peer, status in (
            ("9.9.9.9", 404),
            ("9.9.9.9", 429),
            ("8.8.8.8", 404),
            ("6.6.6.6, 9.9.9.9", 429),
        ):
            assert await at.post(url, headers={"X-Forwarded-For": peer}) == status

    served(test, monkeypatch, proxies=networks("127.0.0.0/8"), peer_rate=Rate(1, 3600))


def test_a_bucket_fills_evenly_up_to_what_it_holds():
    at = 0.0
    buckets = Buckets(Rate(2, 10), clock=lambda: at)
    assert [buckets.take("a") for _ in range(3)] == [0, 0, 5]
    assert buckets.take("b") == 0
    at = 4.0
    assert buckets.take("a") == pytest.approx(1)
    at = 5.0
    assert [buckets.take("a"), buckets.take("a")] == [0, pytest.approx(5)]
    at = 1_000.0
    assert [buckets.take("a") for _ in range(3)] == [0, 0, pytest.approx(5)]


def test_buckets_are_bounded_and_the_one_used_longest_ago_is_forgotten():
    buckets = Buckets(Rate(1, 10), most=3, clock=lambda: 0.0)
    for name in "abcab":
        buckets.take(name)
    assert buckets.take("d") == 0  # c is forgotten
    assert len(buckets) == 3
    assert buckets.take("a") > 0
    assert buckets.take("c") == 0
    assert Buckets(None).take("a") == 0
