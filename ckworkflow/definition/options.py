"""The options of a step: read and checked when its module is imported, in the words of Celery.

Not here: who obeys them (`ckworkflow.worker`).
"""

from __future__ import annotations

import enum
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, get_type_hints

from ckworkflow.duration import LONGEST, parse_span

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DISCORD_ERRORS",
    "CallKeywords",
    "DiscordErrors",
    "OnCancel",
    "StepKeywords",
    "StepOptions",
    "is_discord_errors",
]


class OnCancel(enum.StrEnum):
    """What a step that runs does when its await is cancelled; see `StepOptions.on_cancel`."""

    WAIT = "wait"
    TELL = "tell"
    LEAVE = "leave"


DiscordErrors = bool | Mapping[int | str, Literal["fatal", "retry"]] | None
"""What is made of Discord's errors instead of the default policy: see `StepOptions.discord_errors`."""

DISCORD_ERRORS: Final = "True, False, or a dict of error codes and kinds (docs/discord.md lists them), each 'fatal' or 'retry'"
"""The forms of that, in words."""

_RATE: Final = re.compile(r"\d+(\.\d+)?(/[smh])?", re.ASCII)
_HIGHEST_PRIORITY: Final = 255
_MOST_DOUBLINGS: Final = 64
_LONGEST_BACKOFF: Final = LONGEST.days * 86_400
_KINDS: Final = frozenset(
    (
        *(
            "archived",
            "auth",
            "blocked",
            "cloudflare",
            "dm_blocked",
            "forbidden",
            "gone",
            "interaction",
            "invalid",
        ),
        *(
            "limit",
            "network",
            "quota",
            "rate_limited",
            "runtime",
            "server",
            "unavailable",
            "user_banned",
        ),
    )
)
"""Those of `ckworkflow.discord.policy`, which not every process can import."""


class CallKeywords(TypedDict, total=False):
    """The options that one call of a step may have (`Step.with_options`)."""

    max_retries: int
    retry_delay: str | float | timedelta
    retry_backoff: bool | int
    retry_backoff_max: int
    retry_jitter: bool
    timeout: str | float | timedelta | None
    discord_errors: DiscordErrors
    on_cancel: Literal["wait", "tell", "leave"] | None


class StepKeywords(CallKeywords, total=False):
    """The options of `@step` as they are written; `StepOptions` says what each means."""

    queue: str | None
    rate_limit: str | None
    priority: int | None


