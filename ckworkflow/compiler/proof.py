"""The laziness proof: which awaits give a value that the body provably never looks at.

Python cannot intercept `x is None` or `if x`, so a deferred value must never reach code that could
look at it. An await is a candidate only if every way its value can flow ends in an argument of an
awaited step, in the returned value, or nowhere. Whatever is not proved is strict: that costs a
continuation, and a wrong guess would cost the truth.

A projection (`channel.id`) must fail where Python would raise. So it may flow into the arguments of
the very step call it is written in, or into the returned value, and not into a name, a list or a
member of a gather, whose siblings would have started first.

Not here: what is evaluated beside an await (`fences`), which may make a candidate strict all the same.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ckworkflow.compiler.scope import MISSING, BindingKind, Body, Comprehension, LocalName, short
from ckworkflow.compiler.sites import Callee

__all__ = ["AWAITABLE", "Proof", "Verdict", "gather_members"]

AWAITABLE: Final = frozenset({Callee.STEP, Callee.WORKFLOW, Callee.SLEEP})
"""Calls whose await can be lazy, alone or as members of a gather."""

_FLOWING_BINDINGS: Final = frozenset(
    {BindingKind.ASSIGN, BindingKind.UNPACK, BindingKind.PARAMETER, BindingKind.LOOP}
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an await is lazy, and why, in words.

    Attributes:
        at_root: It is lazy only in the body of the run itself: inlined, nobody evaluates what it returns at its end.
    """

    lazy: bool
    reason: str
    at_root: bool = False


