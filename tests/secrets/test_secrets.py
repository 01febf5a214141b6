"""Secrets: what a run is told stays in SQL, and tokens do not even get into the errors there.

A bot starts runs whose arguments and failures hold its token, an interaction's token and a private text.
Then everything is read that others can read: each message on the broker, Flower, every log record at DEBUG
with all its fields, and each column of each table.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import sqlalchemy as sa

import services
from broker_taps import FileTap, RedisTap, opened
from ckworkflow.errors import DatabaseUnavailableError
from ckworkflow.model import RunStatus
from ckworkflow.store import Database, tables
from ckworkflow.testing import FakeDiscord
from ckworkflow.worker.process import runtime
from waiting import until
from worker_home import WorkerHome

if TYPE_CHECKING:
    from collections.abc import Iterator

CODE = Path(__file__).parent
PRIVATE = "what-ada-told-bob"
# Not `give_up`: what is tried again may show as that to the end, as its events come by two ways.
FAILING_ONCE = [f"confiding.{name}" for name in ("refuse", "leave", "return_junk", "group_up")]


@dataclass
class Told:
    """All that was left behind by runs that were told secrets."""

    home: WorkerHome
    broker: bytes
    flower: dict[str, Any]
    rows: dict[str, str]
    run_ids: list[str]
    tokens: dict[str, str]

    @property
    def logs(self) -> str:
        """What was printed, and every field of every record."""
        files = [*self.home.folder.glob("*.log"), *self.home.folder.glob("records")]
        return "\n".join(file.read_text(errors="replace") for file in files)


@pytest.fixture(scope="module", params=["redis", "embedded"])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """A bot and a worker on Redis, or a bot with the worker inside; and Flower beside it."""
    is_embedded = request.param == "embedded"
    folder = tmp_path_factory.mktemp("told")
    broker_url = None
    if not is_embedded:
        broker_url = services.empty_redis_database(request.getfixturevalue("redis_server"))
    tap = RedisTap(broker_url) if broker_url else FileTap(folder)
    settings = {"workflow_packages": ["confiding"], "broker_url": broker_url}
    port = services.free_port()
    with FakeDiscord() as fake:
        env = {
            **fake.env,
            "PRIVATE": PRIVATE,
            "RECORDS": str(folder / "records"),
            "FLOWER_UNAUTHENTICATED_API": "true",
        }
        home = WorkerHome(folder, CODE, settings, env=env)
        database = Database(f"sqlite:///{folder / 'ckworkflow.sqlite3'}")
        try:
            flower = ["celery", "-A", "ckworkflow", "flower", "--address=127.0.0.1", f"--port={port}"]
            home.spawn("flower", *flower, "--logging=debug")
            home.spawn("bot", "python", str(CODE / "bot.py"))
            if not is_embedded:
                home.start_worker("--loglevel=DEBUG")
            fake.wait_for_bot()
            home.wait_for(lambda: read(f"http://127.0.0.1:{port}/api/workers?refresh=1"), "Flower")
            guild, user = fake.add_guild("club"), fake.add_user("ada")
            fake.join(guild, user)
            interaction = fake.slash("confide", user=user, guild=guild)
            shown = home.wait_for(lambda: flowers(port), "Flower to have heard of all")
            yield Told(
                home,
                b"\n".join(map(opened, [*tap.everything(), *kept(folder, broker_url)])),
                shown,
                contents(database),
                ended(database),
                {"bot": fake.token, "interaction": interaction.token},
            )
        finally:
            home.stop()
            tap.close()
            database.dispose()


def read(url: str) -> Any:
    """What Flower's API answers; nothing while it does not."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)
    except (urllib.error.URLError, ConnectionError):
        return None


def flowers(port: int) -> dict[str, Any] | None:
    """All that Flower tells of each task; nothing until it knows of the last one's end, and of all failures.

    Of steps that ran in place it hears a moment later than of others.
    """
    tasks = read(f"http://127.0.0.1:{port}/api/tasks") or {}
    ends = {(task["name"], task["state"]) for task in tasks.values()}
    if not {("confiding.wave", "SUCCESS"), *((name, "FAILURE") for name in FAILING_ONCE)} <= ends:
        return None
    for uuid, task in tasks.items():
        task["info"] = read(f"http://127.0.0.1:{port}/api/task/info/{uuid}")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/task/{uuid}", timeout=10) as page:
            task["page"] = page.read().decode()
    return tasks


def ended(database: Database) -> list[str]:
    query = sa.select(tables.runs.c.id).where(tables.runs.c.status == RunStatus.FAILED)
    return database.read(lambda tx: list(tx.execute(query).scalars()))


