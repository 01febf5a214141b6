"""The rewritten body: lazy awaits, fences written into a copy of its tree.

Generated code reaches the trace only through one closure cell, `__ckw__`, never through a global that a user could see
or shadow: `lazy(awaitable)`, `lazy_in_root(awaitable)`, `lazy_alone(awaitable)`, `lazy_at_root(awaitable)`, `callee(function)`, `fence()`, `foreign(*values)`,
`shared(*values)`, `loose(*values)`, `runs_code(*sources, owned=, deep=)`, `early(value)`, `real(value)`. Names that it adds to the body begin with `__ckw_`.

Every new node carries the position of what it stands for, so tracebacks and coverage show the file as it was written.

Not here: any decision.
"""

from __future__ import annotations

import ast
from typing import Final, TypeVar

from ckworkflow.compiler.proof import AWAITABLE
from ckworkflow.compiler.quiet import Check, Knowledge, Need
from ckworkflow.compiler.scope import own_nodes
from ckworkflow.compiler.sites import Callee
from ckworkflow.compiler.source import Scope
from ckworkflow.compiler.walk import Decisions, Turns

__all__ = ["OPS", "rewrite"]

OPS: Final = "__ckw__"

_POSITIONED: Final = (
    ast.stmt | ast.expr | ast.ExceptHandler | ast.arg | ast.keyword | ast.alias | ast.pattern
)

_Node = TypeVar("_Node", bound=ast.AST)


def rewrite(known: Knowledge, decisions: Decisions) -> ast.AsyncFunctionDef:
    """Write the decisions into a copy of a body.

    Returns:
        Its definition without defaults, annotations and decorators: those belong to the function object. One stand-in
        decorator keeps the first line.
    """
    return _Rewriter(known, decisions).function()


