"""What the engine can be told: a plain value, read from `celeryconfig.py` by `ckworkflow.worker.settings`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckworkflow.definition.options import DiscordErrors


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something may happen: so often at once, and on the average.

    Attributes:
        count: How often.
        seconds: In which time.
    """

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class WebSettings:
    """Settings of webhooks.

    Attributes:
        url: Where they are found from outside, without a slash at the end; `None`: nowhere.
        host: The address on which a server of ours listens.
        port: The port on which the bot listens; `None`: it does not.
        methods: The methods of requests that are accepted, in capital letters.
        headers: Names of headers that are kept beside the usual ones, in lower-case letters.
        dedup_header: The name of the header that names a sending, in lower-case letters; `None`: none does.
        proxies: Networks whose `X-Forwarded-For` is believed.
        peer_rate: How many requests an address may send; `None`: any number.
        token_rate: How many may be sent to a webhook; `None`: any number.
    """

    url: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    methods: tuple[str, ...] = ("POST",)
    headers: tuple[str, ...] = ()
    dedup_header: str | None = None
    proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    peer_rate: Rate | None = Rate(600, 60)
    token_rate: Rate | None = Rate(120, 60)


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the engine.

    Attributes:
        database_url: An SQLAlchemy URL.
        packages: Packages and modules that hold workflows and steps.
        horizon: Sleeps up to this long travel as a Celery countdown; longer ones live in SQL only.
        redispatch_after: How long a published message may stay unclaimed before it is published again; each
            time it doubles, up to five minutes.
        look_again_after: The longest that a live run stays without being looked at.
        lease: How long the right to advance a run lasts without being renewed.
        heartbeat: How often a process renews its row; it is dead after six times that.
        loss_limit: Attempts of one step that may be lost to dying workers.
        retention: Runs that ended longer ago than this are deleted by the clocks; `None` keeps them for ever.
        discord_errors: What is made of Discord's errors where a step does not say; as the option of `@step`.
        log_tracebacks: Whether the log quotes messages and tracebacks of failed steps and runs.
        history_warning: A life of a run that has so many events is mentioned in the log, once.
        history_limit: A body with more events than this is not replayed: its run fails.
        bodies_kept: Bodies that a process keeps alive between continuations; 0 always replays.
        web: Of webhooks.
    """

    database_url: str = "sqlite:///ckworkflow.sqlite3"
    packages: tuple[str, ...] = ()
    horizon: timedelta = timedelta(seconds=15)
    redispatch_after: timedelta = timedelta(seconds=2)
    look_again_after: timedelta = timedelta(seconds=60)
    lease: timedelta = timedelta(seconds=30)
    heartbeat: timedelta = timedelta(seconds=5)
    loss_limit: int = 10
    retention: timedelta | None = None
    log_tracebacks: bool = False
    history_warning: int = 5_000
    history_limit: int = 50_000
    bodies_kept: int = 64
    discord_errors: DiscordErrors = None
    web: WebSettings = WebSettings()

    @property
    def silence(self) -> timedelta:
        """How long a process may be silent before it is taken for dead, where its host cannot be asked."""
        return 6 * self.heartbeat
