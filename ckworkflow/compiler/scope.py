"""Names of a body: where each is bound, where it is used, and what it stands for when compiled.

Names are judged over all their bindings and uses in the whole function, nested scopes included; no
order of statements is looked at here. A comprehension is read as part of the body, a nested
function, lambda or class only as something that captures names.

Not here: what follows from any of it (`proof`, `alias`, `fences`).
"""

from __future__ import annotations

import ast
import builtins
import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import CellType, FunctionType, ModuleType
from typing import Any, Final, TypeAlias

from ckworkflow.compiler.sites import Callee, Classify
from ckworkflow.compiler.source import LocatedBody, Scope

__all__ = [
    "MISSING",
    "Binding",
    "BindingKind",
    "Body",
    "Comprehension",
    "LocalName",
    "own_nodes",
    "short",
]

MISSING: Final = object()
"""What an expression stands for when that is not known before it runs."""

Comprehension: TypeAlias = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp

_TEXT_LIMIT: Final = 60
_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})


class BindingKind(enum.Enum):
    """How a name gets its value; the values complete "`x` is also …" in a reason."""

    ASSIGN = "assigned"
    UNPACK = "unpacked"
    PARAMETER = "a parameter"
    LOOP = "the variable of a loop"
    WALRUS = "bound by :="
    AUGMENTED = "changed by an augmented assignment"
    DELETED = "deleted"
    WITH = "bound by a with"
    EXCEPT = "bound by an except"
    IMPORT = "imported"
    DEFINITION = "defined by a def or class"
    MATCH = "captured by a case"


@dataclass(frozen=True, slots=True)
class Binding:
    """One place that binds a name.

    Attributes:
        kind: How.
        line: Where.
        value: What is bound, or what it is taken from (`LOOP`, `UNPACK`); `None` where neither shows.
    """

    kind: BindingKind
    line: int
    value: ast.expr | None


@dataclass(slots=True)
class LocalName:
    """A local name of the body.

    Attributes:
        name: The name.
        bindings: Everything that binds it.
        uses: Every place of the body's own that loads it.
        is_captured: Whether a nested function, lambda, class or free-standing generator mentions it.
        is_rebound_inside: Whether a nested function may bind it anew (`nonlocal`).
    """

    name: str
    bindings: list[Binding] = field(default_factory=list)
    uses: list[ast.Name] = field(default_factory=list)
    is_captured: bool = False
    is_rebound_inside: bool = False


