"""Values to trees; see the package."""

from __future__ import annotations

import base64
import enum
import json
import math
import zoneinfo
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import MappingProxyType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from ckworkflow.codec import classes, hints
from ckworkflow.errors import UnserializableValueError
from ckworkflow.foreign import is_interrupt, suppressed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pydantic import BaseModel

    from ckworkflow.model import Json

DEEPEST: Final = 100
"""Levels that a value may be nested; JSON libraries and Python's stack bear a few times as many."""

# Python refuses to turn ints of more than 4,300 digits into decimal text, both ways; hexadecimal has no limit.
_LONGEST_DECIMAL_BITS: Final = 1_024
_LONGEST_KEY: Final = 100
# A tree is made by `_Encoder`, which has met any circle before.
_to_text: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode
_to_ascii: Final = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def encode(value: object, *, path: str, ref: Callable[[object], Json | None] | None = None) -> Json:
    """Return a JSON tree that `decode` turns back into an equal value of the same type.

    Args:
        value: What to store. It is not kept: the tree shares nothing with it.
        path: What to call it in errors, as Python would reach it (`args[0]`).
        ref: Asked first about each object inside (`None`, numbers and text apart); what it answers, unless
            `None`, is stored in place of the object, and given to the `ref` of `decode`.

    Raises:
        UnserializableValueError: Something in it has no stored form, or its own code raised when it was read; the
            error names the path.
    """
    try:
        return _Encoder(ref).tree(value)
    except _RefusedError as refused:
        where = path + "".join(reversed(refused.steps))
        hint = refused.hint.replace("<path>", where)
        raise UnserializableValueError(where, refused.value, hint) from None


def dumps(tree: Json) -> str:
    """Return a tree as compact JSON text; the order of keys is kept."""
    text = _to_text(tree)
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, as cutting an emoji in two leaves it: no database takes it as it is.
        return _to_ascii(tree)
    return text


class _RefusedError(Exception):
    """On its way out of the encoder: each level adds its step of the path."""

    def __init__(self, value: object, hint: str) -> None:
        super().__init__(hint)
        self.value, self.hint = value, hint
        self.steps: list[str] = []


# -- leaves: values that hold no others ------------------------------------------------------------


def _zoned(value: datetime | time) -> Json:
    # A zone of the IANA database goes by its name: an offset alone would lose summer time.
    if isinstance(value.tzinfo, zoneinfo.ZoneInfo) and value.tzinfo.key:
        return [value.replace(tzinfo=None).isoformat(), value.tzinfo.key, value.fold]
    if value.fold:
        return [value.isoformat(), None, value.fold]
    return value.isoformat()


def _in_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


