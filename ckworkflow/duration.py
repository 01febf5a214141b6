"""Time spans as people write them: `"5 seconds"`, `"7 days"`, `"1h 30m"`, `0.5`, a `timedelta`.

The units, their aliases and their lengths are those of the npm package `ms` (release 2.1), in any case of
letters, and sums of them; a week is 7 days and a year 365.25 days. What could be meant in two ways (a bare
number as text, a month, a datetime without a time zone) is refused with a reason, never guessed.

Not here: any reading of a clock; a wait until a time stays that time.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from ckworkflow.errors import InvalidDurationError

__all__ = ["EARLIEST", "LATEST", "LONGEST", "parse_duration", "parse_span", "parse_wait"]

LONGEST: Final = timedelta(days=365_250)
"""1000 years: what is longer would pass the end of the calendar when it is added to a date."""

EARLIEST: Final = datetime(1000, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(9000, 1, 1, tzinfo=UTC)
"""A moment outside of these is so near to an end of the calendar that arithmetic with it would pass that."""

_SECOND: Final = 1_000_000
_MINUTE: Final = 60 * _SECOND
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR

_MICROSECONDS: Final = MappingProxyType(
    {
        alias: size
        for size, aliases in (
            (1_000, "milliseconds millisecond msecs msec ms"),
            (_SECOND, "seconds second secs sec s"),
            (_MINUTE, "minutes minute mins min m"),
            (_HOUR, "hours hour hrs hr h"),
            (_DAY, "days day d"),
            (7 * _DAY, "weeks week w"),
            (365 * _DAY + 6 * _HOUR, "years year yrs yr y"),
        )
        for alias in aliases.split()
    }
)
_MONTHS: Final = frozenset({"months", "month", "mo"})

# ASCII: `\d` alone would take the digits of every script, and `float` of some of them.
_TERM: Final = re.compile(
    r"\s*(?P<sign>[-+]?)(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>[a-z]*)[\s,]*", re.ASCII
)
_LONGEST_TEXT: Final = 100


def parse_duration(text: str) -> timedelta:
    """Return the time span that somebody has typed, as `sleep` reads it: `10m`, `1h 30m`, `7 days`.

        try:
            length = parse_duration(option)
        except InvalidDurationError as error:
            await interaction.response.send_message(f"I cannot read that: {error.reason}.", ephemeral=True)

    Args:
        text: Numbers with units (milliseconds to years, and sums of them), in any case of letters. Not negative.

    Raises:
        InvalidDurationError: It means none, or could mean two; its `reason` says why in a phrase.
        TypeError: It is no text.
    """
    given: object = text  # annotations bind nobody at run time
    if not isinstance(given, str):
        raise TypeError(f"parse_duration reads text, and got {given!r}")
    return parse_span(text)


def parse_span(value: str | float | timedelta) -> timedelta:
    """Return the time span that `value` means.

    Args:
        value: Text (`"1h 30m"`), a number of seconds, or a `timedelta`. Not negative.

    Raises:
        InvalidDurationError: It means none, or could mean two.

    Source:
        https://github.com/vercel/ms, `src/index.ts`: names and lengths of the units.
    """
    given: object = value  # annotations bind nobody at run time
    if isinstance(given, timedelta):
        span = given
    elif isinstance(given, str):
        span = _parse_text(given)
    elif isinstance(given, (int, float)) and not isinstance(given, bool):
        span = _parse_number(given)
    elif isinstance(given, datetime):
        raise InvalidDurationError(given, "it is a moment, and a length of time is needed here")
    else:
        raise InvalidDurationError(given, f"a {type(given).__name__} is not a duration")
    if span < timedelta(0):
        raise InvalidDurationError(value, "it is negative")
    if span > LONGEST:
        raise _too_long(value)
    return span


def parse_wait(value: str | float | timedelta | datetime) -> timedelta | datetime:
    """Return the time span or, given a datetime, the moment that `value` means.

    Args:
        value: As for `parse_span`, or a `datetime` with a time zone, of the years 1000 to 9000 (wait until then;
            it may be past).

    Raises:
        InvalidDurationError: It means none, or could mean two.
    """
    if not isinstance(value, datetime):
        return parse_span(value)
    if value.utcoffset() is None:
        raise InvalidDurationError(
            value,
            "it has no time zone, so each worker would read it by its own clock. Make it with "
            "datetime.now(UTC), or give it one with .replace(tzinfo=UTC)",
        )
    if not EARLIEST <= value <= LATEST:
        raise InvalidDurationError(value, "it is not within the years 1000 to 9000")
    return value


def _parse_number(value: float) -> timedelta:
    try:
        if not math.isfinite(value):
            raise InvalidDurationError(value, "it is not a finite number of seconds")
        return timedelta(seconds=value)
    except OverflowError:
        raise _too_long(value) from None


def _parse_text(value: str) -> timedelta:
    if not value.strip():
        raise InvalidDurationError(value, "the text is empty")
    if len(value) > _LONGEST_TEXT:
        raise InvalidDurationError(
            value[:20] + "…", f"the text is longer than {_LONGEST_TEXT} characters"
        )
    total = Fraction(0)
    text, position = value.lower(), 0
    while position < len(text):
        term = _TERM.match(text, position)
        if term is None:
            raise InvalidDurationError(value, f"{value[position:].strip()!r} is not a number and a unit")
        total += _term(value, term)
        position = term.end()
    try:
        return timedelta(microseconds=round(total))
    except OverflowError:
        raise _too_long(value) from None


def _term(value: str, term: re.Match[str]) -> Fraction:
    sign, number, unit = term["sign"], term["number"], term["unit"]
    if sign == "-":
        raise InvalidDurationError(value, "it is negative")
    if unit in _MONTHS:
        raise InvalidDurationError(
            value, "a month has no fixed length; say '30 days', or give the date itself"
        )
    if not unit:
        raise InvalidDurationError(
            value,
            f"the number {number} has no unit; say '{number} seconds', or '{number} ms'",
        )
    if unit not in _MICROSECONDS:
        units = "ms, seconds, minutes, hours, days, weeks, years"
        raise InvalidDurationError(value, f"{unit!r} is not a unit; the units are {units}")
    # A fraction, so that a sum of many terms is as exact as it reads ("0.1 s" ten times is one second).
    return Fraction(number.rstrip(".")) * _MICROSECONDS[unit]


def _too_long(value: object) -> InvalidDurationError:
    return InvalidDurationError(value, "it is longer than 1000 years")
