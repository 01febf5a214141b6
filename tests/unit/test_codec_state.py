"""The codec past code: what an object holds is stored, not what its class makes of that at each look."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from ckworkflow import codec
from ckworkflow.errors import UnreadableValueError, UnserializableValueError
from unit.state_types import (
    Bits,
    Cached,
    Code,
    Doubled,
    DoubledPair,
    FrozenDoubled,
    Inventory,
    Lazy,
    Open,
    Pair,
    Plain,
    Planet,
    Rereading,
    Rescaled,
    Slotted,
    SlottedDoubled,
    Stock,
)

PLACE = "unit.state_types"


def tree_of(value: Any) -> Any:
    return codec.loads(codec.dumps(codec.encode(value, path="value")))


def computed() -> Cached:
    cached = object.__new__(Cached)  # `__init__` would take the descriptor for the default
    cached.base = 1
    assert cached.computed == 10
    return cached


def not_computed() -> Cached:
    cached = object.__new__(Cached)
    cached.base = 2
    return cached


VALUES: list[tuple[Any, dict[str, Any]]] = [
    (Doubled(6), {"value": 24, "_value": 12, "name": "ann"}),
    (Inventory(2, ["a"]), {"count": 6, "tags": ["a"]}),
    (Inventory(), {"count": 12}),
    (Stock(1, place="there"), {"count": 3, "place": "there"}),
    (FrozenDoubled(6), {"value": 14}),
    (Slotted(5), {"size": 5}),  # what is no field is lost, by design
    (SlottedDoubled(5), {"size": 20, "hidden": 21}),
    (Plain(1, y=[2]), {"x": 1, "y": [2]}),
    (computed(), {"base": 1, "computed": 10}),
    (not_computed(), {"base": 2, "computed": 20}),
    (Rereading(3), {"value": 6}),
    (Lazy(1), {"value": 1, "late": 7}),
    (Rescaled(5), {"value": 13}),
    (Pair(1, 2), {"x": 1, "y": 2}),
    (DoubledPair(3, 4), {"x": 12, "y": 8}),
    (Planet.MARS, {"value": 400}),
    (Code.A, {"value": "a"}),
    (Bits.READ | Bits.WRITE, {"value": 3}),
    (Bits(12), {"value": 12}),
]


@pytest.mark.parametrize(("value", "seen"), VALUES, ids=lambda item: type(item).__name__)
def test_an_object_holds_the_same_after_each_round_trip(value: Any, seen: dict[str, Any]) -> None:
    first = tree_of(value)
    once = codec.decode(first)
    second = tree_of(once)
    twice = codec.decode(second)

    assert second == first == tree_of(twice)
    for copy in (value, once, twice):
        assert type(copy) is type(value)
        assert {name: getattr(copy, name) for name in seen} == seen


def test_an_object_of_slots_by_hand_has_the_tree_that_it_had() -> None:
    """Only a field that is code asks for more than the fields."""
    assert tree_of(Plain(1, y=[2])) == {
        "$": "dataclass", "t": f"{PLACE}:Plain", "v": {"x": 1, "y": [2]},
    }  # fmt: skip


def test_what_an_object_holds_and_cannot_be_stored_is_named() -> None:
    doubled = Doubled(1)
    doubled._lock = object()  # type: ignore[attr-defined]
    with pytest.raises(UnserializableValueError) as caught:
        codec.encode([doubled], path="args")
    assert caught.value.path == "args[0]._lock"


def test_a_tree_that_was_stored_by_its_fields_is_still_read() -> None:
    old = {"$": "dataclass", "t": f"{PLACE}:Doubled", "v": {"value": 3, "name": "bob"}}
    read = codec.decode(old)
    assert (read.value, read.name) == (12, "bob")


def test_a_field_that_is_new_since_has_its_default() -> None:
    tree = {"$": "instance", "t": f"{PLACE}:Doubled", "v": [{"_value": 3}, {}]}
    read = codec.decode(tree)
    assert (read.value, read.name) == (6, "ann")


def test_a_field_without_default_that_is_new_since_is_named() -> None:
    tree = {"$": "instance", "t": f"{PLACE}:Rereading", "v": [{}, {}]}
    with pytest.raises(UnreadableValueError, match="'value' is new and has no default"):
        codec.decode(tree)


def test_a_member_that_an_enum_has_made_up_is_refused_before_it_is_stored() -> None:
    with pytest.raises(UnserializableValueError, match=r"pass args\[0\]\.value instead"):
        codec.encode(Open(5), path="args[0]")


@pytest.mark.skipif(importlib.util.find_spec("pydantic") is None, reason="pydantic is not installed")
def test_a_pydantic_model_holds_the_same_after_each_round_trip() -> None:
    from unit import pydantic_types as types

    for value in (types.Growing(count=3, loose=1), types.Swapped(a=1, b=2)):
        value.model_fields_set.discard("seen")
        first = tree_of(value)
        once = codec.decode(first)

        assert once.model_dump() == value.model_dump()
        assert once.model_fields_set == value.model_fields_set
        assert tree_of(once) == first == tree_of(codec.decode(tree_of(once)))
    assert codec.decode(tree_of(types.Growing(count=3))).double() == 12
    assert codec.decode(tree_of(types.Growing(count=3))).has_private()
