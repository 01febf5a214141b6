"""Where a process works, and what keeps it from working: said at once, before anything is written."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

import engine_flows
from ckworkflow import get_run, get_run_sync, start_sync
from ckworkflow.errors import CkWorkflowError, InvalidSettingError, RunNotFoundError
from ckworkflow.worker import settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from celery import Celery

    from ckworkflow import SyncRun


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- where -------------------------------------------------------------------------------------------


def test_settings_database_and_broker_are_said_once(
    make_app: Callable[..., Celery], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ckworkflow")
    make_app()

    for _ in range(2):
        start_sync(engine_flows.doubling, 3)

    said = [each.getMessage() for each in caplog.records if "settings:" in each.getMessage()]
    assert len(said) == 1
    assert f"database: sqlite:///{tmp_path}/runs.sqlite3" in said[0]
    assert f"broker: ckworkflow+sqlite:///{tmp_path}/ckworkflow-broker.sqlite3" in said[0]
    assert "settings: those of the Celery app 'shop-" in said[0]


def test_the_settings_file_is_named_or_where_it_was_looked_for(
    make_app: Callable[..., Celery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"no celeryconfig.py in {tmp_path};" in settings.describe(make_app(is_own=True), is_own=True)

    (tmp_path / "bot_settings.py").write_text("workflow_packages = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    app = make_app()
    app.config_from_object("bot_settings")
    assert f"settings: {tmp_path}/bot_settings.py;" in settings.describe(app, is_own=True)
    app.conf.workflow_database_url = "sqlite:///runs.sqlite3"
    assert settings.stray_file(app) is None

    monkeypatch.chdir(tmp_path.parent)
    assert re.search(
        f"is a file of the folder in which this was started, {tmp_path.parent}, and the settings are in {tmp_path}: ",
        settings.stray_file(app) or "",
    )
    app.conf.workflow_database_url = f"sqlite:///{tmp_path}/runs.sqlite3"
    assert settings.stray_file(app) is None


@pytest.mark.parametrize(
    ("broker", "shown"),
    [
        ("redis://:pa55@host/0", "redis://:[password]@host/0"),
        ("redis://bot:p@ss/pa55@host/0", "redis://bot:[password]@host/0"),
        (
            ["amqp://bot:pa55@one", "amqp://bot:pa55@two"],
            "amqp://bot:[password]@one, amqp://bot:[password]@two",
        ),
        ("redis://host/0?password=pa55", "redis://host/0"),
    ],
)
def test_no_password_of_a_broker_is_said(
    make_app: Callable[..., Celery], broker: Any, shown: str
) -> None:
    said = settings.describe(make_app(broker_url=broker), is_own=False)

    assert said.endswith(f"broker: {shown}")


# --- what keeps it from working ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("workflow_database", "workflow_database_url"),
        ("workflow_databse_url", "workflow_database_url"),
        ("workflow_package", "workflow_packages"),
        ("workflow_retain", "workflow_retention"),
        ("WORKFLOW_PACKAGES", "workflow_packages"),
    ],
)
def test_a_setting_of_no_such_name_is_refused_with_the_nearest(
    make_app: Callable[..., Celery], tmp_path: Path, name: str, near: str
) -> None:
    make_app(**{name: "postgresql://bot:pa55@host/flows"})

    with pytest.raises(
        InvalidSettingError, match=rf"^{name} = .*no setting of that name\. The nearest is {near}\."
    ) as caught:
        start_sync(engine_flows.doubling, 3)
    assert "pa55" not in str(caught.value)
    assert files(tmp_path) == []


def test_a_setting_that_is_like_none_is_refused_with_all(make_app: Callable[..., Celery]) -> None:
    with pytest.raises(
        InvalidSettingError, match="There are workflow_database_url, workflow_discord_errors, "
    ):
        settings.read(make_app(workflow_x=1))


def test_what_a_settings_module_imports_and_defines_is_no_setting(
    make_app: Callable[..., Celery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "workflow_helpers.py").write_text("")
    (tmp_path / "helped_settings.py").write_text(
        "import workflow_helpers\ndef workflow_name(): ...\nworkflow_packages = ['flows']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    app = make_app()
    app.config_from_object("helped_settings")

    assert settings.read(app).packages == ("flows",)


@pytest.mark.parametrize(
    ("broker", "module", "reason"),
    [
        ("redis://host/0", "redis", r"pip install 'ckworkflow\[redis\]'"),
        ("rediss://host/0", "redis", r"pip install 'ckworkflow\[redis\]'"),
        (["amqp://host", "redis://host"], "redis", r"pip install 'ckworkflow\[redis\]'"),
        ("mongodb://bot:pa55@host", "pymongo", "what kombu needs for it is missing"),
        ("rediis://bot:pa55@host", None, "kombu knows no such broker.*redis"),
    ],
)
def test_a_broker_that_nothing_here_can_speak_to_is_refused_before_anything_is_written(
    make_app: Callable[..., Celery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    broker: Any, module: str | None, reason: str,
) -> None:  # fmt: skip
    if module is not None:
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    make_app(broker_url=broker)

    with pytest.raises(InvalidSettingError, match=f"broker_url = .*{reason}") as caught:
        start_sync(engine_flows.doubling, 3)
    assert "pa55" not in str(caught.value)
    assert files(tmp_path) == []


# --- who only reads ----------------------------------------------------------------------------------


def test_asking_for_a_run_makes_no_database(make_app: Callable[..., Celery], tmp_path: Path) -> None:
    make_app(workflow_database_url=f"sqlite:///{tmp_path}/data/runs.sqlite3")

    with pytest.raises(RunNotFoundError):
        get_run_sync("nope")
    with pytest.raises(RunNotFoundError):
        asyncio.run(get_run("nope"))

    assert files(tmp_path) == []


def test_a_reader_that_came_first_finds_what_is_made_later(
    make_app: Callable[..., Celery], tmp_path: Path
) -> None:
    make_app(workflow_database_url=f"sqlite:///{tmp_path}/data/runs.sqlite3")
    with pytest.raises(RunNotFoundError):
        get_run_sync("nope")

    run: SyncRun[Any] = start_sync(engine_flows.doubling, 3)

    assert get_run_sync(run.run_id).exists()


def test_a_file_with_nothing_in_it_is_no_database(
    make_app: Callable[..., Celery], tmp_path: Path
) -> None:
    (tmp_path / "runs.sqlite3").touch()
    make_app()

    with pytest.raises(CkWorkflowError):
        get_run_sync("nope")

    assert (tmp_path / "runs.sqlite3").stat().st_size == 0
