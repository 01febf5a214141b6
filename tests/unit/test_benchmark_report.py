"""The arithmetic of `benchmarks/report.py`: what `make bench` says must follow from what it measured."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("benchmark_report", ROOT / "benchmarks" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def row(report):
    def make(ours, theirs, bar=None, unit="ms"):
        return report.Row("w", "m", unit, "redis", "sqlite", "raw", "threads 8", ours, theirs, bar)

    return make


def test_the_ratio_is_our_median_over_the_median_of_the_peer(row):
    found = row([30.0, 10.0, 20.0], [40.0, 1000.0, 30.0])

    assert (found.our_median, found.their_median, found.ratio) == (20, 40, 0.5)


def test_the_spread_is_that_of_the_rounds_and_not_of_sorted_figures(row):
    assert row([10.0, 20.0], [20.0, 10.0]).spread == (0.5, 2.0)


def test_the_median_of_an_even_number_of_rounds_is_between_the_middle_two(report):
    assert report.middle([4.0, 1.0, 3.0, 2.0]) == 2.5


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (150.0, 100.0, "met"),
        (149.0, 100.0, "missed by 1%"),
        (75.0, 100.0, "missed by 50%"),
        (300.0, 100.0, "met"),
    ],
)
def test_a_rate_must_reach_its_multiple_of_the_peer(report, row, ours, theirs, verdict):
    assert row([ours], [theirs], report.at_least_times(1.5)).verdict == verdict


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"), [(0.8, 1.0, "met"), (1.2, 1.0, "missed by 50%"), (0.1, 1.0, "met")]
)
def test_a_time_must_stay_under_its_share_of_the_peer(report, row, ours, theirs, verdict):
    assert row([ours], [theirs], report.at_most_times(0.8)).verdict == verdict


def test_a_bar_without_a_ratio_judges_our_figure_whatever_the_peer_does(report, row):
    assert row([10.0], [1.0], report.at_most(10)).verdict == "met"
    assert row([15.0], [1000.0], report.at_most(10)).verdict == "missed by 50%"
    assert row([35.0], [1.0], report.at_most(10)).verdict == "missed, 3.5 x the bar"
    assert row([750.0], [1.0], report.at_least(1000)).verdict == "missed by 25%"


def test_what_was_not_measured_meets_no_bar(report, row):
    assert row([1.0], [], report.at_least_times(1.5)).verdict == "not measured"
    assert row([], [1.0], report.at_most(10)).verdict == "not measured"


def test_a_row_without_a_bar_has_no_verdict(row):
    assert row([1.0], [1.0]).verdict == ""


@pytest.mark.parametrize(("share", "expected"), [(0.5, 10.0), (0.95, 19.0), (1.0, 20.0), (0.0, 1.0)])
def test_a_percentile_is_a_value_that_was_measured(report, share, expected):
    assert report.percentile([float(number) for number in range(20, 0, -1)], share) == expected


def test_a_percentile_of_nothing_is_no_number(report):
    assert math.isnan(report.percentile([], 0.95))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.123456, "0.123"), (12.34, "12.3"), (1234.5, "1,234"), (math.nan, "-")],
)
def test_a_figure_is_printed_with_the_digits_that_matter(report, value, text):
    assert report.figure(value) == text


def test_a_bar_is_printed_with_the_unit_that_it_judges(report):
    assert report.at_least_times(1.5).text("1/s") == ">= 1.5 x"
    assert report.at_most(10).text("ms") == "<= 10 ms"


def test_a_row_read_back_from_json_says_the_same(report, row):
    for written in (
        row([1.0, 2.0], [2.0, 4.0], report.at_most_times(0.8)),
        row([1.0], [], report.at_most(10)),
        row([1.0], []),
    ):
        text = json.dumps(written.to_json(), allow_nan=False)
        read = report.row_from_json(json.loads(text))

        assert report.cells(read) == report.cells(written)
        assert read.verdict == written.verdict


def test_the_markdown_table_has_a_line_for_each_row(report, row):
    lines = report.markdown(
        [row([1.0], [2.0], report.at_most_times(0.8)), row([3.0], [2.0])]
    ).splitlines()

    assert len(lines) == 4
    assert {text.count("|") for text in lines} == {len(report.COLUMNS) - len(report.GROUND) + 1}
    assert "| 0.50 (0.50-0.50) | <= 0.8 x | met |" in lines[2]
