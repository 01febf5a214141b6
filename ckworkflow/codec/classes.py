"""Classes in stored values: what they are called, how they are found again, which of them are known.

Not here: the values themselves (`encoding`, `decoding`).
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import types
import weakref
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Registration:
    """A class that somebody has taught the codec; see `register_type`."""

    cls: type
    name: str
    to_json: Callable[[Any], object]
    from_json: Callable[[Any], object]


registered: Final[dict[type, Registration]] = {}
registered_names: Final[dict[str, Registration]] = {}


def register_type(
    cls: type[T], *, name: str, to_json: Callable[[T], object], from_json: Callable[[Any], T]
) -> None:
    """Let values of a class be arguments and results; every process that meets them must do so.

        register_type(Money, name="money", to_json=lambda money: money.cents, from_json=Money)

    Call it in the module of the class, or in one that is imported wherever workflows are. A stored value whose name nobody
    has registered cannot be read, and holds its run until somebody has.

    Args:
        cls: The class; its subclasses are classes of their own. A reloaded class takes its place again.
        name: What it is called in the database, for ever.
        to_json: Gives what to store, made of anything that can be stored.
        from_json: Makes an equal object of that.

    Raises:
        TypeError: `cls` is no class, or one of those that are stored as what they are (`int`, `list`, `datetime`).
        ValueError: The name is empty, or another class has it.
    """
    given: object = cls  # annotations bind nobody at run time
    called: object = name
    if not isinstance(given, type):
        msg = f"register_type() takes a class, and {given!r} is none"
        raise TypeError(msg)
    if cls in _BUILTINS or cls is type(None):
        msg = f"{cls.__name__} is stored as it is, and needs no name"
        raise TypeError(msg)
    if not isinstance(called, str) or not called or not called.isprintable():
        msg = f"a class is stored under a name of printable characters, and {name!r} is none"
        raise ValueError(msg)
    other = registered_names.get(name)
    if other is not None and place(other.cls) != place(cls):
        msg = f"The name {name!r} is registered for {place(other.cls)}; give {place(cls)} another one."
        raise ValueError(msg)
    registered[cls] = registered_names[name] = Registration(cls, name, to_json, from_json)


def place(cls: type) -> str:
    """Return where a class is imported from, as it is stored: `module:qualname`."""
    return f"{cls.__module__}:{cls.__qualname__}"


_trusted: Final[set[str]] = set()


def trust(packages: Iterable[str]) -> None:
    """Allow the modules of these packages to be imported for a class that a stored value or error names.

    Of others only what this process has imported is used: whoever can write to the database must not choose what code
    runs here.
    """
    _trusted.update(packages)


def find(module: str, qualname: str) -> object:
    """Return what was defined at a place.

    Raises:
        ImportError: There is no such module, or it may not be imported; importing it may raise anything else.
        LookupError: Nothing of that name was defined there.
    """
    found: object = sys.modules.get(module)
    if found is None:
        if not _is_trusted(module):
            msg = f"module {module} is not imported in this process, and not under workflow_packages"
            raise ImportError(msg)
        found = importlib.import_module(module)
    for name in qualname.split("."):
        # Not `getattr`: that runs code of modules which import what is asked of them.
        found = vars(found)[name]
    return found


def _is_trusted(module: str) -> bool:
    """Whether a module may be imported; what its author keeps for `python -m` never."""
    parts = module.split(".")
    parents = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return "__main__" not in parts and not _trusted.isdisjoint(parents)


def why_unstorable(cls: type) -> str | None:
    """Return why no worker could import a class, and what to do; `None` for one that it can."""
    name = cls.__qualname__
    if cls.__module__ == "__main__":
        return (
            f"{name} is defined in __main__, the script that was started, which a worker knows by another "
            f"name: move the class to a module of its own."
        )
    if "<locals>" in name:
        return (
            f"{name} is defined inside a function, where no worker can import it: move it to its module."
        )
    try:
        found = find(cls.__module__, name)
    except (ImportError, LookupError, TypeError):
        found = None
    # Not `is cls`: the old objects of a reloaded module are still good.
    if not isinstance(found, type) or found.__qualname__ != name:
        return f"A worker cannot import its class as {place(cls)}: give it that name there."
    return None


def is_namedtuple(cls: type) -> bool:
    """Whether it is made by `namedtuple` or `NamedTuple`."""
    return issubclass(cls, tuple) and hasattr(cls, "_fields") and hasattr(cls, "_make")


def is_model(cls: type) -> bool:
    """Whether it is a model of pydantic, 2 or later."""
    # Asked of what is imported: a class can only be a model if pydantic is.
    model = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    return isinstance(model, type) and issubclass(cls, model) and hasattr(cls, "model_construct")


def is_attrs(cls: type) -> bool:
    """Whether it is a class of attrs whose fields are all that there is to it."""
    is_more = builtin_base(cls) is not None or issubclass(cls, BaseException)
    return hasattr(cls, "__attrs_attrs__") and not is_more


def is_plain_dataclass(cls: type) -> bool:
    """Whether its fields are all that there is to it."""
    is_more = builtin_base(cls) is not None or issubclass(cls, BaseException)
    return dataclasses.is_dataclass(cls) and not is_more


def field_names(cls: type) -> tuple[str, ...]:
    """Return the names of a dataclass's fields."""
    return _shape(cls)[0]


def keeps_state_apart(value: object) -> bool:
    """Whether a field of a dataclass is not what is stored under its name, but what code of the class makes of that.

    A property, say: to read it and to set it again would run that code, and each time change the value.
    """
    computed = _shape(type(value))[1]
    if not computed:
        return False
    # What is no data descriptor (a function that is a default) gives way to what the object holds.
    state = getattr(value, "__dict__", {})
    return any(is_data or name not in state for name, is_data in computed.items())


def is_computed(cls: type, name: str) -> bool:
    """Whether what a class has under the name of a field is code, and no default."""
    return name in _shape(cls)[1]


_Shape: TypeAlias = tuple[tuple[str, ...], dict[str, bool]]
_shapes: Final[weakref.WeakKeyDictionary[type, _Shape]] = weakref.WeakKeyDictionary()


def _shape(cls: type) -> _Shape:
    """The names of a dataclass's fields, and those that a descriptor stands for: whether it is a data descriptor."""
    found = _shapes.get(cls)
    if found is None:
        names = tuple(field.name for field in dataclasses.fields(cls))
        computed = {}
        for name in names:
            # A slot is where the value is; anything else with these methods is code.
            static = next((base.__dict__[name] for base in cls.__mro__ if name in base.__dict__), None)
            kind = type(static)
            is_data = hasattr(kind, "__set__") or hasattr(kind, "__delete__")
            if kind is not types.MemberDescriptorType and (is_data or hasattr(kind, "__get__")):
                computed[name] = is_data
        found = _shapes[cls] = names, computed
    return found


def slots(cls: type) -> dict[str, types.MemberDescriptorType]:
    """Return the slots of a class and its bases, by the names of their descriptors."""
    found: dict[str, types.MemberDescriptorType] = {}
    for base in cls.__mro__:
        for name, descriptor in base.__dict__.items():
            if isinstance(descriptor, types.MemberDescriptorType):
                found.setdefault(name, descriptor)
    return found


_BUILTINS: Final = (
    *(bool, int, float, str, bytes, dict, list, set, frozenset, tuple),
    *(datetime, date, time, timedelta, Decimal, UUID),
)


def builtin_base(cls: type) -> type | None:
    """Return the class among those with a stored form that this one descends from, if any."""
    return next((base for base in _BUILTINS if issubclass(cls, base)), None)
