"""What a body may evaluate while steps that it awaited are not yet recorded.

A lazy await lets tracing run ahead of the world. So before anything that could see the world, or be seen by it, the
body must wait; only what this module knows to be quiet goes on: calls of steps, workflows, sleep and gather; names;
displays; and operators, f-strings, subscripts and pure builtins on plain data. Whether a value is plain, and whether
it can change, is asked at run time, of the names involved; where names do not suffice the body waits in any case.

A judge walks expressions in the order Python evaluates them: after a strict await everything is recorded, and what
follows needs no fence.

Not here: statements and the order of control (`walk`).
"""

from __future__ import annotations

import ast
import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Final

from ckworkflow.compiler.owned import Owned, iterated
from ckworkflow.compiler.proof import AWAITABLE, Proof, appended, gather_members
from ckworkflow.compiler.scope import MISSING, Body, LocalName, short
from ckworkflow.compiler.sites import Callee

__all__ = ["Check", "Judge", "Knowledge", "Need"]

_PURE_BUILTINS: Final = frozenset(
    [
        "abs",
        "all",
        "any",
        "bool",
        "dict",
        "divmod",
        "enumerate",
        "float",
        "int",
        "isinstance",
        "len",
        "list",
        "max",
        "min",
        "range",
        "repr",
        "reversed",
        "round",
        "set",
        "sorted",
        "str",
        "sum",
        "tuple",
        "zip",
    ]
)
_CODE: Final = (FunctionType, BuiltinFunctionType, ModuleType, type)
_OPERATORS: Final = (
    ast.BinOp | ast.UnaryOp | ast.JoinedStr | ast.FormattedValue | ast.Slice | ast.Starred | ast.Set
)


class Check(enum.Enum):
    """A question to a name at run time; the answer yes makes the fence wait."""

    FOREIGN = "may not be a plain value"
    SHARED = "may be changed by a caller"
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
    proof: Proof
    owned: Owned


