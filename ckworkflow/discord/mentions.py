"""Mentions: what a step sends pings nobody, unless the send says otherwise.

discord.py asks the state of a client for the default of `allowed_mentions=`, and a webhook made with a
`session=` has a state with no default at all. Inside a step both answer `AllowedMentions.none()`, in the bot's
process as in a worker of its own. Everywhere else they answer as discord.py does, so the bot's commands keep
the bot's setting.

Not covered: a thread that the step starts without its context (`loop.run_in_executor`), which is outside the step.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

import discord
from discord.state import ConnectionState
from discord.webhook.async_ import _WebhookState

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["install_mentions", "step_mentions", "uninstall_mentions"]

_in_step: ContextVar[bool] = ContextVar("ckworkflow.discord.mentions", default=False)
_NAME: Final = "allowed_mentions"
_of_webhooks: Final = vars(_WebhookState)[_NAME]


@contextmanager
def step_mentions() -> Iterator[None]:
    """Let sends inside the block ping nobody by default."""
    token = _in_step.set(True)
    try:
        yield
    finally:
        _in_step.reset(token)


def install_mentions() -> None:
    """Make the default of this process's clients and webhooks depend on who asks. Idempotent."""
    setattr(ConnectionState, _NAME, _OfClients())
    setattr(_WebhookState, _NAME, _OfWebhooks())


def uninstall_mentions() -> None:
    """Undo `install_mentions`."""
    if isinstance(vars(ConnectionState).get(_NAME), _OfClients):
        delattr(ConnectionState, _NAME)
        setattr(_WebhookState, _NAME, _of_webhooks)


class _OfClients:
    """In front of the instance attribute of each state, which keeps the bot's setting."""

    def __get__(self, state: object, owner: type) -> object:
        if state is None:
            return self
        return discord.AllowedMentions.none() if _in_step.get() else vars(state)[_NAME]

    def __set__(self, state: object, value: discord.AllowedMentions | None) -> None:
        vars(state)[_NAME] = value


class _OfWebhooks:
    def __get__(self, state: object, owner: type) -> object:
        return discord.AllowedMentions.none() if _in_step.get() else _of_webhooks.__get__(state, owner)
