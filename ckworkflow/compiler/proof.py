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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ckworkflow.compiler.scope import BindingKind, Body, Comprehension, LocalName, short
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
        projected: The body takes parts of its value: what is recorded already must be the value itself.
    """

    lazy: bool
    reason: str
    at_root: bool = False
    projected: bool = False


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
        self._at_root = self._projected = False
        self.verdicts = {node: self._judge(node) for node in body.awaits}

    def is_lazy(self, node: ast.AST) -> bool:
        """Whether a node is an await that is lazy, as things stand."""
        return isinstance(node, ast.Await) and node in self.verdicts and self.verdicts[node].lazy

    def make_strict(self, node: ast.Await, reason: str) -> None:
        """Turn a lazy await: a real value may flow wherever a deferred one may."""
        self.verdicts[node] = Verdict(lazy=False, reason=reason)

    def deferred_names(self) -> set[str]:
        """Local names that may hold a deferred value, or a display or list with one in it."""
        found: set[str] = set()
        before = -1
        while before != len(found):
            before = len(found)
            for local in self._body.names.values():
                if any(b.value is not None and self._carries(b.value, found) for b in local.bindings):
                    found.add(local.name)
                for use in local.uses:
                    if (value := appended(self._body, use)) and self._carries(value, found):
                        found.add(local.name)
        return found

    def _carries(self, value: ast.expr, names: set[str]) -> bool:
        return any(
            self.is_lazy(node) or (isinstance(node, ast.Name) and node.id in names)
            for node in ast.walk(value)
        )

    def _judge(self, node: ast.Await) -> Verdict:
        body = self._body
        callee = body.callee(node.value)
        if callee is None or callee not in {*AWAITABLE, Callee.GATHER}:
            what = short(node.value.func if isinstance(node.value, ast.Call) else node.value)
            return Verdict(
                lazy=False, reason=f"`{what}` is not known to be a step, a workflow, sleep or gather"
            )
        why = self._place(node)
        if why is None and callee is Callee.GATHER and isinstance(node.value, ast.Call):
            why = self._gather(node.value)
        if why is None:
            self._seen.clear()
            self._at_root = self._projected = False
            why = self._fate(node, node)
        if why is not None:
            return Verdict(lazy=False, reason=why)
        return Verdict(
            lazy=True,
            reason="nothing looks at its value",
            at_root=self._at_root,
            projected=self._projected,
        )

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

    def _gather(self, call: ast.Call) -> str | None:
        """Why an awaited gather is strict as a whole for what it gathers."""
        for keyword in call.keywords:
            is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if keyword.arg != "return_exceptions" or not is_false:
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
        projected = False
        node: ast.AST = source
        while True:
            parent = body.parents[node]
            match parent:
                case ast.Attribute() | ast.Subscript() if self._is_part(node, parent, source):
                    projected = self._projected = True
                case ast.List(ctx=ast.Load()) | ast.Tuple(ctx=ast.Load()):
                    pass
                case ast.Dict() if _is_dict_value(node, parent):
                    pass
                case ast.keyword() if parent.arg is not None:
                    pass
                case ast.Attribute() if isinstance(node, ast.Name) and appended(body, node) is not None:
                    return None
                case ast.Call():
                    return self._argument_fate(node, parent, origin, source if projected else None)
                case ast.Return():
                    return self._returned(source, parent) if projected else None
                case ast.Expr() if node is source and isinstance(node, ast.Await):
                    return None
                case ast.Assign() | ast.AnnAssign():
                    return self._assigned_fate(node, parent, source, projected=projected)
                case _:
                    return self._looks(node, origin)
            node = parent

    def _argument_fate(
        self, node: ast.AST, call: ast.Call, origin: ast.expr, part_of: ast.expr | None
    ) -> str | None:
        """Who looks at an argument; `part_of` is the value that it is a part of, if it is one."""
        body = self._body
        where = f"`{short(call)}` (line {call.lineno})"
        if (list_name := _append_target(body, call)) is not None:
            if part_of is not None:
                return f"{where} must raise here if it has no such value"
            return self._name_fate(list_name)
        if body.callee(call) is not Callee.STEP:
            return self._looks(node, origin)
        if isinstance(body.parents[call], ast.Await):
            if any(isinstance(child, Comprehension) for child, _ in body.ancestors(call)):
                return f"{where} stands inside a comprehension"
            return None if part_of is None else self._next_fate(part_of, call)
        if not _is_gathered(body, call):
            return f"{where} is not awaited where it is called"
        return None if part_of is None else f"{where} must raise before its siblings start"

    def _next_fate(self, source: ast.expr, call: ast.Call) -> str | None:
        """Why a part may not be an argument of an awaited step: something may come before it."""
        if any(isinstance(inner, ast.Await) for inner in ast.walk(call)):
            return f"`{short(call)}` (line {call.lineno}) awaits in its arguments"
        return self._overtaken(source, call) or self._delayed(source, call)

    def _is_part(self, node: ast.AST, whole: ast.Attribute | ast.Subscript, source: ast.expr) -> bool:
        """Whether an expression takes a part of a step's result, by a name or a constant."""
        if not isinstance(whole.ctx, ast.Load) or not self._is_step(source):
            return False
        if isinstance(whole, ast.Attribute):
            return not _is_called(self._body, whole) and not whole.attr.startswith("_")
        return node is whole.value and _is_constant(whole.slice)

    def _is_step(self, source: ast.expr) -> bool:
        """Whether a value is what a step gave, and not what the body of another workflow made of it."""
        local = self._body.local(source) if isinstance(source, ast.Name) else None
        values = [source] if local is None else [binding.value for binding in local.bindings]
        return all(self._comes_from_step(value) for value in values)

    def _comes_from_step(self, value: ast.expr | None) -> bool:
        if not isinstance(value, ast.Await) or not isinstance(value.value, ast.Call):
            return False
        call = value.value
        callee = self._body.callee(call)
        if callee is Callee.GATHER:
            return all(self._body.callee(member) is Callee.STEP for member in gather_members(call))
        return callee is Callee.STEP

    def _returned(self, source: ast.expr, top: ast.Return) -> str | None:
        """Why a projection in a return value is strict: an error must arise in the body where Python raises it."""
        for child, parent in self._body.ancestors(top):
            if isinstance(parent, ast.Try | ast.TryStar) and child not in parent.finalbody:
                return f"`{short(top)}` (line {top.lineno}) stands inside a try"
        self._at_root = True
        return self._overtaken(source, top)

    def _delayed(self, source: ast.expr, call: ast.Call) -> str | None:
        """Why a projection is strict: another await may come between it and the await that gives its value."""
        where = f"`{short(call)}` (line {call.lineno})"
        local = self._body.local(source) if isinstance(source, ast.Name) else None
        if local is None or len(local.bindings) != 1 or local.bindings[0].value is None:
            return f"{where} takes a part of it, and it is not bound once"
        first, last = self._body.statement_of(local.bindings[0].value), self._body.statement_of(call)
        block = self._block_of(first)
        if last not in block or isinstance(
            last, ast.For | ast.While | ast.If | ast.With | ast.Try | ast.Match
        ):
            return f"{where} takes a part of it, and is not the next step"
        between = block[block.index(first) + 1 : block.index(last)]
        if (
            first is last
            or block.index(last) < block.index(first)
            or any(
                isinstance(inner, ast.Await) for statement in between for inner in ast.walk(statement)
            )
        ):
            return f"{where} takes a part of it, and is not the next step"
        return None

    def _block_of(self, statement: ast.stmt) -> list[ast.stmt]:
        parent = self._body.parents[statement]
        blocks = [value for _, value in ast.iter_fields(parent) if isinstance(value, list)]
        return next(block for block in blocks if statement in block)

    def _overtaken(self, source: ast.expr, top: ast.Call | ast.Return) -> str | None:
        """Why a projection is strict for what is evaluated after it: that must not raise before it does."""
        for child, parent in self._body.ancestors(source):
            later = list(_evaluated(parent))
            for sibling in later[later.index(child) + 1 :] if child in later else ():
                if not self._is_quiet(sibling):
                    return (
                        f"`{short(sibling)}` (line {top.lineno}) may raise before `{short(child)}` does"
                    )
            if parent is top:
                break
        return None

    def _is_quiet(self, node: ast.AST) -> bool:
        """Whether an expression raises nothing, or only what a projection of its own would raise."""
        match node:
            case ast.Constant() | ast.Name():
                return True
            case ast.Attribute(value=value) | ast.Subscript(value=value):
                is_projection = isinstance(node, ast.Attribute) or _is_constant(node.slice)
                return is_projection and self._is_awaited(value)
            case ast.FormattedValue(format_spec=None, value=value) | ast.keyword(value=value):
                return self._is_quiet(value)
            case ast.JoinedStr() | ast.List() | ast.Tuple() | ast.Dict():
                return all(self._is_quiet(part) for part in _evaluated(node))
        return False

    def _is_awaited(self, node: ast.expr) -> bool:
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        local = self._body.local(node) if isinstance(node, ast.Name) else None
        return local is not None and all(
            isinstance(binding.value, ast.Await) for binding in local.bindings
        )

    def _assigned_fate(
        self, node: ast.AST, statement: ast.Assign | ast.AnnAssign, source: ast.expr, *, projected: bool
    ) -> str | None:
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        where = f"`{short(statement)}` (line {statement.lineno})"
        if node is not statement.value or len(targets) != 1:
            return f"{where} gives it to more than one name"
        if projected:
            return f"{where} must raise here if it has no such value"
        target = targets[0]
        if isinstance(target, ast.Name):
            return self._target_fate(target, where)
        if isinstance(target, ast.Tuple | ast.List) and node is source and isinstance(node, ast.Await):
            return self._unpacked_fate(target, node, where)
        return f"{where} stores it"

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


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of an expression in the order in which Python evaluates them."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            # `**value` calls methods of the value.
            yield key if key is not None else ast.Starred(value, ast.Load())
            yield value
    else:
        yield from (
            child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr | ast.keyword)
        )


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