class Judge:
    """Judges the expressions of one statement, in the order Python evaluates them.

    Args:
        known: The body.
        settled: Whether all that was awaited is certainly recorded before it.

    Attributes:
        need: What must happen before the statement.
        settled: The same as the argument, at the end of what was judged.
        lazy: The lazy awaits met.
    """

    def __init__(self, known: Knowledge, *, settled: bool) -> None:
        self._body, self._proof, self._owned = known.body, known.proof, known.owned
        self._is_optional = False
        self.need = Need()
        self.settled = settled
        self.lazy: list[ast.Await] = []

    def fence(self, reason: str) -> None:
        """Ask for a fence without a condition, unless all is recorded here anyway."""
        if not self.settled and self.need.always is None:
            self.need.always = reason

    def touch(self, node: ast.expr | None) -> None:
        """Judge an expression whose value is only passed on."""
        if node is not None:
            self._judge(node, looks=False)

    def look(self, node: ast.expr | None) -> None:
        """Judge an expression whose value an operator, a builtin or a test looks into."""
        if node is not None:
            self._judge(node, looks=True)

    def sometimes(self, *nodes: ast.expr | None) -> None:
        """Judge what Python may never reach, and look into it."""
        before, was_optional = self.settled, self._is_optional
        self._is_optional = True
        for node in nodes:
            self.look(node)
        self.settled, self._is_optional = before, was_optional

    def store(self, target: ast.expr) -> None:
        """Judge a target of an assignment."""
        match target:
            case ast.Name(id=name):
                local = self._body.names.get(name)
                if local is None:
                    self.fence(f"`{name}` is not local: others see it change")
                elif local.is_captured:
                    self.fence(f"`{name}` is used in a nested function, which may see it change")
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                for element in elements:
                    self.store(element)
            case ast.Starred(value=value):
                self.store(value)
            case _:
                self.fence(f"`{short(target)}` is set on an object that may see it")

    # Expressions.

    def _judge(self, node: ast.expr, *, looks: bool) -> None:  # noqa: C901, PLR0912  # one line a kind of expression
        match node:
            case ast.Constant():
                pass
            case ast.Name():
                self._name(node, looks=looks)
            case ast.Await():
                self._await(node)
            case ast.Call():
                self._call(node, looks=looks)
            case ast.Attribute() | ast.Subscript():
                self._part(node, looks=looks)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                self._each(elements, looks=looks)
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    self.look(key)
                    self._judge(value, looks=looks or key is None)
            case ast.BoolOp(values=[first, *rest]):
                self.look(first)
                self.sometimes(*rest)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.look(test)
                self.sometimes(body)
                self.sometimes(orelse)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if isinstance(
                op, ast.Is | ast.IsNot
            ):
                self._each([left, right], looks=False)
            case ast.Compare(left=left, comparators=[first, *rest]):
                self._each([left, first], looks=True)
                self.sometimes(*rest)
            case (
                ast.ListComp(elt=element, generators=generators)
                | ast.SetComp(elt=element, generators=generators)
            ):
                self._turns(generators)
                self.sometimes(element)
            case ast.DictComp(key=key, value=value, generators=generators):
                self._turns(generators)
                self.sometimes(key, value)
            case _ if isinstance(node, _OPERATORS):
                self._each(
                    [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)],
                    looks=True,
                )
            case _:
                self.fence(f"`{short(node)}` may run code")

    def _each(self, nodes: Iterable[ast.expr], *, looks: bool) -> None:
        for node in nodes:
            self._judge(node, looks=looks)

    def _turns(self, generators: list[ast.comprehension]) -> None:
        """The loops of a comprehension: what they run over is plain data, so what they bind is, too."""
        self.iterate(generators[0].iter)
        for index, generator in enumerate(generators):
            if generator.is_async:
                self.fence("an asynchronous comprehension runs an iterator's code")
            self.sometimes(*([generator.iter] if index else []), *generator.ifs)
            if any(
                isinstance(part, ast.Attribute | ast.Subscript) for part in ast.walk(generator.target)
            ):
                self.fence(f"`{short(generator.target)}` is set on an object that may see it")

    def iterate(self, node: ast.expr) -> None:
        """Judge what is run over or unpacked; asked even where all is recorded, see `Owned.shared`."""
        for source in iterated(self._body, node):
            local = self._body.local(source) if isinstance(source, ast.Name) else None
            if isinstance(source, ast.Name) and local is not None and local.name in self._owned.names:
                self._ask(Check.FOREIGN, local.name, source)
        self.look(node)

    # Names.

    def _name(self, node: ast.Name, *, looks: bool) -> None:
        local = self._body.local(node)
        if local is not None:
            self._local(local, node, looks=looks)
        elif not self._body.is_comprehension_variable(node):  # what it runs over was looked into
            self._outer(node, looks=looks)

    def _local(self, local: LocalName, node: ast.Name, *, looks: bool) -> None:
        if local.is_rebound_inside:
            self.fence(f"`{local.name}` may be bound anew by a nested function")
        if self.settled:
            return
        if looks:
            self._ask(Check.FOREIGN, local.name, node)
        if local.name not in self._owned.names:
            self._ask(Check.LOOSE, local.name, node)
        elif local.name in self._owned.shared:
            self._ask(Check.SHARED, local.name, node)

    def _ask(self, check: Check, name: str, node: ast.Name) -> None:
        if self._body.is_bound_before(name, self._body.statement_of(node)):
            self.need.checks[check, name] = None
        else:
            self.fence(f"`{name}` {check.value}, and is not certainly bound before")

    def _outer(self, node: ast.Name, *, looks: bool) -> None:
        value = self._body.resolve(node)
        is_code = isinstance(value, _CODE) or self._is_callee(node)
        if value is MISSING or not (
            is_code or self._body.is_constant(node.id) or node.id in self._body.cells
        ):
            self.fence(f"`{node.id}` may be bound anew by someone else")
        elif looks and is_code:
            self.fence(f"`{short(node)}` is looked into")
        elif not self.settled and not is_code:
            self.need.checks[Check.LOOSE, node.id] = None
            if looks:
                self.need.checks[Check.FOREIGN, node.id] = None

    def _part(self, node: ast.Attribute | ast.Subscript, *, looks: bool) -> None:
        if self._proof.is_part(node):
            return  # of a value that may be deferred
        if isinstance(node, ast.Subscript):
            self.look(node.value)
            self.look(node.slice)
            return
        base = self._body.resolve(node.value)
        is_member = isinstance(base, enum.EnumMeta) and node.attr in base.__members__
        if looks or not (is_member or self._is_callee(node)):
            self.fence(f"`{short(node)}` may run code, or change")

    def _is_callee(self, node: ast.expr) -> bool:
        return self._body.callee(ast.Call(func=node, args=[], keywords=[])) is not None

    # Calls.

    def _await(self, node: ast.Await) -> None:
        call = node.value
        if isinstance(call, ast.Call) and self._body.callee(call) in {*AWAITABLE, Callee.GATHER}:
            self._durable(call)
            for member in gather_members(call) if self._body.callee(call) is Callee.GATHER else ():
                if self._body.callee(member) not in AWAITABLE:
                    self.fence(f"`{short(member)}` begins to run")
        else:
            self.touch(call)
            self.fence(f"`{short(node)}` awaits something unknown")
        if self._proof.is_lazy(node):
            self.lazy.append(node)
            self.settled = False
        elif not self._is_optional:
            self.settled = True

    def _durable(self, call: ast.Call) -> None:
        """The call of a step, workflow, sleep or gather: only its arguments are evaluated."""
        gathers = self._body.callee(call) is Callee.GATHER
        before = len(self.lazy)
        for argument in call.args:
            match argument:
                case ast.Starred(value=ast.ListComp() | ast.GeneratorExp() as loop) if gathers:
                    self._repeated(loop)
                case ast.Starred(value=value):
                    self.iterate(value)
                case ast.Call() if gathers and self._body.callee(argument) in {
                    *AWAITABLE,
                    Callee.GATHER,
                }:
                    self._durable(argument)
                case _:
                    self.touch(argument)
        for keyword in call.keywords:
            if keyword.arg is None:
                self.iterate(keyword.value)
            else:
                self.touch(keyword.value)
        if len(self.lazy) > before and not gathers and not all(map(self._is_still, _parts_of(call))):
            self.fence(f"`{short(call)}` stores its arguments after an await among them")

    def _is_still(self, node: ast.AST) -> bool:
        """Whether a part of an argument is the same when all arguments are there."""
        if isinstance(node, ast.Name):
            local = self._body.local(node)
            return local is not None and local.name in self._owned.names - self._owned.shared
        return isinstance(
            node,
            ast.Constant | ast.List | ast.Tuple | ast.Dict | ast.keyword | ast.expr_context | ast.Await,
        )

    def _repeated(self, loop: ast.ListComp | ast.GeneratorExp) -> None:
        call = loop.elt
        if not (isinstance(call, ast.Call) and self._body.callee(call) in AWAITABLE):
            self.fence(f"`{short(loop)}` may run code")
            return
        self._turns(loop.generators)
        before = self.settled
        self._durable(call)
        self.settled = before

    def _call(self, node: ast.Call, *, looks: bool) -> None:
        callee = self._body.callee(node)
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        receiver = node.func.value if isinstance(node.func, ast.Attribute) else None
        if callee in AWAITABLE and not looks:
            self._durable(node)
        elif callee is Callee.PURE or self._body.resolve(node.func) is timedelta:
            self._each([*node.args, *(keyword.value for keyword in node.keywords)], looks=True)
        elif name in _PURE_BUILTINS and self._body.is_builtin(node.func) and not node.keywords:
            classes = node.args[1:] if name == "isinstance" else []
            for argument in node.args:
                if not (argument in classes and self._is_plain_class(argument)):
                    self._judge(argument, looks=True)
        elif isinstance(receiver, ast.Name) and appended(self._body, receiver) is not None:
            self.touch(receiver)
            self.touch(node.args[0])
        else:
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                self.touch(argument)
            why = "reads the clock" if callee is Callee.NOW else ""
            self.fence(f"`{short(node)}` {why}" if why else f"it calls `{short(node.func)}`")

    def _is_plain_class(self, node: ast.expr) -> bool:
        """Whether an expression names classes that `isinstance` asks without running code."""
        if isinstance(node, ast.Tuple):
            return all(self._is_plain_class(element) for element in node.elts)
        return type(self._body.resolve(node)) is type


def _parts_of(call: ast.Call) -> Iterator[ast.AST]:
    """The nodes of a call's arguments; an await among them is one, whatever it awaits."""
    pending: list[ast.AST] = [*call.args, *call.keywords]
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, ast.Await):
            pending.extend(ast.iter_child_nodes(node))
