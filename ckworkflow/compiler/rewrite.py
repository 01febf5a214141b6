"""The rewritten body: lazy awaits, fences and guards written into a copy of its tree.

Generated code reaches the trace only through two closure cells, never through a global that a user
could see or shadow:

- `__ckw__`: `lazy(awaitable)`, `lazy_parts(awaitable)`, `lazy_at_root(awaitable)`, `callee(function)`, `fence()`, `foreign(*values)`, `shared(*values)`,
  `safe_global(value)`, `in_child()`, `lend(value)`, `alive()`, `guarded(manager)`,
  `guarded_async(manager)`;
- `__ckw_turns__`: a loop that fences its turns.

Every new node carries the position of what it stands for, so tracebacks and coverage show the file
as it was written.

Not here: any decision.
"""

from __future__ import annotations

import ast
from typing import Final, TypeVar

from ckworkflow.compiler.fences import Check, Knowledge, Need
from ckworkflow.compiler.flow import Decisions, TurnFence
from ckworkflow.compiler.proof import AWAITABLE
from ckworkflow.compiler.scope import MISSING
from ckworkflow.compiler.sites import Callee
from ckworkflow.compiler.source import Scope

__all__ = ["OPS", "TURNS", "is_guardable", "rewrite"]

OPS: Final = "__ckw__"
TURNS: Final = "__ckw_turns__"

_POSITIONED: Final = (
    ast.stmt | ast.expr | ast.ExceptHandler | ast.arg | ast.keyword | ast.alias | ast.pattern
)

_Node = TypeVar("_Node", bound=ast.AST)


def rewrite(known: Knowledge, decisions: Decisions, *, lends: bool) -> ast.AsyncFunctionDef:
    """Write the decisions into a copy of a body.

    Args:
        known: The body.
        decisions: Where its fences stand.
        lends: Whether the trace wants to hear of values that leave the body while the world may
            change them (`__ckw__.lend`).

    Returns:
        Its definition without defaults, annotations and decorators: those belong to the function
        object. One stand-in decorator keeps the first line.
    """
    return _Rewriter(known, decisions, lends=lends).function()


def is_guardable(known: Knowledge, node: ast.AST) -> bool:
    """Whether an abandoned body can be kept from running a handler's code; `except*` over all cannot."""
    if not isinstance(node, ast.TryStar):
        return True
    return all(_is_ordinary(known, handler.type) for handler in node.handlers)


