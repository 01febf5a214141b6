"""What the engine can be told: a plain value, read from `celeryconfig.py` by `ckworkflow.worker.settings`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckworkflow.definition.options import DiscordErrors


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
        bodies_kept: Bodies that a process keeps alive between continuations; 0 always replays.
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
    bodies_kept: int = 64
    discord_errors: DiscordErrors = None

    @property
    def silence(self) -> timedelta:
        """How long a process may be silent before it is taken for dead, where its host cannot be asked."""
        return 6 * self.heartbeat
