"""Static types of local names, as far as they show in the source.

`n = 0` and `n += 1` make `n` an int for ever; `out = []` makes `out` a list. Such a name needs no
check at run time before an operator touches it. Whatever is not plain to see has no kind.

Not here: what a check at run time would find.
"""

from __future__ import annotations

import ast
from typing import Final

from ckworkflow.compiler.scope import BindingKind, Body, LocalName

__all__ = ["CONTAINERS", "SCALARS", "Kinds"]

SCALARS: Final = frozenset({"int", "str", "float", "bool", "bytes", "NoneType"})
"""Kinds whose values hold nothing else: every operator on them is Python's own."""

CONTAINERS: Final = frozenset({"list", "dict", "set", "tuple", "range"})
"""Kinds that are exact builtin containers, with elements of any type."""

_UNSEEN: Final = "?"  # a name whose bindings are still being read; joins with anything
_CALLS: Final = {
    "len": "int",
    "int": "int",
    "str": "str",
    "bool": "bool",
    "float": "float",
    "repr": "str",
    "ord": "int",
    "chr": "str",
    "hex": "str",
    "isinstance": "bool",
    "range": "range",
    "list": "list",
    "sorted": "list",
    "dict": "dict",
    "set": "set",
    "tuple": "tuple",
}
_ARITHMETIC: Final = ast.Add | ast.Sub | ast.Mult | ast.FloorDiv | ast.Mod


class Kinds:
    """The kinds of a body's names.

    Args:
        body: The body.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._names: dict[str, str | None] = dict.fromkeys(body.names, _UNSEEN)
        # Kinds only rise (unseen, one kind, none), so this ends.
        while sum(self._raise_kind(local) for local in body.names.values()):
            pass

    def of(self, node: ast.expr) -> str | None:
        """The kind of an expression's value, or `None`."""
        kind = self._kind(node)
        return None if kind == _UNSEEN else kind

    def _raise_kind(self, local: LocalName) -> bool:
        before = self._names[local.name]
        kind: str | None = _UNSEEN
        for binding in local.bindings:
            found: str | None = None
            if binding.value is not None and not local.is_rebound_inside:
                if binding.kind in {BindingKind.ASSIGN, BindingKind.WALRUS}:
                    found = self._kind(binding.value)
                elif binding.kind is BindingKind.AUGMENTED:
                    found = self._combined(before, self._kind(binding.value))
                elif binding.kind is BindingKind.LOOP and self._kind(binding.value) == "range":
                    found = "int"
            kind = _join(kind, found)
        self._names[local.name] = kind
        return kind != before

    def _kind(self, node: ast.expr) -> str | None:
        match node:
            case ast.Constant(value=value):
                name = type(value).__name__
                return name if name in SCALARS else None
            case ast.JoinedStr():
                return "str"
            case ast.List() | ast.ListComp():
                return "list"
            case ast.Dict() | ast.DictComp():
                return "dict"
            case ast.Set() | ast.SetComp():
                return "set"
            case ast.Tuple():
                return "tuple"
            case ast.Name():
                local = self._body.local(node)
                return None if local is None else self._names[local.name]
            case ast.Call(func=ast.Name(id=name)) if self._body.is_builtin(node.func):
                return _CALLS.get(name)
            case ast.UnaryOp(op=ast.Not()):
                return "bool"
            case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _ARITHMETIC):
                return self._combined(self._kind(left), self._kind(right))
            case ast.IfExp(body=body, orelse=orelse):
                return _join(self._kind(body), self._kind(orelse))
        return None

    def _combined(self, left: str | None, right: str | None) -> str | None:
        if _UNSEEN in {left, right}:
            return _UNSEEN
        return left if left == right and left in {"int", "str", "float"} else None


def _join(left: str | None, right: str | None) -> str | None:
    if left == _UNSEEN:
        return right
    if right == _UNSEEN:
        return left
    return left if left == right else None
