"""The codec: what goes in comes out, equal and of the same type; the rest is refused by its path."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import enum
import importlib.util
import math
import subprocess
import sys
import types
import warnings
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckworkflow import codec
from ckworkflow.errors import UnreadableValueError, UnserializableValueError
from unit import attrs_types
from unit.codec_types import (
    Box,
    Colour,
    Doubling,
    Fault,
    Frozen,
    Level,
    Member,
    Money,
    Old,
    Point,
    Rights,
    Shout,
    Word,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # discord.py imports audioop
    import discord
    from discord.ext import commands


def through(value: Any) -> Any:
    """What a value is after it has been to the database."""
    return codec.decode(codec.loads(codec.dumps(codec.encode(value, path="value"))))


def same(one: Any, other: Any) -> bool:
    """Equal, of equal types all the way down, and with NaN equal to itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=False)
        return len(one) == len(other) and all(same(list(a), list(b)) for a, b in pairs)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if dataclasses.is_dataclass(one):
        return same(vars(one), vars(other)) if hasattr(one, "__dict__") else repr(one) == repr(other)
    if isinstance(one, (set, frozenset)):
        return sorted(map(repr, one)) == sorted(map(repr, other))
    if isinstance(one, float):
        return math.isnan(one) == math.isnan(other) and repr(one) == repr(other)
    if isinstance(one, Decimal):
        return str(one) == str(other)
    return bool(one == other) or repr(one) == repr(other)


BERLIN = ZoneInfo("Europe/Berlin")

VALUES = [
    None, True, False, 0, 1, -1, 2**63, -(2**64), 123456789012345678, 10**5000, -(10**5000), {10**5000: 1},
    0.0, -0.0, 1.0, 0.1, 1e308, 5e-324, math.inf, -math.inf, math.nan,
    "", "text", "héllo 😉", "nul \0 in it", "half \ud83d a pair", "\ud83d\ude09", '{"$": "ref"}',
    [], [[]], [1, "a", None], (), (1,), ((1, 2), [3]), {}, {"a": {"b": []}},
    {"$": "ref", "v": 1}, {"$": "tuple"}, {"a": {"$": None}}, {1: "a", None: "b", False: "c", (1, 2): "d", 1.5: "e"},
    {"k\0": 1}, {"k\ud800": 1}, {"z": 1, "a": 2},
    set(), {1, 2, 3}, frozenset({"a", ("b", 1)}), {frozenset({1})},
    b"", b"\x00\xff bytes",
    datetime(2026, 1, 2, 3, 4, 5, 6), datetime(2026, 1, 2, tzinfo=UTC),  # noqa: DTZ001
    datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    datetime.min, datetime.max,  # noqa: DTZ901
    datetime(2026, 7, 2, tzinfo=BERLIN), datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
    date(2026, 1, 2), time(3, 4, 5, 6), time(3, 4, tzinfo=UTC), time(3, 4, tzinfo=BERLIN, fold=1),
    timedelta(days=-1, seconds=5, microseconds=7), timedelta.max, timedelta(0),
    UUID(int=0), UUID("12345678-1234-5678-1234-567812345678"),
    Decimal("1.10"), Decimal("-0"), Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), Decimal("1E+1000"),
    Colour.RED, Colour.GREEN, Colour.ROSE, Level.HIGH, Word.YES, Rights.READ, Rights.READ | Rights.WRITE, Rights(0),
    Point(1), Point(2, 3.5), Old("a", [1]), Member.Badge("x"),
    Member("ann", [1, 2], Colour.GREEN), Frozen(datetime(2026, 1, 2, tzinfo=UTC), Member("bob")), Box(Box((1,))),
    {"members": [Member("ann"), {Level.LOW: (Point(1), {b"x"})}]}, {Word.YES: 1, Level.LOW: 2},
]  # fmt: skip