class Proof:
    """The verdicts on a body's awaits.

    Args:
        body: The body.

    Attributes:
        verdicts: By await; `make_strict` may still turn a lazy one.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        self._seen: set[str] = set()
        self._at_root = False
        self._parts: dict[ast.stmt, set[str]] = {}
        self.verdicts = {node: self._judge(node) for node in body.awaits}

    def is_lazy(self, node: ast.AST) -> bool:
        """Whether a node is an await that is lazy, as things stand."""
        return isinstance(node, ast.Await) and node in self.verdicts and self.verdicts[node].lazy

    def is_part(self, node: ast.Attribute | ast.Subscript) -> bool:
        """Whether an expression takes a part of a value that may be deferred, where the proof allows it."""
        name = _whole(node)
        return isinstance(name, ast.Name) and name.id in self.parts(self._body.statement_of(node))

    def parts(self, statement: ast.stmt) -> list[str]:
        """The names of which a statement takes parts while their values may be deferred."""
        return sorted(
            name
            for name in self._parts.get(statement, ())
            if self.is_lazy(self._body.names[name].bindings[0].value)  # type: ignore[arg-type]  # an await
        )

    def gives_parts(self, node: ast.Await) -> bool:
        """Whether the body takes parts of what an await gives: code, which beside other tasks must run in its turn."""
        names = {name for found in self._parts.values() for name in found}
        return any(self._body.names[name].bindings[0].value is node for name in names)

    def make_strict(self, node: ast.Await, reason: str) -> None:
        """Turn a lazy await: a real value may flow wherever a deferred one may."""
        self.verdicts[node] = Verdict(lazy=False, reason=reason)

    def _judge(self, node: ast.Await) -> Verdict:
        body = self._body
        callee = body.callee(node.value)
        why: str | None
        if callee is None or callee not in {*AWAITABLE, Callee.GATHER}:
            what = short(node.value.func if isinstance(node.value, ast.Call) else node.value)
            why = f"`{what}` is not known to be a step, a workflow, sleep or gather"
        else:
            self._seen.clear()
            self._at_root = False
            why = self._place(node) or self._gather(node.value) or self._fate(node, node)
        if why is not None:
            return Verdict(lazy=False, reason=why)
        return Verdict(lazy=True, reason="nothing looks at its value", at_root=self._at_root)

    def _place(self, node: ast.Await) -> str | None:
        """Why an await is strict for where it stands."""
        for child, parent in self._body.ancestors(node):
            match parent:
                case ast.With() | ast.AsyncWith() if child in parent.body:
                    head = short(parent)
                    return f"leaving `{head}` (line {parent.lineno}) may tell when it completes"
                case ast.AsyncFor() if child in parent.body:
                    return (
                        f"each turn of `{short(parent)}` (line {parent.lineno}) runs the iterator's code"
                    )
                case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                    return "it stands inside a comprehension"
                case ast.IfExp():
                    return "it stands inside a conditional expression"
                case ast.BoolOp():
                    return f"`{short(parent)}` looks at its value or may skip it"
        return None

    def _gather(self, call: ast.expr) -> str | None:
        """Why an awaited gather is strict as a whole for what it gathers."""
        if self._body.callee(call) is not Callee.GATHER or not isinstance(call, ast.Call):
            return None
        if call.keywords:
            return "return_exceptions turns failures into values"
        for member in gather_members(call):
            if self._body.callee(member) not in AWAITABLE:
                return f"its member `{short(member)}` is not known to be a step, a workflow or sleep"
        return None

    def _fate(self, source: ast.expr, origin: ast.expr) -> str | None:
        """Who looks at a value, in words; `None` if nobody does.

        Args:
            source: The await, or a use of a name that holds its value.
            origin: What to call the value in the answer.
        """
        body = self._body
        part: ast.Attribute | ast.Subscript | None = None
        node: ast.AST = source
        while True:
            parent = body.parents[node]
            match parent:
                case ast.Attribute() | ast.Subscript() if self._takes_part(node, parent, source):
                    part = parent
                case ast.List(ctx=ast.Load()) | ast.Tuple(ctx=ast.Load()):
                    pass
                case ast.Dict() if _is_dict_value(node, parent):
                    pass
                case ast.keyword() if parent.arg is not None:
                    pass
                case ast.Attribute() if isinstance(node, ast.Name) and appended(body, node) is not None:
                    return None
                case ast.Call():
                    return self._argument_fate(node, parent, origin, part)
                case ast.Return():
                    return None if part is None else self._part_fate(part, parent)
                case ast.Expr() if node is source and isinstance(node, ast.Await):
                    return None
                case ast.Assign() | ast.AnnAssign() if part is None:
                    return self._assigned_fate(node, parent, source)
                case _:
                    return self._looks(node, origin)
            node = parent

    def _argument_fate(
        self,
        node: ast.AST,
        call: ast.Call,
        origin: ast.expr,
        part: ast.Attribute | ast.Subscript | None,
    ) -> str | None:
        """Who looks at an argument."""
        body = self._body
        where = f"`{short(call)}` (line {call.lineno})"
        if (list_name := _append_target(body, call)) is not None:
            return self._name_fate(list_name) if part is None else f"{where} must raise here"
        if body.callee(call) is not Callee.STEP:
            return self._looks(node, origin)
        if isinstance(body.parents[call], ast.Await):
            if any(isinstance(child, Comprehension) for child, _ in body.ancestors(call)):
                return f"{where} stands inside a comprehension"
            return None if part is None else self._part_fate(part, call)
        if not _is_gathered(body, call):
            return f"{where} is not awaited where it is called"
        return None if part is None else f"{where} must raise before its siblings start"

    # Parts of a value.

    def _takes_part(self, node: ast.AST, part: ast.Attribute | ast.Subscript, source: ast.expr) -> bool:
        """Whether an expression takes a part of a step's result, by a name or a constant."""
        if not isinstance(part.ctx, ast.Load) or not isinstance(source, ast.Name):
            return False
        local = self._body.local(source)
        if local is None or len(local.bindings) != 1 or not self._is_copied(local.bindings[0].value):
            return False
        if isinstance(part, ast.Attribute):
            return not _is_called(self._body, part) and not part.attr.startswith("_")
        return node is part.value and _is_constant(part.slice)

    def _is_copied(self, value: ast.expr | None) -> bool:
        if not isinstance(value, ast.Await) or not isinstance(value.value, ast.Call):
            return False
        call = value.value
        members = gather_members(call) if self._body.callee(call) is Callee.GATHER else [call]
        return all(self._body.callee(member) is Callee.STEP for member in members)

    def _part_fate(self, part: ast.Attribute | ast.Subscript, top: ast.Call | ast.Return) -> str | None:
        """Why a part may not be taken of a deferred value.

        It is code that may raise and look at the world. So it may stand in the arguments of the next step, which looks
        for it at its claim, or in what the run's own body returns, which is worked out at its end; and beside it may
        stand only what raises nothing, or parts of the same value.
        """
        body = self._body
        where = f"`{short(top)}` (line {top.lineno})"
        name = _whole(part)
        assert isinstance(name, ast.Name)
        given = body.names[name.id].bindings[0].value
        assert given is not None
        if any(self._is_renamed(use) for use in body.names[name.id].uses):
            return f"{where} takes a part of it, and it has another name"
        for inner in _expressions(top.args if isinstance(top, ast.Call) else [top.value], top):
            if not self._is_quiet(inner, given):
                return f"{where} takes a part of it beside `{short(inner)}`, which may raise first"
        if isinstance(top, ast.Return):
            for child, parent in body.ancestors(top):
                if isinstance(parent, ast.Try | ast.TryStar) and child not in parent.finalbody:
                    return f"{where} stands inside a try"
            self._at_root = True
        elif not self._is_next(given, top):
            return f"{where} takes a part of it, and is not the next step of the same block"
        self._parts.setdefault(body.statement_of(top), set()).add(name.id)
        return None

    def _is_renamed(self, use: ast.Name) -> bool:
        """Whether a use puts the value into another name or list, which would keep its own copy of what the body gets."""
        node: ast.AST = use
        while isinstance(
            parent := self._body.parents[node], ast.List | ast.Tuple | ast.Dict | ast.keyword
        ):
            node = parent
        if isinstance(parent, ast.Call):
            return self._body.callee(parent) is not Callee.STEP
        return isinstance(parent, ast.Assign | ast.AnnAssign)

    def _is_next(self, given: ast.expr, call: ast.Call) -> bool:
        """Whether the step that takes a part of a value is the next one after that which gives it."""
        first, last = self._body.statement_of(given), self._body.statement_of(call)
        block = self._block_of(first)
        if not isinstance(last, ast.Expr | ast.Assign | ast.AnnAssign | ast.Return) or last not in block:
            return False
        between = block[block.index(first) + 1 : block.index(last)]
        only = [inner for inner in ast.walk(last) if isinstance(inner, ast.Await)]
        return (
            block.index(first) < block.index(last)
            and len(only) == 1
            and not any(isinstance(i, ast.Await) for statement in between for i in ast.walk(statement))
        )

    def _block_of(self, statement: ast.stmt) -> list[ast.stmt]:
        parent = self._body.parents[statement]
        blocks = [value for _, value in ast.iter_fields(parent) if isinstance(value, list)]
        return next(block for block in blocks if statement in block)

    def _is_quiet(self, node: ast.expr, given: ast.expr) -> bool:
        """Whether an expression raises nothing but what a part of a value would raise."""
        match node:
            case ast.Constant():
                return True
            case ast.Name():
                local = self._body.local(node)
                if local is None:
                    return self._body.resolve(node) is not MISSING
                return self._body.is_bound_before(local.name, node)
            case ast.Attribute() | ast.Subscript():
                whole = _whole(node)
                local = self._body.local(whole) if isinstance(whole, ast.Name) else None
                return local is not None and all(b.value is given for b in local.bindings)
        return False

    # Names.

    def _assigned_fate(
        self, node: ast.AST, statement: ast.Assign | ast.AnnAssign, source: ast.expr
    ) -> str | None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        where = f"`{short(statement)}` (line {statement.lineno})"
        if node is not statement.value or len(targets) != 1:
            return f"{where} gives it to more than one name"
        match targets[0]:
            case ast.Name() as target:
                return self._target_fate(target, where)
            case ast.Tuple() | ast.List() if node is source and isinstance(node, ast.Await):
                return self._unpacked_fate(targets[0], node, where)
            case ast.Tuple() | ast.List():
                return f"{where} unpacks it"
        return f"{where} stores it where other code may find it"

    def _unpacked_fate(self, target: ast.Tuple | ast.List, node: ast.Await, where: str) -> str | None:
        call = node.value
        if self._body.callee(call) is not Callee.GATHER or not isinstance(call, ast.Call):
            return f"{where} unpacks {self._title(node)}"
        is_plain = all(isinstance(element, ast.Name) for element in target.elts)
        if not is_plain or any(isinstance(argument, ast.Starred) for argument in call.args):
            return f"{where} unpacks a number of values that shows only at run time"
        if len(target.elts) != len(call.args):
            return f"{where} cannot unpack {len(call.args)} values"
        fates = [
            self._target_fate(element, where) for element in target.elts if isinstance(element, ast.Name)
        ]
        return next((fate for fate in fates if fate is not None), None)

    def _target_fate(self, target: ast.Name, where: str) -> str | None:
        if self._body.local(target) is None:
            return f"{where} stores it in a name that is not local"
        return self._name_fate(target.id)

    def _name_fate(self, name: str) -> str | None:
        # A name met again adds no look of its own: all that it flows into is being judged already.
        if name in self._seen:
            return None
        self._seen.add(name)
        return self._judge_name(self._body.names[name])

    def _judge_name(self, local: LocalName) -> str | None:
        if local.is_captured:
            return f"`{local.name}` is used in a nested function, class or generator"
        for binding in local.bindings:
            if binding.kind not in _FLOWING_BINDINGS:
                return f"`{local.name}` is also {binding.kind.value} (line {binding.line})"
        for use in local.uses:
            fate = self._fate(use, _origin(local) or use)
            if fate is not None:
                return fate
        return None

    def _looks(self, node: ast.AST, origin: ast.expr) -> str:
        statement = self._body.statement_of(node)
        return f"`{short(statement)}` (line {statement.lineno}) looks at {self._title(origin)}"

    def _title(self, origin: ast.expr) -> str:
        if isinstance(origin, ast.Await) and isinstance(origin.value, ast.Call):
            return f"the result of {short(origin.value.func)}"
        return f"`{short(origin)}`"