class _Rewriter:
    def __init__(self, known: Knowledge, decisions: Decisions) -> None:
        self._known = known
        self._body = known.body
        self._decisions = decisions
        tries = any(isinstance(node, ast.Try | ast.TryStar) for node in own_nodes(self._body.node))
        self._lazy = "lazy_in_root" if tries else "lazy"
        self._loops: list[
            ast.For
        ] = []  # those around, of which it is asked at run time whether they run code

    def function(self) -> ast.AsyncFunctionDef:
        node = self._body.node
        head = node.body[:1] if ast.get_docstring(node, clean=False) is not None else []
        arguments = ast.arguments(
            posonlyargs=[_bare(argument) for argument in node.args.posonlyargs],
            args=[_bare(argument) for argument in node.args.args],
            vararg=_bare(node.args.vararg) if node.args.vararg else None,
            kwonlyargs=[_bare(argument) for argument in node.args.kwonlyargs],
            kw_defaults=[None] * len(node.args.kwonlyargs),
            kwarg=_bare(node.args.kwarg) if node.args.kwarg else None,
            defaults=[],
        )
        copy = ast.AsyncFunctionDef(
            name=node.name,
            args=arguments,
            body=[*head, *self._block(node.body[len(head) :])],
            decorator_list=[_place(_name(OPS), decorator) for decorator in node.decorator_list],
            returns=None,
            type_comment=None,
        )
        if "type_params" in copy._fields:  # Python 3.12
            copy.type_params = []  # type: ignore[attr-defined,unused-ignore]
        return _place(copy, node)

    # Statements.

    def _block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        return [new for statement in statements for new in self._statement(statement)]

    def _statement(self, node: ast.stmt) -> list[ast.stmt]:
        need = self._decisions.fences.get(node)
        if isinstance(node, ast.While):
            return [self._while(node, need)]
        before = [] if need is None else [_fence_statement(need, node)]
        for name in self._known.proof.parts(node):
            before += _parts_statements(name, node)
        if isinstance(node, ast.For) and (turns := self._decisions.turns.get(node)) is not None:
            return [*before, *self._for(node, turns)]
        return [*before, _place(self._own(node), node)]

    def _for(self, node: ast.For, turns: Turns) -> list[ast.stmt]:
        """A loop of which it is asked at run time whether its turns run code; then its awaits are strict."""
        iterable, sources = self._copy(node.iter), turns.sources
        before: list[ast.stmt] = []
        if not isinstance(sources[0], ast.Name):
            held = f"__ckw_iterable_{node.lineno}_{node.col_offset}"
            before.append(ast.Assign([ast.Name(held, ast.Store())], iterable))
            iterable, sources = _name(held), (_name(held),)
        asks = _op(
            "runs_code", *(_name(source.id) for source in sources if isinstance(source, ast.Name))
        )
        options = {"owned": turns.owned, "deep": turns.deep}
        asks.keywords.extend(ast.keyword(name, ast.Constant(value)) for name, value in options.items())
        before.append(ast.Assign([ast.Name(_flag(node), ast.Store())], asks))
        before.append(ast.If(_name(_flag(node)), [ast.Expr(ast.Await(_op("fence")))], []))
        self._loops.append(node)
        body = self._block(node.body)
        self._loops.pop()
        loop = ast.For(self._copy(node.target), iterable, body, self._block(node.orelse))
        return [_place(statement, node) for statement in [*before, loop]]

    def _own(self, node: ast.stmt) -> ast.stmt:
        """A statement without the fence before it."""
        match node:
            case ast.If():
                return ast.If(self._copy(node.test), self._block(node.body), self._block(node.orelse))
            case ast.For() | ast.AsyncFor():
                return type(node)(
                    target=self._copy(node.target),
                    iter=self._copy(node.iter),
                    body=self._block(node.body),
                    orelse=self._block(node.orelse),
                )
            case ast.With() | ast.AsyncWith():
                return type(node)(
                    items=[self._copy(item) for item in node.items], body=self._block(node.body)
                )
            case ast.Try() | ast.TryStar():
                return self._try(node)
            case ast.Match():
                return ast.Match(self._copy(node.subject), [self._case(case) for case in node.cases])
        return self._copy(node)

    def _while(self, node: ast.While, need: Need | None) -> ast.While:
        test = self._copy(node.test)
        if need is not None:
            # A fence gives None, so `else`, `break` and `continue` stay what they were.
            waits: ast.expr = ast.Await(_op("fence"))
            if need.always is None:
                waits = ast.BoolOp(ast.And(), [_condition(need), waits])
            test = _place(ast.BoolOp(ast.Or(), [waits, test]), node.test)
        return _place(ast.While(test, self._block(node.body), self._block(node.orelse)), node)

    def _try(self, node: ast.Try | ast.TryStar) -> ast.stmt:
        handlers = [
            _place(
                ast.ExceptHandler(
                    None if handler.type is None else self._copy(handler.type),
                    handler.name,
                    self._block(handler.body),
                ),
                handler,
            )
            for handler in node.handlers
        ]
        return type(node)(
            body=self._block(node.body),
            handlers=handlers,
            orelse=self._block(node.orelse),
            finalbody=self._block(node.finalbody),
        )

    def _case(self, case: ast.match_case) -> ast.match_case:
        guard = None if case.guard is None else self._copy(case.guard)
        return ast.match_case(case.pattern, guard, self._block(case.body))

    # Expressions.

    def _copy(self, node: _Node) -> _Node:
        if isinstance(node, Scope):
            return node  # nested functions stay as they are
        if isinstance(node, ast.Await):
            return self._await(node)  # type: ignore[return-value]
        fields: dict[str, object] = {}
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.AST):
                fields[name] = self._copy(value)
            elif isinstance(value, list):
                fields[name] = [
                    self._copy(item) if isinstance(item, ast.AST) else item for item in value
                ]
            else:
                fields[name] = value
        return ast.copy_location(type(node)(**fields), node)

    def _await(self, node: ast.Await) -> ast.expr:
        callee = self._body.callee(node.value)
        if isinstance(node.value, ast.Call) and callee in {*AWAITABLE, Callee.GATHER}:
            value: ast.expr = self._durable(node.value)
        else:
            value = self._copy(node.value)
        if self._known.proof.is_lazy(node):
            at_root = self._known.proof.verdicts[node].at_root
            lazy = "lazy_alone" if self._known.proof.gives_parts(node) else self._lazy
            value = _op("lazy_at_root" if at_root else lazy, value)
            if self._loops:
                flags: list[ast.expr] = [_name(_flag(loop)) for loop in self._loops]
                value.args.append(flags[0] if len(flags) == 1 else ast.BoolOp(ast.Or(), flags))
        return _place(ast.Await(value), node)

    def _durable(self, call: ast.Call) -> ast.expr:
        """A call of a step, workflow, sleep or gather whose callee is asked again at run time."""
        gathers = self._body.callee(call) is Callee.GATHER
        copy = ast.Call(
            func=_place(_op("callee", self._copy(call.func)), call.func),
            args=[self._member(argument) if gathers else self._copy(argument) for argument in call.args],
            keywords=[self._copy(keyword) for keyword in call.keywords],
        )
        return _place(copy, call)

    def _member(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Starred):
            inner = node.value
            if isinstance(inner, ast.ListComp | ast.GeneratorExp):
                generators = [self._copy(generator) for generator in inner.generators]
                repeated = type(inner)(elt=self._member(inner.elt), generators=generators)
                return _place(ast.Starred(_place(repeated, inner), ast.Load()), node)
        elif isinstance(node, ast.Call) and self._body.callee(node) in {*AWAITABLE, Callee.GATHER}:
            return self._durable(node)
        return self._copy(node)


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _flag(loop: ast.For) -> str:
    return f"__ckw_runs_code_{loop.lineno}_{loop.col_offset}"