@dataclass(frozen=True, slots=True)
class StepOptions:
    """How a step is run. Names and meanings are Celery's where Celery has them.

    Attributes:
        max_retries: Attempts after the first: 3 means 4 attempts in all.
        retry_delay: The pause before a retry; 1 s, where Celery has 180.
        retry_backoff: Growing pauses instead: the factor in seconds, doubled each time; `True` is 1.
        retry_backoff_max: The longest of them, in seconds.
        retry_jitter: Whether a growing pause is drawn from 0 up to itself, so that a crowd comes apart.
        timeout: How long one attempt may take; `None` is for ever.
        queue: The Celery queue; `None` is the app's default.
        rate_limit: Starts per worker process, as Celery writes it: `"10/m"`.
        priority: Of its messages, 0 to 255, where the broker knows priorities.
        discord_errors: Whether the default policy judges Discord's errors and those of the network; or by code and
            kind, which of them are fatal and which are tried again (`{50083: "retry", "network": "fatal"}`), the
            policy judging the rest. `None` is the app's `workflow_discord_errors`.
        on_cancel: What becomes of an attempt that runs when its await is cancelled (a timeout, a sibling that failed, the run's
            cancellation). `"wait"`: it is told to stop, and the await ends when it has. `"tell"`: it is told, and the await
            ends at once. `"leave"`: it is not told, and the await ends at once. `None` is `"wait"` for an async step, which is
            cancelled as asyncio does it, and `"tell"` for a plain one, which may look at `use_step().is_cancelled`.
        has_own_delay: Whether the step has named its pauses: those that the policy merely suggests give way.
    """

    max_retries: int = 3
    retry_delay: timedelta = timedelta(seconds=1)
    retry_backoff: bool | int = False
    retry_backoff_max: int = 600
    retry_jitter: bool = True
    timeout: timedelta | None = None
    queue: str | None = None
    rate_limit: str | None = None
    priority: int | None = None
    discord_errors: DiscordErrors = None
    on_cancel: OnCancel | None = None
    has_own_delay: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        # By type and not by isinstance: a bool is an int, and `max_retries=True` is a mistake.
        _check("max_retries", self.max_retries, "0 or more", is_valid=_is_int(self.max_retries, 0))
        _check(
            "retry_backoff",
            self.retry_backoff,
            "True, False or a whole number of seconds, 1 or more",
            is_valid=isinstance(self.retry_backoff, bool) or _is_int(self.retry_backoff, 1),
        )
        _check(
            "retry_backoff_max",
            self.retry_backoff_max,
            "a whole number of seconds, 1 or more and 1000 years at most",
            is_valid=_is_int(self.retry_backoff_max, 1, _LONGEST_BACKOFF),
        )
        _check(
            "timeout",
            self.timeout,
            "longer than 0, or None for ever",
            is_valid=self.timeout is None or self.timeout > timedelta(0),
        )
        _check(
            "queue",
            self.queue,
            "the name of a queue",
            is_valid=self.queue is None or _is_name(self.queue),
        )
        _check(
            "rate_limit",
            self.rate_limit,
            "text such as '10/s', '10/m' or '10/h'",
            is_valid=self.rate_limit is None or _is_rate(self.rate_limit),
        )
        _check(
            "priority",
            self.priority,
            f"0 to {_HIGHEST_PRIORITY}",
            is_valid=self.priority is None or _is_int(self.priority, 0, _HIGHEST_PRIORITY),
        )
        _check(
            "discord_errors",
            self.discord_errors,
            DISCORD_ERRORS,
            is_valid=is_discord_errors(self.discord_errors),
        )
        _check(
            "on_cancel",
            self.on_cancel,
            '"wait", "tell", "leave", or None for what fits the step',
            is_valid=self.on_cancel is None or self.on_cancel in list(OnCancel),
        )

    @classmethod
    def parse(cls, keywords: StepKeywords) -> StepOptions:
        """Return the options that `@step(...)` was given.

        Raises:
            TypeError: There is no such option.
            ValueError: The value of one makes no sense.
            InvalidDurationError: `retry_delay` or `timeout` is no time span.
        """
        known = get_type_hints(StepKeywords)
        for name in keywords:
            if name not in known:
                msg = f"step() has no option {name!r}; its options are name, {', '.join(known)}"
                raise TypeError(msg)
        return cls(**_parsed(keywords))

    def changed(self, keywords: CallKeywords) -> StepOptions:
        """Return the options of a step as one call of it wants them.

        Raises:
            TypeError: There is no such option, or it is one of the step's task, which all calls share.
            ValueError: The value of one makes no sense.
            InvalidDurationError: `retry_delay` or `timeout` is no time span.
        """
        known = get_type_hints(CallKeywords)
        for name in keywords:
            if name not in known:
                whose = (
                    f"{name} belongs to the task of the step, which all its calls share: set it with @step({name}=...)"
                    if name in get_type_hints(StepKeywords)
                    else f"there is no option {name!r}"
                )
                msg = f"with_options(): {whose}. A call may have {', '.join(known)}"
                raise TypeError(msg)
        return replace(self, **_parsed(keywords))

    def delay_after(
        self, attempt: int, *, randrange: Callable[[int], int] = random.randrange
    ) -> timedelta:
        """Return the pause after a failed attempt.

        Args:
            attempt: Which attempt has failed, from 1.
            randrange: Where jitter comes from; gives a whole number from 0 up to its argument.

        Source:
            Celery's `get_exponential_backoff_interval` and `autoretry`.
        """
        if self.retry_backoff is False:
            return self.retry_delay
        # Bounded, because Python would work out 2 ** 1,000,000 in full to find that it is too long.
        doublings = min(attempt - 1, _MOST_DOUBLINGS)
        seconds = min(self.retry_backoff_max, int(self.retry_backoff) * 2**doublings)
        return timedelta(seconds=randrange(seconds + 1) if self.retry_jitter else seconds)


def _parsed(keywords: StepKeywords | CallKeywords) -> dict[str, Any]:
    """The fields of `StepOptions` that keywords say something of."""
    fields: dict[str, Any] = dict(keywords)
    if "retry_delay" in fields:
        fields["retry_delay"] = parse_span(fields["retry_delay"])
    if fields.get("timeout") is not None:
        fields["timeout"] = parse_span(fields["timeout"])
    if "on_cancel" in fields:
        fields["on_cancel"] = _on_cancel(fields["on_cancel"])
    if not fields.keys().isdisjoint(("retry_delay", "retry_backoff")):
        fields["has_own_delay"] = True
    return fields


def _on_cancel(value: Any) -> Any:
    """The option by its name; what is none is refused later, with the others."""
    return OnCancel(value) if value in list(OnCancel) else value


def is_discord_errors(value: object) -> bool:
    """Whether a value says what is to be made of Discord's errors."""
    if isinstance(value, Mapping):
        return all(
            (_is_int(key, 0) or key in _KINDS) and action in ("fatal", "retry")
            for key, action in value.items()
        )
    return value is None or isinstance(value, bool)


def _check(name: str, value: object, wanted: str, *, is_valid: bool) -> None:
    if not is_valid:
        msg = f"step({name}={value!r}): {name} must be {wanted}"
        raise ValueError(msg)


def _is_int(value: object, least: int, most: int | None = None) -> bool:
    return type(value) is int and value >= least and (most is None or value <= most)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_rate(value: object) -> bool:
    return isinstance(value, str) and _RATE.fullmatch(value) is not None
