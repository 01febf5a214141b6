"""The documentation works: each block of Python in it is run, and gives what the page says."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import discord
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from celery import Celery
from discord.ext import commands

import ckworkflow
from ckworkflow import (
    FatalError,
    RunCancelledError,
    RunFailedError,
    RunStatus,
    Workflow,
    WorkflowPlugin,
    get_run,
    start,
    step,
    workflow,
)
from ckworkflow.discord import apply_endpoints, reset_endpoints
from ckworkflow.drawing.dry_run import preview
from ckworkflow.drawing.preview import Preview
from ckworkflow.engine import installation
from ckworkflow.engine.settings import Settings
from ckworkflow.ext.discord import teardown as detach
from ckworkflow.hooks import use_commandkit, use_step
from ckworkflow.testing import Environment, FakeDiscord
from ckworkflow.testing.fake_discord import FakeUser
from ckworkflow.web import webhook_app
from ckworkflow.worker import settings as engine_settings
from ckworkflow.worker import web_settings
from docs_page import Page, pages_with_blocks, snippets_of, tested_pages

EXTENSION = "ckworkflow.ext.discord"

# Blocks that start processes of their own: their tests are slow, and write the files that a reader would.
BOT_OF_THE_README = (
    "tests/examples/test_readme_and_demo.py::test_the_bot_of_the_readme_runs_as_it_is_printed"
)
TESTS_OF_A_BOT = "tests/test_docs.py::test_the_tests_of_the_testing_page_pass_for_the_bot_of_the_readme"

# --- what pages take for granted ------------------------------------------------------------------------


@step
async def ask(user_id: str) -> str: ...


@step
async def is_answered(ticket_id: str) -> bool: ...


@step
async def fetch_member(user_id: str) -> str: ...


@step
async def is_new(member: str) -> bool: ...


@step
async def welcome(member: str) -> None: ...


@step
async def add_role(member: str) -> None: ...


@step
async def charge(order: str) -> str: ...


@step
async def in_a_step() -> None: ...


@workflow
async def stay_banned() -> None:
    await ckworkflow.sleep("7 days")


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents


async def value_of(workflow: Workflow[..., Any], *args: object) -> Any:
    return await (await start(workflow, *args)).return_value()


def plan_of(workflow: Workflow[..., Any], *args: object) -> Preview:
    return preview(workflow, args, {}, horizon=timedelta(), canvas_of=repr)


class fails_once:
    """A step that fails when it is first called."""

    def __init__(self, result: object) -> None:
        self.result, self.calls = result, 0

    def __call__(self, *_: object) -> object:
        self.calls += 1
        if self.calls == 1:
            raise OSError("the line is dead")
        return self.result


def test_each_page_with_python_has_a_test() -> None:
    assert pages_with_blocks() == tested_pages


# --- writing workflows --------------------------------------------------------------------------------


@snippets_of("docs/workflows.md")
async def test_workflows(page: Page, env: Environment) -> None:
    page.define("async def daily_report")
    docs = page.names
    page.assume(start=start)
    published: list[str] = []
    with (
        env.replaced(docs.fetch_report, lambda day: {"messages": 3}),
        env.replaced(docs.render, lambda report: f"{report['messages']} messages"),
        env.replaced(docs.publish, published.append),
    ):
        (run,) = (await page.run("await start(daily_report")).values()
        await env.wait_for_sleep(run)
        assert published == []
        await env.advance("1h 30m")
    assert published == ["3 messages"]
    assert await run.return_value() == "3 messages"


@snippets_of("docs/bodies.md")
async def test_bodies(page: Page, env: Environment) -> None:
    page.define("async def raffle")
    congratulated: list[tuple[str, str]] = []

    def congratulate(user_id: str, raffle_id: str) -> None:
        congratulated.append((user_id, raffle_id))
        if len(congratulated) == 1:
            raise OSError("the line is dead")

    with env.replaced(page.names.congratulate, congratulate):
        run = await start(page.names.raffle, [str(number) for number in range(1_000)])
        await env.advance("1 minute")
        winner = await run.return_value()
    assert congratulated == [(winner, run.run_id)] * 2


@snippets_of("docs/starting.md")
async def test_starting(page: Page, env: Environment) -> None:
    page.define("async def daily_report")
    docs = page.names
    page.assume(get_run=get_run)
    with env.replaced(docs.publish_report, lambda day: f"report of {day}"):
        said = await page.run("await start(daily_report")
    assert said["await run.status()"] == RunStatus.PENDING
    assert await docs.run.status() == RunStatus.COMPLETED
    assert said["await run.return_value(timeout=60)"] == "report of 2026-08-01"
    assert [each.name for each in said["await run.steps()"]] == [docs.publish_report.name]
    assert said["run.run_id"] == docs.run.run_id


@snippets_of("docs/long-lives.md")
async def test_long_lives(page: Page, env: Environment) -> None:
    page.define("async def weekly_report")
    docs = page.names
    posted: list[int] = []
    with env.replaced(docs.post_report, lambda channel_id, number: posted.append(number)):
        run = await start(docs.weekly_report, "general")
        await env.advance("15 days")
        assert posted == [1, 2, 3]
        assert [each.node_id for each in await run.steps()] == ["2:1", "2:2"]
        await run.terminate()

    page.define("async def ticket_queue")
    run = await start(docs.ticket_queue, "1", [])
    for number in range(102):
        await ckworkflow.resume_hook("tickets/1", f"ticket {number}")
    assert len(await run.steps()) < 10
    await ckworkflow.resume_hook("tickets/1", "close")
    assert await run.return_value() == 102


@snippets_of("docs/control-flow.md")
async def test_control_flow(page: Page, env: Environment) -> None:
    page.define("async def clean_up_roles")
    docs = page.names
    removed: list[str] = []
    with (
        env.replaced(docs.is_active, lambda user_id: user_id == "ada"),
        env.replaced(docs.remove_role, lambda user_id, role: removed.append(user_id)),
    ):
        assert await value_of(docs.clean_up_roles, ["bob", "ada", "cy"]) == 2
    assert removed == ["bob", "cy"]

    page.define("asyncio.Semaphore(10)")
    under_way = most = 0

    async def is_active(user_id: str) -> bool:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return True

    with env.replaced(docs.is_active, is_active):
        assert await value_of(docs.check_all, [str(n) for n in range(25)]) == [True] * 25
    assert most == 10

    page.define("async def first_answer")
    stopped: list[str] = []

    async def search(mirror: str, word: str) -> list[str]:
        if mirror == "fast":
            return [word]
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(mirror)
        raise AssertionError

    with env.replaced(docs.search, search):
        assert await value_of(docs.first_answer, ["slow", "fast", "lazy"], "cat") == ["cat"]
    assert sorted(stopped) == ["lazy", "slow"]


@snippets_of("docs/time.md")
async def test_time(page: Page, env: Environment) -> None:
    page.define("async def remind")
    docs = page.names
    sent: list[str] = []
    run = await start(docs.remind, "ada", "tea")
    with env.replaced(docs.send_dm, lambda user_id, text: sent.append(text)):
        await env.advance(timedelta(days=2, seconds=-1))
        assert sent == []
        await env.advance(1)
    assert sent == ["tea"]
    assert await run.return_value() is None

    page.assume(timedelta=timedelta, datetime=datetime, UTC=UTC)
    run = await start(page.body("await sleep(90)"))
    began = env.now
    # The clock of an environment goes on by microseconds, so that no two things happen at once.
    assert round((await env.wait_for_sleep(run) - began).total_seconds()) == 90
    await env.advance(91)
    assert round((await env.wait_for_sleep(run) - began).total_seconds()) == 90 + 90 * 60
    await env.advance("1h 30m")
    assert await env.wait_for_sleep(run) == datetime(2030, 1, 1, 9, tzinfo=UTC)

    said: list[tuple[object, ...]] = []

    async def send_message(*args: object, ephemeral: bool) -> None:
        said.append((*args, ephemeral))

    page.assume(
        parse_duration=ckworkflow.parse_duration, InvalidDurationError=ckworkflow.InvalidDurationError,
        interaction=SimpleNamespace(response=SimpleNamespace(send_message=send_message)),
        start=start, user_id="ada", text="1h 30m",
    )  # fmt: skip
    await page.run("span = parse_duration(text)")
    assert docs.span == timedelta(minutes=90)
    assert said == []
    page.assume(text="soon")
    await page.run_again()
    ((reason, is_private),) = said
    assert "soon" in str(reason)
    assert is_private

    page.assume(ask=ask, timeout=ckworkflow.timeout)
    answers = page.body("async with timeout", "user_id", gives="answer")
    with env.replaced(ask, lambda user_id: "yes"):
        assert await value_of(answers, "ada") == "yes"
    with env.replaced(ask, env.never):
        run = await start(answers, "ada")
        await env.advance("2 days")
        assert await run.return_value() == "no answer"

    page.assume(now=ckworkflow.now, sleep=ckworkflow.sleep, is_answered=is_answered)
    watches = page.body("deadline = now()", "ticket_id")
    looks: list[str] = []
    with env.replaced(is_answered, looks.append):
        run = await start(watches, "7")
        await env.advance("2 days")
        assert await run.return_value() is None
    assert len(looks) == 48


@snippets_of("docs/planning.md")
async def test_planning(page: Page, env: Environment) -> None:
    page.assume(fetch_member=fetch_member, is_new=is_new, welcome=welcome, add_role=add_role)
    branches = page.body("member = await fetch_member(user_id)", "user_id")
    first = plan_of(branches, "ada")
    assert [node.name for node in first.nodes.values()] == [fetch_member.name, is_new.name]
    (boundary,) = [each for each in first.boundaries if not each.conditional]
    assert boundary.reason.startswith("`if await is_new(member)`")
    assert boundary.reason.endswith("looks at the result of is_new")
    welcomed: list[str] = []
    with (
        env.replaced(fetch_member, lambda user_id: user_id),
        env.replaced(is_new, lambda member: member == "ada"),
        env.replaced(welcome, welcomed.append),
    ):
        await value_of(branches, "ada")
        await value_of(branches, "bob")
    assert welcomed == ["ada"]

    said: list[str] = []
    page.assume(logger=SimpleNamespace(info=said.append))
    logs = page.body('logger.info("welcomed")', "member")
    assert [node.name for node in plan_of(logs, "ada").nodes.values()] == [welcome.name]
    with env.replaced(welcome, said.append), env.replaced(add_role, lambda member: said.append("role")):
        await value_of(logs, "ada")
    assert said == ["ada", "welcomed", "role"]


@snippets_of("docs/errors-and-retries.md")
async def test_errors_and_retries(page: Page, env: Environment) -> None:
    page.define("async def notify")
    docs = page.names
    attempts: list[str] = []

    def blocks_dms(user_id: str, text: str) -> None:
        attempts.append(text)
        raise FatalError("cannot send", kind="dm_blocked")

    def is_down(user_id: str, text: str) -> None:
        attempts.append(text)
        raise OSError("the line is dead")

    assert await value_of(docs.notify, "ada", "news", "hello") == "by DM"
    with env.replaced(docs.send_dm, blocks_dms):
        assert await value_of(docs.notify, "ada", "news", "hello") == "in the channel"
    assert len(attempts) == 1
    with env.replaced(docs.send_dm, is_down):
        run = await start(docs.notify, "ada", "news", "hello")
        await env.advance("10 minutes")
        with pytest.raises(RunFailedError) as failure:
            await run.return_value()
    assert len(attempts) == 1 + 6
    assert isinstance(failure.value.__cause__, FatalError)
    assert isinstance(failure.value.__cause__.__cause__, OSError)

    answers = iter([(429, ""), (200, "rain"), (404, "")])

    async def request(url: str) -> tuple[int, str]:
        return next(answers)

    page.assume(request=request, RetryableError=ckworkflow.RetryableError)
    page.define("async def fetch_weather")
    page.define_workflow("async def weather(city): return await fetch_weather(city)")
    run = await start(docs.weather, "Oslo")
    await env.advance(59)
    assert await run.status() == RunStatus.RUNNING
    await env.advance(1)
    assert await run.return_value() == "rain"
    with pytest.raises(RunFailedError) as failure:
        await value_of(docs.weather, "Olso")
    assert getattr(failure.value.__cause__, "code", None) == "unknown_city"

    page.assume(charge=charge)
    charges = page.body("charge.with_options", "order", gives="receipt")
    with env.replaced(charge, is_down_once := fails_once("receipt")):
        with pytest.raises(RunFailedError):
            await value_of(charges, "7")  # no second attempt
        assert await value_of(charges, "7") == "receipt"
    assert is_down_once.calls == 2
    with env.replaced(charge, env.never):
        run = await start(charges, "7")
        await env.advance("10 seconds")
        with pytest.raises(RunFailedError, match="took longer"):
            await run.return_value()

    keys: list[str] = []

    async def pays(customer: str, cents: int, *, idempotency_key: str) -> str:
        keys.append(idempotency_key)
        if len(keys) == 1:
            raise OSError("nobody knows whether it was paid")
        return "paid"

    page.assume(payments=SimpleNamespace(charge=pays), use_step=use_step)
    page.define("async def charge_card")
    page.define_workflow("async def pay(): return await charge_card('ada', 500)")
    run = await start(docs.pay)
    await env.advance("1 minute")
    assert await run.return_value() == "paid"
    assert len(keys) == 2
    assert len(set(keys)) == 1


@snippets_of("docs/cancelling.md")
async def test_cancelling(page: Page, env: Environment) -> None:
    page.define("async def temp_ban")
    docs = page.names
    unbanned: list[str] = []
    with env.replaced(docs.unban, unbanned.append):
        run = await start(docs.temp_ban, "ada", "7 days")
        await env.advance("7 days")
        await run.return_value()
        assert unbanned == ["ada"]

        run = await start(docs.temp_ban, "bob", "7 days")
        await env.settle()
        page.assume(get_run=get_run, run_id=run.run_id)
        said = await page.run("await run.cancel(reason=")
        assert list(said.values()) == [True]
        with pytest.raises(RunCancelledError, match="the member has left"):
            await run.return_value()
        assert unbanned == ["ada", "bob"]

    with env.replaced(docs.unban, env.never):
        run = await start(docs.temp_ban, "cy", "7 days")
        await env.settle()
        page.assume(run=run)
        said = await page.run('grace="1 minute"', before={"terminate": env.settle})
        assert list(said.values()) == [True, True]
        with pytest.raises(RunCancelledError, match="it is in the way") as end:
            await run.return_value()
    assert end.value.is_terminated

    page.assume(cancel_runs=ckworkflow.cancel_runs, datetime=datetime, UTC=UTC)
    runs = [await start(docs.temp_ban, str(number), "7 days") for number in range(3)]
    await env.settle()
    await page.run("await cancel_runs(temp_ban")
    assert docs.count == (3 if env.now < datetime(2026, 8, 1, tzinfo=UTC) else 0)
    assert await ckworkflow.cancel_runs(docs.temp_ban, reason="amnesty") == 3 - docs.count
    for each in runs:
        with pytest.raises(RunCancelledError, match="amnesty"):
            await each.return_value()

    began, is_told = threading.Event(), threading.Event()
    exported: list[str] = []

    def export_one(channel_id: str) -> int:
        exported.append(channel_id)
        began.set()
        if channel_id == "b":
            is_told.wait()
        return 1

    page.assume(export_one=export_one)
    page.define("def export_messages")
    page.define_workflow("async def export(ids): return await export_messages(ids)")
    is_told.set()
    assert await value_of(docs.export, ["a", "b", "c"]) == 3
    is_told.clear()
    began.clear()
    exported.clear()
    run = await start(docs.export, ["a", "b", "c"])
    settling = asyncio.create_task(env.settle())
    await asyncio.to_thread(began.wait)
    await run.cancel()
    while (await run.steps())[0].cancelled_at is None:
        await asyncio.sleep(0.01)
    assert await run.status() == RunStatus.RUNNING  # its await waits for the step
    is_told.set()
    await settling
    with pytest.raises(RunCancelledError):
        await run.return_value()
    assert exported == ["a", "b"]


@snippets_of("docs/children.md")
async def test_children(page: Page, env: Environment) -> None:
    page.define("async def campaign")
    docs = page.names

    def joins(user_id: str) -> bool:
        if user_id == "cy":
            raise FatalError("gone")
        return user_id == "ada"

    with env.replaced(docs.invite, joins):
        assert await value_of(docs.campaign, ["ada", "bob", "cy"]) == 1

        page.define("async def start_campaigns")
        page.define_workflow("async def season(teams): return await start_campaigns(teams)")
        ids = await value_of(docs.season, [["ada"], ["ada", "bob"]])
        assert [await (await get_run(each)).return_value() for each in ids] == [1, 1]


@snippets_of("docs/values.md")
async def test_values(page: Page, env: Environment) -> None:
    page.define("class Ban")
    docs = page.names
    assert await value_of(docs.ban_and_announce, "ada") == "ada is banned until 01 January 2030"

    page.assume(register_type=ckworkflow.register_type, Money=Money)
    page.define("register_type(Money")
    page.define_workflow("async def double(money): return [money, money]")
    assert [each.cents for each in await value_of(docs.double, Money(5))] == [5, 5]


@snippets_of("docs/changing.md")
async def test_changing(page: Page, env: Environment) -> None:
    page.define("async def welcome_with_role")
    docs = page.names
    assert docs.welcome_with_role.name == "welcome.with_role"
    done: list[str] = []
    with (
        env.replaced(docs.send_welcome, lambda user_id: done.append("welcome")),
        env.replaced(docs.add_role, lambda user_id: done.append("role")),
    ):
        await value_of(docs.welcome, "ada")
        await value_of(docs.welcome_with_role, "ada")
    assert done == ["welcome", "role", "welcome"]


# --- hooks, Discord, tests ------------------------------------------------------------------------------


@snippets_of("docs/hooks.md")
async def test_hooks(page: Page, env: Environment) -> None:
    page.define("class Decision")
    docs = page.names
    run = await start(docs.approve, "42")
    assert (await env.wait_for_hook(run)).metadata == {"order": "42"}
    page.assume(interaction=SimpleNamespace(id=7))
    await page.run("await decision.resume(")
    assert await run.return_value() == "yes"
    run = await start(docs.approve, "43")
    await env.advance("2 days")
    assert await run.return_value() == "nobody answered"

    page.define("async def poll")
    run = await start(docs.poll, "lunch")
    for _ in range(2):
        await ckworkflow.resume_hook("poll:lunch", {"option": "pizza"})
    await env.advance("1 day")
    assert await run.return_value() == 2

    page.define("async def pay")
    page.define("# celeryconfig.py")
    settings = web_settings.read(vars(docs))
    engine = installation.current().engine
    engine.settings = replace(engine.settings, web=settings)
    assert settings.port == 8080
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAYMENT_SECRET", "secret")
        assert await paid(page, env) == ["a forgery", "paid"]
    run = await start(docs.pay, "43")
    await env.advance("1 day")
    assert await run.return_value() == "not paid"

    page.define("async def test_a_name_is_waited_for")
    # It makes an environment of its own.
    await asyncio.create_task(docs.test_a_name_is_waited_for())


async def paid(page: Page, env: Environment) -> list[str]:
    """What comes of a payment: a request that somebody else has sent, then one that is signed."""
    urls: list[str] = []
    sent = []
    with env.replaced(page.names.create_payment, lambda order_id, notify_url: urls.append(notify_url)):
        run = await start(page.names.pay, "42")
        await env.settle()
        async with TestClient(TestServer(_with_hooks())) as client:
            path = urls[0].removeprefix("https://bot.example.com")
            assert path.startswith("/hooks/")
            for secret, status in ((b"guess", "a forgery"), (b"secret", "paid")):
                body = json.dumps({"status": status}).encode()
                signature = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
                answer = await client.post(path, data=body, headers={"X-Hub-Signature-256": signature})
                assert answer.status == 202
                sent.append(status)
        assert await run.return_value() == "paid"
    return sent


def _with_hooks() -> web.Application:
    app = web.Application()
    app.add_subapp("/hooks", webhook_app())
    return app


@snippets_of("docs/discord.md")
async def test_discord(page: Page, env: Environment) -> None:
    bot = commands.Bot("!", intents=discord.Intents.none())
    client = discord.Client(intents=discord.Intents.none())
    page.assume(bot=bot, client=client)
    await page.run("load_extension", before={"attach(client)": lambda: bot.unload_extension(EXTENSION)})
    await detach(client)

    page.assume(step=step)
    page.define("discord_errors=")
    docs = page.names
    page.define_workflow("async def posts(): await post('7', 'hello')")
    page.define_workflow("async def fetches(): return await fetch_weather('Oslo')")
    calls: list[int] = []

    def is_archived(thread_id: str, text: str) -> None:
        calls.append(50083)
        raise discord_error(400, 50083)

    def network(thread_id: str, text: str) -> None:
        raise ConnectionResetError

    def forbidden(city: str) -> None:
        calls.append(50013)
        raise discord_error(403, 50013)

    with env.replaced(docs.post, is_archived):
        run = await start(docs.posts)
        await env.advance("1 hour")
        with pytest.raises(RunFailedError):
            await run.return_value()
    assert calls == [50083] * 4
    with env.replaced(docs.post, network), pytest.raises(RunFailedError) as failure:
        await value_of(docs.posts)
    assert getattr(failure.value.__cause__, "kind", None) == "network"
    calls.clear()
    with env.replaced(docs.fetch_weather, forbidden):
        run = await start(docs.fetches)
        await env.advance("1 hour")
        with pytest.raises(RunFailedError):
            await run.return_value()
    assert calls == [50013] * 4

    said: dict[str, Any] = {}
    page.assume(
        use_commandkit=use_commandkit, user_id="42", stats={"messages": 3}, key="member:42:stats"
    )
    page.define_workflow("async def stores(): await in_a_step()")

    async def uses_the_store() -> None:
        said.update(await page.run("store.set("))

    page.assume(in_a_step=in_a_step)
    with env.replaced(in_a_step, uses_the_store):
        await value_of(docs.stores)
    assert list(said.values()) == [None, {"messages": 3}, True, True]

    bans: dict[int, str] = {}
    run = await start(stay_banned)
    await env.settle()
    bans[42] = run.run_id
    answers: list[str] = []

    async def run_of_ban(user_id: int) -> str:
        return bans[user_id]

    async def send_message(text: str) -> None:
        answers.append(text)

    page.assume(discord=discord, get_run=get_run, run_of_ban=run_of_ban)
    page.define("async def unban")
    interaction = SimpleNamespace(user="bob", response=SimpleNamespace(send_message=send_message))
    for _ in range(2):
        await docs.unban.callback(interaction, SimpleNamespace(id=42))
        await env.settle()
    assert answers == ["Lifted.", "That ban was over."]
    with pytest.raises(RunCancelledError, match="lifted by bob"):
        await run.return_value()
    await bot.close()
    await client.close()


def discord_error(status: int, code: int) -> discord.HTTPException:
    response = SimpleNamespace(status=status, reason="no", headers={})
    return discord.HTTPException(response, {"code": code, "message": "no"})  # type: ignore[arg-type]


@snippets_of("docs/testing.md")
async def test_testing(page: Page, env: Environment) -> None:
    for file in ("test_greet.py", "conftest.py", "test_workflow.py", "test_bot.py"):
        page.is_run_by(TESTS_OF_A_BOT, f"# tests/{file}")
    page.define("def approve(discord")

    class Choice(discord.ui.View):
        @discord.ui.button(label="Approve")
        async def approve(self, interaction: discord.Interaction, _: object) -> None:
            await interaction.response.send_message(f"{interaction.user.name} approves")

    with FakeDiscord() as fake:
        apply_endpoints(fake.env)
        try:
            guild, moderator = fake.add_guild("Home"), fake.add_user("bob")
            fake.join(guild, moderator)
            channel = fake.add_channel(guild, "log")
            client = discord.Client(intents=discord.Intents.all(), guild_ready_timeout=0.01)
            running = asyncio.create_task(client.start(fake.token))
            await fake.until_bot(bot=running)
            found = await client.fetch_channel(channel.id)
            await found.send("Approve?", view=Choice())  # type: ignore[union-attr]
            (answer,) = await asyncio.to_thread(page.names.approve, fake, channel, moderator)
            assert answer.content == "bob approves"
            await client.close()
            await running
        finally:
            reset_endpoints()


# --- settings and bots ----------------------------------------------------------------------------------


@snippets_of("README.md")
async def test_readme(page: Page, env: Environment) -> None:
    page.define("# workflows/greet.py")
    docs = page.names
    with pytest.MonkeyPatch.context() as patch, FakeDiscord() as fake:
        for name, value in fake.env.items():
            patch.setenv(name, value)
        ada = fake.add_user("ada")
        run = await start(docs.greet_user_workflow, str(ada.id))
        await env.settle()
        assert await dms(fake, ada) == ["Hello!"]
        await env.advance("5 seconds")
        assert await run.return_value() == {"success": True}
        assert await dms(fake, ada) == ["Hello!", "Hello again!"]

    assert settings_of(page, "workflow_packages").packages == ("workflows",)
    page.is_run_by(BOT_OF_THE_README, "# bot.py")
    assert settings_of(page, "broker_url").database_url == "postgresql+psycopg://bot@localhost/bot"


async def dms(fake: FakeDiscord, user: FakeUser) -> list[str]:
    return [message.content for message in await asyncio.to_thread(fake.dms, user)]


@snippets_of("docs/operations.md")
async def test_operations(page: Page, env: Environment) -> None:
    assert settings_of(page, "# celeryconfig.py").packages == ("workflows",)
    with own_installation():
        page.define("WorkflowPlugin(app)")
        assert page.names.app.main == "shop"
        assert engine_settings.read(page.names.app).database_url.startswith("sqlite:///")
    assert "host=db2:5432" in settings_of(page, "target_session_attrs").database_url
    assert settings_of(page, "workflow_retention").retention == timedelta(days=30)


@snippets_of("docker/README.md")
async def test_docker(page: Page, env: Environment) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELERY_BROKER_URL", "redis://broker/0")
        patch.setenv("CKWORKFLOW_DATABASE_URL", "postgresql+psycopg://bot@db/bot")
        assert settings_of(page, "import os").database_url == "postgresql+psycopg://bot@db/bot"
    assert page.names.broker_url == "redis://broker/0"


def settings_of(page: Page, shows: str) -> Settings:
    """What ckworkflow reads from the next block, the `celeryconfig.py` of an app."""
    names = vars(page.names)
    for name in [name for name in names if is_setting(name)]:
        del names[name]  # of another file
    page.define(shows)
    with own_installation():
        app = Celery(set_as_current=False)
        app.conf.update({name: value for name, value in names.items() if is_setting(name)})
        WorkflowPlugin(app)
        return engine_settings.read(app)


def is_setting(name: str) -> bool:
    return name.startswith(("workflow_", "broker_"))


@contextmanager
def own_installation() -> Iterator[None]:
    """Let an app that a page makes be nobody else's."""
    before = installation._current
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DISCORD_TOKEN", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
            patch.delenv(name, raising=False)
        try:
            yield
        finally:
            made, installation._current = installation._current, before
            if made is not None and made is not before:
                made.forget_engine()
