"""The secrets that a process was told of are cut wherever they stand; no URL shows a password."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import discord
import pytest
from celery import Celery

from ckworkflow import codec
from ckworkflow.discord.endpoints import API_BASE, apply_endpoints, point_at
from ckworkflow.discord.integration import DiscordIntegration, LiveBotIntegration
from ckworkflow.engine import failures
from ckworkflow.errors import (
    DatabaseUnavailableError,
    FatalError,
    InvalidSettingError,
    UnsupportedBrokerError,
)
from ckworkflow.scrub import conceal, conceal_url, scrub
from ckworkflow.store import Database
from ckworkflow.worker import settings
from services import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

PASSWORD = "Tr0ub4dor & 3/\"x'"
conceal(PASSWORD, "password")

SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "glued": lambda secret: f"a{secret}b",
    "percent-encoded": lambda secret: quote(secret, safe=""),
    "percent-encoded in part": quote,
    "percent-encoded in small letters": lambda secret: quote(secret, safe="").lower(),
    "of a form": quote_plus,
    "JSON": json.dumps,
    "repr": lambda secret: repr([secret]),
    "bytes": lambda secret: repr(secret.encode()),
    **{
        f"base64 after {before}": lambda secret, before=before: base64.b64encode(  # type: ignore[misc]  # bound now
            ("y" * before + secret + "z").encode()
        ).decode()
        for before in range(4)
    },
    "base64 for URLs": lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_known_secret_is_cut_in_every_spelling(spelling: str) -> None:
    written = SPELLINGS[spelling](PASSWORD)

    clean = scrub(f"it was {written} that was refused")

    assert "[password]" in clean
    left = clean.removeprefix("it was ").removesuffix(" that was refused")
    assert not any(part in left for part in ("Tr0ub", "tr0ub", "VHIwdWI0", "wdWI0ZG9"))


@pytest.mark.parametrize("word", ["guest", "postgres", "ck", "abc1"])
def test_a_word_or_a_few_letters_are_not_cut_out_of_other_texts(word: str) -> None:
    conceal(word, "password")

    assert scrub(f"the {word} database") == f"the {word} database"
    assert scrub(f"redis://{word}:{word}@host") == f"redis://{word}:[password]@host"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://bot:{}@db/ck",
        "postgresql://db/ck?user=bot&password={}&sslmode=disable",
        "host=db password={} dbname=ck",
        "redis://:{}@cache:6379/0",
    ],
)
def test_the_password_of_a_url_is_known_once_the_url_is(url: str) -> None:
    secret = f"9Lives{abs(hash(url))}%21"
    conceal_url(url.format(secret))

    assert scrub(f"a {secret.replace('%21', '!')} b") == "a [password] b"


# --- who tells ---------------------------------------------------------------------------------------


def test_a_database_tells_its_password_and_shows_none_in_its_url() -> None:
    where = f"127.0.0.1:{free_port()}"
    database = Database(
        f"postgresql+psycopg://bot:dbs3cret-one@{where}/ck?password=dbs3cret-two&connect_timeout=1"
    )

    with pytest.raises(DatabaseUnavailableError) as told:
        database.read(lambda tx: None)

    for text in (database.url, str(told.value)):
        assert "dbs3cret" not in text
        assert where in text
    assert scrub("x dbs3cret-one dbs3cret-two") == "x [password] [password]"


@pytest.mark.parametrize(
    "url",
    ["postgresql+nosuch://h/d?password=dbs3cret-three", "mysql://h/d?password=dbs3cret-three"],
)
def test_a_database_url_that_is_refused_is_shown_without_password(url: str) -> None:
    with pytest.raises(InvalidSettingError) as told:
        Database(url)

    assert "dbs3cret" not in str(told.value)


def test_an_app_tells_the_passwords_of_broker_and_backend() -> None:
    app = Celery("telling", set_as_current=False)
    app.conf.broker_url = "amqp://bot:mq-s3cret-1@host;amqp://bot:mq-s3cret-2@other"
    app.conf.result_backend = "redis://:mq-s3cret-3@cache"
    app.conf.broker_transport_options = {"sentinel_kwargs": {"password": "mq-s3cret-4"}}

    settings.configure(app, is_own=False)

    assert "mq-s3cret" not in scrub(" ".join(f"<mq-s3cret-{number}>" for number in range(1, 5)))


def test_a_broker_that_is_refused_is_shown_without_password() -> None:
    app = Celery("refused", set_as_current=False)
    app.conf.broker_url = "sqla+postgresql://bot@host/db?password=mq-s3cret-5"

    with pytest.raises(UnsupportedBrokerError) as told:
        settings.check_broker(app)

    assert "mq-s3cret" not in str(told.value)


def test_a_worker_and_a_bot_tell_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    async def log_in(_: object) -> None: ...

    async def open_both() -> None:
        await DiscordIntegration().open()
        await LiveBotIntegration(bot, asyncio.get_running_loop()).open()

    monkeypatch.setenv("DISCORD_TOKEN", "not-in-discords-form-1")
    monkeypatch.setattr(DiscordIntegration, "_login", log_in)
    bot: Any = discord.Client(intents=discord.Intents.none())
    bot.http.token = "not-in-discords-form-2"

    asyncio.run(open_both())

    assert scrub("not-in-discords-form-1 not-in-discords-form-2") == "[token] [token]"


def test_a_proxy_that_is_refused_is_shown_without_password() -> None:
    with pytest.raises(InvalidSettingError) as told:
        apply_endpoints({API_BASE: "ftp://bot:pr0xy-s3cret-1@proxy/api/v10"})

    assert "s3cret" not in str(told.value)
    assert "proxy/api/v10" in str(told.value)


def test_the_password_of_a_proxy_is_known_once_it_is_used() -> None:
    point_back = point_at({API_BASE: "http://bot:pr0xy-s3cret-2@proxy/api/v10"})
    point_back()

    assert scrub("<pr0xy-s3cret-2>") == "<[password]>"


# --- errors ------------------------------------------------------------------------------------------


class Rejected(FatalError):
    def __init__(self, body: object) -> None:
        super().__init__(f"rejected {body!r}", details={"body": body})
        self.body = body


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError(PASSWORD.encode()),
        lambda: ValueError({"deep": [base64.b64decode("c2VjcmV0")]}, "x"),
        lambda: Rejected(PASSWORD.encode()),
        lambda: Rejected({"a": [b"x"]}),
        lambda: ValueError(PASSWORD + "\0"),
        lambda: ValueError({PASSWORD: PASSWORD}),
        lambda: ValueError((PASSWORD, {"$": PASSWORD})),
    ],
)
def test_no_bytes_and_no_secret_are_in_the_record_of_an_error(make: Callable[[], Exception]) -> None:
    text = failures.dumps(make())

    assert '"bytes"' not in text
    data = codec.loads(text)
    for spelling in SPELLINGS.values():
        assert spelling(PASSWORD) not in json.dumps(data)
        assert spelling(PASSWORD) not in str(data)
    again = failures.loads(text)
    assert str(again) == str(data["message"])  # type: ignore[index,call-overload]


def test_an_argument_with_a_nul_is_scrubbed_and_keeps_its_other_characters() -> None:
    again = failures.loads(failures.dumps(ValueError(f"a\0 {PASSWORD} b")))

    assert again.args == ("a\0 [password] b",)
