"""Deferred values: stand-ins for results that the body provably never looks at.

A deferred may be projected (`channel.id`, `m["roles"]`) and passed on; a step that gets one finds the
real value in SQL when it is claimed. Everything else that Python lets code do with a value raises
`DeferredLookError`, which only a bug of the laziness proof can cause.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import namedtuple
from collections.abc import Callable, Iterator
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, NoReturn

from ckworkflow.errors import CkWorkflowError
from ckworkflow.foreign import is_interrupt

if TYPE_CHECKING:
    from ckworkflow.model import Json
    from ckworkflow.tracing.nodes import TracedNode

_TUPLE_FIELD: type[object] = type(vars(namedtuple("_TUPLE_FIELD", "x"))["x"])  # noqa: PYI024  # only for its type

Path = tuple[tuple[str, str | int], ...]


class DeferredLookError(CkWorkflowError):
    """A body looked at a value that is not known yet. Only a bug of ckworkflow can raise this."""

    def __init__(self, operation: str, node: str) -> None:
        super().__init__(
            f"The body used {operation} on the result of {node} before it was known. This is a bug of "
            f"ckworkflow: please report it with the body's source."
        )


class UnresolvableError(CkWorkflowError):
    """A projection that only the body itself can evaluate (a property, a missing key)."""


class Deferred:
    """The result of a node, or a part of it, that is not known yet (or need not be)."""

    __slots__ = ("_ckw_node", "_ckw_path")
    _ckw_node: TracedNode
    _ckw_path: Path

    def __init__(self, node: TracedNode, path: Path = ()) -> None:
        object.__setattr__(self, "_ckw_node", node)
        object.__setattr__(self, "_ckw_path", path)

    def __getattr__(self, name: str) -> Deferred:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Deferred(self._ckw_node, (*self._ckw_path, ("attr", name)))

    def __getitem__(self, key: str | int) -> Deferred:
        if type(key) not in (str, int):
            raise DeferredLookError("a computed subscript", self._ckw_node.name)
        return Deferred(self._ckw_node, (*self._ckw_path, ("item", key)))

    def __repr__(self) -> str:
        return f"<deferred {self._ckw_node.name} {self._ckw_node.node_id}>"


def _refuse(operation: str) -> Callable[..., NoReturn]:
    def refuse(self: Deferred, *_: object) -> NoReturn:
        raise DeferredLookError(operation, self._ckw_node.name)

    return refuse


for _operation in [
    "bool",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "hash",
    "len",
    "iter",
    "next",
    "contains",
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "rtruediv",
    "floordiv",
    "mod",
    "rmod",
    "pow",
    "neg",
    "pos",
    "abs",
    "int",
    "float",
    "index",
    "str",
    "format",
    "call",
    "enter",
    "exit",
    "setitem",
    "delitem",
    "await",
    "aiter",
    "setattr",
    "delattr",
]:
    setattr(Deferred, f"__{_operation}__", _refuse(f"__{_operation}__"))


def reference(value: object) -> Json | None:
    """Return how a deferred is stored (`[node id, path]`), or `None` for anything else."""
    if type(value) is not Deferred:
        return None
    return [value._ckw_node.node_id, [list(part) for part in value._ckw_path]]


def project(value: Any, path: Path) -> Any:
    """Follow a projection without running user code, but for what compares and hashes keys of a dict.

    Raises:
        UnresolvableError: A part is missing, or only a property could give it.
    """
    for kind, key in path:
        if kind == "item" and type(value) in (dict, list, tuple):
            try:
                value = value[key]
            except BaseException as error:  # a key may raise anything when it is compared
                if is_interrupt(error):
                    raise
                raise UnresolvableError(f"[{key!r}]") from error
        elif kind == "attr" and _is_stored(value, str(key)):
            value = getattr(value, str(key))
        else:
            raise UnresolvableError(f"{key!r} of a {type(value).__name__}")
    return value


def _is_stored(value: object, name: str) -> bool:
    """Whether an attribute is a field that Python reads from the instance itself, without code of its class."""
    cls = type(value)
    if any("__getattribute__" in vars(base) for base in cls.__mro__[:-1]):
        return False
    found: object = inspect.getattr_static(cls, name, None)
    if isinstance(value, tuple):
        return name in getattr(cls, "_fields", ()) and isinstance(found, _TUPLE_FIELD)
    if isinstance(found, MemberDescriptorType):
        return dataclasses.is_dataclass(cls)
    is_field = dataclasses.is_dataclass(cls) or name in getattr(cls, "model_fields", ())
    return is_field and name in getattr(value, "__dict__", ()) and not hasattr(type(found), "__set__")


def holds_part(value: object) -> bool:
    """Whether a display holds a part of a deferred value, which may have no such part."""
    return any(found._ckw_path for found in _deferred_in(value))


def holds_deferred(value: object) -> bool:
    """Whether a display is a deferred value, or holds one."""
    return next(_deferred_in(value), None) is not None


def _deferred_in(value: Any, within: frozenset[int] = frozenset()) -> Iterator[Deferred]:
    kind = type(value)
    if kind is Deferred:
        yield value
    elif kind in (list, tuple, dict) and id(value) not in within:  # a cycle holds nothing new
        for item in value.values() if kind is dict else value:
            yield from _deferred_in(item, within | {id(value)})