def short(value: Any) -> str:
    if isinstance(value, frozenset | set):
        return f"{type(value).__name__} of {len(value)}"  # its order differs from process to process
    try:
        return ascii(value)[:40]
    except ValueError:
        return "long int"


@pytest.mark.parametrize("value", VALUES, ids=short)
def test_a_value_comes_back_equal_and_of_its_type(value: Any) -> None:
    assert same(through(value), value)


def test_a_zone_keeps_its_name_so_that_summer_time_still_works() -> None:
    day_before = datetime(2026, 3, 28, 12, tzinfo=BERLIN)
    assert through(day_before).tzinfo is BERLIN
    assert (through(day_before) + timedelta(days=1)).utcoffset() == timedelta(hours=2)


def test_the_second_of_two_equal_hours_stays_the_second() -> None:
    for moment in (datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1), datetime(2026, 1, 1, fold=1)):  # noqa: DTZ001
        assert through(moment).fold == 1


def test_a_dataclass_comes_back_without_its_post_init_running_again() -> None:
    stored = through(Doubling(5))
    assert (stored.value, stored.made) == (10, 11)
    assert not hasattr(stored, "unset")


def test_plain_json_is_stored_as_it_is() -> None:
    value = {"b": [1, 2.5, None, True, "é"], "a": {}}
    assert codec.encode(value, path="x") == value
    assert codec.dumps(codec.encode(value, path="x")) == '{"b":[1,2.5,null,true,"é"],"a":{}}'


def test_what_is_encoded_shares_nothing_with_the_tree() -> None:
    value: dict[str, Any] = {"list": [1]}
    tree = codec.encode(value, path="x")
    value["list"].append(2)
    assert codec.decode(tree) == {"list": [1]}
    assert codec.decode(tree)["list"] is not codec.decode(tree)["list"]


def test_a_list_that_stands_twice_comes_back_as_two() -> None:
    shared = [1]
    one, other = through([shared, shared])
    assert one == other
    assert one is not other


def test_the_tree_of_a_set_is_the_same_in_every_process() -> None:
    code = (
        "from ckworkflow import codec\n"
        "words = {f'word {n}' for n in range(50)} | {(n, 'x') for n in range(50)}\n"
        "print(codec.dumps(codec.encode(words, path='x')))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


# -- properties ------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(st.characters(), max_size=20),
    st.text(st.characters(categories=["Cs"]), max_size=3),
    st.binary(max_size=20),
    st.datetimes(timezones=st.none() | st.just(UTC) | st.timezones()),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.decimals(allow_nan=False),
    st.sampled_from([*Colour, *Level, *Word, *Rights]),
)
HASHABLE = st.one_of(
    st.integers(),
    st.text(max_size=10),
    st.booleans(),
    st.none(),
    st.uuids(),
    st.dates(),
    st.sampled_from(Level),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=5), st.just("$")), inner, max_size=4),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
        st.builds(Point, inner, inner),
        st.builds(Member, inner, st.lists(inner, max_size=2), inner),
        st.builds(Box, inner),
    ),
    max_leaves=15,
)


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_any_value_comes_back(value: Any) -> None:
    assert same(through(value), value)


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_what_came_back_has_the_tree_of_what_went_in(value: Any) -> None:
    tree = codec.encode(value, path="x")
    assert codec.dumps(codec.encode(codec.decode(tree), path="x")) == codec.dumps(tree)


# -- refusals --------------------------------------------------------------------------------------


def refusal(value: Any, path: str = "args[0]") -> UnserializableValueError:
    with pytest.raises(UnserializableValueError) as caught:
        codec.encode(value, path=path)
    return caught.value


