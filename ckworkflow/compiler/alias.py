"""Who else may hold a local object: the world outside the body, or the task that called it.

What a body has made itself, or got from a step as a fresh copy, nobody else can change. A parameter
may be shared with a sibling task; what came from a global, a closure or an unknown call, or was
given to one, may be changed by the world. Names are joined into groups by every statement that may
put the object of one within reach of another, so a group errs on the side of sharing; the check at
run time then lets everything immutable pass.

Not here: that check, and where it is made (`fences`).
"""

from __future__ import annotations

import ast
import enum
import logging
from collections.abc import Iterable
from types import FunctionType
from typing import Final

from ckworkflow.compiler.scope import MISSING, BindingKind, Body, LocalName, own_nodes
from ckworkflow.compiler.sites import Callee

__all__ = ["PURE_BUILTINS", "Aliases", "Reach", "captures"]

PURE_BUILTINS: Final = frozenset(
    [
        "abs",
        "all",
        "any",
        "ascii",
        "bin",
        "bool",
        "bytes",
        "chr",
        "complex",
        "dict",
        "divmod",
        "enumerate",
        "float",
        "format",
        "frozenset",
        "hex",
        "int",
        "isinstance",
        "len",
        "list",
        "max",
        "min",
        "oct",
        "ord",
        "pow",
        "range",
        "repr",
        "reversed",
        "round",
        "set",
        "slice",
        "sorted",
        "str",
        "sum",
        "tuple",
        "zip",
    ]
)
"""Builtins that run no code but that of their arguments."""

_SCALAR_CALLS: Final = frozenset(
    {
        *[
            "ascii",
            "bin",
            "bool",
            "chr",
            "float",
            "format",
            "hex",
            "int",
            "isinstance",
            "len",
            "oct",
            "ord",
            "repr",
            "str",
        ]
    }
)
"""Of these, the ones whose result holds nothing of what they were given."""

_BUILTIN_METHODS: Final = frozenset(
    name
    for kind in (str, bytes, int, float, list, tuple, dict, set, frozenset, range)
    for name in dir(kind)
)
"""A method of another name is a user's, and may keep what it is given."""

_IMMUTABLE: Final = (str, int, float, bool, bytes, type(None))


class Reach(enum.Flag):
    """Who may hold the objects of a name beside this body."""

    NOBODY = 0
    CALLER = enum.auto()
    WORLD = enum.auto()


