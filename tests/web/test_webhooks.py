"""Webhooks: what is sent to the URL the body gets, through any replay and any change of the setting; and nobody else's door opens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckworkflow import (
    HookContextError,
    HookNotFoundError,
    RunFailedError,
    WebhookRequest,
    create_hook,
    create_webhook,
    resume_hook,
    start,
)
from ckworkflow.engine.installation import current
from web import web_flows as flows
from web.serving import BASE, KINDS, Served, served

pytestmark = pytest.mark.fast

BOTH = pytest.mark.parametrize("always_replay", [False, True])


def move_to(url: str | None) -> None:
    """What a deploy does that has another setting."""
    engine = current().engine
    engine.settings = replace(engine.settings, web=replace(engine.settings.web, url=url))


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_sent_the_body_gets(kind, always_replay, monkeypatch):
    async def test(at: Served):
        run = await start(flows.one)
        url = await at.url()
        assert flows.urls[0].startswith(f"{BASE}/")
        headers = {"Content-Type": "application/json", "Authorization": "Bearer x", "X-Other": "1"}
        async with at.client.post(url + "?a=1&a=2&b=%20c", data=b'{"n":1}', headers=headers) as answer:
            assert (answer.status, await answer.json()) == (202, {"accepted": True})
        found = await run.return_value()
        assert found.pop("headers").keys() == {"content-type", "user-agent"}
        assert found == {"method": "POST", "query": {"a": "1", "b": " c"}, "body": b'{"n":1}'}

    served(test, monkeypatch, kind=kind, always_replay=always_replay)


@BOTH
def test_requests_come_once_and_in_order(always_replay, monkeypatch):
    async def test(at: Served):
        run = await start(flows.several, 3)
        url = await at.url()
        for number in range(3):
            assert await at.post(url, data=str(number)) == 202
        assert await run.return_value() == [b"0", b"1", b"2"]
        assert len(flows.urls) == 1

    served(test, monkeypatch, always_replay=always_replay)


@BOTH
def test_a_request_can_be_handed_to_a_step(always_replay, monkeypatch):
    async def test(at: Served):
        run = await start(flows.handed_to_a_step)
        assert await at.post(await at.url(), data=bytes(range(256))) == 202
        assert await run.return_value() == 256
        assert flows.handled[0].body == bytes(range(256))

    served(test, monkeypatch, always_replay=always_replay)


def test_a_url_stays_though_the_setting_changes_and_a_later_webhook_has_the_new_one(monkeypatch):
    async def test(at: Served):
        run = await start(flows.made_late)
        await at.env.settle()
        move_to("https://new.example.com")
        assert await at.post(await at.url(), data=b"1") == 202
        await at.env.settle()
        move_to(None)  # what was given stays, also where nothing could be given
        assert await at.post(await at.url(), data=b"2") == 202
        assert await run.return_value() == [b"1", b"2"]
        _, first, second, again = flows.urls
        assert first.startswith(f"{BASE}/")
        assert second.startswith("https://new.example.com/")
        assert again == first

    served(test, monkeypatch, always_replay=True)


@BOTH
def test_each_life_counts_its_webhooks_anew(always_replay, monkeypatch):
    async def test(at: Served):
        run = await start(flows.in_each_life, [])
        bases = [BASE, *(f"https://{each}.example.com" for each in ("second", "third", "fourth"))]
        for number, base in enumerate(bases):
            await at.env.settle()
            assert flows.urls[number].startswith(f"{base}/")
            move_to(next(iter(bases[number + 1 :]), None))
            assert await at.post(at.local(flows.urls[number]), data=str(number)) == 202
        assert await run.return_value() == [b"0", b"1", b"2", b"3"]
        assert len(set(flows.urls)) == len(flows.urls) == 4
        with pytest.raises(HookNotFoundError):
            await resume_hook(flows.urls[0].rpartition("/")[2], 1)

    served(test, monkeypatch, always_replay=always_replay)


def test_a_run_that_has_another_secret_already_gets_the_url_of_its_time(monkeypatch):
    async def test(at: Served):
        run = await start(flows.after_a_random_token)
        await at.env.settle()
        move_to("https://second.example.com")
        await at.env.advance("1 hour")
        move_to("https://third.example.com")
        assert flows.urls[-1].startswith("https://second.example.com/")
        assert await at.post(await at.url(), data=b"x") == 202
        assert await run.return_value() == b"x"

    served(test, monkeypatch, always_replay=True)


def test_tasks_side_by_side_keep_their_urls(monkeypatch):
    async def test(at: Served):
        run = await start(flows.side_by_side)
        await at.env.advance(15)
        move_to("https://new.example.com")
        await at.env.advance(15)
        first, second = flows.urls
        assert first.startswith(f"{BASE}/")
        assert second.startswith("https://new.example.com/")
        assert await at.post(at.local(first), data=b"of the second task") == 202
        await at.env.settle()
        assert await at.post(at.local(second), data=b"of the first task") == 202
        assert await run.return_value() == [b"of the first task", b"of the second task"]

    served(test, monkeypatch, always_replay=True)


@pytest.mark.parametrize("always_replay", [False, True])
def test_without_the_setting_the_call_names_it_in_each_replay(always_replay, monkeypatch):
    async def test(at: Served):
        with pytest.raises(
            RunFailedError, match="workflow_web_url = None cannot be used: create_webhook"
        ):
            await (await start(flows.several, 1)).return_value()
        run = await start(flows.without_a_url)
        await at.env.settle()
        move_to(BASE)  # a body that was refused stays refused
        await at.env.advance("1 hour")
        assert await run.return_value() == "refused"

    served(test, monkeypatch, url=None, always_replay=always_replay)


def test_no_door_opens_another(monkeypatch):
    async def test(at: Served):
        run = await start(flows.one)
        url = await at.url()
        token = flows.urls[0].rpartition("/")[2]
        with pytest.raises(HookNotFoundError):
            await resume_hook(token, {"method": "POST", "headers": {}, "query": "", "body": ""})
        plain = await start(flows.after_a_random_token)
        await at.env.settle()
        assert await at.post(at.local(flows.urls[-1]), data=b"x") == 404
        assert await at.post(url, data=b"x") == 202
        assert (await run.return_value())["body"] == b"x"
        assert await plain.status() == "running"

    served(test, monkeypatch)


def test_a_webhook_is_made_in_a_body_only():
    with pytest.raises(HookContextError, match="create_webhook"):
        create_webhook()


def test_its_token_cannot_be_chosen():
    with pytest.raises(TypeError):
        create_webhook("mine")  # type: ignore[call-arg]
    assert create_hook is not create_webhook


# -- the request ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("", "grün".encode(), "grün"),
        ("text/plain; charset=iso-8859-1", "grün".encode("latin-1"), "grün"),
        ('text/plain; charset="UTF-16"', "grün".encode("utf-16"), "grün"),
        ("text/plain; charset=klingon", b"x", "x"),
        ("text/plain; charset=hex", b"78", "78"),
        ("text/plain; charset=\0", b"x", "x"),
        ("nonsense", b"", ""),
    ],
)
def test_text_is_read_in_its_charset(content_type, body, text):
    assert WebhookRequest(headers={"content-type": content_type}, body=body).text() == text


def test_what_is_no_text_and_no_json_is_a_value_error():
    with pytest.raises(ValueError, match="utf-8"):
        WebhookRequest(body=b"\xff").text()
    with pytest.raises(ValueError, match="Expecting"):
        WebhookRequest(body=b"<x>").json()
    assert WebhookRequest(body=b'{"a": [1]}').json() == {"a": [1]}


def test_a_query_is_decoded_and_the_raw_one_is_kept():
    request = WebhookRequest(query_string="a=1&a=2&b=&c=%2B+%FF")
    assert request.query == {"a": "1", "b": "", "c": "+ \ufffd"}


def test_what_a_request_holds_is_in_no_repr():
    request = WebhookRequest(headers={"x-secret": "hush"}, query_string="t=hush", body=b"hush")
    assert repr(request) == "WebhookRequest(method='POST')"