class Body:
    """The tree of one body with its names resolved.

    Args:
        located: The tree; never changed.
        function: The function itself, for what its names stand for.
        classify: Tells steps, workflows and the like from other values.
    """

    def __init__(self, located: LocatedBody, function: FunctionType, classify: Classify) -> None:
        self.node = located.node
        self.function = function
        self._located = located
        self._classify = classify
        self.parents: dict[ast.AST, ast.AST] = {}
        for node in ast.walk(self.node):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
        code = function.__code__
        self.cells: Mapping[str, CellType] = dict(
            zip(code.co_freevars, function.__closure__ or (), strict=True)
        )
        scan = _Scan(self.node)
        self.names = scan.locals
        self.awaits = scan.awaits
        self.outer_declared = scan.outer_declared
        self._comprehension_keys = scan.keys

    def local(self, node: ast.Name) -> LocalName | None:
        """The local name that a node stands for; `None` for globals and comprehension variables."""
        return None if node in self._comprehension_keys else self.names.get(node.id)

    def key(self, node: ast.Name) -> str | None:
        """A key for a local name or a variable of a comprehension; `None` for names from outside."""
        if node in self._comprehension_keys:
            return self._comprehension_keys[node]
        return node.id if node.id in self.names else None

    def is_comprehension_variable(self, node: ast.Name) -> bool:
        """Whether the node is the variable of a comprehension."""
        return node in self._comprehension_keys

    def resolve(self, node: ast.expr) -> object:
        """What an expression stands for, found without running code, or `MISSING`."""
        if isinstance(node, ast.Name):
            if self.key(node) is not None or self.is_rebindable(node.id):
                return MISSING
            return self._outer(node.id)
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value)
            # vars(), not getattr(): a module's __getattr__ is code.
            return vars(base).get(node.attr, MISSING) if isinstance(base, ModuleType) else MISSING
        return MISSING

    def callee(self, call: ast.expr) -> Callee | None:
        """What kind of thing a call expression calls; `None` for everything unknown."""
        if not isinstance(call, ast.Call):
            return None
        value = self.resolve(call.func)
        return None if value is MISSING else self._classify(value)

    def is_builtin(self, node: ast.expr) -> bool:
        """Whether the node is a name that means the builtin of that name."""
        return (
            isinstance(node, ast.Name)
            and self.key(node) is None
            and node.id not in self.cells
            and node.id not in self.function.__globals__
            and not self.is_rebindable(node.id)
            and hasattr(builtins, node.id)
        )

    def is_constant(self, name: str) -> bool:
        """Whether a global is a constant by PEP 8: written in capitals, and bound once in its module."""
        return name.isupper() and self._located.module.bound_globals.get(name, 0) <= 1

    def is_bound_before(self, name: str, node: ast.AST) -> bool:
        """Whether a local name is certainly bound where a node is evaluated.

        It is after a statement that binds it and stands before the node in the same block, or in a block around it.
        """
        local = self.names[name]
        kinds = {binding.kind for binding in local.bindings}
        if kinds & {BindingKind.DELETED, BindingKind.EXCEPT} or local.is_rebound_inside:
            return False
        if BindingKind.PARAMETER in kinds:
            return True
        for child, parent in self.ancestors(node):
            if isinstance(parent, ast.For) and child in parent.body and name in _stored([parent.target]):
                return True
            if isinstance(parent, ast.With | ast.AsyncWith) and child in parent.body:
                targets = [item.optional_vars for item in parent.items if item.optional_vars is not None]
                if name in _stored(targets):
                    return True
            for block in (value for _, value in ast.iter_fields(parent) if isinstance(value, list)):
                if child in block and any(
                    name in _bound_by(before) for before in block[: block.index(child)]
                ):
                    return True
        return False

    def has_mutable_default(self, name: str) -> bool:
        """Whether a parameter may be an object that all calls share."""
        code = self.function.__code__
        defaults = self.function.__defaults__ or ()
        positional = code.co_varnames[: code.co_argcount]
        found: dict[str, object] = dict(
            zip(positional[len(positional) - len(defaults) :], defaults, strict=True)
        )
        found |= self.function.__kwdefaults__ or {}
        return name in found and type(found[name]) not in _PLAIN

    def is_builtin_call(self, node: ast.expr, name: str) -> bool:
        """Whether the node calls the builtin of that name."""
        return (
            isinstance(node, ast.Call) and self.is_builtin(node.func) and ast.unparse(node.func) == name
        )

    def is_rebindable(self, name: str) -> bool:
        """Whether a name from outside may mean something else by the time it is read."""
        module = self._located.module
        if name in self.outer_declared:
            return True
        if name in self.cells:
            return name in module.nonlocals or not self._is_bound_once_outside(name)
        return name in module.rebound_globals

    def statement_of(self, node: ast.AST) -> ast.stmt:
        """The innermost statement around a node."""
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def ancestors(self, node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
        """Pairs of (child, parent) from a node up to the function."""
        while node is not self.node:
            parent = self.parents[node]
            yield node, parent
            node = parent

    def _outer(self, name: str) -> object:
        if name in self.cells:
            try:
                return self.cells[name].cell_contents
            except ValueError:  # not bound yet
                return MISSING
        if name in self.function.__globals__:
            return self.function.__globals__[name]
        return getattr(builtins, name, MISSING)

    def _is_bound_once_outside(self, name: str) -> bool:
        count = 0
        for scope in self._located.enclosing:
            if isinstance(scope, ast.Lambda | ast.ClassDef):
                continue
            names = _Scan(scope).locals
            for binding in names[name].bindings if name in names else ():
                # A loop around a def gives the closure another value at each turn.
                count += 2 if binding.kind is BindingKind.LOOP or _is_in_loop(scope, binding.line) else 1
        return count == 1


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, without the insides of nested functions, lambdas and classes."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Scope):
            yield from own_nodes(child)


def _stored(targets: Iterable[ast.expr]) -> set[str]:
    nodes = (node for target in targets for node in ast.walk(target))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _bound_by(node: ast.AST) -> set[str]:
    """The names that a statement binds if it ends."""
    match node:
        case ast.Assign(targets=targets):
            return _stored(targets)
        case ast.AnnAssign(target=target, value=ast.expr()):
            return _stored([target])
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
    return set()


def short(node: ast.AST) -> str:
    """A node as text for a reason: the head of a statement, an expression cut to fit."""
    text = ast.unparse(node)
    if isinstance(
        node, ast.If | ast.While | ast.For | ast.AsyncFor | ast.With | ast.AsyncWith | ast.Match
    ):
        text = text.splitlines()[0].rstrip(":")
    text = " ".join(text.split())
    return text if len(text) <= _TEXT_LIMIT else text[: _TEXT_LIMIT - 1] + "…"


def _is_in_loop(scope: ast.AST, line: int) -> bool:
    return any(
        isinstance(node, ast.For | ast.AsyncFor | ast.While)
        and node.lineno <= line <= (node.end_lineno or line)
        for node in own_nodes(scope)
    )


class _Scan(ast.NodeVisitor):
    """One walk over a function that collects its names."""

    def __init__(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.locals: dict[str, LocalName] = {}
        self.awaits: list[ast.Await] = []
        self.keys: dict[ast.Name, str] = {}
        self.outer_declared: set[str] = set()
        self._loads: list[ast.Name] = []
        self._captured: set[str] = set()
        self._nonlocals: set[str] = set()
        self._comprehensions: list[dict[str, str]] = []
        arguments = function.args
        every = [
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
            arguments.vararg,
            arguments.kwarg,
        ]
        for argument in every:
            if argument is not None:
                self._bind(argument.arg, BindingKind.PARAMETER, argument.lineno, None)
        for statement in function.body:
            self.visit(statement)
        self._finish()

    def _finish(self) -> None:
        for name in self.outer_declared:
            self.locals.pop(name, None)
        for node in self._loads:
            if node.id in self.locals:
                self.locals[node.id].uses.append(node)
        for name, local in self.locals.items():
            local.is_captured = name in self._captured
            local.is_rebound_inside = name in self._nonlocals

    def _bind(self, name: str, kind: BindingKind, line: int, value: ast.expr | None) -> None:
        self.locals.setdefault(name, LocalName(name)).bindings.append(Binding(kind, line, value))

    def _bind_target(self, target: ast.expr, kind: BindingKind, value: ast.expr | None) -> None:
        if isinstance(target, ast.Name):
            if key := self._comprehension_key(target.id):
                self.keys[target] = key
            else:
                self._bind(target.id, kind, target.lineno, value)
        elif isinstance(target, ast.Tuple | ast.List):
            inner = BindingKind.UNPACK if kind is BindingKind.ASSIGN else kind
            for element in target.elts:
                self._bind_target(element, inner, value)
        elif isinstance(target, ast.Starred):
            self._bind_target(target.value, kind, value)
        else:  # an attribute or subscript: its parts are loaded
            self.visit(target)

    def _comprehension_key(self, name: str) -> str | None:
        return next((names[name] for names in reversed(self._comprehensions) if name in names), None)

    def visit_Name(self, node: ast.Name) -> None:
        if key := self._comprehension_key(node.id):
            self.keys[node] = key
        elif isinstance(node.ctx, ast.Load):
            self._loads.append(node)

    def visit_Await(self, node: ast.Await) -> None:
        self.awaits.append(node)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._bind_target(target, BindingKind.ASSIGN, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        # The annotation of a local is never evaluated.
        if node.value is not None:
            self.visit(node.value)
            self._bind_target(node.target, BindingKind.ASSIGN, node.value)
        elif isinstance(node.target, ast.Name):
            self.locals.setdefault(node.target.id, LocalName(node.target.id))

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        self._bind_target(node.target, BindingKind.AUGMENTED, node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.visit(node.value)
        # It binds in the function, also from within a comprehension.
        self._bind(node.target.id, BindingKind.WALRUS, node.lineno, node.value)

    def visit_Delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            self._bind_target(target, BindingKind.DELETED, None)

    def visit_For(self, node: ast.For) -> None:
        self._visit_loop(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        self._visit_loop(node)

    def _visit_loop(self, node: ast.For | ast.AsyncFor) -> None:
        self.visit(node.iter)
        self._bind_target(node.target, BindingKind.LOOP, node.iter)
        for statement in [*node.body, *node.orelse]:
            self.visit(statement)

    def visit_withitem(self, node: ast.withitem) -> None:
        self.visit(node.context_expr)
        if node.optional_vars is not None:
            self._bind_target(node.optional_vars, BindingKind.WITH, node.context_expr)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name is not None:
            self._bind(node.name, BindingKind.EXCEPT, node.lineno, None)
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._bind(
                (alias.asname or alias.name).partition(".")[0], BindingKind.IMPORT, node.lineno, None
            )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._bind(alias.asname or alias.name, BindingKind.IMPORT, node.lineno, None)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        if node.name is not None:
            self._bind(node.name, BindingKind.MATCH, node.lineno, None)
        self.generic_visit(node)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name is not None:
            self._bind(node.name, BindingKind.MATCH, node.lineno, None)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest is not None:
            self._bind(node.rest, BindingKind.MATCH, node.lineno, None)
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        self.outer_declared.update(node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.outer_declared.update(node.names)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_definition(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_definition(node)

    def _visit_definition(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._bind(node.name, BindingKind.DEFINITION, node.lineno, None)
        for decorator in node.decorator_list:
            self.visit(decorator)
        self.visit(node.args)
        self._capture(node)

    def visit_TypeAlias(self, node: Any) -> None:
        """`type X = …` of Python 3.12: its value is evaluated when somebody asks."""
        self._bind(node.name.id, BindingKind.DEFINITION, node.lineno, None)
        self._capture(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.args)
        self._capture(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._bind(node.name, BindingKind.DEFINITION, node.lineno, None)
        for expression in [
            *node.decorator_list,
            *node.bases,
            *(keyword.value for keyword in node.keywords),
        ]:
            self.visit(expression)
        self._capture(node)

    def visit_arg(self, node: ast.arg) -> None:
        """Annotations of nested functions: `fences` takes them for code; they bind nothing."""

    def _capture(self, scope: ast.AST) -> None:
        for node in ast.walk(scope):
            if isinstance(node, ast.Name):
                self._captured.add(node.id)
            elif isinstance(node, ast.Nonlocal):
                self._nonlocals.update(node.names)
                self._captured.update(node.names)

    def visit_ListComp(self, node: ast.ListComp) -> None:
        self._visit_comprehension(node, node.elt)

    def visit_SetComp(self, node: ast.SetComp) -> None:
        self._visit_comprehension(node, node.elt)

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._visit_comprehension(node, node.key, node.value)

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        # Nothing consumes it here: who knows when it runs.
        self._visit_comprehension(node, node.elt)
        self._capture(node)

    def visit_Starred(self, node: ast.Starred) -> None:
        if isinstance(node.value, ast.GeneratorExp):
            self._visit_comprehension(node.value, node.value.elt)
        else:
            self.visit(node.value)

    def _visit_comprehension(self, node: Comprehension, *results: ast.expr) -> None:
        self.visit(node.generators[0].iter)
        names = {
            target.id: f"{target.id}@{target.lineno}:{target.col_offset}"
            for generator in node.generators
            for target in ast.walk(generator.target)
            if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
        }
        self._comprehensions.append(names)
        for index, generator in enumerate(node.generators):
            if index:
                self.visit(generator.iter)
            self._bind_target(generator.target, BindingKind.LOOP, generator.iter)
            for test in generator.ifs:
                self.visit(test)
        for result in results:
            self.visit(result)
        self._comprehensions.pop()