class Aliases:
    """The groups of a body's names.

    Args:
        body: The body.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._parent: dict[str, str] = {}
        self._reach: dict[str, Reach] = {}
        for local in body.names.values():
            self._enter(local)
        for node in own_nodes(body.node):
            self._join_node(node)

    def of(self, node: ast.Name) -> Reach:
        """Who may hold the object that a name of the body's own stands for."""
        key = self._body.key(node)
        return Reach.WORLD if key is None else self.of_key(key)

    def of_key(self, key: str) -> Reach:
        """Who may hold the object of a name, by its key."""
        return self._reach.get(self._find(key), Reach.NOBODY)

    def holders(self, node: ast.expr | None) -> tuple[dict[str, Reach], Reach]:
        """Who may hold what the value of an expression is or holds.

        Returns:
            The reach of each name that it may come from, by key, and the reach of all the rest of it.
        """
        keys, reach = self._roots(node)
        return {key: self.of_key(key) for key in keys}, reach

    def tied_parameters(self) -> list[str]:
        """Parameters that the body may put within reach of the world."""
        return [
            local.name
            for local in self._body.names.values()
            if any(binding.kind is BindingKind.PARAMETER for binding in local.bindings)
            and Reach.WORLD in self.of_key(local.name)
        ]

    def _enter(self, local: LocalName) -> None:
        if local.is_captured:
            self._mark({local.name}, Reach.WORLD)
        for binding in local.bindings:
            match binding.kind:
                case BindingKind.PARAMETER:
                    shared = _is_mutable_default(self._body.function, local.name)
                    self._mark({local.name}, Reach.CALLER | (Reach.WORLD if shared else Reach.NOBODY))
                case BindingKind.WITH | BindingKind.EXCEPT | BindingKind.IMPORT | BindingKind.DEFINITION:
                    self._mark({local.name}, Reach.WORLD)

    def _find(self, key: str) -> str:
        while (parent := self._parent.get(key, key)) != key:
            key = parent
        return key

    def _mark(self, keys: Iterable[str], reach: Reach) -> None:
        for key in keys:
            root = self._find(key)
            self._reach[root] = self._reach.get(root, Reach.NOBODY) | reach

    def _join(self, keys: Iterable[str], reach: Reach) -> None:
        roots = {self._find(key) for key in keys}
        if not roots:
            return
        for root in roots:
            reach |= self._reach.get(root, Reach.NOBODY)
        head = min(roots)
        for root in roots:
            self._parent[root] = head
        self._reach[head] = reach

    def _join_node(self, node: ast.AST) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                self._bind(targets, value)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self._bind([target], value)
            case ast.AugAssign(target=target, value=value) | ast.NamedExpr(target=target, value=value):
                self._bind([target], value)
            case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                self._bind([target], value)
            case ast.AsyncFor(target=target):
                self._mark(self._targets([target])[0], Reach.WORLD)
            case ast.withitem(context_expr=value):
                self._mark(self._roots(value)[0], Reach.WORLD)
            case ast.Match(subject=subject, cases=cases):
                keys, reach = self._roots(subject)
                self._join(keys | {name for case in cases for name in captures(case.pattern)}, reach)
            case ast.Call():
                self._join_call(node)

    def _bind(self, targets: list[ast.expr], value: ast.expr) -> None:
        keys, reach = self._targets(targets)
        value_keys, value_reach = self._roots(value)
        self._join(keys | value_keys, reach | value_reach)

    def _targets(self, targets: Iterable[ast.expr]) -> tuple[set[str], Reach]:
        keys: set[str] = set()
        reach = Reach.NOBODY
        for target in targets:
            match target:
                case ast.Name():
                    key = self._body.key(target)
                    keys |= {key} if key is not None else set()
                    reach |= Reach.NOBODY if key is not None else Reach.WORLD
                case ast.Tuple(elts=elements) | ast.List(elts=elements):
                    more, more_reach = self._targets(elements)
                    keys, reach = keys | more, reach | more_reach
                case ast.Starred(value=inner):
                    more, more_reach = self._targets([inner])
                    keys, reach = keys | more, reach | more_reach
                case ast.Attribute(value=inner) | ast.Subscript(value=inner):
                    more, more_reach = self._roots(inner)
                    keys, reach = keys | more, reach | more_reach
        return keys, reach

    def _join_call(self, node: ast.Call) -> None:
        callee = self._body.callee(node)
        if callee in {Callee.STEP, Callee.SLEEP, Callee.PURE, Callee.NOW, Callee.GATHER}:
            return  # arguments are copied when they are encoded; a gather's members are calls themselves
        keys, held = self._union([*node.args, *(keyword.value for keyword in node.keywords)])
        if callee is Callee.WORKFLOW:
            self._mark(keys, Reach.CALLER)
        elif self._keeps_nothing(node):
            pass
        elif isinstance(node.func, ast.Attribute):
            receiver, reach = self._roots(node.func.value)
            if reach is Reach.NOBODY and node.func.attr in _BUILTIN_METHODS and not _passes_code(node):
                self._join(keys | receiver, held)
            else:
                self._mark(keys | receiver, Reach.WORLD)
        else:
            self._mark(keys, Reach.WORLD)

    def _keeps_nothing(self, node: ast.Call) -> bool:
        if self._body.is_builtin(node.func) and isinstance(node.func, ast.Name):
            return node.func.id == "print" or (node.func.id in PURE_BUILTINS and not _passes_code(node))
        if isinstance(node.func, ast.Attribute):
            # A log record holds its arguments, to print them and not to change them.
            return isinstance(self._body.resolve(node.func.value), logging.Logger)
        return False

    def _roots(self, node: ast.expr | None) -> tuple[set[str], Reach]:
        """The names whose objects the value of an expression may be, or hold."""
        match node:
            case None | ast.Constant() | ast.JoinedStr():
                return set(), Reach.NOBODY
            case ast.Attribute() | ast.Subscript() | ast.Compare() | ast.UnaryOp() | ast.BinOp():
                # Code of a class may run here, and give whatever it holds; what is plain passes the check at run time.
                parts = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
                return self._union(parts)[0], Reach.WORLD
            case ast.Name():
                return self._name_roots(node)
            case ast.Await(value=value):
                return self._await_roots(value)
            case ast.Call():
                return self._call_roots(node)
            case ast.Starred(value=value):
                return self._roots(value)
            case ast.IfExp(body=body, orelse=orelse):
                return self._union([body, orelse])
            case ast.NamedExpr(value=value):
                return self._union([node.target, value])
            case ast.DictComp():
                return self._union([node.key, node.value])
            case ast.ListComp(elt=element) | ast.SetComp(elt=element):
                return self._roots(element)
            case ast.Lambda() | ast.GeneratorExp():
                names = {
                    key for n in ast.walk(node) if isinstance(n, ast.Name) and (key := self._body.key(n))
                }
                return names, Reach.WORLD
        return self._union(
            [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        )

    def _union(self, nodes: Iterable[ast.expr]) -> tuple[set[str], Reach]:
        keys: set[str] = set()
        reach = Reach.NOBODY
        for node in nodes:
            more, more_reach = self._roots(node)
            keys, reach = keys | more, reach | more_reach
        return keys, reach

    def _name_roots(self, node: ast.Name) -> tuple[set[str], Reach]:
        key = self._body.key(node)
        if key is not None:
            return {key}, Reach.NOBODY
        value = self._body.resolve(node)
        return set(), Reach.NOBODY if value is not MISSING and isinstance(
            value, _IMMUTABLE
        ) else Reach.WORLD

    def _await_roots(self, value: ast.expr) -> tuple[set[str], Reach]:
        match self._body.callee(value):
            case Callee.STEP | Callee.SLEEP:
                return set(), Reach.NOBODY  # a copy, decoded for this await alone
            case Callee.WORKFLOW:
                return set(), Reach.CALLER
            case Callee.GATHER if isinstance(value, ast.Call):
                reach = Reach.NOBODY
                for member in value.args:
                    inner = member.value if isinstance(member, ast.Starred) else member
                    call = inner.elt if isinstance(inner, ast.ListComp | ast.GeneratorExp) else inner
                    reach |= self._await_roots(call)[1]
                return set(), reach
        return self._roots(value)[0], Reach.WORLD

    def _call_roots(self, node: ast.Call) -> tuple[set[str], Reach]:
        if self._body.callee(node) in {Callee.PURE, Callee.NOW}:
            return set(), Reach.NOBODY
        if (
            self._body.is_builtin(node.func)
            and isinstance(node.func, ast.Name)
            and node.func.id in _SCALAR_CALLS
        ):
            return set(), Reach.NOBODY
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        if self._body.is_builtin(node.func) and not _passes_code(node):
            is_pure = isinstance(node.func, ast.Name) and node.func.id in PURE_BUILTINS
            keys, reach = self._union(
                argument.elt if isinstance(argument, ast.GeneratorExp) else argument
                for argument in arguments
            )
            return keys, reach if is_pure else Reach.WORLD
        if (
            isinstance(node.func, ast.Attribute)
            and node.func.attr in _BUILTIN_METHODS
            and not _passes_code(node)
        ):
            return self._union([node.func.value, *arguments])[0], Reach.WORLD
        return self._union(arguments)[0], Reach.WORLD


def _passes_code(node: ast.Call) -> bool:
    """Whether a call may be handed a function to call: `key=`, a lambda."""
    return any(keyword.arg in {"key", None} for keyword in node.keywords) or any(
        isinstance(value, ast.Lambda)
        for value in [*node.args, *(keyword.value for keyword in node.keywords)]
    )


def captures(pattern: ast.pattern) -> set[str]:
    """The names that a `case` pattern binds."""
    names: set[str] = set()
    for node in ast.walk(pattern):
        if isinstance(node, ast.MatchAs | ast.MatchStar) and node.name is not None:
            names.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest is not None:
            names.add(node.rest)
    return names


def _is_mutable_default(function: FunctionType, name: str) -> bool:
    code = function.__code__
    defaults = function.__defaults__ or ()
    positional = code.co_varnames[: code.co_argcount]
    found = {**dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))}
    found |= function.__kwdefaults__ or {}
    return name in found and not isinstance(found[name], _IMMUTABLE)
