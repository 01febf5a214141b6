"""The whitelist: what a body may evaluate while steps that it awaited are not yet recorded.

A lazy await lets tracing run ahead of the world. So before anything that could see the world, or be
seen by it, the body must wait; only what is on the closed list below goes unfenced: calls of steps,
workflows, sleep and gather, displays, and operators, comparisons, f-strings, methods and pure
builtins on values that are exact builtin types. The last is asked at run time, of the names
involved; where names do not suffice the fence stands without a condition.

A judge walks expressions in the order Python evaluates them: after a strict await everything is
recorded, and what follows needs no fence.

Not here: statements and the order of control (`flow`).
"""

from __future__ import annotations

import ast
import builtins
import enum
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Final

from ckworkflow.compiler.alias import PURE_BUILTINS, Aliases, Reach
from ckworkflow.compiler.kinds import CONTAINERS, SCALARS, Kinds
from ckworkflow.compiler.proof import AWAITABLE, Proof
from ckworkflow.compiler.scope import MISSING, Body, Comprehension, LocalName, short
from ckworkflow.compiler.sites import Callee

__all__ = ["Check", "Judge", "Knowledge", "Need"]

_TOUCHING_METHODS: Final = {
    "list": frozenset({"append", "insert", "pop", "clear", "reverse", "copy"}),
    "dict": frozenset({"items", "keys", "values", "clear", "copy"}),
}
"""Methods that do not look at the elements of an exact list or dict."""


class Check(enum.Enum):
    """A question to a name at run time; the answer yes makes the fence wait."""

    FOREIGN = "may not be a plain value"
    SHARED = "may be changed by a sibling task"
    LOOSE = "may be changed by the world"