class _Opaque:
    pass


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (_Opaque(), "args[0]"),
        ([1, {"rows": (0, _Opaque())}], "args[0][1]['rows'][1]"),
        (Member("ann", [_Opaque()]), "args[0].roles[0]"),  # type: ignore[list-item]
        (Point(_Opaque()), "args[0].x"),  # type: ignore[arg-type]
        ({1: _Opaque()}, "args[0][1]"),
        ({"{}": _Opaque()}, "args[0]['{}']"),
        ({"it's": _Opaque()}, 'args[0]["it\'s"]'),
        ({_Opaque: 1}, "args[0] (a key)"),
        ({"a": {len}}, "args[0]['a'] (a member)"),
        ([{"a": _Opaque()}], "args[0][0]['a']"),
        ({10**5000: _Opaque()}, "args[0][...]"),
        ({"k" * 1000: _Opaque()}, "args[0][...]"),
    ],
)
def test_the_error_names_the_path_of_the_value(value: Any, path: str) -> None:
    error = refusal(value)
    assert error.path == path
    assert str(error).startswith(f"{path} is a ")


def _coroutine() -> Any:
    coroutine = asyncio.sleep(0)
    coroutine.close()
    return coroutine


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (Shout("hey"), "pass str(args[0])"),
        (collections.OrderedDict(a=1), "pass dict(args[0])"),
        (collections.deque([1]), "list(args[0])"),
        (types.MappingProxyType({}), "dict(args[0])"),
        ({}.keys(), "list(args[0])"),
        (iter([1]), "list(args[0])"),
        ((n for n in [1]), "list(args[0])"),
        (range(3), "list(args[0])"),
        (bytearray(b"x"), "bytes(args[0])"),
        (Path("x"), "str(args[0])"),
        (ValueError("x"), "str(args[0])"),
        (Fault("x"), "str(args[0])"),
        (_coroutine(), "not awaited"),
        (print, "Code is not stored"),
        (Member, "Code is not stored"),
        (_Opaque(), "Pass JSON values, datetimes, enums, dataclasses or an id instead; register_type()"),
        (1j, "Pass JSON values"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_error_says_what_to_pass_instead(value: Any, hint: str) -> None:
    assert hint in str(refusal(value))


def _discord_objects() -> list[tuple[Any, str]]:
    class MyBot(commands.Bot):
        pass

    def bare(cls: type) -> Any:
        return cls.__new__(cls)

    return [
        (bare(discord.User), "Pass its id instead: args[0].id"),
        (bare(discord.Member), "Pass its id instead: args[0].id"),
        (bare(discord.TextChannel), "Pass its id instead: args[0].id"),
        (discord.Object(1), "Pass its id instead: args[0].id"),
        (bare(discord.Interaction), "args[0].user.id"),
        (bare(commands.Context), "args[0].author.id"),
        (bare(MyBot), "use_client()"),
        (discord.Embed(), "args[0].to_dict()"),
    ]


@pytest.mark.parametrize(("value", "hint"), _discord_objects(), ids=lambda value: type(value).__name__)
def test_a_discord_object_is_refused_with_what_to_pass_instead(value: Any, hint: str) -> None:
    assert hint in str(refusal(value))
    assert hint.replace("args[0]", "args[0]['user']") in str(refusal({"user": value}))


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = [1]
    loop.append({"again": loop})
    assert refusal(loop).path == "args[0][1]['again']"
    member = Member("ann")
    member.roles.append(member)  # type: ignore[arg-type]
    assert "cycle" in str(refusal(member))


def test_a_value_nested_without_end_is_refused_before_python_gives_up() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    assert "nested more than 100 levels" in str(refusal(deep))


def test_a_value_at_the_depth_limit_goes_through() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = {1: deep}
    assert through(deep) == deep


def test_a_class_that_no_worker_can_import_is_refused() -> None:
    @dataclass
    class Local:
        x: int

    class LocalEnum(enum.Enum):
        A = 1

    for value in (Local(1), LocalEnum.A):
        assert "defined inside a function" in str(refusal(value))

    hidden = enum.Enum("Hidden", "A", module=__name__)
    assert "cannot import its class" in str(refusal(hidden["A"]))


def test_a_class_of_the_main_script_is_refused() -> None:
    code = (
        "import dataclasses\n"
        "from ckworkflow import codec\n"
        "@dataclasses.dataclass\n"
        "class Mine: x: int\n"
        "try: codec.encode([Mine(1)], path='args')\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "args[0] is a __main__.Mine" in done.stdout
    assert "move the class to a module" in done.stdout


# -- references ------------------------------------------------------------------------------------


def test_a_reference_is_stored_in_place_of_what_it_is_for() -> None:
    stand_in = object()

    def to_ref(value: object) -> Any:
        return ["0:1", []] if value is stand_in else None

    tree = codec.encode({"a": [stand_in, 1], "b": Point(stand_in)}, path="x", ref=to_ref)  # type: ignore[arg-type]
    value = codec.decode(tree, ref=lambda answer: (answer, "found"))

    assert value == {"a": [(["0:1", []], "found"), 1], "b": Point((["0:1", []], "found"))}  # type: ignore[arg-type]


def test_a_reference_where_only_values_may_be_is_our_own_bug() -> None:
    with pytest.raises(RuntimeError, match="internal error of ckworkflow"):
        codec.decode({"$": "ref", "v": 1})


def test_data_that_looks_like_a_reference_is_data() -> None:
    assert through({"$": "ref", "v": ["0:1", []]}) == {"$": "ref", "v": ["0:1", []]}


# -- registered classes ----------------------------------------------------------------------------


@pytest.fixture
def money() -> Any:
    from ckworkflow.codec import classes

    codec.register_type(
        Money, name="money", to_json=lambda money: (money.cents,), from_json=lambda data: Money(data[0])
    )
    yield Money
    classes.registered.pop(Money)
    classes.registered_names.pop("money")


def test_a_registered_class_comes_back(money: Any) -> None:
    assert through([money(5)]) == [money(5)]


def test_a_name_is_registered_for_one_class(money: Any) -> None:
    codec.register_type(
        Money, name="money", to_json=lambda money: (money.cents,), from_json=lambda data: Money(data[0])
    )
    with pytest.raises(ValueError, match="'money' is registered for unit.codec_types:Money"):
        codec.register_type(Member, name="money", to_json=str, from_json=Member)


@pytest.mark.parametrize("cls", [int, list, datetime, type(None), "Money", Money(1)])
def test_only_a_class_that_is_not_stored_as_it_is_can_be_registered(cls: Any) -> None:
    with pytest.raises(TypeError, match="stored as it is|takes a class"):
        codec.register_type(cls, name="mine", to_json=str, from_json=str)


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", 7, None])
def test_a_class_is_registered_under_a_name_that_can_be_printed(name: Any) -> None:
    with pytest.raises(ValueError, match="printable"):
        codec.register_type(Money, name=name, to_json=str, from_json=Money)


def test_a_registered_class_that_this_process_does_not_know_is_named() -> None:
    with pytest.raises(UnreadableValueError, match=r"'gold'.*no class is registered"):
        codec.decode({"$": "class", "t": "gold", "v": 1})


# -- other deploys ---------------------------------------------------------------------------------


def test_a_field_with_a_default_may_be_added_and_one_may_go() -> None:
    place = "unit.codec_types:Member"
    assert codec.decode({"$": "dataclass", "t": place, "v": {"name": "ann", "gone": 1}}) == Member("ann")
    assert codec.decode(
        {"$": "namedtuple", "t": "unit.codec_types:Point", "v": {"x": 1, "gone": 2}}
    ) == Point(1)


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        (
            {"$": "dataclass", "t": "unit.codec_types:Member", "v": {}},
            "field 'name' is new and has no default",
        ),
        (
            {"$": "namedtuple", "t": "unit.codec_types:Point", "v": {}},
            "field 'x' is new and has no default",
        ),
        ({"$": "dataclass", "t": "unit.nowhere:Member", "v": {}}, "cannot be imported"),
        ({"$": "dataclass", "t": "unit.codec_types:Gone", "v": {}}, "cannot be imported"),
        ({"$": "dataclass", "t": "unit.codec_types:Colour", "v": {}}, "is no dataclass any more"),
        ({"$": "enum", "t": "unit.codec_types:Colour", "v": "BLUE"}, "KeyError: 'BLUE'"),
        ({"$": "datetime", "v": "yesterday"}, "ValueError"),
        ({"$": "datetime", "v": ["2026-01-01", "Europe/Atlantis", 0]}, "ZoneInfoNotFoundError"),
        ({"$": "hologram", "v": 1}, "does not know the type"),
    ],
)
def test_a_value_that_this_code_cannot_rebuild_says_why(tree: Any, reason: str) -> None:
    with pytest.raises(UnreadableValueError) as caught:
        codec.decode(tree)
    assert reason in str(caught.value)
    assert "another deploy" in str(caught.value)


