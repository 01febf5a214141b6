"""Settings: what `celeryconfig.py` says, and our defaults where it says nothing.

Reading gives the engine a plain value. Configuring fills in the app's own settings, each only where the
user has set nothing: our defaults never override theirs. What belongs to ordinary tasks too
(the default queue, Redis' visibility timeout) is touched on our own app alone.

Settings of ours in `celeryconfig.py`: `workflow_database_url`, `workflow_packages`, `workflow_horizon`,
`workflow_retention`, `workflow_discord_errors`, `workflow_log_tracebacks`, `workflow_history_…`, and those of webhooks (`web_settings`). Any other name that begins with `workflow_` is
refused: it would be ignored.

Not here: the worker's pool (`ckworkflow.worker.process.pools`), and who calls this (`ckworkflow.worker.wiring`).
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from celery.utils.quorum_queues import detect_quorum_queues
from kombu.transport import resolve_transport

from ckworkflow.definition.options import DISCORD_ERRORS, is_discord_errors
from ckworkflow.duration import parse_span
from ckworkflow.engine.settings import Settings
from ckworkflow.errors import InvalidDurationError, InvalidSettingError, UnsupportedBrokerError
from ckworkflow.scrub import conceal, conceal_url, scrub
from ckworkflow.store.location import is_relative, path_in_url, read_url, shown
from ckworkflow.worker import web_settings
from ckworkflow.worker.broker.transport import SCHEME

if TYPE_CHECKING:
    from celery import Celery
    from celery.app.utils import Settings as CelerySettings

    from ckworkflow.definition.options import DiscordErrors

__all__ = ["check_broker", "configure", "describe", "is_embedded", "packages", "read"]

DEFAULT_QUEUE: Final = "ckworkflow"
"""The queue of our own app: a worker of another app on the same broker never takes our messages."""

LEAST_RETENTION: Final = timedelta(hours=1)
"""A caller may still wait for the result of a run that has just ended; and `30` would be 30 seconds."""

_PREFIX: Final = "workflow_"
_OWN_NAMES: Final = (
    "workflow_database_url",
    "workflow_discord_errors",
    "workflow_history_limit",
    "workflow_history_warning",
    "workflow_horizon",
    "workflow_log_tracebacks",
    "workflow_packages",
    "workflow_retention",
    *web_settings.NAMES,
)
_BROKER_FILE: Final = "ckworkflow-broker.sqlite3"
_EMBEDDED_MARK: Final = "workflow_broker_is_default"
_NAMES: Final = {*_OWN_NAMES, _EMBEDDED_MARK}
_REFUSED_BROKERS: Final = {
    "filesystem": "kombu's filesystem transport loses the messages of a killed worker, and a worker that reads a "
    "half-written file stops",
    "sqla": "kombu's SQLAlchemy transport loses the messages of a killed worker, and has neither events nor "
    "remote control",
    "sqlalchemy": "kombu's SQLAlchemy transport loses the messages of a killed worker, and has neither events nor "
    "remote control",
}
Defaults = dict[str, object]
"""Settings of Celery, where the user has set none."""
_ALWAYS: Final[Defaults] = {
    "worker_send_task_events": True,  # or Flower shows nothing
    "task_send_sent_event": True,
    "broker_connection_retry_on_startup": True,
    # Or a Redis that goes away ends the worker. By name: whoever only starts runs needs no consumer.
    "worker_consumer": "ckworkflow.worker.consumer:Consumer",
}
_ONE_AHEAD: Final[Defaults] = {
    # A step awaits for long: what one worker has taken ahead, another cannot run.
    "worker_prefetch_multiplier": 1,
}
_PRECISE_TIMER: Final[Defaults] = {
    # Where Celery has no event loop its timer looks once a second, and a short sleep would end late.
    "worker_timer_precision": 0.05,
}
_BY_TRANSPORT: Final[dict[str, Defaults]] = {
    "redis": _ONE_AHEAD,
    "amqp": _ONE_AHEAD,
    "ckworkflow": {**_ONE_AHEAD, **_PRECISE_TIMER},
    "memory": {**_PRECISE_TIMER, "broker_transport_options": {"polling_interval": 0.01}},
}
_JSON: Final = {"json", "application/json"}
_OWN: Final[Defaults] = {"task_default_queue": DEFAULT_QUEUE}
_OWN_REDIS: Final[Defaults] = {
    # What a killed worker held comes back after this; a step that runs longer is delivered again and
    # dropped, since its node is owned. Without time-outs a half-dead connection is waited on for ever.
    "broker_transport_options": {
        "visibility_timeout": 600,
        "unacked_restore_throttle": 1,
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
    },
}


def read(app: Celery) -> Settings:
    """Read the engine's settings.

    Raises:
        UnsupportedBrokerError: The configured broker loses messages.
        InvalidSettingError: A setting that begins with `workflow_` is none of ours; or what the broker needs is not
            installed; or `workflow_packages` is not a list of names, or `workflow_retention` no time span of
            an hour at least, or `workflow_horizon` none, or set for quorum queues, or `workflow_discord_errors` makes no sense, or
            `workflow_log_tracebacks` is neither True nor False, or `workflow_history_warning` or `workflow_history_limit` no number
            of events, or one of webhooks makes no sense.
    """
    _refuse_unknown(app)
    check_broker(app)
    return Settings(
        database_url=app.conf.get("workflow_database_url") or Settings().database_url,
        packages=packages(app),
        horizon=_horizon(app),
        retention=_retention(app),
        discord_errors=_discord_errors(app),
        log_tracebacks=_log_tracebacks(app),
        history_warning=_count(app, "workflow_history_warning", Settings().history_warning),
        history_limit=_count(app, "workflow_history_limit", Settings().history_limit),
        web=web_settings.read(app.conf),
    )


def configure(app: Celery, *, is_own: bool) -> None:
    """Fill in what the user has left open.

    Args:
        app: An app whose configuration is loaded; doing it again changes nothing.
        is_own: Whether it is the default app, which carries nothing but workflows.
    """
    conf = app.conf
    _conceal_passwords(conf)
    if not any(_broker_urls(conf)):
        conf["broker_url"] = _default_broker(conf)
        conf[_EMBEDDED_MARK] = True
    families = {_family(url) for url in _broker_urls(conf)}
    if (
        "redis" in families and importlib.util.find_spec("redis") is not None
    ):  # else kombu says what is missing
        importlib.import_module("ckworkflow.worker.broker.redis_transport").install()
    defaults = [_ALWAYS, *(_BY_TRANSPORT.get(family, {}) for family in sorted(families))]
    if is_own:
        defaults += [_OWN, *([_OWN_REDIS] if "redis" in families else [])]
    for settings in defaults:
        for name, value in settings.items():
            if isinstance(value, dict):
                conf[name] = {**value, **(conf.get(name) or {})}
            elif not conf.value_set_for(name):
                conf[name] = value
    if not _JSON.intersection(accepted := list(conf.accept_content or ())):
        # What messages of steps are in, whatever those of other tasks are.
        conf["accept_content"] = [*accepted, "json"]


def _conceal_passwords(conf: CelerySettings) -> None:
    """Have the passwords of broker and result backend cut out of whatever is stored or shown."""
    backend = conf.result_backend
    for url in [*_broker_urls(conf), *([backend] if isinstance(backend, str) else [])]:
        conceal_url(url)
    for name in ("broker_password", "broker_transport_options", "result_backend_transport_options"):
        for secret in _passwords(name, conf.get(name)):
            conceal(secret, "password")


def _passwords(name: str, value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _passwords(str(key), inner)
    elif isinstance(value, str) and "password" in name:
        yield value


def check_broker(app: Celery) -> None:
    """Refuse brokers that lose messages, and those for which something is not installed.

    Raises:
        UnsupportedBrokerError: One of the configured brokers loses them.
        InvalidSettingError: Nothing here can speak to one of them.
    """
    for url in _broker_urls(app.conf):
        reason = _REFUSED_BROKERS.get(_family(url))
        if reason is not None:
            raise UnsupportedBrokerError(_shown(url), reason)
        missing = _missing_for(url)
        if missing is not None:
            raise InvalidSettingError("broker_url", _shown(url), missing)


def _missing_for(url: str) -> str | None:
    """Name a package that a broker needs and that is missing; kombu would notice when the first message is published."""
    scheme, is_url, _ = url.partition("://")
    if not is_url:
        return None
    if _family(url) == "redis" and importlib.util.find_spec("redis") is None:
        return "the package redis is missing: pip install 'ckworkflow[redis]'"
    try:
        resolve_transport(scheme.partition("+")[0])
    except KeyError as error:
        return f"kombu knows no such broker ({error.args[0]})"
    except ImportError as error:
        return f"what kombu needs for it is missing ({error})"
    return None


def _shown(url: str) -> str:
    """Return a URL without what is secret in it. All of it is one: so a password ends at the last `@`."""
    return scrub(re.sub(r"(://[^:@/]*:).*@", r"\1[password]@", url).partition("?")[0])


def _refuse_unknown(app: Celery) -> None:
    """Refuse settings that look like ours and are read by nobody."""
    for name in sorted({name for name in app.conf if str(name).lower().startswith(_PREFIX)}):
        value = app.conf[name]
        if (
            name in _NAMES or callable(value) or isinstance(value, ModuleType)
        ):  # the last two: of a settings module
            continue
        own = {known.removeprefix(_PREFIX): known for known in _OWN_NAMES}
        near = difflib.get_close_matches(name.lower().removeprefix(_PREFIX), own, n=1, cutoff=0.5)
        there = f"The nearest is {own[near[0]]}" if near else f"There are {', '.join(_OWN_NAMES)}"
        told = _shown(value) if isinstance(value, str) else value
        raise InvalidSettingError(name, told, f"ckworkflow has no setting of that name. {there}")


def describe(app: Celery, *, is_own: bool) -> str:
    """Say in a line which settings, database and broker are used; without passwords.

    Raises:
        InvalidSettingError: The database's URL names none.
    """
    url = read_url(app.conf.get("workflow_database_url") or Settings().database_url)
    brokers = ", ".join(_shown(url) for url in _broker_urls(app.conf))
    return f"settings: {_source(app, is_own=is_own)}; database: {shown(url)}; broker: {brokers}"


def stray_file(app: Celery) -> str | None:
    """Say that the database is a file of the current folder, and the settings are elsewhere; `None`: it is not so.

    From another folder the same bot would find another database.
    """
    url = app.conf.get("workflow_database_url") or Settings().database_url  # which imports the settings
    source = getattr(app, "_config_source", None)
    file = getattr(sys.modules.get(str(source).partition(":")[0]), "__file__", None)
    if file is None or not is_relative(url) or Path(file).absolute().parent == Path.cwd():
        return None
    return (
        f"the database is a file of the folder in which this was started, {Path.cwd()}, and the settings are in {Path(file).absolute().parent}: "
        "started elsewhere, this finds another database. Start it in the folder of the settings, or give workflow_database_url "
        "the whole path"
    )


def _source(app: Celery, *, is_own: bool) -> str:
    source = getattr(app, "_config_source", None)
    if isinstance(source, str):
        source = sys.modules.get(source.partition(":")[0], source)
    file = getattr(source, "__file__", None)
    if file is not None:
        return str(Path(file).absolute())
    if source is None and is_own:
        return f"none, since there is no celeryconfig.py in {Path.cwd()}"
    return f"those of the Celery app {app.main!r}"


def packages(app: Celery) -> tuple[str, ...]:
    """Return the packages and modules that hold workflows and steps.

    Raises:
        InvalidSettingError: `workflow_packages` is not a list of names.
    """
    value = app.conf.get("workflow_packages")
    names = [value] if isinstance(value, str) else value or ()
    if not isinstance(names, Iterable) or not all(isinstance(name, str) for name in names):
        raise InvalidSettingError(
            "workflow_packages", value, "a list of names is needed, such as ['workflows']"
        )
    return tuple(names)


def is_embedded(app: Celery) -> bool:
    """Tell whether the worker belongs in the process that starts workflows.

    It does when no broker is configured, and when messages are kept in the memory of one process.
    """
    conf = app.conf
    return bool(conf.get(_EMBEDDED_MARK)) or all(_family(url) == "memory" for url in _broker_urls(conf))


def _broker_urls(conf: CelerySettings) -> list[str]:
    """Return every configured URL; the environment counts, failover alternates too."""
    urls: list[str] = []
    # These are properties that ask the environment first; conf.get would not.
    for value in (conf.broker_read_url, conf.broker_write_url, conf.broker_url):
        for item in [value] if isinstance(value, str) else value or ():
            urls += [url for url in item.split(";") if url]
    return list(dict.fromkeys(urls))


def _family(url: str) -> str:
    """Return the kind of transport that a URL names; most have several names."""
    scheme = re.split(r"[+:]", url, maxsplit=1)[0].lower()
    return {
        "rediss": "redis",
        "sentinel": "redis",
        "amqps": "amqp",
        "pyamqp": "amqp",
        "librabbitmq": "amqp",
    }.get(scheme, scheme)


def _default_broker(conf: CelerySettings) -> str:
    """Put the broker file beside an SQLite database, so that all who share the one share the other."""
    url = conf.get("workflow_database_url") or Settings().database_url
    folder = Path().absolute()
    if url.startswith("sqlite"):
        with contextlib.suppress(ValueError):  # said where the database is opened
            folder = path_in_url(url).parent
    # Absolute: a process that changes its directory later must not open another file. Quoted: kombu takes a
    # semicolon for the end of one of several URLs.
    return f"{SCHEME}:///{quote(str(folder / _BROKER_FILE))}"


def _horizon(app: Celery) -> timedelta:
    value = app.conf.get("workflow_horizon")
    try:
        span = None if value is None else parse_span(value)
    except InvalidDurationError as error:
        raise InvalidSettingError(
            "workflow_horizon", value, f"{error.reason}. Write it like '15 seconds'"
        ) from error
    if not _uses_quorum_queues(app):
        return Settings().horizon if span is None else span
    if span:
        reason = (
            "a quorum queue carries no delays: Celery would send them through queues of its own, in whole seconds, "
            "or have a worker hold them in its prefetch window. Leave it out; sleeps then wait in the database"
        )
        raise InvalidSettingError("workflow_horizon", value, reason)
    return timedelta()


def _discord_errors(app: Celery) -> DiscordErrors:
    value: DiscordErrors = app.conf.get("workflow_discord_errors")
    if not is_discord_errors(value):
        raise InvalidSettingError("workflow_discord_errors", value, f"it must be {DISCORD_ERRORS}")
    return value


def _retention(app: Celery) -> timedelta | None:
    value = app.conf.get("workflow_retention")
    if value is None:
        return None
    try:
        span = parse_span(value)
    except InvalidDurationError as error:
        reason = f"{error.reason}. Write it like '30 days'; None keeps all runs"
        raise InvalidSettingError("workflow_retention", value, reason) from error
    if span < LEAST_RETENTION:
        reason = "it is shorter than an hour. A bare number means seconds: write it like '30 days'"
        raise InvalidSettingError("workflow_retention", value, reason)
    return span


def _count(app: Celery, name: str, default: int) -> int:
    value = app.conf.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidSettingError(name, value, "it must be a number of events, 1 or more")
    return value


def _log_tracebacks(app: Celery) -> bool:
    value = app.conf.get("workflow_log_tracebacks", False)
    if not isinstance(value, bool):
        raise InvalidSettingError("workflow_log_tracebacks", value, "it must be True or False")
    return value


def _uses_quorum_queues(app: Celery) -> bool:
    conf = app.conf
    if not any(_family(url) == "amqp" for url in _broker_urls(conf)):
        return False
    # A queue that a step names is declared when it is first used, so Celery finds it only later.
    is_missing_quorum = (
        conf.task_create_missing_queues and conf.task_create_missing_queue_type == "quorum"
    )
    return bool(is_missing_quorum or detect_quorum_queues(app, "amqp")[0])
