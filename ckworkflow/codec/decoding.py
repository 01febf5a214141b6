"""Trees to values; see the package."""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import sys
import zoneinfo
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeAlias
from uuid import UUID

from ckworkflow.codec import classes
from ckworkflow.errors import UnreadableValueError
from ckworkflow.foreign import describe, is_interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import BaseModel

    from ckworkflow.model import Json

    _Tagged: TypeAlias = Mapping[str, Any]
    """A tree with a tag, which says what is under `v` and which keys there are besides."""
    _Build: TypeAlias = Callable[[Any], object]
    """Makes a value of what is under `v`."""


def decode(tree: Json, *, ref: Callable[[Json], object] | None = None) -> Any:
    """Return the value that `encode` made this tree of.

    Args:
        tree: A tree made by `encode`.
        ref: Gives the object for each answer of the `ref` of `encode`.

    Raises:
        UnreadableValueError: A class that the value needs cannot be imported, or has changed too much, or its own
            code raised.
        BaseException: What `ref` raises passes as it is.
    """
    decoder = _Decoder(ref)
    try:
        return decoder.value(tree)
    except UnreadableValueError:
        raise
    except (
        BaseException
    ) as error:  # a tree that `encode` did not make, or nested deeper than Python bears
        if error is decoder.passing or is_interrupt(error):
            raise
        raise UnreadableValueError("value", describe(error)) from error


def read_text(text: str) -> Json:
    """Return the tree that `dumps` made this text of.

    Raises:
        UnreadableValueError: The text is damaged.
    """
    try:
        tree: Json = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableValueError("value", f"its text is damaged ({describe(error)})") from error
    return tree


class _Decoder:
    """One `decode`."""

    __slots__ = ("_ref", "passing")

    def __init__(self, ref: Callable[[Json], object] | None) -> None:
        self._ref = ref
        self.passing: BaseException | None = None
        """What `ref` has raised."""

    def value(self, tree: Any) -> object:
        """Return the value of a tree."""
        kind = type(tree)
        if kind is list:
            return [self.value(item) for item in tree]
        if kind is not dict:
            return tree
        tag = tree.get("$")
        if tag is None:
            return {key: self.value(item) for key, item in tree.items()}
        if tag == "ref":
            return self._referred(tree["v"])
        leaf = _LEAVES.get(tag)
        if leaf is not None:
            return _guarded(tag, leaf, tree["v"])
        return self._compound(tag, tree)

    def _compound(self, tag: str, tree: _Tagged) -> object:
        container = _CONTAINERS.get(tag)
        data = self.value(tree["v"])
        if container is not None:
            return _guarded(tag, container, data)
        if tag == "class":
            return _registered(tree["t"], data)
        build = _OBJECTS.get(tag)
        if build is None:
            raise UnreadableValueError(repr(tag), "this version of ckworkflow does not know the type")
        return _guarded(f"{tag} {tree['t']}", build, _class(tag, tree["t"]), data, tree)

    def _referred(self, data: Json) -> object:
        try:
            if self._ref is None:
                msg = f"internal error of ckworkflow: a reference, {data!r}, where only values may be"
                raise RuntimeError(msg)  # noqa: TRY301  # it passes like those of `ref`
            return self._ref(data)
        except BaseException as error:
            self.passing = error
            raise


def _guarded(kind: str, build: Callable[..., object], *args: object) -> object:
    try:
        return build(*args)
    except UnreadableValueError:
        raise
    except BaseException as error:  # a class of the user's may raise anything
        if is_interrupt(error):
            raise
        raise UnreadableValueError(kind, describe(error)) from error


def _registered(name: str, data: object) -> object:
    registration = classes.registered_names.get(name)
    if registration is None:
        raise UnreadableValueError(
            repr(name),
            "no class is registered by this name: import the module that calls register_type()",
        )
    return _guarded(repr(name), registration.from_json, data)


def _class(tag: str, place: str) -> type:
    module, _, qualname = place.partition(":")
    try:
        cls = classes.find(module, qualname)
    except BaseException as error:  # importing runs the code of that module
        if is_interrupt(error):
            raise
        raise UnreadableValueError(
            f"{tag} {place}", f"its class cannot be imported ({describe(error)})"
        ) from error
    if not isinstance(cls, type) or not _FITS[tag](cls):
        raise UnreadableValueError(f"{tag} {place}", f"what has its name is no {tag} any more")
    return cls


# -- leaves and containers -------------------------------------------------------------------------


def _zoned(cls: type[datetime | time]) -> _Build:
    def build(data: str | tuple[str, str | None, int]) -> datetime | time:
        if isinstance(data, str):
            return cls.fromisoformat(data)
        text, key, fold = data
        value = cls.fromisoformat(text).replace(fold=fold)
        return value.replace(tzinfo=zoneinfo.ZoneInfo(key)) if key is not None else value

    return build


