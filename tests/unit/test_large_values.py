"""Large values: texts of which a part stands apart."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckworkflow import codec
from ckworkflow.codec import large
from ckworkflow.errors import UnreadableValueError

SMALL = 2_000

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.text(min_size=1_000, max_size=3_000)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=6),
    max_leaves=25,
)


@pytest.fixture(autouse=True)
def _small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE", SMALL)


@given(TREES)
def test_a_text_in_parts_is_the_tree_that_it_was(value: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "LARGE", SMALL)
        tree = codec.encode(value, path="value")
        text = codec.pack(tree)
        assert codec.loads(text) == tree
        assert len(text) <= SMALL
        assert isinstance(text, codec.Packed) == (len(codec.dumps(tree)) > SMALL)
        if isinstance(text, codec.Packed):
            assert codec.parts_of(text) == text.apart.keys()
            assert not any(map(codec.parts_of, text.apart.values()))  # parts have no parts
        assert codec.pack(codec.encode(value, path="value")) == text


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000,
        ["x" * 10_000, 1],
        {"a": "x" * 10_000, "b": ["y" * 10_000, "x" * 10_000]},
        list(range(3_000)),
        ["x" * 300] * 20,
        [["x" * 1_500], ["y" * 1_500], ["z" * 10]],
        b"x" * 10_000,
        ("x" * 10_000,),
        {"$": "x" * 10_000},
        10**10_000,
        ["\ud800" * 3_000],
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_shape_comes_back(value: Any) -> None:
    tree = codec.encode(value, path="value")
    text = codec.pack(tree)
    assert isinstance(text, codec.Packed)
    assert len(text) <= SMALL
    assert codec.decode(codec.loads(text)) == value


def test_the_same_value_has_one_name_wherever_it_is() -> None:
    value = {"text": "x" * 5_000}
    result = codec.pack(codec.encode(value, path="result"))
    args = codec.pack(
        {
            "args": [codec.encode(value, path="args[0]"), 1, codec.encode(value, path="args[2]")],
            "kwargs": {},
        }
    )
    assert isinstance(result, codec.Packed)
    assert isinstance(args, codec.Packed)
    assert result.apart == args.apart
    first, _, third = json.loads(json.dumps(codec.loads(args)))["args"]
    assert first == third == value


def test_each_place_of_a_part_gets_its_own_copy() -> None:
    args: Any = codec.loads(codec.pack([["x" * 5_000], ["x" * 5_000]]))
    assert args[0] is not args[1]


def test_what_is_small_beside_a_large_value_stays_where_it_is() -> None:
    """The options of a call, say, which are looked for in the text of its arguments."""
    text = codec.pack(
        {"args": ["x" * 5_000], "kwargs": {"key": "y" * 5_000}, "options": {"max_retries": 3}}
    )
    assert json.loads(text)["options"] == {"max_retries": 3}


def test_a_part_that_is_not_there_is_told() -> None:
    text = codec.pack(["x" * 5_000])
    with pytest.raises(UnreadableValueError, match="a part of it is not in the database"):
        codec.loads(codec.Packed(text, {}))


def test_a_value_that_looks_like_a_reference_is_none() -> None:
    value = {"$": "ref", "v": ["@" + "0" * 64, []]}
    text = codec.pack(codec.encode([value, json.dumps(value, separators=(",", ":"))], path="value"))
    assert codec.decode(codec.loads(text)) == [value, json.dumps(value, separators=(",", ":"))]
    assert codec.parts_of(json.dumps(json.dumps(value, separators=(",", ":")))) == frozenset()


def test_the_size_of_a_text_counts_its_parts() -> None:
    assert codec.size_of(codec.pack(["x" * 5_000])) > 5_000
    assert codec.size_of(codec.pack("ä")) == 4