def gather_members(call: ast.Call) -> list[ast.expr]:
    """The members of a gather; of a starred comprehension, the call that it repeats."""
    members: list[ast.expr] = []
    for argument in call.args:
        inner = argument.value if isinstance(argument, ast.Starred) else argument
        repeated = inner.elt if isinstance(inner, ast.ListComp | ast.GeneratorExp) else inner
        members.append(repeated if isinstance(argument, ast.Starred) else argument)
    return members


def appended(body: Body, use: ast.Name) -> ast.expr | None:
    """What `out.append(…)` appends, if a use of a name is the `out` of such a statement.

    The name must be bound to list displays only: any other `append` is a method to be called.
    """
    attribute = body.parents[use]
    if not isinstance(attribute, ast.Attribute) or attribute.attr != "append":
        return None
    call = body.parents[attribute]
    if (
        not isinstance(call, ast.Call)
        or call.func is not attribute
        or not isinstance(body.parents[call], ast.Expr)
    ):
        return None
    local = body.local(use)
    is_list = local is not None and all(
        binding.kind is BindingKind.ASSIGN
        and isinstance(binding.value, ast.List)
        and len(getattr(body.statement_of(binding.value), "targets", ())) <= 1
        for binding in local.bindings
    )
    return call.args[0] if is_list and len(call.args) == 1 and not call.keywords else None


