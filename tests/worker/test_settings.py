from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import Celery
from kombu import Queue

from ckworkflow import WorkflowPlugin
from ckworkflow.engine import installation
from ckworkflow.engine.settings import Settings
from ckworkflow.errors import (
    CkWorkflowError,
    InvalidSettingError,
    UnsupportedBrokerError,
    UnsupportedPoolError,
)
from ckworkflow.worker import settings
from ckworkflow.worker.process.pools import check_pool

REDIS = "redis://localhost/0"


# --- defaults ----------------------------------------------------------------------------------------


def test_without_a_broker_messages_go_to_a_file_beside_the_database(make_app, tmp_path):
    app = make_app()

    assert app.conf.broker_url == f"ckworkflow+sqlite:///{tmp_path}/ckworkflow-broker.sqlite3"
    assert settings.is_embedded(app)


def test_without_broker_and_database_both_files_are_in_the_working_directory(
    make_app, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    app = make_app(workflow_database_url=None)

    assert app.conf.broker_url == f"ckworkflow+sqlite:///{tmp_path}/ckworkflow-broker.sqlite3"
    assert settings.read(app).database_url == "sqlite:///ckworkflow.sqlite3"


def test_the_broker_of_the_environment_counts_as_configured(make_app, monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", REDIS)
    app = make_app()

    assert app.conf.broker_url == REDIS
    assert app.conf.worker_prefetch_multiplier == 1
    assert not settings.is_embedded(app)


def test_a_broker_in_memory_is_embedded_and_polled_often(make_app):
    app = make_app(broker_url="memory://")

    assert settings.is_embedded(app)
    assert app.conf.broker_transport_options["polling_interval"] == 0.01


@pytest.mark.parametrize("broker", [REDIS, "amqp://localhost", None])
def test_a_worker_takes_one_message_ahead_for_each_slot(make_app, broker):
    assert make_app(broker_url=broker).conf.worker_prefetch_multiplier == 1


def test_events_are_on_for_flower(make_app):
    conf = make_app().conf

    assert conf.worker_send_task_events
    assert conf.task_send_sent_event


@pytest.mark.parametrize("is_configured_first", [True, False])
def test_what_the_user_has_set_wins(make_app, is_configured_first):
    theirs = {
        "worker_prefetch_multiplier": 7,
        "worker_send_task_events": False,
        "task_default_queue": "bots",
    }
    app = make_app(is_own=True, **theirs) if is_configured_first else make_app(is_own=True)
    app.conf.update(theirs)

    assert {name: app.conf[name] for name in theirs} == theirs


def test_an_option_of_the_user_stands_beside_ours(make_app):
    app = make_app(is_own=True, broker_url=REDIS, broker_transport_options={"visibility_timeout": 60})

    assert app.conf.broker_transport_options["visibility_timeout"] == 60
    assert app.conf.broker_transport_options["socket_timeout"] == 30


def test_our_own_app_has_a_queue_of_its_own(make_app):
    assert make_app(is_own=True).conf.task_default_queue == "ckworkflow"


def test_an_app_of_the_user_keeps_its_queue_and_its_visibility_timeout(make_app):
    app = make_app(broker_url=REDIS)

    assert app.conf.task_default_queue == "celery"
    assert app.conf.broker_transport_options == {}


def test_an_app_that_is_configured_already_can_be_wired(forget):
    app = Celery("late", set_as_current=False, broker="memory://")
    app.finalize()
    assert not app.conf.task_send_sent_event

    WorkflowPlugin(app)

    assert app.conf.task_send_sent_event
    assert installation.current().app is app


def test_wiring_twice_is_wiring_once(make_app):
    app = make_app()
    found = installation.current()
    backend = app.backend

    WorkflowPlugin(app)

    assert installation.current() is found
    assert app.backend is backend


# --- reading -----------------------------------------------------------------------------------------


def test_settings_are_read(make_app):
    app = make_app(
        workflow_database_url="postgresql+psycopg://db/x",
        workflow_packages=["flows", "more.flows"],
        workflow_horizon="5 seconds",
    )

    read = settings.read(app)

    assert read.database_url == "postgresql+psycopg://db/x"
    assert read.packages == ("flows", "more.flows")
    assert read.horizon == timedelta(seconds=5)


def test_one_package_may_be_named_without_a_list(make_app):
    assert settings.read(make_app(workflow_packages="flows")).packages == ("flows",)


@pytest.mark.parametrize("bad", [[1], 7, {"flows": object()}.values()])
def test_packages_that_are_no_names_are_refused(make_app, bad):
    with pytest.raises(CkWorkflowError, match="workflow_packages"):
        settings.read(make_app(workflow_packages=bad))


def test_a_horizon_that_is_no_time_span_is_refused(make_app):
    with pytest.raises(
        InvalidSettingError, match="workflow_horizon = 'soon' cannot be used: .*Write it like"
    ):
        settings.read(make_app(workflow_horizon="soon"))


def test_runs_are_kept_for_ever_unless_a_retention_is_set(make_app):
    assert settings.read(make_app()).retention is None
    assert settings.read(make_app(workflow_retention="30 days")).retention == timedelta(days=30)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("a while", "'a while' is not a number and a unit"),
        (30, "shorter than an hour"),
        (-1, "negative"),
    ],
)
def test_a_retention_that_cannot_be_meant_is_refused(make_app, bad, reason):
    with pytest.raises(InvalidSettingError, match=f"workflow_retention = .* cannot be used: .*{reason}"):
        settings.read(make_app(workflow_retention=bad))


