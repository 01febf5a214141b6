"""Integrations: what a service such as Discord plugs into the runtime of a worker.

An integration is opened once per process on the runtime's loop before anything is consumed, is asked
around each attempt of a step, and may judge errors that a step has let through. The worker knows only
this protocol, so it runs without discord.py.

Not here: the Discord integration (`ckworkflow.discord`) and who opens them (`ckworkflow.worker`).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ckworkflow.errors import HookContextError, MissingTokenError
from ckworkflow.model import Json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import timedelta

    from ckworkflow.context import StepContext

__all__ = [
    "Integration",
    "Verdict",
    "client_of",
    "install",
    "installed",
    "load_providers",
    "uninstall",
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an integration thinks of an error that a step has let through.

    Attributes:
        action: `fatal`: no attempt can help. `retry`: try again. `fault`: the worker is to blame (its
            token, say), so the run must not pay for it.
        kind: A word to branch on (`dms_closed`, `rate_limited`).
        message: What happened and what to do, for a person.
        code: A code of the outside world.
        status: An HTTP status.
        retry_after: When to try again; `None` leaves it to the step's own delay.
        counts: Whether the try uses one of the step's attempts.
        details: More, JSON only.
        is_suggestion: Whether `retry_after` is only what suits errors of this kind, and gives way to a delay that the
            step names; else it is the word of the service.
    """

    action: Literal["fatal", "retry", "fault"]
    kind: str
    message: str
    code: int | str | None = None
    status: int | None = None
    retry_after: timedelta | None = None
    counts: bool = True
    details: Mapping[str, Json] = field(default_factory=dict[str, Json])
    is_suggestion: bool = False


class Integration(Protocol):
    """A service that steps use, tied to the runtime of one process."""

    @property
    def name(self) -> str:
        """One word for logs; one integration of a name is installed at a time."""
        ...

    async def open(self) -> None:
        """Make ready on the runtime's loop, before the worker consumes anything.

        A network that is down is waited for here, with growing pauses; what is raised stops the worker.

        Raises:
            InvalidTokenError: The service has refused the worker for good.
        """
        ...

    async def close(self) -> None:
        """Let go of everything; steps have ended by now."""
        ...

    def client(self) -> object:
        """Return what `use_client()` gives to the running step.

        Raises:
            MissingTokenError: The worker has no token.
            HookContextError: The caller does not run on the client's loop.
        """
        ...

    def step(self, context: StepContext) -> AbstractContextManager[None]:
        """Return what is entered around each attempt of a step."""
        ...

    def judge(self, error: BaseException) -> Verdict | None:
        """Judge an error that a step has let through; `None` means "not mine"."""
        ...


PROVIDERS = "ckworkflow.integrations"

logger = logging.getLogger(__name__)
_installed: dict[str, Integration] = {}


def install(integration: Integration) -> None:
    """Add an integration to this process; one of the same name is replaced.

    A runtime opens what is installed when it starts: install before that.
    """
    _installed[integration.name] = integration


def uninstall(integration: Integration) -> None:
    """Remove an integration; one that was replaced or never installed is left as it is."""
    if _installed.get(integration.name) is integration:
        del _installed[integration.name]


def load_providers() -> None:
    """Let every package that offers an integration for workers install it.

    A provider is an entry point of the group `ckworkflow.integrations`: a function without arguments that
    calls `install`. One whose library is not installed is left out.
    """
    for provider in entry_points(group=PROVIDERS):
        try:
            provider.load()()
        except ImportError as error:
            logger.debug("integration %s left out: %s", provider.name, error)


def client_of(opened: Sequence[Integration]) -> Any:
    """Return the client of the first of some integrations that are open, for the running step.

    Raises:
        HookContextError: The step is not async.
        MissingTokenError: The integration has no token, or there is none.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise HookContextError(
            "use_client",
            "this step is not async, and a discord.py client lives on one event loop. Make the step an `async def`.",
        ) from None
    for integration in opened:
        return integration.client()
    raise MissingTokenError


def installed() -> list[Integration]:
    """Return the integrations of this process, in the order in which they were installed."""
    return list(_installed.values())