def _append_target(body: Body, call: ast.Call) -> str | None:
    if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
        name = call.func.value
        return name.id if appended(body, name) is not None else None
    return None


def _is_gathered(body: Body, call: ast.Call) -> bool:
    """Whether a call is a member of an awaited gather."""
    outer = body.parents[call]
    if isinstance(outer, ast.ListComp | ast.GeneratorExp) and call is outer.elt:
        outer = body.parents[outer]
        if not isinstance(outer, ast.Starred):
            return False
        outer = body.parents[outer]
    return (
        isinstance(outer, ast.Call)
        and body.callee(outer) is Callee.GATHER
        and isinstance(body.parents[outer], ast.Await)
    )


def _is_called(body: Body, node: ast.Attribute) -> bool:
    parent = body.parents[node]
    return isinstance(parent, ast.Call) and parent.func is node


def _whole(part: ast.expr) -> ast.expr:
    """What an expression takes a part of."""
    while isinstance(part, ast.Attribute | ast.Subscript):
        part = part.value
    return part


def _expressions(nodes: Iterable[ast.expr | None], call: ast.AST | None) -> Iterator[ast.expr]:
    """The parts of displays, and the keyword arguments of a call."""
    keywords = [keyword.value for keyword in call.keywords] if isinstance(call, ast.Call) else []
    for node in [*nodes, *keywords]:
        match node:
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                yield from _expressions(elements, None)
            case ast.Dict(keys=keys, values=values) if all(
                isinstance(key, ast.Constant) for key in keys
            ):
                yield from _expressions(values, None)
            case ast.expr():
                yield node


def _is_constant(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) in {str, int}


def _is_dict_value(node: ast.AST, display: ast.Dict) -> bool:
    return any(
        value is node and key is not None
        for key, value in zip(display.keys, display.values, strict=True)
    )


def _origin(local: LocalName) -> ast.expr | None:
    """The await that gives a name its value, if it is given by one alone."""
    values = [binding.value for binding in local.bindings if binding.kind is BindingKind.ASSIGN]
    return values[0] if len(values) == 1 and isinstance(values[0], ast.Await) else None