_LEAVES: Final[Mapping[str, _Build]] = MappingProxyType(
    {
        "datetime": _zoned(datetime),
        "date": date.fromisoformat,
        "time": _zoned(time),
        "timedelta": lambda data: timedelta(data[0], data[1], data[2]),
        "uuid": UUID,
        "decimal": Decimal,
        "bytes": base64.b64decode,
        "float": float,
        "int": lambda data: int(data, 16),
        "str": lambda data: base64.b64decode(data).decode("utf-8", "surrogatepass"),
    }
)
_CONTAINERS: Final[Mapping[str, _Build]] = MappingProxyType(
    {"dict": dict, "tuple": tuple, "set": set, "frozenset": frozenset}
)


# -- objects ---------------------------------------------------------------------------------------


def _enum(cls: type[enum.Enum], name: str, _tree: _Tagged) -> object:
    return cls[name]


def _flag(cls: type[enum.Flag], value: object, _tree: _Tagged) -> object:
    return cls(value)


def _namedtuple(cls: type[NamedTuple], stored: Mapping[str, object], _tree: _Tagged) -> object:
    values = {**cls._field_defaults, **stored}
    # Not `_make`, nor `__new__`: what a subclass does there was done when the value was made.
    return tuple.__new__(cls, [values[name] if name in values else _lost(name) for name in cls._fields])


def _dataclass(cls: type, stored: Mapping[str, object], _tree: _Tagged) -> object:
    # As unpickling: neither `__init__` nor `__post_init__` runs, which could change the values again.
    made: object = object.__new__(cls)
    for field in dataclasses.fields(cls):
        if field.name in stored:
            value = stored[field.name]
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        elif field.init:
            _lost(field.name)
        else:
            continue
        object.__setattr__(made, field.name, value)
    return made


def _attrs(cls: Any, stored: Mapping[str, object], _tree: _Tagged) -> object:
    # As `_dataclass`: converters and validators have seen the values once. The fields of attrs speak for themselves.
    attrs: Any = sys.modules["attr"]  # or there would be no such class
    made: object = object.__new__(cls)
    if "_attrs_cached_hash" in getattr(getattr(cls.__hash__, "__code__", None), "co_names", ()):
        object.__setattr__(made, "_attrs_cached_hash", None)  # as its `__init__` would
    for field in cls.__attrs_attrs__:
        if field.name in stored:
            value = stored[field.name]
        elif isinstance(field.default, attrs.Factory):
            value = field.default.factory(*([made] if field.default.takes_self else []))
        elif field.default is not attrs.NOTHING:
            value = field.default
        elif field.init:
            _lost(field.name)
        else:
            continue
        object.__setattr__(made, field.name, value)
    return made


def _instance(cls: type, stored: tuple[dict[str, object], dict[str, object]], _tree: _Tagged) -> object:
    # What `_dataclass` does for one whose fields are code: what the object held is put where it was.
    attributes, held = stored
    slots = classes.slots(cls)
    made: object = object.__new__(cls)
    for name, value in held.items():
        if name in slots:
            slots[name].__set__(made, value)
        else:
            attributes.setdefault(name, value)  # the class has lost its slots since
    if hasattr(made, "__dict__"):
        made.__dict__.update(attributes)
    for field in dataclasses.fields(cls):
        if field.name in attributes or field.name in held or classes.is_computed(cls, field.name):
            continue
        if field.default is not dataclasses.MISSING:
            object.__setattr__(made, field.name, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            object.__setattr__(made, field.name, field.default_factory())
        elif field.init:
            _lost(field.name)
    return made


def _model(cls: type[BaseModel], stored: Mapping[str, object], tree: _Tagged) -> object:
    # As for a dataclass: validators have seen the values once, and might change them again.
    for name, field in cls.model_fields.items():
        if name not in stored and field.is_required():
            _lost(name)
    made = cls.model_construct(_fields_set=set(tree["set"]), **stored)
    # Again: `model_post_init` has worked on them, which makes what is private anew, and `model_construct` takes a
    # name for an alias first.
    extra = made.__pydantic_extra__
    for name, value in stored.items():
        if name in cls.model_fields:
            vars(made)[name] = value
        elif extra is not None:
            extra[name] = value
    object.__setattr__(made, "__pydantic_fields_set__", set(tree["set"]))
    return made


def _lost(field: str) -> NoReturn:
    msg = f"its field {field!r} is new and has no default"
    raise LookupError(msg)


_OBJECTS: Final[Mapping[str, Callable[..., object]]] = MappingProxyType(
    {
        "enum": _enum,
        "flag": _flag,
        "namedtuple": _namedtuple,
        "dataclass": _dataclass,
        "instance": _instance,
        "attrs": _attrs,
        "pydantic": _model,
    }
)
_FITS: Final[Mapping[str, Callable[[type], bool]]] = MappingProxyType(
    {
        "enum": lambda cls: issubclass(cls, enum.Enum),
        "flag": lambda cls: issubclass(cls, enum.Flag),
        "namedtuple": classes.is_namedtuple,
        "dataclass": dataclasses.is_dataclass,
        "instance": dataclasses.is_dataclass,
        "attrs": classes.is_attrs,
        "pydantic": classes.is_model,
    }
)