QUORUM = [
    {"task_queues": [Queue("celery", queue_arguments={"x-queue-type": "quorum"})]},
    {"task_default_queue_type": "quorum"},
    {"task_create_missing_queue_type": "quorum"},
]


@pytest.mark.parametrize("quorum", QUORUM, ids=["named", "default", "missing"])
def test_quorum_queues_carry_no_delays(make_app, quorum):
    app = make_app(broker_url="amqp://localhost", **quorum)

    assert settings.read(app).horizon == timedelta()


@pytest.mark.parametrize("quorum", QUORUM, ids=["named", "default", "missing"])
def test_a_horizon_for_quorum_queues_is_refused(make_app, quorum):
    app = make_app(broker_url="amqp://localhost", workflow_horizon="5 seconds", **quorum)

    with pytest.raises(InvalidSettingError, match="a quorum queue carries no delays"):
        settings.read(app)


def test_a_horizon_of_nothing_goes_with_quorum_queues(make_app):
    app = make_app(broker_url="amqp://localhost", workflow_horizon=0, task_default_queue_type="quorum")

    assert settings.read(app).horizon == timedelta()


def test_queues_of_another_broker_are_not_quorum_queues(make_app):
    app = make_app(broker_url=REDIS, task_create_missing_queue_type="quorum")

    assert settings.read(app).horizon == timedelta(seconds=15)


def test_a_worker_has_our_consumer_unless_the_user_names_another(make_app):
    assert make_app().conf.worker_consumer == "ckworkflow.worker.consumer:Consumer"
    assert make_app(worker_consumer="shop:Consumer").conf.worker_consumer == "shop:Consumer"


@pytest.mark.parametrize(
    "url",
    [
        "filesystem://",
        "sqla+sqlite:///x",
        "sqla+postgresql://u:secret@h/d",
        [REDIS, "filesystem://"],
        f"{REDIS};sqla+sqlite:///x",
    ],
)
def test_brokers_that_lose_messages_are_refused_with_a_sentence(make_app, url):
    with pytest.raises(UnsupportedBrokerError, match="loses the messages") as caught:
        settings.read(make_app(broker_url=url))

    assert "secret" not in str(caught.value)


# --- pools -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pool", ["gevent", "eventlet", SimpleNamespace(__module__="celery.concurrency.gevent")]
)
def test_pools_of_patched_sockets_are_refused_with_a_sentence(pool):
    with pytest.raises(UnsupportedPoolError, match="cannot run on the (gevent|eventlet) pool"):
        check_pool(pool)


@pytest.mark.parametrize("pool", ["threads", "prefork", "solo"])
def test_other_pools_are_fine(pool):
    check_pool(pool)


@pytest.mark.parametrize("name", ["workflow_history_warning", "workflow_history_limit"])
@pytest.mark.parametrize("value", [0, -1, True, "5000", 2.5, None])
def test_a_length_of_histories_is_a_number_of_events(name: str, value: object) -> None:
    app = Celery("test", set_as_current=False)
    app.conf[name] = value
    with pytest.raises(InvalidSettingError, match="it must be a number of events, 1 or more"):
        settings.read(app)
    app.conf[name] = 100
    found = settings.read(app)
    assert 100 in (found.history_warning, found.history_limit)


def test_the_page_of_settings_has_each_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row] for row in rows]
    engine = Settings()
    defaults = {
        "workflow_database_url": f'"{engine.database_url}"', "workflow_packages": str(list(engine.packages)),
        "workflow_horizon": f'"{engine.horizon.total_seconds():g} seconds"', "workflow_retention": str(engine.retention),
        "workflow_discord_errors": str(engine.discord_errors), "workflow_log_tracebacks": str(engine.log_tracebacks),
        "workflow_history_warning": str(engine.history_warning), "workflow_history_limit": str(engine.history_limit),
        "workflow_web_url": str(engine.web.url), "workflow_web_host": f'"{engine.web.host}"',
        "workflow_web_port": str(engine.web.port), "workflow_web_methods": json.dumps(engine.web.methods),
        "workflow_web_headers": str(list(engine.web.headers)), "workflow_web_dedup_header": str(engine.web.dedup_header),
        "workflow_web_proxies": str(list(engine.web.proxies)), "workflow_web_peer_rate": f'"{engine.web.peer_rate.count}/m"',
        "workflow_web_token_rate": f'"{engine.web.token_rate.count}/m"',
    }  # fmt: skip
    own = {row[0].strip("`"): row[-1] for row in cells if row[0].startswith("`workflow_")}
    assert set(own) == set(settings._OWN_NAMES) == set(defaults)
    for name, default in defaults.items():
        assert own[name].startswith(f"`{default}`"), name

    filled = {(name, row[1]) for row in cells for name in row[0].replace("`", "").split(", ")}
    ours = [settings._ALWAYS, settings._OWN, settings._OWN_REDIS, *settings._BY_TRANSPORT.values()]
    for name, value in ((name, value) for each in ours for name, value in each.items()):
        text = "True" if value is True else json.dumps(value)
        assert (name, f"`{text}`") in filled, (name, text)
