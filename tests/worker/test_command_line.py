"""`celery -A ckworkflow worker`, as a user types it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from worker_home import TESTS, WorkerHome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.slow

# The same environment for all: a developer's own broker must not decide these tests.
ENVIRONMENT = {"CELERY_BROKER_URL": "", "DISCORD_TOKEN": ""}


@pytest.fixture
def make_home(tmp_path) -> Iterator[Callable[..., WorkerHome]]:
    homes = []

    def make(**settings) -> WorkerHome:
        homes.append(WorkerHome(tmp_path, TESTS, settings, env=ENVIRONMENT))
        return homes[-1]

    yield make
    for home in homes:
        home.stop()


def pool_of(home, *options):
    """Start a worker until it is ready, and read its pool from the banner."""
    home.start_worker(*options)
    home.wait_for(lambda: " ready." in home.logs(), "the worker")
    found = re.search(r"concurrency: (\d+) \((\w+)\)", (home.folder / "worker.log").read_text())
    return f"{found[2]} {found[1]}"


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        ({}, [], "thread 200"),
        ({}, ["-c", "7"], "thread 7"),
        ({}, ["-P", "prefork", "-c", "2"], "prefork 2"),
        ({}, ["--pool=solo", "-c", "1"], "solo 1"),
        ({"worker_concurrency": 5}, [], "thread 5"),
        ({"worker_pool": "solo", "worker_concurrency": 1}, [], "solo 1"),
        ({"worker_pool": "prefork", "worker_concurrency": 2}, [], "prefork 2"),
    ],
)
def test_the_pool_is_threads_unless_the_user_says_otherwise(make_home, config, options, expected):
    assert pool_of(make_home(**config), *options) == expected


SHOP = """
from celery import Celery
from ckworkflow import WorkflowPlugin

app = Celery("shop")
app.config_from_object("celeryconfig")
WorkflowPlugin(app)
"""


@pytest.mark.parametrize(
    ("options", "expected", "says"),
    [
        (
            ["-c", "2"],
            "prefork 2",
            "steps run on the prefork pool, 2 at a time; `worker_pool = 'threads'`",
        ),
        (
            ["-P", "threads"],
            f"thread {os.cpu_count()}",
            f"on the threads pool, {os.cpu_count()} at a time",
        ),
    ],
)
def test_an_app_of_the_users_own_keeps_its_pool_and_says_which(make_home, options, expected, says):
    home = make_home()
    (home.folder / "shop.py").write_text(SHOP)
    home.spawn("worker", "celery", "-A", "shop", "worker", "--loglevel=INFO", *options)

    home.wait_for(lambda: " ready." in home.logs(), "the worker")

    found = re.search(r"concurrency: (\d+) \((\w+)\)", (home.folder / "worker.log").read_text())
    assert f"{found[2]} {found[1]}" == expected
    assert says in (home.folder / "worker.log").read_text()


def test_a_pool_that_was_chosen_is_said(make_home):
    home = make_home()

    assert pool_of(home) == "thread 200"

    assert "steps run on the threads pool, 200 at a time; `worker_pool = 'prefork'`" in home.logs()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"worker_pool": "gevent"}, "ckworkflow cannot run on the gevent pool"),
        ({"broker_url": "filesystem://"}, "ckworkflow does not run on filesystem://"),
        (
            {"broker_url": "sqla+sqlite:///x.sqlite3"},
            "ckworkflow does not run on sqla+sqlite:///x.sqlite3",
        ),
    ],
)
def test_what_cannot_work_ends_the_worker_with_one_sentence(make_home, config, sentence):
    home = make_home(**config)
    worker = home.start_worker()

    home.wait_for(lambda: worker.poll() is not None, "the end of the worker")

    assert worker.returncode == 1
    assert sentence in home.logs()
    assert "Traceback" not in home.logs()


def test_a_worker_starts_in_an_empty_folder(make_home):
    home = make_home()
    (home.folder / "celeryconfig.py").unlink()

    assert pool_of(home) == "thread 200"
    assert f"ckworkflow+sqlite:///{home.folder}/ckworkflow-broker.sqlite3" in home.logs()


def test_workflow_packages_are_found_in_the_working_directory(make_home):
    home = make_home(workflow_packages=["greetings"])
    home.env["PYTHONPATH"] = ""
    (home.folder / "greetings.py").write_text(
        "from ckworkflow import step\n@step\ndef hello() -> None: ...\n"
    )

    pool_of(home)

    assert "greetings.hello" in home.logs()


def test_workflow_packages_of_an_app_of_the_users_own_are_found_there_too(make_home):
    home = make_home(workflow_packages=["greetings"])
    home.env["PYTHONPATH"] = ""
    (home.folder / "shop.py").write_text(SHOP)
    (home.folder / "greetings.py").write_text(
        "from ckworkflow import step\n@step\ndef hello() -> None: ...\n"
    )

    home.spawn("worker", "celery", "-A", "shop", "worker", "--loglevel=INFO", "-P", "threads")
    home.wait_for(lambda: " ready." in home.logs(), "the worker")

    assert "greetings.hello" in home.logs()
    assert "not loaded" not in home.logs()


def test_a_module_that_cannot_be_imported_is_reported_and_the_others_are_loaded(make_home):
    home = make_home(workflow_packages=["flows"])
    home.env["PYTHONPATH"] = ""
    (home.folder / "flows").mkdir()
    (home.folder / "flows" / "broken.py").write_text("\n\n1 / 0\n")
    (home.folder / "flows" / "whole.py").write_text(
        "from ckworkflow import step\n@step\ndef hello() -> None: ...\n"
    )

    pool_of(home)

    assert "flows.whole.hello" in home.logs()
    assert "broken.py:3" in home.logs() or 'broken.py", line 3' in home.logs()


def test_other_processes_see_the_worker(make_home):
    home = make_home()
    pool_of(home, "-n", "it@here")

    # With a destination it returns at the first answer.
    answer = home.command("celery", "-A", "ckworkflow", "inspect", "ping", "-d", "it@here", "-t", "20")

    assert "pong" in answer


def test_a_worker_that_knows_no_workflow_says_so_whatever_the_log_level(make_home) -> None:
    home = make_home()
    home.spawn("worker", "celery", "-A", "ckworkflow", "worker")

    home.wait_for(lambda: "this worker knows no workflow and no step" in home.logs(), "the warning")
    assert f"celeryconfig.py is looked for in {home.folder}" in home.logs()