class _Rewriter:
    def __init__(self, known: Knowledge, decisions: Decisions, *, lends: bool) -> None:
        self._known = known
        self._body = known.body
        self._decisions = decisions
        self._lent = decisions.lent if lends else set()
        self._tied = known.aliases.tied_parameters() if lends else []
        self._deferred = known.proof.deferred_names()

    def function(self) -> ast.AsyncFunctionDef:
        node = self._body.node
        body = node.body
        documented = ast.get_docstring(node, clean=False) is not None
        head = body[:1] if documented else []
        first = (body[len(head) :] or body)[0]
        lends = [_expression(_op("lend", _name(name)), first) for name in self._tied]
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
            body=[*head, *lends, *self._block(body[len(head) :])],
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
        return [*before, _place(self._own(node), node)]

    def _own(self, node: ast.stmt) -> ast.stmt:
        """A statement without the fence before it."""
        match node:
            case ast.If():
                return ast.If(self._copy(node.test), self._block(node.body), self._block(node.orelse))
            case ast.For() if (turns := self._decisions.turns.get(node)) is not None:
                return ast.AsyncFor(
                    target=self._copy(node.target),
                    iter=_place(self._fenced_turns(node.iter, turns), node.iter),
                    body=self._block(node.body),
                    orelse=self._block(node.orelse),
                )
            case ast.For() | ast.AsyncFor():
                return type(node)(
                    target=self._copy(node.target),
                    iter=self._copy(node.iter),
                    body=self._block(node.body),
                    orelse=self._block(node.orelse),
                )
            case ast.With() | ast.AsyncWith():
                guard = "guarded" if isinstance(node, ast.With) else "guarded_async"
                items = [
                    ast.withitem(
                        _place(_op(guard, self._copy(item.context_expr)), item.context_expr),
                        None if item.optional_vars is None else self._copy(item.optional_vars),
                    )
                    for item in node.items
                ]
                return type(node)(items=items, body=self._block(node.body))
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
        handlers = []
        for handler in node.handlers:
            body = self._block(handler.body)
            if not _is_ordinary(self._known, handler.type):
                leave = ast.If(ast.UnaryOp(ast.Not(), _op("alive")), [ast.Raise(None, None)], [])
                body.insert(0, _place(leave, handler))
            catches = None if handler.type is None else self._copy(handler.type)
            handlers.append(_place(ast.ExceptHandler(catches, handler.name, body), handler))
        final = self._block(node.finalbody)
        if final:
            final = [_place(ast.If(_op("alive"), final, []), node.finalbody[0])]
        return type(node)(
            body=self._block(node.body),
            handlers=handlers,
            orelse=self._block(node.orelse),
            finalbody=final,
        )

    def _case(self, case: ast.match_case) -> ast.match_case:
        guard = None if case.guard is None else self._copy(case.guard)
        return ast.match_case(case.pattern, guard, self._block(case.body))

    def _fenced_turns(self, iterable: ast.expr, turns: TurnFence) -> ast.expr:
        asks = [_ask(check, [name]) for check, name in turns.checks]
        if turns.caller:
            asks.append(_op("in_child"))
        watched: ast.expr = ast.Constant(turns.always is not None)
        if asks and turns.always is None:
            watched = asks[0] if len(asks) == 1 else ast.BoolOp(ast.Or(), asks)
        sources = ast.Tuple([self._copy(source) for source in turns.sources], ast.Load())
        options = {"sources": sources, "watched": watched, "deep": ast.Constant(turns.deep)}
        keywords = [ast.keyword(name, value) for name, value in options.items()]
        return ast.Call(_name(TURNS), [self._copy(iterable)], keywords)

    # Expressions.

    def _copy(self, node: _Node) -> _Node:
        copy = self._changed(node)
        if isinstance(copy, ast.expr) and node in self._lent:
            return _place(_op("lend", copy), node)  # type: ignore[return-value]
        return copy

    def _changed(self, node: _Node) -> _Node:
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
        lazy = self._known.proof.is_lazy(node)
        takes_deferred = callee is Callee.STEP and self._may_hold_deferred(node.value)
        if isinstance(node.value, ast.Call) and (lazy or takes_deferred or callee is Callee.GATHER):
            value = self._durable(node.value)
        else:
            value = self._copy(node.value)
        if not lazy:
            return _place(ast.Await(value), node)
        verdict = self._known.proof.verdicts[node]
        op = "lazy_at_root" if verdict.at_root else "lazy_parts" if verdict.projected else "lazy"
        return _place(ast.Await(_op(op, value)), node)

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

    def _may_hold_deferred(self, node: ast.AST) -> bool:
        return any(
            (isinstance(inner, ast.Name) and inner.id in self._deferred)
            or self._known.proof.is_lazy(inner)
            for inner in ast.walk(node)
        )


def _is_ordinary(known: Knowledge, node: ast.expr | None) -> bool:
    """Whether a handler surely lets pass what closes an abandoned body."""
    if isinstance(node, ast.Tuple):
        return all(_is_ordinary(known, element) for element in node.elts)
    value = MISSING if node is None else known.body.resolve(node)
    return isinstance(value, type) and issubclass(value, Exception)


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _op(name: str, *arguments: ast.expr) -> ast.expr:
    return ast.Call(ast.Attribute(_name(OPS), name, ast.Load()), list(arguments), [])


def _ask(check: Check, names: list[str]) -> ast.expr:
    values = [_name(name) for name in names]
    match check:
        case Check.FOREIGN:
            return _op("foreign", *values)
        case Check.SHARED:
            return _op("shared", *values)
        case Check.LOOSE:
            safe = [_op("safe_global", value) for value in values]
            return ast.UnaryOp(
                ast.Not(), safe[0] if len(safe) == 1 else ast.BoolOp(ast.And(), list(safe))
            )


def _condition(need: Need) -> ast.expr:
    asks = [
        _ask(check, names)
        for check in Check
        if (names := [name for asked, name in need.checks if asked is check])
    ]
    return asks[0] if len(asks) == 1 else ast.BoolOp(ast.Or(), asks)


def _fence_statement(need: Need, node: ast.stmt) -> ast.stmt:
    fence = _expression(ast.Await(_op("fence")), node)
    return fence if need.always is not None else _place(ast.If(_condition(need), [fence], []), node)


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
