"""What a URL says of where a database is, and what of it is shown."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from kombu import Connection

from ckworkflow.errors import InvalidSettingError
from ckworkflow.store import Database, schema
from ckworkflow.store.location import path_in_url


def test_a_path_in_a_url_is_one_path_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    assert path_in_url("sqlite:///runs.sqlite3") == tmp_path / "runs.sqlite3"
    assert path_in_url("sqlite+pysqlite:////srv/runs.sqlite3") == Path("/srv/runs.sqlite3")
    assert path_in_url("sqlite:///~/runs.sqlite3") == tmp_path / "home/runs.sqlite3"
    assert path_in_url("sqlite:////a/100%25%20b/runs.sqlite3") == Path("/a/100% b/runs.sqlite3")
    assert path_in_url("sqlite:////a;b/runs.sqlite3?timeout=5") == Path("/a;b/runs.sqlite3")


@pytest.mark.parametrize("folder", ["plain", "a;b", "100%", "with space", "%41", "ü"])
def test_database_and_broker_are_made_beside_each_other_whatever_the_folder_is_called(
    make_app, tmp_path: Path, folder: str
) -> None:
    place = tmp_path / folder
    url = f"sqlite:///{quote(str(place / 'runs.sqlite3'))}"
    app = make_app(workflow_database_url=url)

    database = Database(url)
    schema.ensure(database)
    database.dispose()
    with app.connection_for_write() as connection:
        connection.default_channel.queue_declare("here")

    assert {file.name for file in place.glob("*.sqlite3")} == {
        "runs.sqlite3", "ckworkflow-broker.sqlite3",
    }  # fmt: skip


def test_the_home_directory_in_a_url_is_that_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    database = Database("sqlite:///~/bot/runs.sqlite3")
    schema.ensure(database)

    assert (tmp_path / "bot/runs.sqlite3").exists()
    assert database.url == f"sqlite:///{tmp_path}/bot/runs.sqlite3"
    database.dispose()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:runs?mode=memory&uri=true", "in memory"),
        ("sqlite:///file:runs.sqlite3?uri=true", "does not name a file by its path"),
        ("sqlite:///runs.sqlite3?mode=rwc&uri=true", "does not name a file by its path"),
        ("sqlite:///a\0b", "no file has a NUL character in its name"),
        (5, "a database URL is text"),
        ("sqlite:///~nobody-of-that-name/runs.sqlite3", "no such home directory"),
    ],
)
def test_a_url_that_names_no_file_is_refused_with_a_sentence(url: str, reason: str) -> None:
    with pytest.raises(
        InvalidSettingError, match=rf"workflow_database_url = .*{reason}.*sqlite:///runs"
    ):
        Database(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://bot:pa55",
        "postgresql://bot:pa55@host:pa55/x",
        "postgresql+psycopg://bot:p@55pa55@host/x",
        "postgresql+psycopg://bot:p@ss/pa55@host/x",
        "postgresql+psycopg://bot@host/x?sslmode=no&password=pa55",
        "postgresql+psycopg://bot@127.0.0.1:1/x?password=pa55",
        "postgresql+psycopg://bot@127.0.0.1:1/x?sslpassword=pa55",
        "nothing://bot:pa55@host/x",
        "://bot:pa55@host/x",
        "postgresql+psycopg://bot:pa55@127.0.0.1:1/x",
    ],
)
def test_no_part_of_a_password_is_shown(url: str) -> None:
    with pytest.raises(Exception, match=r"workflow(_| )database") as caught:
        Database(url).read(lambda _: None)

    assert "pa55" not in str(caught.value)
    assert "ss@" not in str(caught.value)
    assert "55" not in str(caught.value)


def test_a_broker_url_is_read_as_a_database_url_is(tmp_path: Path) -> None:
    place = tmp_path / "a b"
    place.mkdir()

    with Connection(f"ckworkflow+sqlite:///{tmp_path}/a%20b/broker.sqlite3") as connection:
        connection.default_channel.queue_declare("here")

    assert (place / "broker.sqlite3").exists()