def test_an_object_of_a_reloaded_class_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reloaded_types.py").write_text("import enum\nclass E(enum.Enum):\n    A = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("reloaded_types")
    old = module.E.A
    importlib.reload(module)
    try:
        assert through(old) is module.E.A
    finally:
        del sys.modules["reloaded_types"]


# -- attrs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        attrs_types.Warning(["spam"], attrs_types.Author("ada", 7)),
        attrs_types.Slotless(1, note="x"),
        attrs_types.Hashed("a", 2),
        attrs_types.HashedDict("a"),
        attrs_types.Special("ada"),
        attrs_types.Old(1, [2]),
    ],
)
def test_a_class_of_attrs_comes_back(value: Any) -> None:
    back = through(value)

    assert back == value
    assert type(back) is type(value)
    assert attrs.asdict(back) == attrs.asdict(value)
    if type(value).__hash__ is not None:
        assert hash(back) == hash(value)


def test_converters_and_validators_of_attrs_do_not_run_again() -> None:
    doubled = attrs_types.Doubled(2)
    assert doubled.number == 4
    attrs_types.RUNS.clear()

    back = through(doubled)

    assert back.number == 4
    assert attrs_types.RUNS == []


def test_a_field_of_attrs_that_is_new_has_its_default() -> None:
    place = "unit.attrs_types:Grown"
    grown = codec.decode({"$": "attrs", "t": place, "v": {"name": "ada"}})

    assert grown == attrs_types.Grown("ada")
    assert (grown.size, grown.tags, grown.own) == (3, [], "ada!")
    with pytest.raises(UnreadableValueError, match="'name' is new and has no default"):
        codec.decode({"$": "attrs", "t": place, "v": {}})
    with pytest.raises(UnreadableValueError, match="no attrs any more"):
        codec.decode({"$": "attrs", "t": "unit.codec_types:Money", "v": {}})


def test_an_error_of_attrs_is_no_value() -> None:
    with pytest.raises(UnserializableValueError, match=r"str\(x\)"):
        codec.encode(attrs_types.Failure("no"), path="x")


# -- pydantic --------------------------------------------------------------------------------------

needs_pydantic = pytest.mark.skipif(
    importlib.util.find_spec("pydantic") is None, reason="pydantic is not installed"
)


@needs_pydantic
def test_a_pydantic_model_comes_back_without_its_validators_running_again() -> None:
    from unit import pydantic_types as types

    order = types.Order(
        item=types.Fancy(name="hat", price=Decimal("1.10"), note="red"), count=2, extra_one=[1]
    )
    back = through(order)

    assert back == order
    assert type(back.item) is types.Fancy
    assert back.count == order.count == 20
    assert back.model_fields_set == order.model_fields_set
    assert back.model_extra == {"extra_one": [1]}
    assert through(types.Numbers([1, 2])) == types.Numbers([1, 2])