def _op(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Attribute(_name(OPS), name, ast.Load()), list(arguments), [])


def _condition(need: Need) -> ast.expr:
    asks: list[ast.expr] = [
        _op(check.name.lower(), *map(_name, names))
        for check in Check
        if (names := [name for asked, name in need.checks if asked is check])
    ]
    return asks[0] if len(asks) == 1 else ast.BoolOp(ast.Or(), asks)


def _fence_statement(need: Need, node: ast.stmt) -> ast.stmt:
    fence = _expression(ast.Await(_op("fence")), node)
    return fence if need.always is not None else _place(ast.If(_condition(need), [fence], []), node)


def _parts_statements(name: str, node: ast.stmt) -> list[ast.stmt]:
    """Before a statement takes parts of what a name holds: the value itself, if all that was awaited is recorded."""
    fence = ast.If(_op("early", _name(name)), [ast.Expr(ast.Await(_op("fence")))], [])
    real = ast.Assign([ast.Name(name, ast.Store())], _op("real", _name(name)))
    return [_place(fence, node), _place(real, node)]


def _expression(value: ast.expr, origin: ast.stmt) -> ast.stmt:
    return _place(ast.Expr(value), origin)


def _bare(argument: ast.arg) -> ast.arg:
    return ast.copy_location(ast.arg(argument.arg, None), argument)


def _place(node: _Node, origin: ast.AST) -> _Node:
    """Give a new node, and the new ones in it, the position of what they stand for."""
    pending: list[ast.AST] = [node]
    while pending:
        new = pending.pop()
        if isinstance(new, _POSITIONED) and not hasattr(new, "lineno"):
            ast.copy_location(new, origin)
            if isinstance(new, ast.Attribute):
                # Python takes the last line of a method's name for the line of its call.
                new.end_lineno, new.end_col_offset = new.lineno, new.col_offset
        pending.extend(child for child in ast.iter_child_nodes(new) if not hasattr(child, "lineno"))
    return node