def kept(folder: Path, broker_url: str | None) -> list[bytes]:
    """All that the broker still holds, used up or not."""
    if broker_url is None:
        with contextlib.closing(sqlite3.connect(folder / "ckworkflow-broker.sqlite3")) as file:
            names = [
                name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            ]
            return [
                str(row).encode() for name in names for row in file.execute(f'SELECT * FROM "{name}"')
            ]
    with redis.Redis.from_url(broker_url) as connection:
        readers = {
            b"string": connection.get,
            b"list": lambda key: connection.lrange(key, 0, -1),
            b"set": connection.smembers,
            b"hash": connection.hgetall,
            b"zset": lambda key: connection.zrange(key, 0, -1),
        }
        return [
            key + b" " + repr(readers[connection.type(key)](key)).encode() for key in connection.keys()
        ]


def contents(database: Database) -> dict[str, str]:
    """All values of each column: `runs.error` and so on."""

    def dump(tx: Any) -> dict[str, str]:
        found: dict[str, str] = {}
        for table in tables.metadata.sorted_tables:
            for row in tx.execute(sa.select(table)).mappings():
                for name, value in row.items():
                    place = f"{table.name}.{name}"
                    found[place] = found.get(place, "") + f"{value}\n"
        return found

    return database.read(dump)


def holding(text: str, rows: dict[str, str]) -> set[str]:
    return {place for place, values in rows.items() if text in values}


@pytest.mark.slow
def test_no_message_on_the_broker_holds_a_secret(told: Told) -> None:
    assert all(run_id.encode() in told.broker for run_id in told.run_ids if has_steps(told, run_id))
    assert b"task-failed" in told.broker, "events were not read"
    secrets = {"private": PRIVATE, **told.tokens}
    assert [name for name, secret in secrets.items() if secret.encode() in told.broker] == []


@pytest.mark.slow
def test_flower_shows_what_kind_of_failure_it_was_and_where_to_look_but_no_secret(told: Told) -> None:
    shown = json.dumps(told.flower)
    secrets = {"private": PRIVATE, **told.tokens}
    assert [name for name, secret in secrets.items() if secret in shown] == []

    failures = {task["name"]: task for task in told.flower.values() if task["state"] == "FAILURE"}
    said = failures["confiding.refuse"]["exception"]
    assert "FatalError" in said
    assert "50007" in said
    assert "dm_blocked" in said
    assert any(f"ckworkflow runs show {run_id}" in said for run_id in told.run_ids)


@pytest.mark.slow
def test_no_log_record_of_bot_worker_or_flower_holds_a_secret(told: Told) -> None:
    logs = told.logs
    assert "DEBUG" in logs
    assert "INTERACTION_CREATE" in logs, "discord.py's own records were not read"
    secrets = {"private": PRIVATE, **told.tokens}
    lines = logs.splitlines()
    found = {name: [line for line in lines if secret in line][:2] for name, secret in secrets.items()}
    assert found == {"private": [], "bot": [], "interaction": []}


@pytest.mark.slow
def test_the_database_holds_the_private_text_where_it_belongs_and_tokens_only_as_arguments(
    told: Told,
) -> None:
    assert holding(PRIVATE, told.rows) == {
        "runs.input", "runs.plan", "runs.error", "nodes.args", "nodes.output", "nodes.error", "attempts.error",
    }  # fmt: skip
    for token in told.tokens.values():
        assert holding(token, told.rows) == {"runs.input", "nodes.args"}
    assert "[token]" in told.rows["nodes.error"]


def has_steps(told: Told, run_id: str) -> bool:
    return run_id in told.rows["nodes.run_id"]


def test_a_loop_that_is_thrown_out_does_not_say_by_what_words(caplog: pytest.LogCaptureFixture) -> None:
    async def leave() -> None:
        sys.exit(PRIVATE)

    own = runtime._OwnLoop(on_death=lambda: None)
    ended = asyncio.run_coroutine_threadsafe(leave(), own.loop)
    with pytest.raises(SystemExit):
        ended.result(10)
    until(lambda: "SystemExit" in caplog.text)
    own.end()

    assert PRIVATE not in caplog.text


def test_an_error_of_the_database_does_not_quote_what_was_to_be_written(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'runs.sqlite3'}")
    broken = sa.insert(tables.store).values(key="k", value=PRIVATE)  # there is no such table

    with pytest.raises(DatabaseUnavailableError) as caught:
        database.transact(lambda tx: tx.execute(broken))

    for error in (caught.value, caught.value.__cause__):
        assert "no such table" in str(error)
        assert PRIVATE not in str(error)
    database.dispose()
