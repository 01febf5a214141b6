"""Time spans: every unit of npm `ms`, and a reason for all that is refused."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckworkflow.duration import LONGEST, parse_duration, parse_span, parse_wait
from ckworkflow.errors import CkWorkflowError, InvalidDurationError

UNITS = {
    "milliseconds millisecond msecs msec ms": timedelta(milliseconds=1),
    "seconds second secs sec s": timedelta(seconds=1),
    "minutes minute mins min m": timedelta(minutes=1),
    "hours hour hrs hr h": timedelta(hours=1),
    "days day d": timedelta(days=1),
    "weeks week w": timedelta(weeks=1),
    "years year yrs yr y": timedelta(days=365.25),
}
ALIASES = [(alias, size) for aliases, size in UNITS.items() for alias in aliases.split()]


@pytest.mark.parametrize(("alias", "size"), ALIASES)
@pytest.mark.parametrize("form", ["3{}", "3 {}", " 3  {} ", "3.0{}"])
def test_every_alias_of_every_unit_is_understood(form: str, alias: str, size: timedelta) -> None:
    assert parse_span(form.format(alias)) == 3 * size
    assert parse_span(form.format(alias.upper())) == 3 * size
    assert parse_span(form.format(alias.capitalize())) == 3 * size


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("5 seconds", timedelta(seconds=5)),
        ("7 days", timedelta(days=7)),
        ("1h 30m", timedelta(minutes=90)),
        ("1h30m", timedelta(minutes=90)),
        ("1 day, 2 hours", timedelta(hours=26)),
        ("1.5 hours", timedelta(minutes=90)),
        (".5s", timedelta(milliseconds=500)),
        ("1 minute 1 minute", timedelta(minutes=2)),
        ("0s", timedelta(0)),
        ("0.1s" * 10, timedelta(seconds=1)),
        ("+1 h", timedelta(hours=1)),
    ],
)
def test_text_is_a_sum_of_numbers_with_units(text: str, span: timedelta) -> None:
    assert parse_span(text) == span


@pytest.mark.parametrize(
    ("value", "span"),
    [
        (90, timedelta(seconds=90)),
        (0, timedelta(0)),
        (0.25, timedelta(milliseconds=250)),
        (timedelta(days=2), timedelta(days=2)),
    ],
)
def test_a_number_is_seconds_and_a_timedelta_is_itself(
    value: float | timedelta, span: timedelta
) -> None:
    assert parse_span(value) == span
    assert parse_wait(value) == span


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("1 month", "a month has no fixed length; say '30 days'"),
        ("2 months", "a month has no fixed length"),
        ("1mo", "a month has no fixed length"),
        ("100", "say '100 seconds', or '100 ms'"),
        ("1h 30", "the number 30 has no unit"),
        ("-1 s", "it is negative"),
        ("1h -5m", "it is negative"),
        ("", "the text is empty"),
        ("   ", "the text is empty"),
        ("soon", "'soon' is not a number and a unit"),
        ("5 fortnights", "'fortnights' is not a unit"),
        ("1h and 5m", "'and 5m' is not a number and a unit"),
        ("1e3 s", "'e' is not a unit"),
        ("٣ s", "is not a number and a unit"),
        ("1 s" + " " * 100, "longer than 100 characters"),
        ("1001 years", "longer than 1000 years"),
        ("9" * 90 + " years", "longer than 1000 years"),
        (-1, "it is negative"),
        (-0.001, "it is negative"),
        (timedelta(seconds=-1), "it is negative"),
        (timedelta.max, "longer than 1000 years"),
        (math.nan, "not a finite number"),
        (math.inf, "not a finite number"),
        (1e300, "longer than 1000 years"),
        (10**400, "longer than 1000 years"),
        (True, "a bool is not a duration"),
        (None, "a NoneType is not a duration"),
        (["1h"], "a list is not a duration"),
    ],
)
def test_what_is_no_time_span_is_refused_with_a_reason(value: object, reason: str) -> None:
    for parse in (parse_span, parse_wait):
        with pytest.raises(InvalidDurationError) as caught:
            parse(value)  # type: ignore[arg-type]
        assert reason in str(caught.value)
        assert "'5 seconds', '7 days' or '1h 30m'" in str(caught.value)
        assert isinstance(caught.value, (ValueError, CkWorkflowError))


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=2)), ZoneInfo("UTC")])
def test_a_wait_may_be_until_a_time_with_a_zone(zone: timezone | ZoneInfo) -> None:
    moment = datetime(2026, 1, 2, 3, 4, tzinfo=zone)
    assert parse_wait(moment) is moment


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(InvalidDurationError, match=r"it has no time zone.*datetime\.now\(UTC\)"):
        parse_wait(datetime(2026, 1, 2))  # noqa: DTZ001


def test_a_moment_is_no_span() -> None:
    with pytest.raises(InvalidDurationError, match="it is a moment"):
        parse_span(datetime(2026, 1, 2, tzinfo=UTC))  # type: ignore[arg-type]


def test_the_longest_span_can_be_added_to_the_date_of_today() -> None:
    assert parse_span(LONGEST) == LONGEST
    assert datetime.now(UTC) + LONGEST < datetime.max.replace(tzinfo=UTC)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_no_text_raises_another_error(text: str) -> None:
    try:
        span = parse_span(text)
    except InvalidDurationError:
        return
    assert timedelta(0) <= span <= LONGEST


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.sampled_from(ALIASES)), min_size=1, max_size=5))
def test_a_sum_is_the_sum_of_its_terms(terms: list[tuple[int, tuple[str, timedelta]]]) -> None:
    text = " ".join(f"{number} {alias}" for number, (alias, _) in terms)
    total = sum((number * size for number, (_, size) in terms), timedelta(0))
    if total <= LONGEST:
        assert parse_span(text) == total


def test_what_a_user_types_is_read_as_sleep_reads_it() -> None:
    assert parse_duration("1h 30M") == timedelta(minutes=90)
    with pytest.raises(InvalidDurationError) as caught:
        parse_duration("10")
    assert caught.value.reason.startswith("the number 10 has no unit")
    with pytest.raises(TypeError, match="reads text, and got 10"):
        parse_duration(10)  # type: ignore[arg-type]