_LEAVES: Final[Mapping[type, tuple[str, Callable[[Any], Json]]]] = MappingProxyType(
    {
        datetime: ("datetime", _zoned),
        date: ("date", date.isoformat),
        time: ("time", _zoned),
        timedelta: ("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
        UUID: ("uuid", str),
        Decimal: ("decimal", str),
        bytes: ("bytes", _in_base64),
    }
)


def _number_or_text(value: Any, kind: type) -> Json:
    """Return the tree of an exact str, int or float."""
    tree: Json = value
    if kind is str:
        if not _is_plain(value):
            tree = {"$": "str", "v": _in_base64(value.encode("utf-8", "surrogatepass"))}
    elif kind is float:
        if not math.isfinite(value):
            tree = {"$": "float", "v": repr(value)}
    elif value.bit_length() > _LONGEST_DECIMAL_BITS:
        tree = {"$": "int", "v": hex(value)}
    return tree


def _is_plain(text: str) -> bool:
    """Whether every database and JSON reader keeps this text: not NUL, not half of a surrogate pair."""
    if "\0" in text:
        return False
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


# -- containers and objects ------------------------------------------------------------------------


class _Encoder:
    """One `encode`: knows the containers that it is inside of."""

    __slots__ = ("_inside", "_ref")

    def __init__(self, ref: Callable[[object], Json | None] | None) -> None:
        self._ref = ref
        self._inside: set[int] = set()

    def tree(self, value: Any) -> Json:
        """Return the tree of a value."""
        kind = type(value)
        if value is None or kind is bool:
            tree: Json = value
            return tree
        if kind is str or kind is int or kind is float:
            return _number_or_text(value, kind)
        if self._ref is not None:
            answer = self._ref(value)
            if answer is not None:
                return {"$": "ref", "v": answer}
        try:
            leaf = _LEAVES.get(kind)
            if leaf is not None:
                return {"$": leaf[0], "v": leaf[1](value)}
            return self._compound(value, kind)
        except _RefusedError:
            raise
        except BaseException as error:  # the class of the value, or of its time zone, may raise anything
            if is_interrupt(error):
                raise
            raise _RefusedError(value, hints.raised(error)) from None

    def _compound(self, value: object, kind: type) -> Json:
        if id(value) in self._inside:
            raise _RefusedError(value, hints.CYCLE)
        if len(self._inside) >= DEEPEST:
            raise _RefusedError(
                value, f"It is nested more than {DEEPEST} levels deep: pass flatter data."
            )
        self._inside.add(id(value))
        try:
            encoder = _CONTAINERS.get(kind, _Encoder.object_)
            return encoder(self, value)
        finally:
            self._inside.discard(id(value))

    def list_(self, value: list[object]) -> Json:
        return self._items(value)

    def tuple_(self, value: tuple[object, ...]) -> Json:
        return {"$": "tuple", "v": self._items(value)}

    def set_(self, value: set[object] | frozenset[object]) -> Json:
        # The order of a set differs between processes; the digest of arguments must not.
        members = [self._child(member, _a_member) for member in value]
        return {"$": type(value).__name__, "v": sorted(members, key=dumps)}

    def dict_(self, value: dict[Any, Any]) -> Json:
        if "$" not in value and all(type(key) is str and _is_plain(key) for key in value):
            return self._named(value.items(), _subscript)
        pairs: list[Json] = []
        for key, item in value.items():
            pairs.append([self._child(key, _a_key), self._child(item, _subscript, key)])
        return {"$": "dict", "v": pairs}

    def object_(self, value: Any) -> Json:
        kind = type(value)
        registration = classes.registered.get(kind)
        if registration is not None:
            return {"$": "class", "t": registration.name, "v": self.tree(registration.to_json(value))}
        if isinstance(value, enum.Enum):
            return self._enum(value)
        hint = hints.discord_hint(value)
        if hint is not None:
            raise _RefusedError(value, hint)
        if classes.is_namedtuple(kind):
            # Its items, whatever the class makes of their names.
            return self._fields(
                "namedtuple", value, zip(kind._fields, tuple.__iter__(value), strict=False)
            )
        if classes.is_model(kind):
            return self._model(value)
        if classes.is_plain_dataclass(kind):
            if classes.keeps_state_apart(value):
                return self._instance(value)
            return self._fields("dataclass", value, _attributes(value, classes.field_names(kind)))
        if classes.is_attrs(kind):
            names = [field.name for field in kind.__attrs_attrs__]
            return self._fields("attrs", value, _attributes(value, names))
        raise _RefusedError(value, hints.hint(value))

    def _enum(self, value: enum.Enum) -> Json:
        place = _place(value)
        if type(value).__members__.get(value._name_) is value:
            return {"$": "enum", "t": place, "v": value._name_}
        if not isinstance(value, enum.Flag):
            raise _RefusedError(value, "It is no member of its class: pass <path>.value instead.")
        # A combination of flags has no name of its own.
        return {"$": "flag", "t": place, "v": self.tree(value._value_)}

    def _model(self, value: BaseModel) -> Json:
        state = value.__dict__
        items = [(name, state[name]) for name in type(value).model_fields if name in state]
        tree = self._fields("pydantic", value, [*items, *(value.model_extra or {}).items()])
        return {**tree, "set": sorted(value.model_fields_set)}

    def _fields(self, tag: str, value: object, items: Iterable[tuple[str, object]]) -> dict[str, Json]:
        return {"$": tag, "t": _place(value), "v": self._named(items, _attribute)}

    def _instance(self, value: object) -> Json:
        # As pickling does it: what the object holds, past the code that its class puts in front of that.
        place = _place(value)
        attributes = getattr(value, "__dict__", {})
        if "$" in attributes:
            raise _RefusedError(
                value, "It has an attribute named '$': pass its fields in a dict instead."
            )
        held = {
            name: slot.__get__(value)
            for name, slot in classes.slots(type(value)).items()
            if _is_set(slot, value)
        }
        trees: list[Json] = [
            self._named(attributes.items(), _attribute),
            self._named(held.items(), _attribute),
        ]
        return {"$": "instance", "t": place, "v": trees}

    def _items(self, values: list[object] | tuple[object, ...]) -> list[Json]:
        trees: list[Json] = []
        try:
            for value in values:
                trees.append(self.tree(value))  # noqa: PERF401  # its length is the index of what is refused
        except _RefusedError as refused:
            refused.steps.append(f"[{len(trees)}]")
            raise
        return trees

    def _named(
        self, items: Iterable[tuple[str, object]], step: Callable[[object], str]
    ) -> dict[str, Json]:
        return {name: self._child(value, step, name) for name, value in items}

    def _child(self, value: object, step: Callable[[object], str], key: object = None) -> Json:
        try:
            return self.tree(value)
        except _RefusedError as refused:
            # Worked out only now: values that are not refused need no path.
            refused.steps.append(step(key))
            raise


def _attributes(value: object, names: Iterable[str]) -> Iterator[tuple[str, object]]:
    """Give the attributes that are set, past a `__getattribute__` or `__getattr__` of the class."""
    for name in names:
        try:
            yield name, object.__getattribute__(value, name)
        except AttributeError:
            continue


def _is_set(slot: MemberDescriptorType, value: object) -> bool:
    try:
        slot.__get__(value)
    except AttributeError:
        return False
    return True


def _attribute(name: object) -> str:
    return f".{name}"


def _subscript(key: object) -> str:
    text = ""
    with suppressed():  # the repr of the user's class, or of an int of 5,000 digits
        text = str.__str__(repr(key))
    if not text:
        return "[...]"
    return f"[{text}]" if len(text) <= _LONGEST_KEY else "[...]"


def _a_key(_key: object) -> str:
    return " (a key)"


def _a_member(_key: object) -> str:
    return " (a member)"


_CONTAINERS: Final[Mapping[type, Callable[[_Encoder, Any], Json]]] = MappingProxyType(
    {
        dict: _Encoder.dict_,
        list: _Encoder.list_,
        tuple: _Encoder.tuple_,
        set: _Encoder.set_,
        frozenset: _Encoder.set_,
    }
)


def _place(value: object) -> str:
    reason = classes.why_unstorable(type(value))
    if reason is not None:
        raise _RefusedError(value, reason)
    return classes.place(type(value))