@dataclass(slots=True)
class Need:
    """What must happen before an evaluation.

    Attributes:
        always: Why a fence must stand there without a condition, or `None`.
        checks: Else the questions that decide it, in order; none means no fence.
    """

    always: str | None = None
    checks: dict[tuple[Check, str], None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.always is not None or bool(self.checks)

    @property
    def reason(self) -> str:
        """Why, in words."""
        if self.always is not None:
            return self.always
        return ", ".join(f"`{name}` {check.value}" for check, name in self.checks)


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known of a body before any order of statements is looked at."""

    body: Body
    kinds: Kinds
    aliases: Aliases
    proof: Proof


class Judge:
    """Judges the expressions of one statement, in the order Python evaluates them.

    Args:
        known: The body.
        bound: Local names that are certainly bound before the statement.
        settled: Whether all that was awaited is certainly recorded before it.
        deferred: Names that hold nothing but deferred values of steps: no check is due to them.

    Attributes:
        need: What must happen before the statement.
        settled: The same as the argument, at the end of what was judged.
        lazy: The lazy awaits met.
        lent: Nodes whose value leaves the body while the world may hold it.
        certain: Names that `:=` has certainly bound.
    """

    def __init__(
        self, known: Knowledge, *, bound: frozenset[str], settled: bool, deferred: set[str]
    ) -> None:
        self._known = known
        self._body = known.body
        self._bound = bound
        self._deferred = deferred
        self._fresh: set[str] = set()
        self._branches = 0
        self.need = Need()
        self.settled = settled
        self.lazy: list[ast.Await] = []
        self.lent: list[ast.expr] = []
        self.certain: set[str] = set()

    def fence(self, reason: str) -> None:
        """Ask for a fence without a condition, unless all is recorded here anyway."""
        if not self.settled and self.need.always is None:
            self.need.always = reason

    def touch(self, node: ast.expr | None) -> None:
        """Judge an expression whose value is only passed on."""
        if node is not None:
            self._look(node, plain=False)

    def inspect(self, node: ast.expr | None) -> None:
        """Judge an expression whose value an operator, a builtin or a test looks into."""
        if node is not None:
            self._look(node, plain=True)

    def unpack(self, node: ast.expr) -> None:
        """Judge the right side of an unpacking."""
        self._look(node, plain=not isinstance(node, ast.Await | ast.Tuple | ast.List))

    def iterate(self, node: ast.expr) -> None:
        """Judge an expression that a loop without lazy awaits runs over."""
        holders, reach = self._known.aliases.holders(node)
        own = reach is Reach.NOBODY and not any(holders.values())
        self._look(node, plain=not (own and self._known.kinds.of(node) in CONTAINERS))

    def store(self, target: ast.expr) -> None:
        """Judge a target of an assignment or `del`."""
        match target:
            case ast.Name(id=name):
                local = self._body.names.get(name)
                if local is not None and local.is_captured and self._body.local(target) is local:
                    self.fence(f"`{name}` is used in a nested function, which may see it change")
                if name in self._body.outer_declared:
                    self.fence(f"`{name}` is not local: others see it change")
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                for element in elements:
                    self.store(element)
            case ast.Starred(value=value):
                self.store(value)
            case ast.Subscript(value=value, slice=index):
                self._look(value, plain=not self._is_container(value))
                self.inspect(index)
            case _:
                self.fence(f"`{short(target)}` is set on an object that may see it")

    def sometimes(self, judge: Callable[[], None]) -> None:
        """Judge something that Python may never reach."""
        before = self.settled
        self._branches += 1
        judge()
        self._branches -= 1
        self.settled = before

    def pattern(self, node: ast.pattern) -> None:
        """Judge a `case` pattern over a subject that was inspected."""
        for part in ast.walk(node):
            if isinstance(part, ast.MatchValue):
                self.inspect(part.value)
            elif isinstance(part, ast.MatchMapping):
                for key in part.keys:
                    self.inspect(key)
            elif isinstance(part, ast.MatchClass) and not self._is_plain_class(part.cls):
                self.fence(f"`case {short(part)}` asks a class")

    # Expressions.

    def _look(self, node: ast.expr, *, plain: bool) -> None:  # noqa: C901, PLR0912  # one line a kind of expression
        match node:
            case ast.Constant():
                pass
            case ast.Name():
                self._name(node, plain=plain)
            case ast.Attribute() | ast.Subscript():
                self._part(node, plain=plain)
            case ast.Call():
                self._call(node, plain=plain)
            case ast.Await():
                self._await(node)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                self._each(elements, plain=plain)
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    self.inspect(key)
                    self._look(value, plain=plain or key is None)
            case ast.BoolOp() | ast.IfExp() | ast.Compare():
                self._branching(node, plain=plain)
            case ast.NamedExpr(target=target, value=value):
                self._look(value, plain=plain)
                self._fresh.add(target.id)
                self.certain |= set() if self._branches else {target.id}
            case ast.Lambda():
                self._lambda(node, plain=plain)
            case ast.ListComp() | ast.SetComp() | ast.DictComp():
                self._comprehension(node, plain=plain or isinstance(node, ast.SetComp))
            case ast.GeneratorExp():
                self._generator(node, plain=plain)
            case ast.Yield() | ast.YieldFrom():
                self.fence("it yields")
            case _:  # operators, f-strings, sets, slices, starred values
                self._each(
                    [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)],
                    plain=True,
                )

    def _each(self, nodes: Iterable[ast.expr], *, plain: bool) -> None:
        for node in nodes:
            self._look(node, plain=plain)

    def _name(self, node: ast.Name, *, plain: bool) -> None:
        local = self._body.local(node)
        if local is not None:
            self._local(local, node, plain=plain)
        elif not self._body.is_comprehension_variable(node):  # what it runs over was inspected
            self._outer(node, plain=plain)

    def _local(self, local: LocalName, node: ast.Name, *, plain: bool) -> None:
        if local.is_rebound_inside:
            self.fence(f"`{local.name}` may be bound anew by a nested function")
        if self._known.kinds.of(node) in SCALARS:
            return
        if plain and local.name not in self._deferred:
            self._check(Check.FOREIGN, local.name)
        reach = self._known.aliases.of(node)
        if Reach.WORLD in reach:
            self._check(Check.LOOSE, local.name)
        elif Reach.CALLER in reach:
            self._check(Check.SHARED, local.name)

    def _check(self, check: Check, name: str) -> None:
        if self.settled:
            return
        if name not in self._bound or name in self._fresh:
            self.fence(f"`{name}` {check.value}, and is not certainly bound before")
        else:
            self.need.checks[check, name] = None

    def _outer(self, node: ast.Name, *, plain: bool) -> None:
        value = self._body.resolve(node)
        if value is MISSING:
            self.fence(f"`{node.id}` may be bound anew by someone else")
        elif self._body.is_builtin(node):
            if plain:
                self.fence(f"`{short(node)}` is looked into")
        elif not self.settled:
            self.need.checks[Check.LOOSE, node.id] = None
            if plain:
                self.need.checks[Check.FOREIGN, node.id] = None

    def _part(self, node: ast.Attribute | ast.Subscript, *, plain: bool) -> None:
        """An attribute or subscript: of an exact builtin, a deferred value, or a module."""
        if isinstance(node, ast.Attribute):
            base = self._body.resolve(node.value)
            if isinstance(base, ModuleType):
                is_code = isinstance(
                    self._body.resolve(node), FunctionType | BuiltinFunctionType | ModuleType | type
                )
                if plain or not (is_code or self._is_known(node)):
                    self.fence(f"`{short(node)}` may be bound anew by someone else")
                return
            if isinstance(base, enum.EnumMeta) and node.attr in base.__members__ and not plain:
                return
        lazily = self._known.proof.is_lazy(node.value)
        shallow = isinstance(node, ast.Subscript) and not plain and self._is_container(node.value)
        self._look(node.value, plain=not (lazily or shallow))
        if isinstance(node, ast.Subscript):
            self.inspect(node.slice)

    def _branching(self, node: ast.BoolOp | ast.IfExp | ast.Compare, *, plain: bool) -> None:
        match node:
            case ast.BoolOp(values=[first, *rest]):
                self.inspect(first)
                for value in rest:
                    inspected = plain or value is not rest[-1]
                    self.sometimes(functools.partial(self._look, value, plain=inspected))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.inspect(test)
                ends: list[bool] = []
                for branch in (body, orelse):
                    before = self.settled
                    self._branches += 1
                    self._look(branch, plain=plain)
                    self._branches -= 1
                    ends.append(self.settled)
                    self.settled = before
                self.settled = all(ends)
            case ast.Compare(left=left, ops=ops, comparators=[first, *rest]):
                identity = all(isinstance(op, ast.Is | ast.IsNot) for op in ops)
                self._each([left, first], plain=not identity)
                for value in rest:
                    self.sometimes(functools.partial(self._look, value, plain=not identity))

    def _lambda(self, node: ast.Lambda, *, plain: bool) -> None:
        if plain:
            self.fence(f"`{short(node)}` is called back")
        self._each(
            [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)], plain=False
        )

    def _comprehension(self, node: Comprehension, *, plain: bool) -> None:
        def results() -> None:
            if isinstance(node, ast.DictComp):
                self.inspect(node.key)
                self._look(node.value, plain=plain)
            else:
                self._look(node.elt, plain=plain)

        self._turns(node, results)

    def _turns(self, node: Comprehension, results: Callable[[], None]) -> None:
        self.inspect(node.generators[0].iter)

        def inside() -> None:
            for index, generator in enumerate(node.generators):
                if generator.is_async:
                    self.fence(f"`{short(node)}` runs an iterator's code")
                if index:
                    self.inspect(generator.iter)
                self.store(generator.target)
                for test in generator.ifs:
                    self.inspect(test)
            results()

        self.sometimes(inside)

    def _generator(self, node: ast.GeneratorExp, *, plain: bool) -> None:
        if any(isinstance(inner, ast.Await) for inner in ast.walk(node)):
            self.fence(f"`{short(node)}` is an async generator")
        elif plain:
            self._comprehension(node, plain=True)
        else:
            self.inspect(node.generators[0].iter)  # the rest runs when something consumes it

    def _await(self, node: ast.Await) -> None:
        call = node.value
        if isinstance(call, ast.Call) and self._body.callee(call) in {*AWAITABLE, Callee.GATHER}:
            self._durable(call)
        else:
            self.touch(call)
            self.fence(f"`{short(node)}` awaits something unknown")
        if self._known.proof.is_lazy(node):
            self.lazy.append(node)
        else:
            self.settled = True

    # Calls.

    def _durable(self, call: ast.Call) -> None:
        """The call of a step, workflow, sleep or gather: only its arguments are evaluated."""
        callee = self._body.callee(call)
        for argument in call.args:
            if callee is Callee.GATHER:
                self._member(argument)
            else:
                self._argument(argument, callee)
        for keyword in call.keywords:
            if keyword.arg is None:
                self.inspect(keyword.value)
            else:
                self._argument(keyword.value, callee)

    def _argument(self, node: ast.expr, callee: Callee | None) -> None:
        if callee is Callee.WORKFLOW:
            holders, reach = self._known.aliases.holders(node)
            if any(Reach.WORLD in held for held in [reach, *holders.values()]):
                self.lent.append(node)
            elif isinstance(node, ast.Name) and self._body.local(node) is not None:
                return  # a reference is passed on; the callee asks before it touches the object
        self.touch(node)

    def _member(self, node: ast.expr) -> None:
        inner = node.value if isinstance(node, ast.Starred) else node
        if isinstance(node, ast.Starred) and isinstance(inner, ast.ListComp | ast.GeneratorExp):
            element = inner.elt
            if isinstance(element, ast.Call) and self._body.callee(element) in AWAITABLE:
                self._turns(inner, lambda: self._durable(element))
                return
        if isinstance(node, ast.Call) and self._body.callee(node) in {*AWAITABLE, Callee.GATHER}:
            self._durable(node)
        else:
            self.touch(node)

    def _call(self, node: ast.Call, *, plain: bool) -> None:
        callee = self._body.callee(node)
        if callee in AWAITABLE:
            self._durable(node)
            if plain:
                self.fence(f"`{short(node)}` is looked into")
        elif callee is Callee.NOW:
            self.fence(f"`{short(node)}` reads the clock")
        elif (
            callee is Callee.PURE
            or self._body.resolve(node.func) is timedelta
            or self._is_pure_builtin(node)
        ):
            self._arguments(node, plain=True)
        elif isinstance(node.func, ast.Attribute) and self._is_method(node.func):
            self._method(node, node.func, plain=plain)
        else:
            self.touch(node.func)
            self._arguments(node, plain=False)
            self.fence(f"it calls `{short(node.func)}`")

    def _arguments(self, node: ast.Call, *, plain: bool) -> None:
        is_test = self._body.is_builtin(node.func) and short(node.func) == "isinstance"
        for argument in node.args:
            if not (is_test and self._is_plain_class(argument)):
                self._look(argument, plain=plain or isinstance(argument, ast.Starred))
        for keyword in node.keywords:
            is_none = isinstance(keyword.value, ast.Constant)
            if plain and keyword.arg in {"key", None} and not is_none:
                self.fence(f"`{short(node)}` calls back `{short(keyword.value)}`")
            self._look(keyword.value, plain=plain)

    def _method(self, node: ast.Call, func: ast.Attribute, *, plain: bool) -> None:
        """A method of what the checks will find to be an exact builtin."""
        kind = self._known.kinds.of(func.value) if self._is_container(func.value) else None
        touches = not plain and func.attr in _TOUCHING_METHODS.get(kind or "", ())
        self._look(func.value, plain=not touches)
        self._arguments(node, plain=not touches)

    def _is_method(self, func: ast.Attribute) -> bool:
        """Whether an attribute can be a method of a builtin value at all."""
        base = func.value
        return self._body.resolve(base) is MISSING or (
            isinstance(base, ast.Name)
            and isinstance(self._body.resolve(base), str | int | tuple | bytes)
        )

    def _is_pure_builtin(self, node: ast.Call) -> bool:
        return (
            self._body.is_builtin(node.func)
            and isinstance(node.func, ast.Name)
            and node.func.id in PURE_BUILTINS
        )

    def _is_plain_class(self, node: ast.expr) -> bool:
        """Whether an expression names classes that `isinstance` asks without running code."""
        if isinstance(node, ast.Tuple):
            return all(self._is_plain_class(element) for element in node.elts)
        value = self._body.resolve(node)
        return type(value) is type

    def _is_known(self, node: ast.expr) -> bool:
        return self._body.callee(ast.Call(func=node, args=[], keywords=[])) is not None

    def _is_container(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and self._known.kinds.of(node) in CONTAINERS


assert all(hasattr(builtins, name) for name in PURE_BUILTINS)
